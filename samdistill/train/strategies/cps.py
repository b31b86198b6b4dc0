"""Strategy `cps`: cross pseudo supervision (Chen et al. 2021).

Two students of different initial weights see the same images; on the unlabelled ones each learns the other's
mask: L = L_sup(1) + L_sup(2) + lambda_c (CE(p1, mask2) + CE(p2, mask1)). The first one is the run's. As in
the public code for medical images, the crossed terms are on unlabelled images alone; the paper has them on
all, with a constant weight.
"""

from __future__ import annotations

import torch
from torch import nn

from samdistill.train.consistency import HalvedBatches, agreements, binary_ce, supervised_loss
from samdistill.train.loop import Objective
from samdistill.train.schedules import ramp_up
from samdistill.train.strategies.mean_teacher import first_student, fit_whole_run, whole_run
from samdistill.train.student import Student
from samdistill.train.training import Training


class CrossPseudo(Objective):
    """Each student's masks are the other's labels.

    Parameters
    ----------
    training
        Whose images and configuration.
    second
        The other student.
    """

    def __init__(self, training: Training, second: Student) -> None:
        self._config = training.config.consistency
        self._steps = whole_run(training)
        self._batches = HalvedBatches(training)
        self._supervised = supervised_loss(training)
        self._own = second
        # With its own precision, device and synchronisation, as the loop gives them to the first.
        self._second = training.fabric.setup_module(second)

    def networks(self) -> dict[str, nn.Module]:
        """The second student, which learns beside the first."""
        return {"second": self._own}

    def loss(self, student: nn.Module, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss of a step; numbers: the weight, the parts, who agrees with whom."""
        halves = self._batches(step)
        pixels, count = torch.cat([halves.labelled, halves.unlabelled]), len(halves.labelled)
        first, second = student(pixels), self._second(pixels)
        supervised = self._supervised(first[:count], halves.targets) + self._supervised(
            second[:count], halves.targets
        )
        one, other = first[count:], second[count:]
        crossed = binary_ce(one, other.detach() > 0) + binary_ce(other, one.detach() > 0)
        weight = self._config.weight * ramp_up(self._config.schedule, step / self._steps)
        numbers = {
            "lambda_c": weight,
            "loss_supervised": float(supervised.detach()),
            "loss_consistency": float(crossed.detach()),
        }
        voices = {"student": one.sigmoid(), "second": other.sigmoid(), "truth": halves.truth}
        return supervised + weight * crossed, {**numbers, **agreements(voices)}


def cps(training: Training) -> None:
    """One phase over the whole run."""
    fit_whole_run(training, first_student(training), CrossPseudo(training, training.new_student(1)))
