"""Strategy `bcp`: bidirectional copy-paste (Bai et al. 2023), a baseline without teacher.

A box of one picture is pasted into another, both ways: a labelled picture with an unlabelled box in it, and
an unlabelled one with a labelled box. What is unlabelled takes its label from the student's moving average,
of which only the largest component of each class stands. Each part has its own loss (eq. 5 to 8):
L = L_seg(labelled part) + alpha L_seg(unlabelled part), for both pictures.

1. The student learns from labelled pictures pasted into labelled ones. 2. It goes on as above; its average
begins where it stands.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from samdistill.components import label
from samdistill.train.consistency import HalvedBatches, agreements, supervised_loss
from samdistill.train.ema import Ema
from samdistill.train.loop import Objective
from samdistill.train.losses import IGNORE
from samdistill.train.strategies.simclr import pretrain
from samdistill.train.student import Student
from samdistill.train.training import Training


class LabelledPaste(Objective):
    """Labelled boxes in labelled pictures.

    Parameters
    ----------
    training
        Whose images and configuration.
    """

    def __init__(self, training: Training) -> None:
        config = training.config
        self._first, self._second = (
            training.batches(training.labelled, config.batch, stream=stream) for stream in (0, 3)
        )
        self._loss, self._box, self._device = (
            supervised_loss(training),
            config.bcp.box,
            training.fabric.device,
        )

    def loss(self, student: nn.Module, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss of a step, and no further numbers."""
        below, above = self._first(step), self._second(step)
        box = draw_box(below.pixels, self._box)
        logits = student(_to(self._device, torch.where(box, above.pixels, below.pixels)))
        return self._loss(logits, torch.where(box, above.targets, below.targets).to(self._device)), {}


class BidirectionalPaste(Objective):
    """Unlabelled boxes in labelled pictures, and labelled ones in unlabelled.

    Parameters
    ----------
    training
        Whose images and configuration.
    student
        As it begins the phase.
    batches
        What it learns from.
    """

    def __init__(self, training: Training, student: Student, batches: HalvedBatches) -> None:
        config = training.config
        # The public code gives the average the pictures as they are.
        self._ema = Ema(student, training.fabric, replace(config.consistency, noise=0.0))
        self._batches = batches
        self._loss, self._config = supervised_loss(training), config.bcp

    def networks(self) -> dict[str, nn.Module]:
        """The average, which learns nothing by itself."""
        return {"ema": self._ema.network}

    def after_step(self, student: nn.Module, step: int) -> None:
        """The average follows."""
        self._ema.update(student, step)

    def loss(self, student: nn.Module, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss of a step; numbers: its parts, and who agrees with whom."""
        halves = self._batches(step)
        answer = largest(self._ema.answer(halves.unlabelled) > 0.5)
        # As many pairs as the larger half has pictures; the smaller one's come again.
        count = max(len(halves.labelled), len(halves.unlabelled))
        mine = torch.arange(count, device=answer.device) % len(halves.labelled)
        theirs = torch.arange(count, device=answer.device) % len(halves.unlabelled)
        labelled, targets = halves.labelled[mine], halves.targets[mine]
        unlabelled, answers = halves.unlabelled[theirs], answer[theirs]
        box = draw_box(labelled, self._config.box)
        others = theirs.roll(1)  # the second picture of each pair is not the first one over again
        pictures = torch.cat(
            [torch.where(box, unlabelled, labelled), torch.where(box, labelled, halves.unlabelled[others])]
        )
        # Elements of the labelled part alone, and of the unlabelled part alone.
        silent = torch.full_like(targets, IGNORE)
        known = torch.cat([torch.where(box, silent, targets), torch.where(box, targets, silent)])
        guessed = torch.cat([torch.where(box, answers, silent), torch.where(box, silent, answer[others])])
        logits = student(_to(pictures.device, pictures))
        supervised, learned = self._loss(logits, known), self._loss(logits, guessed)
        numbers = {"loss_supervised": float(supervised.detach()), "loss_pseudo": float(learned.detach())}
        voices = {"ema": answer, "truth": halves.truth}
        return supervised + self._config.weight * learned, {**numbers, **agreements(voices)}


def draw_box(pixels: torch.Tensor, share: float) -> torch.Tensor:
    """(N, 1, H, W) bool: a box in each picture, `share` of its sides, anywhere in it."""
    height, width = pixels.shape[2:]
    box = torch.zeros(len(pixels), 1, height, width, dtype=torch.bool)
    high, wide = max(1, int(share * height)), max(1, int(share * width))
    for one in box:
        top = int(torch.randint(height - high + 1, ()))
        left = int(torch.randint(width - wide + 1, ()))
        one[0, top : top + high, left : left + wide] = True
    return box.to(pixels.device)


def largest(masks: torch.Tensor) -> torch.Tensor:
    """float32 (N, C, H, W): of bool masks of that shape, the largest 8-connected component of each alone."""
    kept = np.zeros(masks.shape, np.float32)
    for place, mask in zip(np.ndindex(*masks.shape[:2]), masks.flatten(0, 1).cpu().numpy(), strict=True):
        found = label(np.ascontiguousarray(mask))
        if len(found):
            kept[place] = found.labels == int(np.argmax(found.area_px)) + 1
    return torch.from_numpy(kept).to(masks.device)


def bcp(training: Training) -> None:
    """Two phases of one student."""
    first, second = training.steps(training.config.pseudo.supervised_share)
    batches = HalvedBatches(training)  # refuses a share of 0 before the first phase, not after it
    student = training.new_student()
    if training.config.pretrain == "simclr":
        pretrain(training, student)
    training.fit(
        student,
        LabelledPaste(training),
        name="bcp, labelled",
        number=0,
        images=len(training.labelled),
        steps=first,
    )
    student.load_state_dict(training.best_of_phase(0))
    training.fit(
        student,
        BidirectionalPaste(training, student, batches),
        name="bcp",
        number=1,
        images=len(training.labelled) + len(training.unlabelled),
        steps=second,
        rate_factor=training.config.pseudo.rate_factor,
        carry_best=True,
    )


def _to(device: torch.device, pixels: torch.Tensor) -> torch.Tensor:
    return pixels.to(device, memory_format=torch.channels_last)
