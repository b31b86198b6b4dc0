"""Labelled and pseudo-labelled views in one batch: total = L(labelled) + lambda L(pseudo).

Knowledge mining's total loss (section 2.5), for every strategy with pseudo labels; where these come from is a
`Source`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import nn

from samdistill.train.data import Batches, FrameStore
from samdistill.train.loop import Objective
from samdistill.train.pseudo import audit
from samdistill.train.views import View

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Source(Protocol):
    """Pseudo labels of views of unlabelled frames."""

    def __call__(
        self, student: nn.Module, drawn: Sequence[tuple[int, View]], pixels: Sequence[torch.Tensor]
    ) -> tuple[list[torch.Tensor | None], dict[str, float]]:
        """Make the targets of a step.

        Parameters
        ----------
        drawn
            Number of the frame, and the view of it.
        pixels
            float32 (3, size, size), 0..255: what each view shows.

        Returns
        -------
        tuple
            float32 (C, size, size) targets in the view, None where an image has none; numbers for the log.
        """
        ...


class Mixed(Objective):
    """The loss on views of labelled and of pseudo-labelled frames, each averaged over its own share.

    Parameters
    ----------
    labelled
        Views of labelled frames; None trains on pseudo labels alone.
    unlabelled
        Views of unlabelled frames.
    source
        Their pseudo labels.
    loss, pseudo_loss
        Of the two shares.
    weight
        lambda.
    spare
        Views of labelled frames, as many as of the unlabelled: they take the places of images without a
        pseudo label, since a student forgets in batches of two or three. None leaves such batches smaller.
    truth
        The hidden labels, for the log alone.
    """

    def __init__(
        self,
        labelled: Batches | None,
        unlabelled: Batches,
        source: Source,
        loss: Loss,
        weight: float,
        *,
        pseudo_loss: Loss | None = None,
        spare: Batches | None = None,
        truth: FrameStore | None = None,
    ) -> None:
        self._labelled, self._unlabelled, self._source = labelled, unlabelled, source
        self._loss, self._pseudo_loss, self._weight = loss, pseudo_loss or loss, weight
        self._spare, self._truth = spare, truth

    def loss(self, student: nn.Module, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss of a step; an image without pseudo label contributes nothing, or gives its place away."""
        device = next(student.parameters()).device
        drawn = self._unlabelled.draw(step)
        seen = [view.pixels(self._unlabelled.store[index].image) for index, view in drawn]
        targets, numbers = self._source(student, drawn, seen)
        if self._truth is not None:
            numbers["pseudo_dice"] = _audit(self._truth, drawn, targets)
        pixels = [one for one, target in zip(seen, targets, strict=True) if target is not None]
        wanted = [target for target in targets if target is not None]
        count = len(pixels)
        if self._labelled is not None:
            batches = [self._labelled(step)]
            if self._spare is not None and count < len(drawn):
                batches.append(self._spare(step, most=len(drawn) - count))
            for batch in batches:
                pixels.extend(batch.pixels)
                wanted.extend(batch.targets)
        if not pixels:  # nobody has anything to say: a loss of zero that still reaches every parameter
            mode = student.training
            student.eval()  # batch normalisation is to learn nothing of black images
            nothing = student(torch.zeros(2, *seen[0].shape, device=device))
            student.train(mode)
            return 0.0 * nothing.sum(), numbers
        if len(pixels) == 1:  # batch normalisation wants two
            pixels, wanted, count = pixels * 2, wanted * 2, count * 2
        logits = student(torch.stack(pixels).to(device, memory_format=torch.channels_last))
        answers = torch.stack(wanted).to(device)
        loss = logits.new_zeros(())
        if count:
            loss = self._weight * self._pseudo_loss(logits[:count], answers[:count])
        if self._labelled is not None:
            loss = loss + self._loss(logits[count:], answers[count:])
        return loss, numbers


def _audit(
    truth: FrameStore, drawn: Sequence[tuple[int, View]], targets: Sequence[torch.Tensor | None]
) -> float:
    scores = []
    for (index, view), target in zip(drawn, targets, strict=True):
        hidden = truth[index].targets
        if target is not None and hidden is not None:
            scores.append(audit(target.numpy(), view.targets(hidden.astype(np.float32)).numpy()))
    scores = [score for score in scores if not np.isnan(score)]
    return float(np.mean(scores)) if scores else float("nan")
