"""Where pseudo labels come from: made at each visit, by the view or by the frame, or read from the store."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from samdistill.arrays import Image
from samdistill.errors import InputRejected
from samdistill.geometry import resize_masks, sigmoid
from samdistill.refine import Refinement
from samdistill.train.config import PseudoConfig
from samdistill.train.data import FrameStore, read_uint8
from samdistill.train.losses import IGNORE
from samdistill.train.pseudo import (
    Refiner,
    Targets,
    predict_logits,
    targets_of,
    told,
    whole_images,
)
from samdistill.train.store import PseudoLabel, PseudoStore
from samdistill.train.training import Training
from samdistill.train.views import View

Drawn = Sequence[tuple[int, View]]
Answer = tuple[list[torch.Tensor | None], dict[str, float]]


class Continuous:
    """Anew at each visit, in the canonical frame; the pseudo label is warped by the view."""

    def __init__(self, store: FrameStore, refiner: Refiner, config: PseudoConfig) -> None:
        self._store, self._refiner, self._config = store, refiner, config

    def __call__(self, student: nn.Module, drawn: Drawn, pixels: Sequence[torch.Tensor]) -> Answer:
        """One student pass and one decoder call for all images together."""
        frames = [self._store[index].image for index, _ in drawn]
        targets, numbers = refined(student, self._refiner, drawn, frames, self._config)
        return warped(targets, drawn), numbers


class ContinuousViews:
    """Anew at each visit, literally: student and teacher both look at the augmented view."""

    def __init__(self, refiner: Refiner, config: PseudoConfig) -> None:
        self._refiner, self._config = refiner, config

    def __call__(self, student: nn.Module, drawn: Drawn, pixels: Sequence[torch.Tensor]) -> Answer:
        """Runs the teacher's encoder on every view."""
        views: list[Image] = [
            np.ascontiguousarray(one.round().byte().permute(1, 2, 0).numpy()) for one in pixels
        ]
        targets, numbers = refined(student, self._refiner, drawn, views, self._config)
        return [None if one is None else torch.from_numpy(one) for one in targets], numbers


def refined(
    student: nn.Module, refiner: Refiner, drawn: Drawn, images: Sequence[Image], config: PseudoConfig
) -> tuple[list[Targets | None], dict[str, float]]:
    """Targets of what the student finds in these images, in their own frame, and numbers for the log."""
    maps = [sigmoid(one) for one in predict_logits(student, images, len(images))]
    refinements = refiner([index for index, _ in drawn], images, maps)
    targets = [targets_of(one, config) for one in refinements]
    return targets, told(refinements, targets)


class Own:
    """The student's own answer, hard or soft, where it is confident: the baseline without a teacher."""

    def __init__(self, store: FrameStore, config: PseudoConfig) -> None:
        self._store, self._config = store, config

    def __call__(self, student: nn.Module, drawn: Drawn, pixels: Sequence[torch.Tensor]) -> Answer:
        """One student pass for all images together."""
        frames = [self._store[index].image for index, _ in drawn]
        logits = predict_logits(student, frames, len(frames))
        targets = [own_targets(one, self._config) for one in logits]
        return warped(targets, drawn), {"pseudo_skipped": float(np.mean([one is None for one in targets]))}


def own_targets(logits: Targets, config: PseudoConfig) -> Targets | None:
    """Targets of the student's own (C, h, w) logits; None where it found nothing."""
    maps = sigmoid(logits)
    if not (maps > 0.5).any():
        return None
    targets: Targets = maps.copy() if config.soft else (maps > 0.5).astype(np.float32)
    targets[np.maximum(maps, 1 - maps) < config.min_confidence] = IGNORE
    return targets


class Stored:
    """Read from the store, in the canonical frame; images that are not in it have no pseudo label."""

    def __init__(self, frames: FrameStore, store: PseudoStore, config: PseudoConfig) -> None:
        self._frames, self._store, self._config = frames, store, config
        # A quarter of what targets would take.
        self._held: dict[int, tuple[npt.NDArray[np.int8] | None, dict[str, float]]] = {}

    def __call__(self, student: nn.Module, drawn: Drawn, pixels: Sequence[torch.Tensor]) -> Answer:
        """Asks no student and no teacher."""
        found = [self._targets(index) for index, _ in drawn]
        return warped([targets for targets, _ in found], drawn), _mean([numbers for _, numbers in found])

    def pixels_by_class(self) -> tuple[list[int], list[int]]:
        """Foreground and background pixels of each class over all pseudo labels, in the canonical frame.

        Raises
        ------
        InputRejected
            When no image has a pseudo label.
        """
        found = [
            targets for index in range(len(self._frames)) if (targets := self._targets(index)[0]) is not None
        ]
        if not found:
            raise InputRejected(self._why_none())
        positive = np.sum([(one == 1).sum(axis=(1, 2)) for one in found], axis=0)
        negative = np.sum([(one == 0).sum(axis=(1, 2)) for one in found], axis=0)
        return positive.tolist(), negative.tolist()

    def _why_none(self) -> str:
        """Why no image has a pseudo label, and what to do."""
        kept = [case.id for case in self._frames.cases if case.id in self._store]
        asked = sum(not self._store.read(case_id).refinement.empty for case_id in kept)
        if not asked:
            return (
                "the student found nothing in any unlabelled image, so there is no pseudo label to learn "
                "from. Train its first phase for longer or with more labels."
            )
        return (
            f"the student found something in {asked} of {len(self._frames)} unlabelled images, but each "
            f"pseudo label is empty or held back by --min-iou {self._config.min_iou:g} or --min-agreement "
            f"{self._config.min_agreement:g}, so there is none to learn from. Lower these, or train the "
            "student's first phase for longer or with more labels."
        )

    def _targets(self, index: int) -> tuple[npt.NDArray[np.int8] | None, dict[str, float]]:
        if index not in self._held:
            frame, case = self._frames[index], self._frames.cases[index]
            if case.id in self._store:
                one = self._store.read(case.id).refinement
                full = targets_of(one, self._config)
                small = None if full is None else _shrunk(full, frame.image.shape[:2])
                self._held[index] = None if small is None else small.astype(np.int8), told([one], [small])
            else:
                self._held[index] = None, {"pseudo_skipped": 1.0}
        return self._held[index]


def warped(
    targets: Sequence[Targets | npt.NDArray[np.int8] | None], drawn: Drawn
) -> list[torch.Tensor | None]:
    """Bring targets of canonical frames into the views."""
    return [
        None if target is None else view.targets(target.astype(np.float32, copy=False))
        for target, (_, view) in zip(targets, drawn, strict=True)
    ]


def make_labels(
    training: Training, student: nn.Module, refiner: Refiner, store: PseudoStore, *, number: int = 1
) -> None:
    """Put the pseudo labels of all unlabelled images into the store; what is there already stays.

    Each process makes its share. To be resumed with the same student.
    """
    fabric, cases = training.fabric, training.unlabelled.cases
    own = range(fabric.global_rank, len(cases), fabric.world_size)
    batch = training.config.batch
    for start in range(0, len(own), batch):
        missing = [index for index in own[start : start + batch] if cases[index].id not in store]
        if missing:
            images = [read_uint8(cases[index], training.run.intensity) for index in missing]
            size = training.config.student.size
            for index, one in zip(
                missing, whole_images(student, refiner, missing, images, size, batch), strict=True
            ):
                sha256 = training.teacher.weights_sha256 if _asked(one) else ""
                store.write(PseudoLabel(cases[index].id, one, sha256, number))
        training.watcher.on_prepare("pseudo labels", min(start + batch, len(own)), len(own))
    fabric.barrier()


def _asked(refinement: Refinement) -> bool:
    return any(refinement.prompts)


def _shrunk(targets: Targets, size: tuple[int, int]) -> Targets:
    """Bring targets of the image's size to the canonical frame as labels are; a class is held back whole."""
    held_back = (targets == IGNORE).all(axis=(1, 2))
    small: Targets = resize_masks(targets == 1, size).astype(np.float32)
    small[held_back] = IGNORE
    return small


def _mean(numbers: Sequence[dict[str, float]]) -> dict[str, float]:
    means = {}
    for name in dict.fromkeys(name for one in numbers for name in one):
        values = [one[name] for one in numbers if name in one and not math.isnan(one[name])]
        means[name] = float(np.mean(values)) if values else float("nan")
    return means
