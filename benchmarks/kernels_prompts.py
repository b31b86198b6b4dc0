"""Benchmark cases of prompts, assignment, mask overlap and box suppression.

Peers: the scipy.ndimage and numpy pipeline of tests/reference, scipy and lapx, a float32 BLAS product, and
greedy suppression with numpy's vectors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import lap
import numpy as np
import numpy.typing as npt
from harness import Case
from kernels_components import object_map
from reference import prompts as plain
from scipy.optimize import linear_sum_assignment

from samdistill.matching import assign
from samdistill.prompts import BURDEN, MINE, extract_with_masks
from samdistill.proposals import boxes_of, mask_iou, nms

CONFIGS = (
    ("burden", BURDEN, 20),
    ("one component, 5 likeliest", replace(MINE, keep="likeliest"), 20),
    ("all components, 5 likeliest 12 px apart", replace(MINE, spread_px=12.0, min_area_px=20), 20),
    # Without cleaning the pipeline is a comparison and a partition: little but reading, on either side.
    ("mine, nothing cleaned", MINE, None),
)


def prompt_cases() -> Iterator[Case]:
    """Cleaned masks and prompts of all classes."""
    stacks = {
        "17 classes 384 x 224": np.stack([object_map(384, 224, 4, seed) for seed in range(17)]),
        "3 classes 1024²": np.stack([object_map(1024, 1024, 4, seed) for seed in range(3)]),
    }
    for name, maps in stacks.items():
        for title, config, target in CONFIGS:

            def check(maps=maps, config=config) -> None:
                found = extract_with_masks(maps, config)
                masks, sets = plain.extract(maps, config)
                assert np.array_equal(found.masks, masks)
                for ours, theirs in zip(found.prompts, sets, strict=True):
                    for prompts, (box, points, labels, _) in zip(ours, theirs, strict=True):
                        assert np.array_equal(prompts.box, box)
                        assert np.allclose(prompts.points, points)
                        assert np.array_equal(prompts.point_labels, labels)

            yield Case(
                "clean + extract",
                f"{name}, {title}",
                lambda maps=maps, config=config: extract_with_masks(maps, config),
                {"scipy + numpy": lambda maps=maps, config=config: plain.extract(maps, config)},
                check,
                target,
            )


def assign_cases() -> Iterator[Case]:
    """Weights like soft IoUs (most near 0) and uniform ones."""
    for rows, columns in ((3, 100), (32, 300), (300, 300)):
        uniform = np.random.default_rng(0).random((rows, columns))
        for title, weights in (("uniform", uniform), ("IoU-like", uniform**8)):

            def check(weights=weights) -> None:
                best = weights[linear_sum_assignment(weights, maximize=True)].sum()
                assert np.isclose(weights[assign(weights)].sum(), best, rtol=1e-12)
                cost, *_ = lap.lapjv(-weights, extend_cost=True)
                assert np.isclose(-cost, best)

            yield Case(
                "assign",
                f"{rows} x {columns}, {title}",
                lambda weights=weights: assign(weights),
                {
                    "scipy": lambda weights=weights: linear_sum_assignment(weights, maximize=True),
                    "lapx": lambda weights=weights: lap.lapjv(-weights, extend_cost=True),
                },
                check,
                1,
            )


def random_masks(count: int, size: int, kind: str, seed: int) -> npt.NDArray[np.bool_]:
    """Discs of a segmenter's sizes, or noise, which no bounding box helps with."""
    rng = np.random.default_rng(seed)
    if kind == "noise":
        return rng.random((count, size, size)) < 0.5
    y, x = np.mgrid[:size, :size]
    centres, radii = rng.integers(0, size, (count, 2)), rng.integers(size // 20, size // 3, count)
    return np.stack([np.hypot(x - cx, y - cy) < r for (cx, cy), r in zip(centres, radii, strict=True)])


def iou_with_blas(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """The usual way: one matrix product of the flattened masks."""
    flat_a, flat_b = a.reshape(len(a), -1).astype(np.float32), b.reshape(len(b), -1).astype(np.float32)
    both = flat_a @ flat_b.T
    return both / (flat_a.sum(axis=1)[:, None] + flat_b.sum(axis=1) - both)


def overlap_cases() -> Iterator[Case]:
    """All pairs of two sets of masks."""
    for count, size, kind, target in ((200, 256, "discs", 5), (200, 256, "noise", 5), (60, 1024, "discs", 5)):
        a, b = random_masks(count, size, kind, 0), random_masks(count, size, kind, 1)

        def check(a=a, b=b) -> None:
            assert np.allclose(mask_iou(a, b), iou_with_blas(a, b), atol=1e-6)

        yield Case(
            "mask_iou",
            f"{count} x {count} {kind} of {size}²",
            lambda a=a, b=b: mask_iou(a, b),
            {"float32 BLAS": lambda a=a, b=b: iou_with_blas(a, b)},
            check,
            target,
        )


def nms_with_numpy(
    boxes: npt.NDArray[np.float32], scores: npt.NDArray[np.float32], iou: float
) -> npt.NDArray[np.int64]:
    """Greedy suppression as it is usually written: one vector of overlaps for each kept box."""
    x0, y0, x1, y1 = boxes.T
    areas = (x1 - x0) * (y1 - y0)
    order, kept = np.argsort(-scores, kind="stable"), []
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(best)
        width = np.minimum(x1[best], x1[rest]) - np.maximum(x0[best], x0[rest])
        height = np.minimum(y1[best], y1[rest]) - np.maximum(y0[best], y0[rest])
        both = np.maximum(width, 0) * np.maximum(height, 0)
        order = rest[both / (areas[best] + areas[rest] - both) <= iou]
    return np.array(kept, np.int64)


def nms_cases() -> Iterator[Case]:
    """As many boxes as a 32 x 32 grid of points with three masks each gives."""
    boxes = boxes_of(random_masks(3072, 128, "discs", 2))
    scores = np.random.default_rng(0).random(len(boxes), dtype=np.float32)

    def check() -> None:
        assert np.array_equal(nms(boxes, scores, 0.5), nms_with_numpy(boxes, scores, 0.5))

    yield Case(
        "nms",
        f"{len(boxes)} boxes",
        lambda: nms(boxes, scores, 0.5),
        {"numpy": lambda: nms_with_numpy(boxes, scores, 0.5)},
        check,
    )


def cases() -> Iterator[Case]:
    """The cases, made one at a time so that only one's inputs are in memory."""
    yield from prompt_cases()
    yield from assign_cases()
    yield from overlap_cases()
    yield from nms_cases()
