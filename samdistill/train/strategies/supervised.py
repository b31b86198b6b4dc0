"""Strategy `supervised`: the labelled images and nothing else; the base and the baseline of all others."""

from __future__ import annotations

import torch
from torch import nn

from samdistill.train.data import Batches
from samdistill.train.loop import Objective
from samdistill.train.losses import SegmentationLoss
from samdistill.train.strategies.simclr import pretrain
from samdistill.train.student import Student
from samdistill.train.training import Training


class Supervised(Objective):
    """L = Dice + k BCE on random views of the labelled frames.

    Parameters
    ----------
    batches
        The labelled frames' views by step.
    loss
        Dice + k BCE.
    """

    def __init__(self, batches: Batches, loss: SegmentationLoss) -> None:
        self._batches = batches
        self._loss = loss

    def loss(self, student: nn.Module, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss of a step, and no further numbers."""
        batch = self._batches(step)
        device = next(student.parameters()).device
        logits = student(batch.pixels.to(device, memory_format=torch.channels_last))
        return self._loss(logits, batch.targets.to(device)), {}


def supervised(training: Training) -> None:
    """One phase with all the steps."""
    supervised_phase(training, training.new_student(), steps=training.config.max_steps)


def supervised_phase(training: Training, student: Student, *, steps: int | None) -> None:
    """Phase 0 of every strategy: the labelled images alone, after pre-training where it is asked for."""
    if training.config.pretrain == "simclr":
        pretrain(training, student)
    batches = training.batches(training.labelled, training.config.batch, stream=0)
    training.fit(
        student,
        Supervised(batches, training.loss),
        name="supervised",
        number=0,
        images=len(training.labelled),
        steps=steps,
    )


def first_of_two(training: Training) -> tuple[Student, int | None]:
    """The supervised phase's share of the run: its best student, and the steps that are left."""
    first, second = training.steps(training.config.pseudo.supervised_share)
    student = training.new_student()
    supervised_phase(training, student, steps=first)
    student.load_state_dict(training.best_of_phase(0))
    return student, second
