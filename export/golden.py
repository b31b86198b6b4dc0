"""Golden cases: phantoms with the answers PyTorch gives, so that a bundle can be checked anywhere.

No pixel of a real image enters one, unless whoever exports asks for that. Knows no bundle's layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from torch import nn

from samdistill import phantoms
from samdistill.arrays import Image, Masks
from samdistill.export.parity import torch_logits
from samdistill.export.teacher_parity import combinations
from samdistill.geometry import ModelFrame
from samdistill.golden import GoldenCase, TeacherCase
from samdistill.intensity import IntensityRule, MeasuredPixels
from samdistill.predictor import Pixels, masks_of
from samdistill.prompts import Prompts
from samdistill.refine import MINE, RefineConfig, suited
from samdistill.teacher import Teacher, TeacherMasks

KINDS = ("endoscopy", "ultrasound", "xray")  # colour, grey, overlapping classes: a fourth tells no more
IMAGES = 4
REAL = "real image of the run's validation part, included on request"
TRIES = 4
SEED = 20
LARGEST_PX = 512  # keeps a bundle of a large student small
TEACHER_SIZE = (203, 260)


def make_golden(
    student: nn.Module,
    *,
    size: int,
    intensity: IntensityRule,
    thresholds: tuple[float, ...],
    multi_label: bool,
) -> dict[str, tuple[str, GoldenCase]]:
    """Make one case of each of `KINDS`.

    Of a few phantoms of a kind the one is taken in which most is found, since a case in which the student
    finds nothing tells little about it.

    Returns
    -------
    dict
        Name -> how the picture was made, and the case.
    """
    answer = partial(
        _answered, student, size=size, intensity=intensity, thresholds=thresholds, multi_label=multi_label
    )
    cases: dict[str, tuple[str, GoldenCase]] = {}
    # Neither side a multiple of 32, and not square: resizing and padding are part of what is checked.
    side = min(max(size, 32), LARGEST_PX)
    extent = (side + 5, side * 5 // 4 + 3)
    for kind in KINDS:
        best: tuple[str, GoldenCase] | None = None
        for index in range(TRIES):
            pixels = unapply(phantoms.make(kind, seed=SEED, index=index, size=extent).image, intensity)
            case = answer(pixels)
            if best is None or _found(case.masks) > _found(best[1].masks):
                origin = f"phantom {kind}, seed {SEED}, index {index}, {extent[0]} x {extent[1]} px"
                best = origin, case
        assert best is not None
        cases[kind] = best
    return cases


def image_golden(
    student: nn.Module,
    images: Sequence[Pixels],
    *,
    size: int,
    intensity: IntensityRule,
    thresholds: tuple[float, ...],
    multi_label: bool,
) -> dict[str, tuple[str, GoldenCase]]:
    """Make a case of each of the first IMAGES real images, raw as their files hold them; as `make_golden`."""
    cases = {}
    for number, pixels in enumerate(images[:IMAGES], start=1):
        if intensity.kind == "identity" and isinstance(pixels, MeasuredPixels) and pixels.shown is not None:
            pixels = pixels.shown  # which an npz does not hold beside what was measured
        case = _answered(
            student, pixels, size=size, intensity=intensity, thresholds=thresholds, multi_label=multi_label
        )
        cases[f"image-{number}"] = (REAL, case)
    return cases


def _answered(
    student: nn.Module,
    pixels: Pixels,
    *,
    size: int,
    intensity: IntensityRule,
    thresholds: tuple[float, ...],
    multi_label: bool,
) -> GoldenCase:
    image = intensity.apply(pixels)
    frame = ModelFrame.of(image.shape[:2], size)
    maps = frame.probability_maps(torch_logits(student, frame.pixels(image)[None])[0])
    return GoldenCase(pixels, masks_of(maps, thresholds=thresholds, multi_label=multi_label), maps)


def make_teacher_golden(teacher: Teacher, prompts: RefineConfig = MINE) -> tuple[str, TeacherCase]:
    """Make one case of every combination of prompts for what a phantom shows.

    Parameters
    ----------
    prompts
        How the bundle's student will prompt it.

    Returns
    -------
    tuple
        How the picture was made, and the case.
    """
    again = suited(prompts, teacher.preprocessing).second_pass
    phantom = phantoms.make("endoscopy", seed=SEED, size=TEACHER_SIZE)
    mask = phantom.masks[phantom.masks.any(axis=(1, 2)).argmax()]
    sets = combinations(mask, boxes_only=teacher.preprocessing == "medsam", second_pass=again)
    slots = max(1, *(len(one.points) if one.points is not None else 0 for one in sets))
    points = np.zeros((len(sets), slots, 2), np.float32)
    labels = np.full((len(sets), slots), -1, np.int32)
    for i, one in enumerate(sets):
        if one.points is not None and one.point_labels is not None:
            points[i, : len(one.points)], labels[i, : len(one.points)] = one.points, one.point_labels
    nothing = np.zeros(0, np.float32)
    asked = TeacherCase(
        pixels=phantom.image,
        boxes=np.array([np.full(4, np.nan) if one.box is None else one.box for one in sets], np.float32),
        points=points,
        point_labels=labels,
        mask=mask,
        has_mask=np.array([one.mask_logits is not None for one in sets]),
        masks=np.zeros((0, *mask.shape), np.bool_),
        probabilities=nothing,
        predicted_iou=nothing,
    )
    (embedding,) = teacher.embed([phantom.image])

    def segment(prompts: list[Prompts], multimask: bool | None) -> TeacherMasks:
        return teacher.segment([embedding], [prompts], multimask=multimask)

    origin = f"phantom endoscopy, seed {SEED}, {TEACHER_SIZE[0]} x {TEACHER_SIZE[1]} px"
    return origin, asked.answered_by(segment)


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
