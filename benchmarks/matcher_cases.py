"""Inputs for the matcher's benchmark: made-up proposals of three kinds, and the embedded teacher's own.

Maps are soft: a target that is no proposal's twin, blurred, with noise. Knows no matcher.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

Masks = npt.NDArray[np.bool_]
Maps = npt.NDArray[np.float32]
Case = tuple[Maps, Masks]
SIZE = 256


def noise(
    rng: np.random.Generator, sigma: float, shape: tuple[int, int] = (SIZE, SIZE)
) -> npt.NDArray[np.float64]:
    field = gaussian_filter(rng.standard_normal(shape), sigma)
    return np.asarray(field / field.std(), np.float64)


def soften(rng: np.random.Generator, target: Masks) -> Maps:
    """A student's map of a target: unsure at its border, which is displaced, and never quite 0 or 1."""
    shape = target.shape
    ragged = gaussian_filter(target.astype(np.float32), 2.5) + 0.12 * noise(rng, 5, shape)
    p = gaussian_filter((ragged > 0.5).astype(np.float32), 1.5)
    return np.clip(0.01 + 0.95 * p + 0.02 * noise(rng, 4, shape), 0, 1).astype(np.float32)


def blob(rng: np.random.Generator, y: float, x: float, a: float, b: float) -> Masks:
    """An ellipse with a ragged border."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    angle = rng.random() * np.pi
    u = ((columns - x) * np.cos(angle) + (rows - y) * np.sin(angle)) / a
    v = ((rows - y) * np.cos(angle) - (columns - x) * np.sin(angle)) / b
    mask = np.hypot(u, v) + 0.15 * noise(rng, 6) < 1
    mask[int(np.clip(y, 0, SIZE - 1)), int(np.clip(x, 0, SIZE - 1))] = True
    return np.asarray(mask)


def random(seed: int, count: int, classes: int) -> Case:
    """Blobs anywhere; targets are one to three of them."""
    rng = np.random.default_rng(seed)
    masks = np.array(
        [blob(rng, *(rng.random(2) * SIZE), *rng.uniform(SIZE / 24, SIZE / 6, 2)) for _ in range(count)]
    )
    targets = [
        masks[rng.choice(count, rng.integers(1, 4), replace=False)].any(axis=0) for _ in range(classes)
    ]
    return np.array([soften(rng, target) for target in targets]), masks


def nested(seed: int, count: int, classes: int) -> Case:
    """A few objects, each with its part, whole, surroundings and near-duplicates as proposals."""
    rng = np.random.default_rng(seed)
    objects = [
        (int(rng.integers(1 << 30)), rng.uniform(0.15, 0.85, 2) * SIZE, rng.uniform(SIZE / 20, SIZE / 7, 2))
        for _ in range(max(3 * classes, 6))
    ]

    def shape(number: int, scale: float = 1.0, shift: npt.NDArray[np.float64] | float = 0.0) -> Masks:
        own, centre, axes = objects[number]
        y, x = centre + shift
        return blob(np.random.default_rng(own), y, x, *(axes * scale))

    masks = np.array(
        [
            shape(int(rng.integers(len(objects))), float(np.exp(rng.normal(0, 0.45))), rng.normal(0, 4, 2))
            for _ in range(count)
        ]
    )
    order = rng.permutation(len(objects))
    maps = []
    for c in range(classes):
        wanted = order[3 * c : 3 * c + rng.integers(1, 4)]
        maps.append(soften(rng, np.any([shape(int(i)) for i in wanted], axis=0)))
    return np.array(maps), masks


def sam_like(seed: int, count: int, classes: int) -> Case:
    """Connected level sets of smooth fields of three scales: whole, part and subpart, with holes."""
    rng = np.random.default_rng(seed)
    fields = [noise(rng, sigma) for sigma in (14, 6, 3)]
    fields.append(fields[0] + 0.5 * fields[1])
    masks: list[Masks] = []
    while len(masks) < count:
        field, low = fields[rng.integers(4)], rng.uniform(-2, 1.5)
        level = (field > low) & (field < low + (9 if rng.random() < 0.5 else rng.uniform(0.5, 2)))
        number, labels, table, _ = cv2.connectedComponentsWithStats(level.astype(np.uint8))
        for i in rng.permutation(number - 1)[:6] + 1:
            if 60 < table[i, 4] < 0.6 * SIZE * SIZE and len(masks) < count:
                masks.append(labels == i)
    stack = np.array(masks)
    small = np.flatnonzero(stack.sum(axis=(1, 2)) < 0.15 * SIZE * SIZE)
    targets = [
        stack[rng.choice(small, min(int(rng.integers(1, 4)), len(small)), replace=False)].any(axis=0)
        for _ in range(classes)
    ]
    return np.array([soften(rng, target) for target in targets]), stack


KINDS: dict[str, Callable[[int, int, int], Case]] = {"random": random, "nested": nested, "SAM-like": sam_like}


def data_folder() -> Path | None:
    root = Path(os.environ.get("SAMDISTILL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    return root if root.is_dir() else None


def real(root: Path, name: str, images: int) -> Iterator[Case]:
    """The embedded teacher's proposals on real images, with the true mask made soft in a student's place.

    With thresholds far below the defaults: many that overlap, most of them poor, instead of a handful.
    """
    from samdistill.io import read_image
    from samdistill.teacher import ProposeConfig, load_teacher

    teacher = load_teacher("tiny")
    config = ProposeConfig(points_per_side=16, predicted_iou=0.0, stability=0.3, box_iou=0.8)
    paths = sorted((root / name / "images").iterdir())
    for number, path in enumerate(paths[:: len(paths) // images][:images]):
        image = read_image(path)
        image = image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2)
        (embedding,) = teacher.embed([image])
        truth = cv2.imread(str(root / name / "masks" / f"{path.stem}.png"), cv2.IMREAD_GRAYSCALE) > 0
        rng = np.random.default_rng(number)
        yield soften(rng, truth)[None], teacher.propose(embedding, config).masks
