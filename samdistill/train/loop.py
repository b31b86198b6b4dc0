"""The training loop: steps, schedule, validation, checkpoints, resume. Strategies give it what to minimise.

Everything random is a function of the seed and the step, so a run that was killed and resumed computes, on a
CPU, exactly what the uninterrupted one would have. Knows no strategy and no command line.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn

from samdistill.metrics import dice_per_class
from samdistill.train.config import OptimiserConfig, TrainConfig
from samdistill.train.data import FrameStore, whole_frames
from samdistill.train.losses import IGNORE, SegmentationLoss
from samdistill.train.run import Run

WARM_UP_SHARE = 0.05


class Objective(Protocol):
    """What a strategy minimises in one phase of training."""

    def loss(self, student: nn.Module, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        """The scalar loss of a step, and numbers for the log."""
        ...


class Listener(Protocol):
    """Who watches a run: the command line's progress, a test, nobody."""

    def on_start(self, phase: str, first_step: int, total_steps: int) -> None: ...
    def on_step(self, step: int, loss: float) -> None: ...
    def on_epoch(self, record: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Validation:
    """The student on the validation images: mean loss, and the mean Dice over classes, then images."""

    loss: float
    dice: float


def validate(student: nn.Module, store: FrameStore, loss: SegmentationLoss, batch: int) -> Validation:
    """Measure a student on whole frames, in the model frame, mask threshold 0.5."""
    device = next(student.parameters()).device
    losses, scores = [], []
    student.eval()
    with torch.no_grad():
        for frames in whole_frames(store, batch):
            logits = student(frames.pixels.to(device)).cpu()
            losses.append(float(loss(logits, frames.targets)) * len(frames.indices))
            masks, targets = (logits > 0).numpy(), frames.targets.numpy()
            for mask, target in zip(masks, targets, strict=True):
                scores.append(dice_per_class(mask, target == 1, ignore=target[0] == IGNORE).mean())
    student.train()
    return Validation(sum(losses) / len(scores), float(np.mean(scores)))


def fit(
    run: Run,
    fabric: Fabric,
    student: nn.Module,
    objective: Objective,
    validation: FrameStore,
    *,
    epoch_steps: int,
    listener: Listener,
    phase: str = "supervised",
) -> None:
    """Minimise an objective; the run folder then holds the best student.

    Parameters
    ----------
    run
        Where checkpoints and log go; a checkpoint of the same phase there is continued.
    student
        Changed in place; holds the last weights when done, not the best.
    epoch_steps
        Optimiser steps between two validations.

    Raises
    ------
    FloatingPointError
        When the loss is no longer finite.
    """
    config = run.config
    total = config.max_steps or config.max_epochs * epoch_steps
    optimiser = torch.optim.AdamW(
        student.parameters(), lr=config.optimiser.learning_rate, weight_decay=config.optimiser.weight_decay
    )
    model, optimiser_ = fabric.setup(student, optimiser)
    progress = _Progress(config.optimiser.learning_rate)
    if (run.path / "last.safetensors").is_file():
        tensors, state = run.load_tensors("last")
        _restore(student, optimiser, tensors)
        progress = _Progress(**state)
    loss_of = SegmentationLoss(config.bce_weight)
    run.write_log(progress.history)
    listener.on_start(phase, progress.step, total)
    while progress.step < total and not progress.over(config):
        started, losses = time.perf_counter(), []
        model.train()
        for step in range(progress.step, min(progress.step + epoch_steps, total)):
            rate = _rate(config.optimiser, step, total, progress.plateau_rate)
            for group in optimiser.param_groups:
                group["lr"] = rate
            torch.manual_seed(hash((config.seed, step)) % 2**63)
            loss, _ = objective.loss(model, step)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"the loss became {value} at step {step}; lower optimiser.learning_rate "
                    "or use precision fp32."
                )
            optimiser_.zero_grad()
            fabric.backward(loss)
            optimiser_.step()
            losses.append(value)
            listener.on_step(step + 1, value)
        # One process measures for all: each has batch statistics of its own, and all must stop together.
        own = validate(student, validation, loss_of, config.batch) if fabric.global_rank == 0 else None
        measured = fabric.broadcast(own)
        assert measured is not None
        progress.finish_epoch(measured, len(losses), config.optimiser)
        record = {
            "phase": phase,
            "epoch": progress.epoch,
            "step": progress.step,
            "train_loss": float(np.mean(losses)),
            "val_loss": measured.loss,
            "val_dice": measured.dice,
            "lr": rate,
            "seconds": round(time.perf_counter() - started, 3),
        }
        progress.history.append(record)
        if fabric.global_rank == 0:
            _save(run, student, optimiser, progress)
        fabric.barrier()
        listener.on_epoch(record)


@dataclass
class _Progress:
    """Where a run stands: all of the loop's state but the tensors, as plain values."""

    plateau_rate: float
    step: int = 0
    epoch: int = 0
    best_epoch: int = 0
    best_dice: float = -1.0
    best_loss: float = math.inf
    lowest_loss: float = math.inf
    epochs_since_lowest: int = 0
    history: list[dict[str, Any]] | Any = None

    def __post_init__(self) -> None:
        self.history = [] if self.history is None else self.history

    def finish_epoch(self, measured: Validation, steps: int, config: OptimiserConfig) -> None:
        self.step += steps
        self.epoch += 1
        if (measured.dice, -measured.loss) > (self.best_dice, -self.best_loss):
            self.best_epoch, self.best_dice, self.best_loss = self.epoch, measured.dice, measured.loss
        if measured.loss < self.lowest_loss:
            self.lowest_loss, self.epochs_since_lowest = measured.loss, 0
        else:
            self.epochs_since_lowest += 1
            if self.epochs_since_lowest % (config.plateau_patience + 1) == 0:
                self.plateau_rate = max(self.plateau_rate * 0.5, config.min_learning_rate)

    def over(self, config: TrainConfig) -> bool:
        return config.max_steps is None and self.epochs_since_lowest >= config.early_stop


def _rate(config: OptimiserConfig, step: int, total: int, plateau_rate: float) -> float:
    """The learning rate of a step."""
    if config.schedule == "plateau":
        return plateau_rate
    warm = max(1, round(WARM_UP_SHARE * total))
    if step < warm:
        return config.learning_rate * (step + 1) / warm
    share = (step - warm) / max(1, total - warm)
    low = config.min_learning_rate
    return low + (config.learning_rate - low) * 0.5 * (1 + math.cos(math.pi * share))


def _save(run: Run, student: nn.Module, optimiser: torch.optim.Optimizer, progress: _Progress) -> None:
    """Write the best student first: a kill between the two only makes the resumed run write it again."""
    weights = student.state_dict()
    if progress.best_epoch == progress.epoch:
        run.save("student", weights, {"epoch": progress.epoch, "val_dice": progress.best_dice})
    tensors = {f"student.{key}": value for key, value in weights.items()}
    for index, values in optimiser.state_dict()["state"].items():
        tensors.update({f"optimiser.{index}.{key}": value for key, value in values.items()})
    run.save("last", tensors, vars(progress))
    run.write_log(progress.history)


def _restore(student: nn.Module, optimiser: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    student.load_state_dict(
        {key.removeprefix("student."): value for key, value in tensors.items() if key.startswith("student.")}
    )
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimiser."):
            _, index, name = key.split(".")
            state.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
