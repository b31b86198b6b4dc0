"""Strategy `ups`: uncertainty-aware pseudo-label selection (Rizve et al. 2021), pixel by pixel; no teacher.

Rounds as SamDSK's. In each, the student's answer is learned where it is confident and its spread is small:
foreground where p >= tau_p and u <= kappa_p, background where p <= tau_n and u <= kappa_n (eq. 5; several
labels may hold at once, so each class is a positive or negative label of its own).

The paper's u is the standard deviation over passes with dropout. Our student has no dropout: u is the one
over its answers to the eight turned and mirrored views of the image, and p their mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from samdistill.arrays import Image, ProbabilityMaps
from samdistill.geometry import sigmoid
from samdistill.train.losses import IGNORE
from samdistill.train.pseudo import predict_logits
from samdistill.train.samdsk_config import UpsConfig
from samdistill.train.sources import Answer, Drawn, warped
from samdistill.train.strategies.rounds import Labelled, run_rounds
from samdistill.train.student import Student
from samdistill.train.training import Training

TURNS = [(quarters, mirrored) for quarters in range(4) for mirrored in (False, True)]


def ups(training: Training) -> None:
    """One training more than rounds; the best student of all is the run's."""

    def label(student: Student, number: int) -> Labelled:
        store = training.unlabelled
        found: dict[int, npt.NDArray[np.int8]] = {}
        for index in range(len(store)):
            mean, spread = answer_to_views(student, store[index].image)
            targets = select_pixels(mean, spread, training.config.ups)
            if targets is not None:
                found[index] = targets
            training.watcher.on_prepare("selecting pixels", index + 1, len(store))
        counted = [float((one != int(IGNORE)).mean()) for one in found.values()]
        training.watcher.on_message(
            f"round {number}: pixels of {len(found)} of {len(store)} images selected"
            + (f", {100 * np.mean(counted):.0f} % of each" if counted else "")
        )
        return Labelled(list(found), Selected(list(found.values())), len(found))

    run_rounds(training, label)


def answer_to_views(student: nn.Module, image: Image) -> tuple[ProbabilityMaps, ProbabilityMaps]:
    """Mean and standard deviation of the student's answers to an image's eight turned and mirrored views.

    Parameters
    ----------
    image
        uint8 (h, w, 3).

    Returns
    -------
    tuple
        float32 (C, h, w) each, in the image's own orientation.
    """
    seen = [np.ascontiguousarray(np.rot90(image[:, ::-1] if mirrored else image, n)) for n, mirrored in TURNS]
    answers = []
    for (n, mirrored), logits in zip(TURNS, predict_logits(student, seen, len(seen)), strict=True):
        back = np.rot90(logits, -n, axes=(1, 2))
        answers.append(sigmoid(np.ascontiguousarray(back[:, :, ::-1] if mirrored else back)))
    stacked = np.stack(answers)
    return stacked.mean(axis=0), stacked.std(axis=0)


def select_pixels(
    mean: ProbabilityMaps, spread: ProbabilityMaps, config: UpsConfig
) -> npt.NDArray[np.int8] | None:
    """Targets of an image: 1, 0, IGNORE where a pixel is not selected; None where no pixel is foreground."""
    targets = np.full(mean.shape, int(IGNORE), np.int8)
    targets[(mean <= config.max_negative) & (spread <= config.max_negative_spread)] = 0
    targets[(mean >= config.min_positive) & (spread <= config.max_positive_spread)] = 1
    return targets if (targets == 1).any() else None


class Selected:
    """Targets held in memory, in the canonical frame."""

    def __init__(self, targets: Sequence[npt.NDArray[np.int8]]) -> None:
        self._targets = targets

    def __call__(self, student: nn.Module, drawn: Drawn, pixels: Sequence[torch.Tensor]) -> Answer:
        """Asks no student and no teacher."""
        return warped([self._targets[index].astype(np.float32) for index, _ in drawn], drawn), {}
