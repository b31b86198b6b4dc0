"""What continuous mining costs: steps beside supervised ones, and the cached teacher beside an encoder run.

    python benchmarks/bench_mining_cost.py [--size 96] [--rounds 15] [--vit-b]

In one process, in turns, one thread: an optimiser step of the supervised student, of `mine` with embeddings
from the cache and of `mine --literal-views`, all over the same number of images; and what the teacher adds to
a visit: encoder + decoder against cached embedding + decoder. `--vit-b` measures ViT-B's encoder once (random
weights compute as long as trained ones) and computes the same ratio for it. Writes results/mining_cost.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from harness import machine, save  # sets one thread, so it comes before numpy

from samdistill.intensity import IntensityRule
from samdistill.io.dataset import open_dataset
from samdistill.phantoms.folder import write
from samdistill.refine import MINE, refine
from samdistill.teacher import load_teacher
from samdistill.teacher.cache import EmbeddingCache
from samdistill.train.config import load_config
from samdistill.train.data import Batches, FrameStore
from samdistill.train.embedded import EmbeddedCases
from samdistill.train.losses import SegmentationLoss
from samdistill.train.mixed import Mixed
from samdistill.train.pseudo import LiteralRefiner, TeacherRefiner
from samdistill.train.sources import Continuous, ContinuousViews
from samdistill.train.strategies.supervised import Supervised
from samdistill.train.student import Student, build_student

RESULTS = Path(__file__).parent / "results" / "mining_cost.json"
BATCH = 8


def interleaved(calls: dict[str, Callable[[int], object]], rounds: int) -> dict[str, float]:
    """Median processor seconds of each call, all called in turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            started = time.thread_time()
            call(number)
            if number:  # the first round warms up
                times[name].append(time.thread_time() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def warmed(student: Student, batches: Batches, loss: SegmentationLoss) -> None:
    """Train a little, so that the student finds something to prompt with."""
    optimiser = torch.optim.AdamW(student.parameters(), lr=3e-3)
    objective = Supervised(batches, loss)
    student.train()
    for step in range(60):
        value, _ = objective.loss(student, step)
        optimiser.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimiser.step()


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--vit-b", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(preset="light", overrides={"student.size": options.size})
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write(folder / "data", "endoscopy", 48, seed=1)
        cases = open_dataset(folder / "data").cases
        store = FrameStore(cases, options.size, IntensityRule())
        teacher = load_teacher("tiny")
        embedded = EmbeddedCases(teacher, EmbeddingCache(folder / "cache"), cases, IntensityRule())
        embedded.fill(range(len(cases)), lambda done, total: None)
        torch.manual_seed(0)
        student, _ = build_student(config.student, 1)
        loss = SegmentationLoss(config.bce_weight)
        views = {
            images: Batches(store, options.size, images, config.augment, seed=0, stream=images)
            for images in (BATCH, BATCH // 2)
        }
        warmed(student, views[BATCH], loss)
        half = views[BATCH // 2]
        objectives = {
            "supervised": Supervised(views[BATCH], loss),
            "continuous": Mixed(
                half, half, Continuous(store, TeacherRefiner(embedded, MINE), config.pseudo), loss, 0.25
            ),
            "literal": Mixed(
                half, half, ContinuousViews(LiteralRefiner(teacher, MINE), config.pseudo), loss, 0.25
            ),
        }
        skipped = float(objectives["continuous"].loss(student, 0)[1]["pseudo_skipped"])
        assert skipped < 0.5, "most images must have a pseudo label, or nothing is measured"

        def step(name: str) -> Callable[[int], object]:
            def take(number: int) -> None:
                student.zero_grad(set_to_none=True)
                objectives[name].loss(student, number)[0].backward()  # type: ignore[no-untyped-call]

            return take

        steps = interleaved({name: step(name) for name in objectives}, options.rounds)
        images = [IntensityRule().apply(case.read_image()) for case in cases[:BATCH]]
        truth = [case.read_masks().astype(np.float32) for case in cases[:BATCH]]
        fresh = refine(teacher, teacher.embed(images), truth, MINE)
        kept = refine(teacher, [embedded[index] for index in range(BATCH)], truth, MINE)
        overlap = [np.mean(a.masks == b.masks) for a, b in zip(fresh, kept, strict=True)]
        assert min(overlap) > 0.995, f"fp16 embeddings must give the same masks, not {overlap}"
        visit = interleaved(
            {
                "encoder": lambda number: teacher.embed(images),
                "cached embedding": lambda number: [embedded[index] for index in range(BATCH)],
                "prompts and decoder": lambda number: refine(
                    teacher, [embedded[index] for index in range(BATCH)], truth, MINE
                ),
            },
            options.rounds,
        )
    encoders = {"tiny": visit["encoder"] / BATCH}
    if options.vit_b:
        from segment_anything import sam_model_registry

        encoder = sam_model_registry["vit_b"]().image_encoder.eval()
        with torch.no_grad():
            started = time.thread_time()
            encoder(torch.zeros(1, 3, 1024, 1024))
        encoders["sam_vit_b"] = time.thread_time() - started
    result = {
        "machine": machine(),
        "size": options.size,
        "batch": BATCH,
        "seconds_a_step": steps,
        "continuous_over_supervised": steps["continuous"] / steps["supervised"],
        "literal_over_supervised": steps["literal"] / steps["supervised"],
        "teacher_seconds_a_visit": {name: value / BATCH for name, value in visit.items()},
        "encoder_over_cached_embedding": {
            name: seconds / (visit["cached embedding"] / BATCH) for name, seconds in encoders.items()
        },
        "visit_with_encoder_over_cached": {
            name: 1 + seconds / (visit["prompts and decoder"] / BATCH) for name, seconds in encoders.items()
        },
        "encoder_seconds": encoders,
    }
    save(result, RESULTS)
    print(json.dumps({key: value for key, value in result.items() if key != "machine"}, indent=1))
    assert result["continuous_over_supervised"] <= 1.5


if __name__ == "__main__":
    main()
