"""Pseudo labels: the student predicts, a refiner improves, what passes the filters becomes targets.

In the canonical frame for training on the fly, at the image's own size for the store. Knows no loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from samdistill.arrays import Image, ProbabilityMaps
from samdistill.geometry import ModelFrame, resize_image
from samdistill.metrics import dice
from samdistill.refine import RefineConfig, Refinement, refine
from samdistill.teacher import Teacher
from samdistill.train.config import PseudoConfig
from samdistill.train.data import by_padded_size
from samdistill.train.embedded import EmbeddedCases
from samdistill.train.losses import IGNORE

Targets = npt.NDArray[np.float32]


@torch.no_grad()
def predict_logits(student: nn.Module, frames: Sequence[Image], batch: int) -> list[npt.NDArray[np.float32]]:
    """The student's answer to whole frames, in eval mode and without gradient; its mode is left as it was.

    Returns
    -------
    list
        float32 (C, h, w) logits each, of the frame without its padding.
    """
    training = student.training
    device = next(student.parameters()).device
    answers: dict[int, npt.NDArray[np.float32]] = {}
    student.eval()
    for numbers, pixels in by_padded_size(frames, batch):
        logits = student(pixels.to(device, memory_format=torch.channels_last)).float().cpu().numpy()
        for number, one in zip(numbers, logits, strict=True):
            height, width = frames[number].shape[:2]
            answers[number] = np.ascontiguousarray(one[:, :height, :width])
    student.train(training)
    return [answers[number] for number in range(len(frames))]


class Refiner(Protocol):
    """Who turns the student's maps into pseudo labels."""

    def __call__(
        self, indices: Sequence[int], images: Sequence[Image], maps: Sequence[ProbabilityMaps]
    ) -> list[Refinement]:
        """Refine the maps of some cases; images and maps are of one frame, answers come in it."""
        ...


class TeacherRefiner:
    """The teacher, prompted by the student; whole frames, embedded once."""

    def __init__(self, embedded: EmbeddedCases, config: RefineConfig) -> None:
        self._embedded, self._config = embedded, config

    def __call__(
        self, indices: Sequence[int], images: Sequence[Image], maps: Sequence[ProbabilityMaps]
    ) -> list[Refinement]:
        """One decoder call a pass for all images together; the images are not looked at again."""
        return refine(
            self._embedded.teacher, [self._embedded[index] for index in indices], maps, self._config
        )


class LiteralRefiner:
    """The teacher as the paper has it: what it embeds is the very view that the student sees."""

    def __init__(self, teacher: Teacher, config: RefineConfig) -> None:
        self._teacher, self._config = teacher, config

    def __call__(
        self, indices: Sequence[int], images: Sequence[Image], maps: Sequence[ProbabilityMaps]
    ) -> list[Refinement]:
        """Runs the encoder on each image."""
        return refine(self._teacher, self._teacher.embed(images), maps, self._config)


def targets_of(refinement: Refinement, config: PseudoConfig) -> Targets | None:
    """Targets of a pseudo label.

    Returns
    -------
    Targets | None
        float32 (C, h, w): 1, 0, IGNORE for a class that is held back by a filter or because the teacher,
        asked about it, answered with nothing; None where the student found nothing or no class passed, so
        that the image has no pseudo label.
    """
    if refinement.empty:
        return None
    targets: Targets = refinement.masks.astype(np.float32)
    # NaN compares as false: a class that nobody was asked about passes.
    held_back = (refinement.predicted_iou < config.min_iou) | (refinement.agreement < config.min_agreement)
    asked = refinement.student_masks.any(axis=(1, 2))
    held_back |= asked & ~refinement.masks.any(axis=(1, 2))
    targets[held_back] = IGNORE
    return None if held_back[asked].all() else targets


def told(refinements: Sequence[Refinement], targets: Sequence[Targets | None]) -> dict[str, float]:
    """Numbers for the log: share of images without a pseudo label, mean predicted IoU, mean agreement."""
    iou = np.concatenate([one.predicted_iou for one in refinements])
    agreement = np.concatenate([one.agreement for one in refinements])
    return {
        "pseudo_skipped": float(np.mean([one is None for one in targets])),
        "pseudo_iou": float(iou[~np.isnan(iou)].mean()) if not np.isnan(iou).all() else float("nan"),
        "pseudo_agreement": float(agreement[~np.isnan(agreement)].mean())
        if not np.isnan(agreement).all()
        else float("nan"),
    }


def audit(targets: Targets, truth: npt.NDArray[np.int8] | npt.NDArray[np.float32]) -> float:
    """Dice of a pseudo label with the hidden truth over the pixels that count in both.

    The mean over classes, those without any such pixel left out; NaN where all are. Of soft targets what is
    above 0.5 counts.
    """
    scores = [
        dice(target > 0.5, hidden == 1, ignore=unknown)
        for target, hidden in zip(targets, truth, strict=True)
        if not (unknown := (target == IGNORE) | (hidden == IGNORE)).all()
    ]
    return float(np.mean(scores)) if scores else float("nan")


def predict_maps(student: nn.Module, images: Sequence[Image], size: int, batch: int) -> list[ProbabilityMaps]:
    """The student's probability maps of whole images at their own size, as inference would have them.

    Parameters
    ----------
    images
        uint8 (H, W, 3) each.
    size
        The student's, shortest side of the model frame.

    Returns
    -------
    list
        float32 (C, H, W) each.
    """
    frames = [ModelFrame.of((image.shape[0], image.shape[1]), size) for image in images]
    inner = [resize_image(image, frame.size) for frame, image in zip(frames, images, strict=True)]
    logits = predict_logits(student, inner, batch)
    return [frame.probability_maps(one) for frame, one in zip(frames, logits, strict=True)]


def whole_images(
    student: nn.Module,
    refiner: Refiner,
    indices: Sequence[int],
    images: Sequence[Image],
    size: int,
    batch: int,
) -> list[Refinement]:
    """Refine the student's answer to whole images at their own size; parameters as in `predict_maps`."""
    return refiner(indices, images, predict_maps(student, images, size, batch))
