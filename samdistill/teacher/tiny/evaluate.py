"""Measure the embedded teacher: `python -m samdistill.teacher.tiny.evaluate --data DATA [--weights FILE]`.

Per data set the mean IoU, at the picture's own size, of its masks for boxes whose sides are moved at
random and for exact boxes, with points and in a second pass, against the ellipse inscribed in the same box
and against the same network with random weights. Of the sets it was trained on only the part held out is
read.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image as PillowImage

from samdistill.arrays import Image, Mask
from samdistill.geometry import outer_box
from samdistill.io.files import write_text
from samdistill.prompts import Prompts
from samdistill.teacher.sam import Embedding, Teacher
from samdistill.teacher.tiny import WEIGHTS, load
from samdistill.teacher.tiny.model import build
from samdistill.teacher.tiny.split import TRAINED_SETS, held_out

UNSEEN_SETS = ("polyps", "atrium")
MOVE = 0.15  # most that each side of a box is moved, as a share of its length
MOST_OBJECTS = 8  # of a picture
LEAST_PX = 16


@dataclass(frozen=True)
class Case:
    """One picture and the objects looked for."""

    name: str
    image: Image
    masks: list[Mask]


def cases(data: Path, name: str, count: int) -> list[Case]:
    """Up to `count` pictures of a set, evenly spread over its sorted names; objects are drawn by the name."""
    paths = [
        path
        for path in sorted((data / name / "masks").glob("*.png"))
        if name not in TRAINED_SETS or held_out(path.stem)
    ]
    chosen = [paths[i] for i in np.unique(np.linspace(0, len(paths) - 1, min(count, len(paths))).astype(int))]
    found = []
    for path in chosen:
        instances = data / name / "instances" / path.name
        labels = np.array(PillowImage.open(instances if instances.exists() else path))
        picture = next((data / name / "images").glob(path.stem + ".*"))
        image = np.array(PillowImage.open(picture).convert("RGB"))
        masks = [labels == k for k in np.unique(labels) if k and (labels == k).sum() >= LEAST_PX]
        if masks:
            order = seeded(path.stem).permutation(len(masks))[:MOST_OBJECTS]
            found.append(Case(path.stem, image, [masks[i] for i in order]))
    return found


def seeded(name: str) -> np.random.Generator:
    """A generator that depends on a name alone."""
    return np.random.default_rng(list(name.encode()))


def move_sides(
    box: npt.NDArray[np.float32], size: tuple[int, int], rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Move each side of a half-open box by up to MOVE of its length, at least 1 px long, inside the image."""
    length = np.tile(box[2:] - box[:2], 2)
    x0, y0, x1, y1 = box + rng.uniform(-MOVE, MOVE, 4) * length
    x0, y0 = np.clip(x0, 0, size[1] - 1), np.clip(y0, 0, size[0] - 1)
    return np.array([x0, y0, np.clip(x1, x0 + 1, size[1]), np.clip(y1, y0 + 1, size[0])], np.float32)


def ellipse(box: npt.NDArray[np.float32], size: tuple[int, int]) -> Mask:
    """(H, W) bool of the pixels whose centres lie in the ellipse inscribed in a half-open box."""
    x0, y0, x1, y1 = box
    u = (2 * (np.arange(size[1]) + 0.5) - x0 - x1) / (x1 - x0)
    v = (2 * (np.arange(size[0]) + 0.5) - y0 - y1) / (y1 - y0)
    inside: Mask = u[None, :] ** 2 + v[:, None] ** 2 < 1
    return inside


def iou(mask: Mask, truth: Mask) -> float:
    """IoU of two masks, 1 when both are empty."""
    union = int((mask | truth).sum())
    return float((mask & truth).sum() / union) if union else 1.0


def second_pass(
    teacher: Teacher,
    embedding: Embedding,
    first: list[Mask],
    low: npt.NDArray[np.float32],
    boxes: list[npt.NDArray[np.float32]],
    *,
    repeat_box: bool,
) -> list[Mask]:
    """Ask again with the first answer's logits and its centre as a point, the box repeated or not.

    An empty first answer has no centre: its box is asked again.
    """
    again = []
    for mask, box in zip(first, boxes, strict=True):
        y, x = np.nonzero(mask)
        if len(x) == 0:
            again.append(Prompts(box=box))
            continue
        nearest = np.argmin((x - x.mean()) ** 2 + (y - y.mean()) ** 2)
        point = np.array([[x[nearest], y[nearest]]], np.float32)
        again.append(
            Prompts(points=point, point_labels=np.ones(1, np.int32), box=box if repeat_box else None)
        )
    return teacher.segment([embedding], [again], multimask=False, previous=low).masks


def measure(teacher: Teacher, untrained: Teacher, found: list[Case]) -> dict[str, float]:
    """Mean over all objects of each way of asking, and the rank correlation of predicted with true IoU."""
    scores: dict[str, list[float]] = {}
    predicted: list[float] = []

    def add(key: str, masks: list[Mask], truths: list[Mask]) -> None:
        scores.setdefault(key, []).extend(iou(m, t) for m, t in zip(masks, truths, strict=True))

    for case in found:
        size = case.image.shape[:2]
        rng = seeded(case.name)
        (embedding,), (noise,) = teacher.embed([case.image]), untrained.embed([case.image])
        exact = [np.array(outer_box(mask), np.float32) for mask in case.masks]
        moved = [move_sides(box, size, rng) for box in exact]
        points = []
        for mask in case.masks:
            y, x = np.nonzero(mask)
            pick = rng.integers(0, len(x), 3)
            points.append(np.stack([x[pick], y[pick]], axis=1).astype(np.float32))
        ones = np.ones(3, np.int32)
        asked = {
            "box": [Prompts(box=box) for box in moved],
            "exact_box": [Prompts(box=box) for box in exact],
            "box_and_3_points": [
                Prompts(box=b, points=p, point_labels=ones) for b, p in zip(moved, points, strict=True)
            ],
            "3_points": [Prompts(points=p, point_labels=ones) for p in points],
            "1_point": [Prompts(points=p[:1], point_labels=ones[:1]) for p in points],
        }
        for key, sets in asked.items():
            answer = teacher.segment([embedding], [sets])
            add(key, answer.masks, case.masks)
            if key == "box":
                predicted.extend(answer.predicted_iou.tolist())
                for name, repeat in (("second_pass", False), ("second_pass_with_box", True)):
                    again = second_pass(
                        teacher, embedding, answer.masks, answer.low_res_logits, moved, repeat_box=repeat
                    )
                    add(name, again, case.masks)
        add("random_weights_box", untrained.segment([noise], [asked["box"]]).masks, case.masks)
        add("ellipse", [ellipse(box, size) for box in moved], case.masks)
        add("exact_ellipse", [ellipse(box, size) for box in exact], case.masks)
    table = {key: float(np.mean(values)) for key, values in scores.items()}
    table["spearman"] = spearman(np.array(predicted), np.array(scores["box"]))
    return {"pictures": len(found), "objects": len(predicted), **table}


def spearman(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    """Rank correlation, equal values sharing their mean rank."""

    def ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        last = np.cumsum(counts)
        mean: npt.NDArray[np.float64] = (last - (counts - 1) / 2)[inverse]
        return mean

    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def timing(teacher: Teacher) -> dict[str, float]:
    """Processor seconds to embed a picture and to answer 16 prompt sets, the best of five."""
    image = np.random.default_rng(0).integers(0, 256, (256, 256, 3)).astype(np.uint8)
    sets = [Prompts(box=np.array([10 + i, 20, 120 + 4 * i, 200], np.float32)) for i in range(16)]
    embed, segment = [], []
    for _ in range(5):
        start = time.process_time()
        (embedding,) = teacher.embed([image])
        middle = time.process_time()
        teacher.segment([embedding], [sets])
        embed.append(middle - start)
        segment.append(time.process_time() - middle)
    return {"embed_s": min(embed), "segment_16_s": min(segment), "threads": torch.get_num_threads()}


def main() -> None:
    """Print the table; with --out write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--count", type=int, default=120, help="pictures a set")
    parser.add_argument("--sets", nargs="+", default=[*UNSEEN_SETS, *TRAINED_SETS])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    model, sha256 = load(args.weights)
    torch.manual_seed(0)
    teacher = Teacher("tiny", model, weights_sha256=sha256)
    untrained = Teacher("untrained", build(), weights_sha256="")
    tables = {name: measure(teacher, untrained, cases(args.data, name, args.count)) for name in args.sets}
    result = {
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "weights_sha256": sha256,
        "time": timing(teacher),
        "sets": tables,
    }
    for name, table in tables.items():
        print(name, {key: round(value, 3) for key, value in table.items()})  # noqa: T201
    print(result["time"])  # noqa: T201
    if args.out:
        write_text(args.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
