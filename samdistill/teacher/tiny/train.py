"""Train the embedded teacher: `python -m samdistill.teacher.tiny.train --data DATA --out FOLDER --hours 2`.

Stages, each a share of the time: the encoder alone with every pixel supervised, prompts on smaller
pictures (a quarter of the cost; no weight depends on the size), prompts at full size. The rate falls with
the time spent, not with steps, since how many steps fit depends on the machine. A checkpoint is kept every
few minutes and a run started again in the same folder goes on where it stopped. Under torchrun the
processes share each step; on a CPU that other work keeps busy, one process a core with one thread each is
several times faster than one process with as many threads. Where the system clears each page that it gives
again, that can take a third of a step: let glibc keep what is freed, at 5 GB a process after half an hour
(GLIBC_TUNABLES=glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=8589934592).
Needs the extras `train` and `test` (opencv draws).
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, IterableDataset

from samdistill.io.files import atomic_write
from samdistill.teacher.tiny import load, save
from samdistill.teacher.tiny.model import SIZE, WIDTH, build, set_side
from samdistill.teacher.tiny.recipe import (
    DenseHead,
    box_score,
    dense_loss,
    metrics,
    normalise,
    promptable_loss,
)
from samdistill.teacher.tiny.samples import Sampler, cache_pictures

SHARES = {"pictures": 0.30, "nuclei": 0.25, "nerves": 0.38, "fetal_head": 0.07}


@dataclass(frozen=True)
class Stage:
    """One part of the training, until that share of the time is spent."""

    until: float
    side: int
    batch: int  # images a process and step
    objects: dict[str, int]  # prompt sets an image of each set
    prompts: bool
    dense: float  # weight of the dense phase's loss


FOUR = dict.fromkeys(SHARES, 4)
MANY = {"pictures": 4, "nuclei": 12, "nerves": 4, "fetal_head": 2}
STAGES = (
    Stage(until=0.08, side=128, batch=16, objects=FOUR, prompts=False, dense=1.0),
    Stage(until=0.32, side=128, batch=8, objects=FOUR, prompts=True, dense=0.3),
    Stage(until=0.70, side=128, batch=8, objects=FOUR, prompts=True, dense=0.3),
    Stage(until=0.84, side=128, batch=8, objects=FOUR, prompts=True, dense=0.3),
    Stage(until=1.00, side=256, batch=6, objects=FOUR, prompts=True, dense=0.3),
)
FURTHER = (Stage(until=1.00, side=256, batch=4, objects=MANY, prompts=True, dense=0.0),)


class Stream(IterableDataset[dict[str, torch.Tensor]]):
    """Endless batches; the worker reads the pictures itself."""

    def __init__(self, data: Path, cache: Path, stage: Stage, seed: int, rank: int) -> None:
        self.data, self.cache, self.stage, self.seed, self.rank = data, cache, stage, seed, rank

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        import cv2

        cv2.setNumThreads(1)
        rng = np.random.default_rng(self.seed + self.rank)
        # All processes draw of the same sets, so that none waits for one with more objects.
        kinds = np.random.default_rng(self.seed)
        stage = self.stage
        sampler = Sampler(self.data, self.cache, objects=stage.objects, shares=SHARES, side=stage.side)
        while True:
            yield collate([sampler.draw(rng, sampler.kind(kinds)) for _ in range(stage.batch)])


def collate(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Join samples: images stacked, objects of all images in one row, `owner` naming each one's image."""
    join = {"targets": np.concatenate, "boxes": np.concatenate}
    batch = {key: torch.from_numpy(join.get(key, np.stack)([s[key] for s in samples])) for key in samples[0]}
    batch["owner"] = torch.from_numpy(np.repeat(np.arange(len(samples)), [len(s["boxes"]) for s in samples]))
    return batch


def learning_rate(progress: float, peak: float) -> float:
    """Short warm-up, then a straight line down to a fiftieth."""
    warm = min(1.0, progress / 0.01 + 0.02)
    return peak * warm * max(0.02, 1 - progress)


def agreed(seconds: float) -> float:
    """Return the first process's clock, so that all take the same decisions."""
    value = torch.tensor([seconds], dtype=torch.float64)
    if dist.is_initialized():
        dist.broadcast(value, 0)
    return float(value)


def share_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Average the gradients over the processes."""
    if not dist.is_initialized():
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    parts = torch.split(flat / dist.get_world_size(), [g.numel() for g in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


class Trainer:
    """The network, its optimiser and the running average that is kept, with the time spent on them."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        torch.manual_seed(args.seed)
        model = load(args.weights)[0] if args.weights else build()
        self.model = model.to(memory_format=torch.channels_last)
        self.head = DenseHead(WIDTH)
        self.stages = FURTHER if args.weights else STAGES
        self.parameters = [*self.model.parameters(), *self.head.parameters()]
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=args.rate, betas=(0.9, 0.98), weight_decay=0.03
        )
        self.averaged = {key: value.clone() for key, value in self.model.state_dict().items()}
        self.spent, self.step, self.best = 0.0, 0, 0.0
        self.log: list[dict[str, float]] = []
        self.clock = time.monotonic()
        if (args.out / "last.pt").exists():
            self.resume(torch.load(args.out / "last.pt", weights_only=True))

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.model.load_state_dict(state["model"])
        self.head.load_state_dict(state["head"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.averaged, self.spent, self.step = state["averaged"], state["spent"], state["step"]
        self.best = state["best"]

    def save(self, name: str) -> None:
        """Write a checkpoint, whole or not at all."""
        state = {
            "model": self.model.state_dict(),
            "head": self.head.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "averaged": self.averaged,
            "spent": self.spent,
            "step": self.step,
            "best": self.best,
        }
        with atomic_write(self.args.out / name) as temporary:
            torch.save(state, temporary)

    def save_weights(self, name: str) -> None:
        """Write the running average as it ships, without what training alone needs."""
        with atomic_write(self.args.out / name) as temporary:
            save(self.averaged, temporary)

    def run(self, stage: Stage) -> None:
        """Train until the stage's share of the time is spent."""
        set_side(self.model, stage.side)
        seed = 1000 * (self.args.seed + self.step)
        generator = torch.Generator().manual_seed(seed + self.rank)
        stream = Stream(self.args.data, self.args.out / "cache", stage, seed, self.rank)
        check = self.held_out_batches(stage) if stage.prompts and self.rank == 0 else {}
        start = time.monotonic() - self.spent
        # Spawned: opencv's threads do not survive a fork.
        loader = DataLoader(
            stream, batch_size=None, num_workers=1, prefetch_factor=4, multiprocessing_context="spawn"
        )
        for batch in loader:
            self.spent = agreed(time.monotonic() - start)
            progress = self.spent / (3600 * self.args.hours)
            if progress >= stage.until:
                break
            for group in self.optimiser.param_groups:
                group["lr"] = learning_rate(progress, self.args.rate)
            self.update(batch, stage, generator)
            if self.rank == 0 and self.step % 50 == 0:
                self.tell()
            if self.rank == 0 and self.step % 400 == 0:
                self.save("last.pt")
                self.validate(check, stage)

    def update(self, batch: dict[str, torch.Tensor], stage: Stage, generator: torch.Generator) -> None:
        """Take one step."""
        with torch.autocast("cpu", torch.bfloat16):
            pixels = normalise(self.model, batch["image"], batch["content"])
            embeddings = self.model.image_encoder(pixels)
            loss, parts = torch.zeros(()), dict[str, float]()
            if stage.dense:
                dense = dense_loss(self.model, self.head, embeddings, batch, generator)
                loss, parts = stage.dense * dense, {"dense": float(dense.detach())}
            if stage.prompts:
                prompted, more = promptable_loss(self.model, embeddings, batch, generator)
                loss, parts = loss + prompted, {**parts, **more}
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        share_gradients(self.parameters)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        if not torch.isfinite(norm):
            return
        self.optimiser.step()
        self.step += 1
        self.log.append(parts)
        decay = min(0.998, 1 - 1 / (self.step / 10 + 1))
        with torch.no_grad():
            for key, value in self.model.state_dict().items():
                self.averaged[key].lerp_(value, 1 - decay)

    def held_out_batches(self, stage: Stage) -> dict[str, dict[str, torch.Tensor]]:
        """Draw a fixed batch of each kind of held-out picture."""
        cache, batches = self.args.out / "cache", {}
        for name in SHARES:
            sampler = Sampler(
                self.args.data, cache, objects={name: 3}, shares={name: 1.0}, side=stage.side, hold_out=True
            )
            rng = np.random.default_rng(1)
            batches[name] = collate([sampler.draw(rng, name) for _ in range(24)])
        return batches

    def validate(self, batches: dict[str, dict[str, torch.Tensor]], stage: Stage) -> None:
        """Score the running average on held-out pictures and keep it where it is the best at full size."""
        if not batches:
            return
        current = {key: value.clone() for key, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.averaged)
        generator = torch.Generator().manual_seed(0)
        scores = {name: box_score(self.model, batch, generator) for name, batch in batches.items()}
        self.model.load_state_dict(current)
        mean = sum(scores.values()) / len(scores)
        print("held out", {k: round(v, 3) for k, v in scores.items()}, f"mean {mean:.4f}", flush=True)  # noqa: T201
        if stage.side == SIZE and mean > self.best:
            self.best = mean
            self.save("best.pt")

    def tell(self) -> None:
        """Print the means since the last time."""
        pace = len(self.log) / (time.monotonic() - self.clock)
        print(  # noqa: T201
            f"{self.step} {self.spent / 60:.1f} min {pace:.2f} steps/s {metrics(self.log)}", flush=True
        )
        self.log, self.clock = [], time.monotonic()


def main() -> None:
    """Train until the time is spent."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of nuclei, nerves and fetal_head")
    parser.add_argument("--out", type=Path, required=True, help="folder for pictures and checkpoints")
    parser.add_argument("--hours", type=float, required=True)
    parser.add_argument("--pictures", type=int, default=6000, help="drawn first, where none are cached")
    parser.add_argument("--weights", type=Path, help="go on from these; best with a lower rate")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo")
    trainer = Trainer(args)
    if trainer.rank == 0 and not list((args.out / "cache").glob("pictures_*_images.npy")):
        cache_pictures(args.out / "cache", args.seed + 1, args.pictures)
    agreed(0.0)  # the others wait for the pictures
    for stage in trainer.stages:
        trainer.run(stage)
    if trainer.rank == 0:
        trainer.save("final.pt")
        trainer.save_weights("tiny.safetensors")


if __name__ == "__main__":
    main()
