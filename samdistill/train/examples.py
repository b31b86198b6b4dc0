"""Labelled images for measuring on: truth in memory, a student's answers made once. Knows no search."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from samdistill.arrays import Image, Mask, Masks, ProbabilityMaps
from samdistill.geometry import ModelFrame
from samdistill.io.dataset import Case
from samdistill.metrics import dice_per_class
from samdistill.train.data import read_uint8
from samdistill.train.pseudo import predict_logits
from samdistill.train.run import Run
from samdistill.train.student import Student

Dice = npt.NDArray[np.float64]  # (images,), mean over the classes of each
Tell = Callable[[str, int, int], None]
BATCH = 8


class Examples:
    """Labelled images, and what a run's student says of them.

    Parameters
    ----------
    run
        Whose student.
    cases
        Labelled.
    device
        Where the student computes.
    tell
        Hears of progress.
    """

    def __init__(self, run: Run, cases: Sequence[Case], device: str, tell: Tell) -> None:
        self.cases, self._run = tuple(cases), run
        self._truth: list[tuple[Masks, Mask]] = []
        self._answers: list[tuple[ModelFrame, npt.NDArray[np.float32]]] = []
        student: Student = run.load_student().to(device)
        for index, case in enumerate(self.cases):
            image = self.image(index)
            frame = ModelFrame.of((image.shape[0], image.shape[1]), run.config.student.size)
            inner = frame.pixels(image).transpose(1, 2, 0)[: frame.size[0], : frame.size[1]]
            (logits,) = predict_logits(student, [np.ascontiguousarray(inner)], 1)
            self._answers.append((frame, logits))
            self._truth.append(case.read_labels())
            tell("predicting", index + 1, len(self.cases))

    def image(self, index: int) -> Image:
        """Read an image, uint8 (H, W, 3)."""
        return read_uint8(self.cases[index], self._run.intensity)

    def batches(self) -> Iterator[tuple[list[int], list[ProbabilityMaps]]]:
        """Numbers of a few images and their maps at their own size."""
        for start in range(0, len(self.cases), BATCH):
            indices = list(range(start, min(start + BATCH, len(self.cases))))
            yield (
                indices,
                [frame.probability_maps(logits) for frame, logits in (self._answers[i] for i in indices)],
            )

    def score(self, index: int, masks: Masks) -> float:
        """Dice of an image's masks (C, H, W), mean over the classes."""
        truth, ignored = self._truth[index]
        return float(dice_per_class(masks, truth, ignore=ignored).mean())

    def score_all(self, answer: Callable[[list[int], list[ProbabilityMaps]], Sequence[Masks]]) -> Dice:
        """Dice of every image, of whatever answers the student's maps."""
        scores = [
            self.score(index, masks)
            for indices, maps in self.batches()
            for index, masks in zip(indices, answer(indices, maps), strict=True)
        ]
        return np.array(scores)
