"""Golden cases: phantoms with the answers PyTorch gives, so that a bundle can be checked anywhere.

No pixel of a real image enters one. Knows no bundle's layout.
"""

from __future__ import annotations

import numpy as np
from torch import nn

from samdistill import phantoms
from samdistill.arrays import Image, Masks
from samdistill.export.parity import torch_logits
from samdistill.geometry import ModelFrame
from samdistill.intensity import IntensityRule
from samdistill.predictor import Pixels, masks_of
from samdistill.verify import GoldenCase

TRIES = 4
SEED = 20
LARGEST_PX = 512  # keeps a bundle of a large student small


def make_golden(
    student: nn.Module,
    *,
    size: int,
    intensity: IntensityRule,
    thresholds: tuple[float, ...],
    multi_label: bool,
) -> dict[str, tuple[str, GoldenCase]]:
    """Make one case of each kind of phantom.

    Of a few phantoms of a kind the one is taken in which most is found, since a case in which the student
    finds nothing tells little about it.

    Returns
    -------
    dict
        Name -> how the picture was made, and the case.
    """
    cases: dict[str, tuple[str, GoldenCase]] = {}
    # Neither side a multiple of 32, and not square: resizing and padding are part of what is checked.
    side = min(max(size, 32), LARGEST_PX)
    extent = (side + 5, side * 5 // 4 + 3)
    for kind in phantoms.KINDS:
        best: tuple[str, GoldenCase] | None = None
        for index in range(TRIES):
            pixels = unapply(phantoms.make(kind, seed=SEED, index=index, size=extent).image, intensity)
            image = intensity.apply(pixels)
            frame = ModelFrame.of(image.shape[:2], size)
            maps = frame.probability_maps(torch_logits(student, frame.pixels(image)[None])[0])
            masks = masks_of(maps, thresholds=thresholds, multi_label=multi_label)
            if best is None or _found(masks) > _found(best[1].masks):
                origin = f"phantom {kind}, seed {SEED}, index {index}, {extent[0]} x {extent[1]} px"
                best = origin, GoldenCase(pixels, masks, maps)
        assert best is not None
        cases[kind] = best
    return cases


def unapply(image: Image, intensity: IntensityRule) -> Pixels:
    """Raw pixels that the rule turns into about this image: under a window grey float32 over its range."""
    if intensity.kind != "window":
        return image
    grey = image.mean(axis=2, dtype=np.float32)
    raw: Pixels = (intensity.low + grey * ((intensity.high - intensity.low) / 255)).astype(np.float32)
    return raw


def _found(masks: Masks) -> float:
    """Sum over classes of the share of the image they cover, or leave out where they cover most."""
    areas = masks.mean(axis=(1, 2))
    return float(np.minimum(areas, 1 - areas).sum())
