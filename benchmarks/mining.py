"""Students with few labels: every strategy at equal optimiser steps, several label shares, several seeds.

    python benchmarks/mining.py --name polyps --data DATA [--shares 0.1] [--seeds 0 1 2] [--methods ...]
    python benchmarks/mining.py --name endoscopy [--kind KIND] [...]    phantoms, made on the way

The papers' protocol: for each seed a fixed split, whose test part is scored and never trained on; label
shares are shares of what is not in the test part and pay for validation too; every method takes the same
number of optimiser steps (`--steps`); `once`, `burden` and the rounds spend theirs in phases. The student
kept is the last one, for all alike: with a handful of validation images the best one is chosen by chance.
Differences to `supervised` are paired over the test images of all seeds, with a bootstrap interval.

Resumable: a finished cell is read from the results. `--teacher sam_vit_h:PATH --preset paper --shares 0.5
0.75` is the setting of the papers' tables, for who has the weights and the data. Writes
results/mining_<name>.json and .md, and docs/images/mining_<name>.png.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Quiet, machine

from samdistill.io.dataset import Case
from samdistill.io.files import write_text
from samdistill.metrics import dice_per_class
from samdistill.phantoms.folder import write
from samdistill.statistics import paired_difference
from samdistill.teacher.tiny import WEIGHTS
from samdistill.train.config import load_config
from samdistill.train.launch import train
from samdistill.train.pseudo import predict_maps
from samdistill.train.run import Run

HERE = Path(__file__).parent
SHARES = {"pseudo.weight": 1.0, "pseudo.supervised_share": 0.15, "pseudo.labelled_share": 0.25}
SELECTED = {"refine.prompts.keep": "largest", "pseudo.min_iou": 0.75, **SHARES}
"""Chosen on polyps, seed 0: one component, and only pseudo labels that the teacher thinks well of."""

EACH = {
    "refine.prompts.per_component": True, "refine.prompts.min_area_px": 16, "refine.prompts.points": "none",
    "pseudo.min_iou": 0.85, **SHARES,
}  # fmt: skip
"""Chosen on endoscopy phantoms, seed 0, which show one to three lesions: a box for each component."""

ADMITTING = {
    "samdsk.beta": 0.7, "samdsk.proposals.points_per_side": 8, "samdsk.proposals.predicted_iou": 0.0,
    "samdsk.proposals.stability": 0.0, "samdsk.proposals.box_iou": 0.7,
    "samdsk.rounds": 2, "samdsk.last_share": 0.5,
}  # fmt: skip
"""For `tiny`, whose scores run lower than SAM's (at beta 0.9 no polyp image is admitted, see admission.py),
and for few steps: the first student of three rounds would be too weak to be matched with."""

METHODS: dict[str, dict[str, Any]] = {
    "supervised": {},
    "pseudo-label": {"strategy": "pseudo-label"},
    "pseudo-label, confident": {"strategy": "pseudo-label", "pseudo.min_confidence": 0.9},
    "pseudo-label, equal shares": {"strategy": "pseudo-label", "pseudo.min_confidence": 0.9, **SHARES},
    "mine": {"strategy": "mine"},
    "mine once": {"strategy": "mine", "pseudo.schedule": "once"},
    "mine, selected": {"strategy": "mine", **SELECTED},
    "mine, each component": {"strategy": "mine", **EACH},
    "mine once, selected": {"strategy": "mine", "pseudo.schedule": "once", **SELECTED},
    "mine, selected, literal": {"strategy": "mine", "pseudo.literal_views": True, **SELECTED},
    "mine, selected, box": {"strategy": "mine", "refine.prompts.points": "none", **SELECTED},
    "mine, selected, points": {"strategy": "mine", "refine.prompts.box": False, **SELECTED},
    "mine, selected, with mask": {"strategy": "mine", "refine.prompts.mask_logits": True, **SELECTED},
    "mine, selected, SimCLR": {"strategy": "mine", "pretrain": "simclr", **SELECTED},
    "burden": {"strategy": "burden"},
    "burden, with labels": {"strategy": "burden", "pseudo.labelled_share": 0.5, "pseudo.loss": "dice-bce"},
    "random walker": {"strategy": "burden", "pseudo.refiner": "random-walker"},
    "mean-teacher": {"strategy": "mean-teacher"},
    "ua-mt": {"strategy": "ua-mt"},
    "semisam-mt": {"strategy": "semisam"},
    "semisam-ua-mt": {"strategy": "semisam-ua-mt"},
    "cps": {"strategy": "cps"},
    "fixmatch": {"strategy": "fixmatch"},
    "samdsk, as printed": {"strategy": "samdsk"},
    "samdsk": {"strategy": "samdsk", **ADMITTING},
    "samdsk hard": {"strategy": "samdsk", "samdsk.iou": "hard", **ADMITTING},
    "samdsk, continued": {"strategy": "samdsk", "samdsk.retrain": False, **ADMITTING},
    "ups": {"strategy": "ups"},
    "bcp": {"strategy": "bcp"},
}


def score(run: Run, cases: list[Case]) -> list[float]:
    """Dice of the run's student on each case, mean over classes."""
    student = run.load_student()
    scores = []
    for case in cases:
        image = run.intensity.apply(case.read_image())
        (maps,) = predict_maps(student, [image], run.config.student.size, 1)
        truth, ignored = case.read_labels()
        scores.append(round(float(dice_per_class(maps > 0.5, truth, ignore=ignored).mean()), 4))
    return scores


def cell(data: Path, key: dict[str, Any], options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train and score one student."""
    overrides = {
        "student.size": options.size,
        "student.encoder": options.encoder,
        "labels": key["share"],
        "max_steps": options.steps,
        "seed": key["seed"],
        **({} if options.batch is None else {"batch": options.batch}),
        "teacher": options.teacher,
        "keep": "last",
        **METHODS[key["method"]],
    }
    config = load_config(preset=options.preset, overrides=overrides)
    run = train(data, folder, config, Quiet(), device=options.device, cache=options.cache, audit=True)
    test = run.cases()["test"]
    scores = score(run, test)
    history = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    teacher = hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()[:12] if options.teacher == "tiny" else ""
    told = {k: round(v, 4) for k, v in history[-1].items() if k.startswith(("pseudo_", "agree"))}
    return {
        **key,
        "steps": run.record.result["steps"],
        **{k: v for k, v in run.record.result.items() if k.startswith("teacher_switched_off")},
        "images": {part: len(ids) for part, ids in run.record.split.items()},
        "dice": round(float(np.mean(scores)), 4),
        "seconds": run.record.result["seconds"],
        "teacher_sha256": teacher,
        "last_epoch": told,
        "scores": scores,
        "groups": [case.group for case in test],
    }


def summary(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds, and the difference to the supervised student."""
    rows = []
    for share in sorted({one["share"] for one in cells}):
        of_share = [one for one in cells if one["share"] == share]
        base = {one["seed"]: one for one in of_share if one["method"] == "supervised"}
        for method in METHODS:
            own = sorted((one for one in of_share if one["method"] == method), key=lambda one: one["seed"])
            if not own:
                continue
            paired = [one for one in own if one["seed"] in base]
            difference = paired_difference(
                [score for one in paired for score in one["scores"]],
                [score for one in paired for score in base[one["seed"]]["scores"]],
                # A patient in the test parts of two splits is still one patient.
                groups=[name for one in paired for name in one.get("groups") or _alone(one)],
            )
            dice = [one["dice"] for one in own]
            rows.append({
                "share": share, "method": method, "seeds": len(own), "dice": float(np.mean(dice)),
                "deviation": float(np.std(dice, ddof=1)) if len(dice) > 1 else None,
                "gain": difference.mean, "low": difference.low, "high": difference.high,
                "seconds": float(np.median([one["seconds"] for one in own])),
            })  # fmt: skip
    return rows


def _alone(one: dict[str, Any]) -> list[str]:
    """Names for the test images of a cell that was made when none were kept."""
    return [f"{one['seed']}/{index}" for index in range(len(one["scores"]))]


def commands(options: argparse.Namespace, cells: list[dict[str, Any]]) -> list[str]:
    """The calls that make the table, each of the methods tried on the same shares and seeds."""
    tried: dict[frozenset[tuple[float, int]], list[str]] = {}
    for method in METHODS:
        on = frozenset((one["share"], one["seed"]) for one in cells if one["method"] == method)
        if on:
            tried.setdefault(on, []).append(method)
    calls = []
    for on, methods in tried.items():
        given = {
            **vars(options),
            "shares": sorted({share for share, _ in on}),
            "seeds": sorted({seed for _, seed in on}),
            "methods": methods if "supervised" in methods else ["supervised", *methods],
        }
        words = ["python", "benchmarks/mining.py"]
        for name, value in given.items():
            values = (
                value if isinstance(value, list) else [name.upper() if isinstance(value, Path) else value]
            )
            words += [f"--{name}", *map(str, values)] if value is not None else []
        calls.append(shlex.join(words))
    return calls


def markdown(name: str, rows: list[dict[str, Any]], steps: int, calls: list[str]) -> str:
    """The table for people."""
    lines = [
        f"# {name}: Dice on unseen images, {steps} optimiser steps each",
        "",
        *(line for call in calls for line in (f"`{call}`", "")),
        "| labels | method | Dice, mean (sd over seeds) | against supervised, points (95 % interval) "
        "| seeds | train s |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        deviation = "" if row["deviation"] is None else f" ({row['deviation']:.3f})"
        gain = (
            ""
            if row["method"] == "supervised"
            else f"{100 * row['gain']:+.1f} ({100 * row['low']:+.1f} to {100 * row['high']:+.1f})"
        )
        lines.append(
            f"| {row['share']:g} | {row['method']} | {row['dice']:.3f}{deviation} | {gain} | {row['seeds']} |"
            f" {row['seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def draw(name: str, rows: list[dict[str, Any]], path: Path) -> None:
    """Dice of each method, with the spread over seeds; one panel a label share."""
    from matplotlib.figure import Figure

    shares = sorted({row["share"] for row in rows})
    methods = [method for method in METHODS if any(row["method"] == method for row in rows)][::-1]
    height = 0.9 + 0.24 * len(methods)
    figure = Figure(figsize=(2.4 + 3.2 * len(shares), height), layout="constrained")
    panels = figure.subplots(1, len(shares), sharey=True, squeeze=False)[0]
    for axes, share in zip(panels, shares, strict=True):
        own = [row for row in rows if row["share"] == share]
        # A share may lack methods: a place belongs to a method in all panels.
        places = [methods.index(row["method"]) for row in own]
        axes.errorbar(
            [row["dice"] for row in own], places, xerr=[row["deviation"] or 0 for row in own],
            fmt="o", capsize=3, color="#1f4e79",
        )  # fmt: skip
        axes.axvline(next(row["dice"] for row in own if row["method"] == "supervised"), color="0.6", lw=1)
        axes.set_ylim(-0.6, len(methods) - 0.4)
        most = max(row["seeds"] for row in own)
        # A method of fewer splits is not to be compared by its mean: it says so, and is drawn hollow.
        for place, row in zip(places, own, strict=True):
            if row["seeds"] < most:
                axes.plot(row["dice"], place, "o", mfc="white", color="#1f4e79", zorder=3)
                axes.annotate(
                    f"{row['seeds']} of {most} splits", (row["dice"], place), xytext=(0, 5), fontsize=7,
                    textcoords="offset points", ha="center",
                )  # fmt: skip
        axes.set_yticks(range(len(methods)), methods)
        axes.set(xlabel="Dice, mean and sd over seeds", title=f"{name}, {100 * share:g} % of the labels")
        axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Fill the table cell by cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--name", required=True)
    parser.add_argument("--data", type=Path, help="data folder; none: 600 phantoms")
    parser.add_argument("--kind", help="of those phantoms; none: --name")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=["supervised", "mine, selected"], choices=METHODS)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, help="images a step; none: the preset's")
    parser.add_argument("--preset", default="light")
    parser.add_argument("--encoder")
    parser.add_argument("--teacher", default="tiny")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cache", type=Path, help="folder of the teacher's embeddings")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if "supervised" not in options.methods:
        parser.error("--methods must have supervised among them, since all are held against it")
    torch.set_num_threads(options.threads)
    results = HERE / "results" / f"mining_{options.name}.json"
    settings = {name: getattr(options, name) for name in ("steps", "size", "preset", "encoder", "teacher")}
    if options.batch is not None:
        settings["batch"] = options.batch
    done = json.loads(results.read_text()) if results.is_file() else {"settings": settings, "cells": []}
    if done["settings"] != settings:
        parser.error(f"{results} was made with {done['settings']}; give another --name or the same settings")
    results.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        data = options.data
        if data is None:
            data = Path(temporary) / "data"
            write(data, options.kind or options.name, 600, seed=1)
        for seed in options.seeds:
            for share in options.shares:
                for method in options.methods:
                    key = {"method": method, "share": share, "seed": seed}
                    if any(key.items() <= one.items() for one in done["cells"]):
                        continue
                    with tempfile.TemporaryDirectory() as run:
                        done["cells"].append(cell(data, key, options, Path(run) / "run"))
                    rows = summary(done["cells"])
                    table = {**done, "machine": machine(), "threads": options.threads, "summary": rows}
                    write_text(results, json.dumps(table) + "\n")
                    told = markdown(options.name, rows, options.steps, commands(options, done["cells"]))
                    write_text(results.with_suffix(".md"), told)
                    last = done["cells"][-1]
                    print(key, last["dice"], f"{last['seconds']:.0f} s", last["last_epoch"], flush=True)
    rows = summary(done["cells"])
    print(markdown(options.name, rows, options.steps, commands(options, done["cells"])))
    draw(options.name, rows, HERE.parent / "docs" / "images" / f"mining_{options.name}.png")


if __name__ == "__main__":
    main()
