"""Dice against the number of labels: supervised students on phantoms, at equal optimiser steps.

    python benchmarks/learning_curve.py [--kinds endoscopy ultrasound xray] [--steps 800] [--seeds 0]

Trains `--preset light` at 96 px with label budgets of 20, 60 and 200 images (validation included) out of one
data folder and scores the best student on 80 phantoms of another series. Resumable, cell by cell: finished
cells are read from the results. Writes results/learning_curve.json and docs/images/learning_curve.png.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Quiet, machine

from samdistill.evaluation import evaluate
from samdistill.export.bundle import export_run
from samdistill.io.dataset import open_dataset
from samdistill.io.files import write_text
from samdistill.phantoms.folder import write
from samdistill.predictor import Predictor
from samdistill.train.config import load_config
from samdistill.train.launch import train

RESULTS = Path(__file__).parent / "results" / "learning_curve.json"
PICTURE = Path(__file__).parent.parent / "docs" / "images" / "learning_curve.png"
LABELS = (20, 60, 200)


def cell(kind: str, labels: int, seed: int, steps: int, folder: Path) -> dict[str, Any]:
    """Train and score one student."""
    run = folder / f"{kind}-{labels}-{seed}"
    config = load_config(
        preset="light",
        overrides={"student.size": 96, "labels": labels, "max_steps": steps, "seed": seed},
    )
    trained = train(folder / kind, run, config, Quiet(), device="cpu")
    export_run(run, folder / f"bundle-{kind}-{labels}-{seed}")
    predictor = Predictor.load(folder / f"bundle-{kind}-{labels}-{seed}")
    unseen = open_dataset(folder / f"{kind}-unseen", class_names=predictor.class_names)
    scores = evaluate(predictor, unseen.labelled)
    dice = scores.metrics["dice"]
    return {
        "kind": kind, "labels": labels, "seed": seed, "steps": steps, "images": len(scores.cases),
        "dice": dice.mean, "low": dice.low, "high": dice.high,
        "seconds": trained.record.result["seconds"],
    }  # fmt: skip


def draw(cells: list[dict[str, Any]]) -> None:
    """Plot the mean over seeds with the bootstrap interval over images."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for kind in dict.fromkeys(one["kind"] for one in cells):
        rows = [[one for one in cells if one["kind"] == kind and one["labels"] == n] for n in LABELS]
        done = [(n, row) for n, row in zip(LABELS, rows, strict=True) if row]
        mean = [np.mean([one["dice"] for one in row]) for _, row in done]
        low = [np.mean([one["low"] for one in row]) for _, row in done]
        high = [np.mean([one["high"] for one in row]) for _, row in done]
        (line,) = axes.plot([n for n, _ in done], mean, "o-", label=kind)
        axes.fill_between([n for n, _ in done], low, high, alpha=0.15, color=line.get_color())
    axes.set(xscale="log", xlabel="label budget, images", ylabel="Dice on 80 unseen phantoms", ylim=(0, 1))
    axes.set_xticks(LABELS, [str(n) for n in LABELS])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(PICTURE, dpi=110)


def main() -> None:
    """Fill the table, then draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=["endoscopy", "ultrasound", "xray"])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cells = json.loads(RESULTS.read_text())["cells"] if RESULTS.is_file() else []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for kind in arguments.kinds:
            for seed in arguments.seeds:
                for labels in LABELS:
                    key = {"kind": kind, "labels": labels, "seed": seed, "steps": arguments.steps}
                    if any(key.items() <= one.items() for one in cells):
                        continue
                    if not (folder / kind).exists():
                        write(folder / kind, kind, 240, seed=1)
                        write(folder / f"{kind}-unseen", kind, 80, seed=2)
                    cells.append(cell(kind, labels, seed, arguments.steps, folder))
                    write_text(
                        RESULTS,
                        json.dumps(
                            {"machine": machine(), "threads": arguments.threads, "cells": cells}, indent=1
                        )
                        + "\n",
                    )
                    print({k: v for k, v in cells[-1].items() if k != "images"}, flush=True)
    draw(cells)


if __name__ == "__main__":
    main()
