"""Strategies `mean-teacher` and `ua-mt`: consistency with an average of oneself.

Mean teacher (Tarvainen and Valpola 2017): L = L_sup + lambda_c mean (p - p_ema)^2, the latter on unlabelled
images alone. UA-MT (Yu et al. 2019): the same, but only where several noisy answers of the EMA agree. One
phase from the initial weights, since the schedules go over the whole run.
"""

from __future__ import annotations

import torch
from torch import nn

from samdistill.train.consistency import (
    HalvedBatches,
    Halves,
    agreements,
    certain,
    mean_square,
    supervised_loss,
)
from samdistill.train.ema import Ema
from samdistill.train.loop import Objective
from samdistill.train.losses import IGNORE
from samdistill.train.schedules import ramp_up
from samdistill.train.strategies.simclr import pretrain
from samdistill.train.student import Student
from samdistill.train.training import Training


class MeanTeacher(Objective):
    """L = L_sup + lambda_c L_con(student, EMA), and room for a third voice.

    Parameters
    ----------
    training
        Whose images and configuration.
    student
        In its initial state.
    steps
        T, optimiser steps of the run.
    uncertainty
        UA-MT: leave out the pixels that the EMA is not certain of.
    """

    def __init__(self, training: Training, student: Student, steps: int, *, uncertainty: bool) -> None:
        self.config = training.config.consistency
        self.steps = steps
        self._batches = HalvedBatches(training)
        self._supervised = supervised_loss(training)
        self._ema = Ema(student, training.fabric, self.config)
        self._uncertainty = uncertainty

    def networks(self) -> dict[str, nn.Module]:
        """The EMA, which learns nothing by itself."""
        return {"ema": self._ema.network}

    def after_step(self, student: nn.Module, step: int) -> None:
        """The EMA follows."""
        self._ema.update(student, step)

    def loss(self, student: nn.Module, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss of a step; numbers: the weights, the parts, who agrees with whom."""
        halves = self._batches(step)
        pixels = torch.cat([halves.labelled, halves.unlabelled])
        logits = student(pixels)
        supervised = self._supervised(logits[: len(halves.labelled)], halves.targets)
        mine = logits[len(halves.labelled) :].sigmoid()
        weight = self.config.weight * ramp_up(self.config.schedule, step / self.steps)
        loss, numbers = supervised, {"lambda_c": weight, "loss_supervised": float(supervised.detach())}
        average: torch.Tensor | None = None
        if weight > 0:
            average, counted = self._average(pixels, len(halves.labelled), step / self.steps)
            consistency = mean_square(mine, average, counted)
            loss = loss + weight * consistency
            numbers["loss_consistency"] = float(consistency.detach())
            if counted is not None:
                numbers["certain"] = float(counted.float().mean())
        third, weight, told = self.third(student, halves, mine.detach(), step)
        if third is not None:
            third = third.to(mine.device)
            difference = mean_square(mine, third, third != IGNORE)
            loss = loss + weight * difference
            numbers["loss_teacher"] = float(difference.detach())
        voices = {"student": mine, "ema": average, "teacher": third, "truth": halves.truth}
        return loss, {**numbers, **told, **agreements(voices)}

    def third(
        self, student: nn.Module, halves: Halves, mine: torch.Tensor, step: int
    ) -> tuple[torch.Tensor | None, float, dict[str, float]]:
        """A further voice: float32 (N, C, ...) or None for silence, its weight, numbers for the log.

        IGNORE stands where it says nothing; `mine` are the student's probabilities.
        """
        return None, 0.0, {}

    def _average(
        self, pixels: torch.Tensor, labelled: int, share: float
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The EMA's answer to the unlabelled half, and which of its elements count; None: all.

        The EMA always sees the whole batch, as the student does: normalised by one half alone, the very same
        weights answer otherwise, and the consistency would be with that, or other pixels found uncertain.
        """
        answer = self._ema.answer(pixels)[labelled:]
        if not self._uncertainty:
            return answer, None
        mean = torch.zeros_like(answer)
        for _ in range(self.config.passes):
            mean += self._ema.answer(pixels)[labelled:] / self.config.passes
        return answer, certain(mean.clamp(0, 1), share)


def mean_teacher(training: Training) -> None:
    """All pixels of the unlabelled images count."""
    run_phase(training, uncertainty=False)


def ua_mt(training: Training) -> None:
    """Only those count that the EMA is certain of."""
    run_phase(training, uncertainty=True)


def run_phase(training: Training, *, uncertainty: bool) -> None:
    """One phase over the whole run."""
    student, steps = first_student(training), whole_run(training)
    fit_whole_run(training, student, MeanTeacher(training, student, steps, uncertainty=uncertainty))


def first_student(training: Training) -> Student:
    """The run's student, pre-trained where that is asked for."""
    student = training.new_student()
    if training.config.pretrain == "simclr":
        pretrain(training, student)
    return student


def whole_run(training: Training) -> int:
    """T: `max_steps`, or all of `max_epochs`: where a schedule goes over the run there is no early stop."""
    images = len(training.labelled) + len(training.unlabelled)
    return training.config.max_steps or training.config.max_epochs * training.epoch_steps(images)


def fit_whole_run(training: Training, student: Student, objective: Objective) -> None:
    """The only phase of a strategy that learns from both halves at once."""
    training.fit(
        student,
        objective,
        name=training.config.strategy,
        number=0,
        images=len(training.labelled) + len(training.unlabelled),
        steps=whole_run(training),
    )
