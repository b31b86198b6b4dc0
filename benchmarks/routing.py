"""Mode auto on unseen images: mean Dice against the share refined, and how well the score tells bad ones.

    python benchmarks/routing.py --name polyps --data DATA [--prompts box]
    python benchmarks/routing.py --name endoscopy           phantoms, made on the way
    python benchmarks/routing.py --name mine --bundle BUNDLE --data DATA     no training

Trains a small student on `--images` pictures (a tenth of them for validation), exports it with the embedded
teacher, and asks it about others in every mode. Images are refined in the order of the gain that the bundle's
rule expects; beside it stand random order (a straight line) and the best order there is. "Unless doubtful": a
class of which the teacher is unsure keeps the student's mask, as in mode auto. Writes
results/routing_<name>.json, and docs/images/routing.png out of all of these.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from harness import Quiet, machine

from samdistill.evaluation import unseen
from samdistill.export.bundle import export_run
from samdistill.io.dataset import Case, open_dataset
from samdistill.io.files import write_text
from samdistill.metrics import dice_per_class
from samdistill.phantoms.folder import write
from samdistill.predictor import Predictor
from samdistill.quality import auroc
from samdistill.refine import load_prompts
from samdistill.statistics import paired_difference
from samdistill.train.config import load_config
from samdistill.train.launch import train

HERE = Path(__file__).parent
PICTURE = HERE.parent / "docs" / "images" / "routing.png"
DRAWS = 2000
BAD = 0.7
Vector = npt.NDArray[np.float64]


def divide(data: Path, out: Path, images: int, held: int, seed: int) -> None:
    """Two data folders out of one: so many images to train on and so many others, chosen by a seed."""
    cases = [case for case in open_dataset(data, infer_classes=False).cases if case.labelled]
    random.Random(seed).shuffle(cases)
    for part, some in (("data", cases[:images]), ("unseen", cases[images : images + held])):
        for folder in ("images", "masks"):
            (out / part / folder).mkdir(parents=True)
        for case in some:
            shutil.copy(case.image_path, out / part / "images")
            for file in filter(None, case.mask_paths or ()):
                target = out / part / file.relative_to(data)
                target.parent.mkdir(exist_ok=True)
                shutil.copy(file, target)


def prepared(options: argparse.Namespace, folder: Path, seed: int) -> tuple[Path, Path]:
    """A trained bundle and a folder of images that it has not seen."""
    if options.bundle is not None:
        return options.bundle, options.data
    if options.data is None:
        write(folder / "data", options.name, options.images, seed=2 * seed + 1)
        write(folder / "unseen", options.name, options.held, seed=2 * seed + 2)
    else:
        divide(options.data, folder, options.images, options.held, seed)
    overrides = {"student.size": options.size, "max_steps": options.steps, "seed": seed}
    config = load_config(preset="light", overrides=overrides)
    train(folder / "data", folder / "run", config, Quiet(), device="cpu")
    export_run(folder / "run", folder / "bundle", prompts=load_prompts(options.prompts))
    return folder / "bundle", folder / "unseen"


def measure(predictor: Predictor, cases: tuple[Case, ...]) -> list[dict[str, Any]]:
    """Every case in both modes: Dice, what the rule expects, score and flag, seconds."""
    rule = predictor.manifest.routing
    assert rule is not None
    rows = []
    for case in cases:
        pixels = case.read_image()
        truth, ignored = case.read_labels()
        started = time.perf_counter()
        fast = predictor.predict(pixels, "auto")
        middle = time.perf_counter()
        refined = predictor.predict(pixels, "refine")
        ended = time.perf_counter()
        student = predictor.predict(pixels)
        assert fast.route is not None
        assert refined.refined is not None
        one = dice_per_class(student.masks, truth, ignore=ignored)
        two = dice_per_class(refined.masks, truth, ignore=ignored)
        sure = np.nan_to_num(refined.refined.predicted_iou, nan=0.0) >= rule.least_predicted_iou
        rows.append({
            "id": case.id, "group": case.group,
            "fast": float(one.mean()),
            "refine": float(two.mean()),
            "kept": float(np.where(sure, two, one).mean()),
            "auto": float(dice_per_class(fast.masks, truth, ignore=ignored).mean()),
            "refined": fast.route.refine,
            "expected": fast.route.expected_gain if student.masks.any() else -np.inf,
            "score": student.quality.score, "flag": student.quality.flag,
            "refined_score": refined.quality.score, "refined_flag": refined.quality.flag,
            "seconds": [middle - started, ended - middle],
        })  # fmt: skip
    return rows


def curve(order: npt.NDArray[np.int64], gain: Vector) -> Vector:
    """Mean gain over all images after refining the first 0, 1, ... of an order."""
    return np.concatenate([[0.0], np.cumsum(gain[order])]) / len(gain)


def figures(expected: Vector, gain: Vector) -> dict[str, float]:
    """What the order by expected gain wins: area above random order, gains at 40 % and 100 %, the highest."""
    own = curve(np.argsort(-expected, kind="stable"), gain)
    share = np.linspace(0, 1, len(own))
    best = curve(np.argsort(-gain, kind="stable"), gain)
    return {
        "area_above_random": float(np.trapezoid(own - share * own[-1], share)),
        "area_of_the_best_order": float(np.trapezoid(best - share * own[-1], share)),
        "gain_at_40": float(np.interp(0.4, share, own)),
        "gain_at_100": float(own[-1]),
        "highest_gain": float(own.max()),
        "at_share": float(share[own.argmax()]),
    }


def interval(values: list[dict[str, float]], key: str) -> list[float]:
    """95 % of the resamples."""
    return [float(v) for v in np.quantile([one[key] for one in values], [0.025, 0.975])]


def redrawn(groups: list[str]) -> list[npt.NDArray[np.int64]]:
    """Resamples of the answers, as indices: whole groups, since two students may answer for one image."""
    names = np.array(groups)
    own = [np.flatnonzero(names == name) for name in dict.fromkeys(groups)]
    rng = np.random.default_rng(0)
    drawn = (rng.integers(len(own), size=len(own)) for _ in range(DRAWS))
    return [np.concatenate([own[number] for number in draw]) for draw in drawn]


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Everything that is told, with percentile bootstrap intervals over groups of images."""
    expected, fast = (np.array([row[key] for row in rows]) for key in ("expected", "fast"))
    groups = [row["group"] for row in rows]
    draws = redrawn(groups)
    told: dict[str, Any] = {
        "answers": len(rows),
        "images": len({row["id"] for row in rows}),
        "groups": len(set(groups)),
        **{mode: float(np.mean([row[mode] for row in rows])) for mode in ("fast", "refine", "auto")},
        "refined_by_auto": float(np.mean([row["refined"] for row in rows])),
        "bad": float(np.mean(fast < BAD)),
    }
    gained = paired_difference([row["auto"] for row in rows], fast, groups=groups)
    told["auto_gain_interval"] = [gained.low, gained.high]
    for name, key in (("as_refine", "refine"), ("unless_doubtful", "kept")):
        gain = np.array([row[key] for row in rows]) - fast
        resampled = [figures(expected[d], gain[d]) for d in draws]
        told[name] = {
            **figures(expected, gain),
            "area_interval": interval(resampled, "area_above_random"),
            "curve": [round(float(v), 5) for v in curve(np.argsort(-expected, kind="stable"), gain)],
            "best": [round(float(v), 5) for v in curve(np.argsort(-gain, kind="stable"), gain)],
        }
    for name, mode, score, flag in (
        ("score", "fast", "score", "flag"), ("refined_score", "refine", "refined_score", "refined_flag")
    ):  # fmt: skip
        dice = np.array([row[mode] for row in rows])
        scores = np.array([row[score] for row in rows])
        areas = [auroc(scores[d].tolist(), (dice[d] < BAD).tolist()) for d in draws[:300]]
        flags = [row[flag] for row in rows]
        told[name] = {
            "auroc": auroc(scores.tolist(), (dice < BAD).tolist()),
            "auroc_interval": [float(v) for v in np.nanquantile(areas, [0.025, 0.975])],
            "rmse": float(np.sqrt(np.mean((scores - dice) ** 2))),
            "flags": {
                one: {
                    "images": flags.count(one),
                    "dice": float(dice[[f == one for f in flags]].mean()) if one in flags else None,
                    "bad": float((dice[[f == one for f in flags]] < BAD).mean()) if one in flags else None,
                }
                for one in ("accept", "review", "reject")
            },
        }
    seconds = np.array([row["seconds"] for row in rows])
    told["median_ms"] = dict(
        zip(("auto", "refine"), (1e3 * np.median(seconds, axis=0)).tolist(), strict=True)
    )
    return told


def draw(path: Path) -> None:
    """A panel for each result: gain in Dice against the share refined, by the rule, at random, at best."""
    from matplotlib.figure import Figure

    files = sorted((HERE / "results").glob("routing_*.json"))
    figure = Figure(figsize=(3.6 * len(files), 3.2), layout="constrained")
    for axes, file in zip(figure.subplots(1, len(files), squeeze=False)[0], files, strict=True):
        told = json.loads(file.read_text())["summary"]
        for key, colour in (("as_refine", "#1f4e79"), ("unless_doubtful", "#b3541e")):
            gains = 100 * np.array(told[key]["curve"])
            share = np.linspace(0, 100, len(gains))
            axes.plot(share, gains, color=colour, label=key.replace("_", " "))
            axes.plot([0, 100], [0, gains[-1]], "--", lw=1, color=colour)
        top = 100 * max(told[key]["highest_gain"] for key in ("as_refine", "unless_doubtful"))
        axes.set_ylim(min(0, *axes.get_ylim()), 1.6 * max(0.5, top))
        axes.plot(
            share, 100 * np.array(told["as_refine"]["best"]), ":", lw=1, color="0.5", label="best order"
        )
        axes.axvline(40, color="0.85", lw=1, zorder=0)
        name = file.stem.removeprefix("routing_")
        axes.set(title=f"{name}: Dice {told['fast']:.3f} fast", xlabel="images refined, %")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("gain in mean Dice, points")
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Train or open, measure, tell, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--name", required=True)
    parser.add_argument("--data", type=Path, help="data folder; none: phantoms of the kind --name")
    parser.add_argument("--bundle", type=Path, help="a bundle with a routing rule, instead of training")
    parser.add_argument("--prompts", default="box", help="as for `samdistill export`")
    parser.add_argument("--images", type=int, default=240, help="to train and validate on")
    parser.add_argument("--held", type=int, default=300, help="unseen images to measure on")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--redraw", action="store_true", help="only draw what was measured")
    options = parser.parse_args()
    if options.redraw:
        draw(PICTURE)
        return
    torch.set_num_threads(1)
    rows, rules = [], []
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as folder:
            bundle, data = prepared(options, Path(folder), seed)
            predictor = Predictor.load(bundle, threads=1)
            if predictor.manifest.routing is None:
                parser.error(f"{bundle} has no routing rule: export it with a teacher and validation labels")
            dataset = open_dataset(data, class_names=predictor.class_names)
            cases = unseen(dataset.cases, predictor.manifest.provenance["trained_on"])
            own = measure(predictor, cases)
            if options.data is None:  # other phantoms for each seed, under the same names
                own = [{**row, **{key: f"{seed}/{row[key]}" for key in ("id", "group")}} for row in own]
            rows += own
            calibration = predictor.manifest.calibration
            rules.append({
                "reason": predictor.manifest.routing.reason,
                "refine": predictor.manifest.routing.refine,
                "features": predictor.manifest.routing.rule.features,
                "least_predicted_iou": predictor.manifest.routing.least_predicted_iou,
                "temperatures": None if calibration is None else calibration.temperatures,
            })  # fmt: skip
    settings = {key: getattr(options, key) for key in ("images", "held", "steps", "size", "seeds")}
    told = summary(rows)
    result = {"machine": machine(), "threads": 1, "settings": settings, "rules": rules, "summary": told}
    write_text(HERE / "results" / f"routing_{options.name}.json", json.dumps(result) + "\n")
    for key in ("as_refine", "unless_doubtful"):
        told[key] = {k: v for k, v in told[key].items() if k not in ("curve", "best")}
    print(json.dumps({"rules": rules, **told}, indent=1))
    draw(PICTURE)


if __name__ == "__main__":
    main()
