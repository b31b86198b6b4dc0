"""Does beta choose better images than the student's own confidence? (SamDSK, figure 5)

    python benchmarks/admission.py --name polyps --data DATA [--run RUN] [--images 200]
    python benchmarks/admission.py --name ultrasound          phantoms, made on the way

A student that is trained on few labels alone (or that of --run) predicts unlabelled images, whose labels are
looked at here only; the teacher's proposals are matched to its maps under --lower and --upper. What they
could come to at best, matched to the truth, is told too (section 4.4.3 of the paper: 0.891 on polyps). The
images are then put in order by beta and by several measures of the student's own confidence, and the true
Dice of the first n is drawn, for each n: of the student's masks (the paper's figure 5), and of annotations.
Intervals are of the paired difference, redrawing the images. Writes results/admission_<name>.json and
docs/images/admission_<name>.png; `--overlays PNG` draws annotations to look at.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from harness import machine
from mining import Quiet

from samdistill.arrays import Image, Masks
from samdistill.geometry import ModelFrame, resize_image
from samdistill.io.dataset import Case, open_dataset
from samdistill.io.files import write_text
from samdistill.metrics import dice_per_class
from samdistill.phantoms.folder import write
from samdistill.report.overlay import class_colour, outline_layer
from samdistill.teacher import load_teacher
from samdistill.teacher.cache import EmbeddingCache
from samdistill.teacher.proposal_cache import ProposalCache
from samdistill.teacher.propose import ProposeConfig
from samdistill.train.admission import judge
from samdistill.train.config import load_config
from samdistill.train.launch import train
from samdistill.train.pseudo import predict_maps
from samdistill.train.run import Run
from samdistill.train.samdsk_config import SamdskConfig
from samdistill.train.strategies.ups import answer_to_views

HERE = Path(__file__).parent
ORDERS = {
    "beta": "beta, soft",
    "beta_hard": "beta, hard",
    "confidence": "mean p in the mask",
    "certainty": "mean max(p, 1 - p) of the image",
    "steadiness": "least spread over 8 views",
}
SHARES = (0.1, 0.25, 0.5)
DRAWS = 2000
Floats = npt.NDArray[np.float64]


def measure(
    run: Run, cases: list[Case], options: argparse.Namespace
) -> tuple[list[dict[str, Any]], list[tuple[float, Image, Masks, Masks, Masks]]]:
    """Scores and true Dice of each case, and its picture for the overlays."""
    student, teacher = run.load_student(), load_teacher(options.teacher, "cpu")
    config = SamdskConfig(lower=options.lower, upper=options.upper)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.cache or Path(temporary)
        embeddings = EmbeddingCache(folder)
        asked = ProposeConfig(
            points_per_side=options.points, predicted_iou=options.predicted_iou, stability=options.stability,
            box_iou=options.box_iou,
        )  # fmt: skip
        cache = ProposalCache(folder, teacher, asked)
        rows, pictures = [], []
        for case in cases:
            image = run.intensity.apply(case.read_image())
            (maps,) = predict_maps(student, [image], run.config.student.size, 1)
            proposals = cache.propose(image, lambda image=image: embeddings.embed(teacher, [image])[0])
            bounds = [(options.lower, options.upper)] * len(maps)
            record, annotation = judge(case.id, maps, proposals, bounds, config)
            hard_config = replace(config, iou="hard")
            hard, hard_annotation = judge(case.id, maps, proposals, bounds, hard_config)
            truth, ignored = case.read_labels()
            _, best = judge(case.id, truth.astype(np.float32), proposals, bounds, config)
            frame = ModelFrame.of((image.shape[0], image.shape[1]), run.config.student.size)
            _, spread = answer_to_views(student, resize_image(image, frame.size))
            row = {
                "beta": record.beta, "ceiling": record.ceiling, "beta_hard": hard.beta,
                "confidence": record.confidence,
                "certainty": float(np.maximum(maps, 1 - maps).mean()),
                "steadiness": -float(spread.mean()),
                "proposals": record.proposals,
                "oracle_dice": float(dice_per_class(best, truth, ignore=ignored).mean()),
                "student_dice": float(dice_per_class(maps > 0.5, truth, ignore=ignored).mean()),
                "dice": float(dice_per_class(annotation, truth, ignore=ignored).mean()),
                "dice_hard": float(dice_per_class(hard_annotation, truth, ignore=ignored).mean()),
            }  # fmt: skip
            rows.append({name: None if value is None else round(value, 4) for name, value in row.items()})
            pictures.append((record.beta or 0.0, image, maps > 0.5, annotation, truth))
            if len(rows) % 20 == 0:
                print(f"{len(rows)} of {len(cases)}", flush=True)
    return rows, pictures


def first_by(rows: list[dict[str, Any]], order: str, values: str) -> Floats:
    """Mean of some value over the first n of an order, for n = 1, 2, ...; who has no score comes last."""
    scores = np.array([-np.inf if row[order] is None else row[order] for row in rows])
    sorted_values = np.array([row[values] for row in rows])[np.argsort(-scores, kind="stable")]
    means: Floats = np.cumsum(sorted_values) / np.arange(1, len(rows) + 1)
    return means


def beta_lead(rows: list[dict[str, Any]], order: str, n: int) -> float:
    """By how much the student's masks are better in beta's first n than in another order's."""
    by_beta, by_order = (first_by(rows, name, "student_dice")[n - 1] for name in ("beta", order))
    return float(by_beta - by_order)


def compare(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """True Dice in the first share of each order, and beta's lead with its interval (student masks)."""
    generator, table = np.random.default_rng(0), []
    draws = [generator.integers(len(rows), size=len(rows)) for _ in range(DRAWS)]
    for share in SHARES:
        n = max(1, round(share * len(rows)))
        for order, told in ORDERS.items():
            drawn = [beta_lead([rows[index] for index in draw], order, n) for draw in draws]
            low, high = np.quantile(drawn, [0.025, 0.975])
            table.append({
                "share": share, "order": told, "n": n,
                "student_dice": round(float(first_by(rows, order, "student_dice")[n - 1]), 4),
                "annotation_dice": round(float(first_by(rows, order, "dice")[n - 1]), 4),
                "beta_leads_by": round(beta_lead(rows, order, n), 4),
                "low": round(float(low), 4), "high": round(float(high), 4),
            })  # fmt: skip
    return table


def draw_curves(name: str, rows: list[dict[str, Any]], path: Path) -> None:
    """The first n by each order: the student's masks left, the annotations right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    share = 100 * np.arange(1, len(rows) + 1) / len(rows)
    shown = share >= 5  # the mean of a handful of images tells nothing
    styles = ("-", "--", "-", "-.", ":")
    for axes, values in ((left, "student_dice"), (right, "dice")):
        for (order, told), style in zip(ORDERS.items(), styles, strict=True):
            axes.plot(share[shown], first_by(rows, order, values)[shown], style, label=told)
        axes.grid(alpha=0.3)
        axes.set_xlabel("first images of each order, % of all")
    left.set(ylabel="true Dice, mean", title=f"{name}: the student's masks")
    right.set_title("annotations made of proposals")
    right.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def draw_overlays(pictures: list[tuple[float, Image, Masks, Masks, Masks]], path: Path) -> None:
    """Highest, middle and lowest beta: student (sky blue), annotation (yellow), truth (orange, dashed)."""
    from matplotlib.figure import Figure

    ordered = sorted(pictures, key=lambda one: -one[0])
    count, middle = 6, len(ordered) // 2
    shown = [*ordered[:count], *ordered[middle : middle + count], *ordered[-count:]]
    figure = Figure(figsize=(2.2 * count, 7), layout="constrained")
    panels = figure.subplots(3, count).ravel()
    for axes in panels:
        axes.axis("off")
    for axes, (beta, image, student, annotation, truth) in zip(panels, shown, strict=False):
        picture = image.astype(np.float64)
        for index, masks in enumerate((student, annotation, truth)):
            colours = [class_colour(index)] * len(masks)
            layer = outline_layer(masks, colours, dashed=index == 2)
            opacity = layer[..., 3:] / 255
            picture = picture * (1 - opacity) + layer[..., :3] * opacity
        axes.imshow(picture.astype(np.uint8), interpolation="nearest")
        axes.set_title(f"beta {beta:.3f}", fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Train, or take a run; match; compare; draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--name", required=True)
    parser.add_argument("--data", type=Path, help="data folder; none: 400 phantoms of the kind --name")
    parser.add_argument("--run", type=Path, help="a run whose student is asked; none: one is trained")
    parser.add_argument("--labels", type=float, default=0.1)
    parser.add_argument("--steps", type=int, default=1400)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--lower", type=int, default=1, help="least proposals of a class")
    parser.add_argument("--upper", type=int, default=1, help="most proposals of a class")
    parser.add_argument("--points", type=int, default=16, help="points a side that the teacher is asked")
    parser.add_argument("--predicted-iou", type=float, default=0.5, help="the teacher's least own estimate")
    parser.add_argument("--stability", type=float, default=0.5, help="least stability of a proposal")
    parser.add_argument("--box-iou", type=float, default=0.5, help="box suppression")
    parser.add_argument("--teacher", default="tiny")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--overlays", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        data = options.data
        if data is None and options.run is None:
            data = Path(temporary) / "data"
            write(data, options.name, 400, seed=1)
        if options.run is None:
            config = load_config(
                preset="light",
                overrides={
                    "labels": options.labels, "max_steps": options.steps, "student.size": options.size,
                    "seed": options.seed, "keep": "last",
                },
            )  # fmt: skip
            run = train(data, Path(temporary) / "run", config, Quiet(), device="cpu")
        else:
            run = Run.load(options.run)
        by_id = {case.id: case for case in open_dataset(Path(run.record.data["path"])).labelled}
        hidden = [by_id[name] for name in run.record.split["train_unlabelled"] if name in by_id]
        order = np.random.default_rng(options.seed).permutation(len(hidden))[: options.images]
        rows, pictures = measure(run, [hidden[index] for index in order], options)
        told = {
            "run": {key: run.record.result["best"][key] for key in ("step", "val_dice")},
            "images": {part: len(ids) for part, ids in run.record.split.items()},
            "oracle_dice": round(float(np.mean([row["oracle_dice"] for row in rows])), 4),
            "proposals": round(float(np.mean([row["proposals"] for row in rows])), 1),
            "teacher_sha256": load_teacher(options.teacher, "cpu").weights_sha256,
        }
    table = compare(rows)
    settings = {key: value for key, value in vars(options).items() if isinstance(value, int | float | str)}
    write_text(
        HERE / "results" / f"admission_{options.name}.json",
        json.dumps({"settings": settings, **told, "machine": machine(), "table": table, "rows": rows}) + "\n",
    )
    draw_curves(options.name, rows, HERE.parent / "docs" / "images" / f"admission_{options.name}.png")
    if options.overlays is not None:
        draw_overlays(pictures, options.overlays)
    print(told)
    for line in table:
        print(line)


if __name__ == "__main__":
    main()
