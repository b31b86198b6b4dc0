"""Benchmark cases of `samdistill.components`: label, summarize, clean.

Peers: connectedComponents(WithStats) of OpenCV, by each algorithm it has, cc3d, and for
cleaning the scipy.ndimage pipeline of tests/reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import cc3d
import cv2
import numpy as np
import numpy.typing as npt
from harness import Case
from reference.components import clean_with_scipy
from scipy import ndimage

from samdistill.components import Components, Morphology, clean, label, summarize

cv2.setNumThreads(1)
SIZES = (512, 1024, 2048)
ALGORITHMS = {"Spaghetti": cv2.CCL_SPAGHETTI, "BBDT": cv2.CCL_BBDT, "SAUF": cv2.CCL_SAUF}


def smooth_map(height: int, width: int, sigma: float, seed: int = 0) -> npt.NDArray[np.float32]:
    """A probability map that crosses 0.5 along blob-like outlines, half of it above."""
    field = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((height, width)), sigma)
    return (1 / (1 + np.exp(-4 * field / field.std()))).astype(np.float32)


def object_map(height: int, width: int, count: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """A probability map of a few ellipses with wavy, soft outlines, like a segmenter's."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / min(height, width)
    logit = np.full((height, width), -6.0)
    for _ in range(count):
        cx, cy = rng.random() * width / min(height, width), rng.random() * height / min(height, width)
        angle, a, b = np.arctan2(y - cy, x - cx), *rng.uniform(0.04, 0.2, 2)
        wave = 1 + 0.15 * np.sin(rng.integers(3, 9) * angle + rng.random() * 6)
        distance = np.hypot((x - cx) / a, (y - cy) / b) / wave
        logit = np.maximum(logit, 12 * (1 - distance))
    logit += ndimage.gaussian_filter(rng.standard_normal((height, width)), 2) * 2
    return (1 / (1 + np.exp(-logit))).astype(np.float32)


def rings(size: int) -> npt.NDArray[np.bool_]:
    """Nested rings, 6 pixels wide, 6 apart."""
    y, x = np.mgrid[:size, :size] - size / 2
    return np.hypot(x, y) % 12 < 6


def masks() -> Iterator[tuple[str, npt.NDArray[np.bool_], float]]:
    """Name, mask, target of `label` with statistics."""
    for size in SIZES:
        yield f"6 objects {size}²", object_map(size, size, 6) > 0.5, 10
        yield f"blobs {size}²", smooth_map(size, size, 8) > 0.5, 10
    yield "ragged blobs 1024²", smooth_map(1024, 1024, 2) > 0.5, 10
    yield "many small objects 1024²", smooth_map(1024, 1024, 2) > 0.95, 10
    yield "nested rings 1024²", rings(1024), 10
    for size in SIZES:
        yield f"50 % noise {size}²", np.random.default_rng(0).random((size, size)) < 0.5, 3


def touch(found: Components) -> object:
    """Every field, so that nothing is left undone."""
    return found.labels, found.area_px, found.boxes, found.centroids


def check_label(mask: npt.NDArray[np.uint8]) -> Callable[[], None]:
    """Check partition and table against OpenCV's and cc3d's."""

    def check() -> None:
        found = label(mask)
        count, labels, stats, centroids = cv2.connectedComponentsWithStats(mask)
        pairs = np.unique(np.stack([found.labels.ravel(), labels.ravel()]), axis=1)
        assert pairs.shape[1] == count == len(found) + 1, "the partitions differ"
        theirs = pairs[1, 1:]
        corners = stats[theirs, :2]
        boxes = np.hstack([corners, corners + stats[theirs, 2:4]])
        assert np.array_equal(found.area_px, stats[theirs, 4])
        assert np.array_equal(found.boxes, boxes)
        assert np.allclose(found.centroids, centroids[theirs])
        cubes = cc3d.statistics(cc3d.connected_components(mask, connectivity=8))
        assert np.array_equal(np.sort(cubes["voxel_counts"][1:]), np.sort(found.area_px))

    return check


def label_cases() -> Iterator[Case]:
    """Label image and statistics; the label image alone."""
    for name, mask, target in masks():
        bytes_ = mask.astype(np.uint8)
        statistics: dict[str, Callable[[], object]] = {
            f"OpenCV {algorithm}": lambda bytes_=bytes_, kind=kind: (
                cv2.connectedComponentsWithStatsWithAlgorithm(bytes_, 8, cv2.CV_32S, kind)
            )
            for algorithm, kind in ALGORITHMS.items()
        }
        statistics["cc3d"] = lambda bytes_=bytes_: cc3d.statistics(
            cc3d.connected_components(bytes_, connectivity=8)
        )
        yield Case(
            "label with statistics",
            name,
            lambda mask=mask: touch(label(mask)),
            statistics,
            check_label(bytes_),
            target,
        )
        images: dict[str, Callable[[], object]] = {
            f"OpenCV {algorithm}": lambda bytes_=bytes_, kind=kind: cv2.connectedComponentsWithAlgorithm(
                bytes_, 8, cv2.CV_32S, kind
            )
            for algorithm, kind in ALGORITHMS.items()
        }
        images["cc3d"] = lambda bytes_=bytes_: cc3d.connected_components(bytes_, connectivity=8)
        yield Case(
            "label image alone", name, lambda mask=mask: label(mask).labels, images, check_label(bytes_), 2
        )


def summarize_cases() -> Iterator[Case]:
    """The table straight from a map, against reading the map once."""
    maps = {
        "6 objects 1024²": (object_map(1024, 1024, 6), 1 / 3),
        "blobs 1024²": (smooth_map(1024, 1024, 8), 1 / 3),
        "ragged blobs 1024²": (smooth_map(1024, 1024, 2), None),
        "50 % noise 1024²": (np.random.default_rng(0).random((1024, 1024), np.float32), None),
    }
    for name, (probability, target) in maps.items():

        def check(probability: npt.NDArray[np.float32] = probability) -> None:
            found = summarize(probability)
            labels, count = ndimage.label(probability > 0.5, np.ones((3, 3)))
            means = ndimage.mean(probability.astype(np.float64), labels, np.arange(1, count + 1))
            assert np.array_equal(found.labels, labels)
            assert np.allclose(found.mean_probability, means, rtol=1e-12)

        def ours(probability: npt.NDArray[np.float32] = probability) -> object:
            found = summarize(probability)
            return found.area_px, found.boxes, found.centroids, found.mean_probability

        yield Case("summarize", name, ours, {"np.sum": lambda p=probability: np.sum(p)}, check, target)


def clean_cases() -> Iterator[Case]:
    """All classes cleaned at once, against the scipy.ndimage pipeline."""
    stacks = {
        "17 classes 384 x 224": np.stack([object_map(384, 224, 4, seed) for seed in range(17)]),
        "3 classes 1024²": np.stack([object_map(1024, 1024, 4, seed) for seed in range(3)]),
    }
    for name, maps in stacks.items():
        for morphology in (None, Morphology("dilation", "square", 4), Morphology("erosion", "disk", 3)):
            what = f"{name}, {morphology.operation} {morphology.element}" if morphology else name

            def check(maps=maps, morphology=morphology) -> None:
                assert np.array_equal(
                    clean(maps, morphology=morphology), clean_with_scipy(maps, morphology=morphology)
                )

            yield Case(
                "clean",
                what,
                lambda maps=maps, morphology=morphology: clean(maps, morphology=morphology),
                {
                    "scipy": lambda maps=maps, morphology=morphology: clean_with_scipy(
                        maps, morphology=morphology
                    )
                },
                check,
                20,
            )


def cases() -> Iterator[Case]:
    """The cases, made one at a time so that only one's inputs are in memory."""
    yield from label_cases()
    yield from summarize_cases()
    yield from clean_cases()
