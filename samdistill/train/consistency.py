"""What the strategies with several voices share: batches of two halves, and formulas over probabilities.

Every formula takes (N, C, ...) tensors with any number of image axes. Knows no network and no schedule.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from samdistill.errors import UsageError
from samdistill.metrics import dice_per_class
from samdistill.train.data import FrameStore
from samdistill.train.losses import IGNORE, SegmentationLoss
from samdistill.train.mixed import Loss
from samdistill.train.schedules import ramp_up
from samdistill.train.training import Training
from samdistill.train.views import View


@dataclass(frozen=True)
class Halves:
    """A batch whose first images are labelled.

    Parameters
    ----------
    labelled, unlabelled
        float32 (N, 3, ...), 0..255: what the views show.
    targets
        float32 (N, C, ...) of the labelled half, IGNORE where a pixel does not count.
    drawn
        Number of the frame in the store, and the view of it, for each unlabelled image.
    truth
        As `targets`, of the unlabelled half, for the log alone; IGNORE where nobody knows. None: not asked.
    """

    labelled: torch.Tensor
    targets: torch.Tensor
    unlabelled: torch.Tensor
    drawn: list[tuple[int, View]]
    truth: torch.Tensor | None


class HalvedBatches:
    """Labelled and unlabelled views, a fixed share of each in every batch; the labels of the latter unread.

    Parameters
    ----------
    training
        Whose images.
    """

    def __init__(self, training: Training) -> None:
        config, fabric = training.config, training.fabric
        share = config.pseudo.labelled_share
        share = 0.5 if share is None else share
        if share == 0:
            raise UsageError(
                f"labelled_share must be above 0 with the strategy {config.strategy}, not 0: it learns from "
                "labelled and unlabelled images at once. Leave it out for one half."
            )
        count = min(max(fabric.world_size, round(config.batch * share)), config.batch - fabric.world_size)
        self._labelled = training.batches(training.labelled, count, stream=1)
        self._unlabelled = training.batches(training.unlabelled, config.batch - count, stream=2)
        self._truth = training.hidden_truth
        self._device = fabric.device

    def __call__(self, step: int) -> Halves:
        """The batch of a step, on the device of the training."""
        batch = self._labelled(step)
        drawn = self._unlabelled.draw(step)
        store = self._unlabelled.store
        seen = torch.stack([view.pixels(store[index].image) for index, view in drawn])
        return Halves(
            batch.pixels.to(self._device, memory_format=torch.channels_last),
            batch.targets.to(self._device),
            seen.to(self._device, memory_format=torch.channels_last),
            drawn,
            None if self._truth is None else _hidden(self._truth, drawn, batch.targets),
        )


def _hidden(truth: FrameStore, drawn: list[tuple[int, View]], like: torch.Tensor) -> torch.Tensor:
    found = torch.full((len(drawn), *like.shape[1:]), IGNORE)
    for number, (index, view) in enumerate(drawn):
        targets = truth[index].targets
        if targets is not None:
            found[number] = view.targets(targets.astype(np.float32))
    return found


def supervised_loss(training: Training) -> Loss:
    """The loss on labelled images: 0.5 (CE + Dice) or, where the configuration says so, the run's own."""
    if training.config.consistency.loss == "dice-bce":
        return training.loss
    dice_and_ce = SegmentationLoss(1.0)
    return lambda logits, targets: 0.5 * dice_and_ce(logits, targets)


def mean_square(
    probabilities: torch.Tensor, others: torch.Tensor, counted: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean squared difference, over the elements that count: sum(mask * distance) / (sum(mask) + eps)."""
    distance = (probabilities - others) ** 2
    if counted is None:
        return distance.mean()
    return (distance * counted).sum() / (counted.sum() + 1e-16)


def binary_entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """-p ln p - (1 - p) ln(1 - p) of each element, each class by itself; at most ln 2."""
    return -(torch.xlogy(probabilities, probabilities) + torch.xlogy(1 - probabilities, 1 - probabilities))


def certain(mean: torch.Tensor, share: float) -> torch.Tensor:
    """Which elements of a mean of stochastic answers UA-MT trusts at t/T: H < (0.75 + 0.25 ramp) ln 2."""
    return binary_entropy(mean) < (0.75 + 0.25 * ramp_up("gaussian", share)) * math.log(2)


def binary_ce(logits: torch.Tensor, masks: torch.Tensor, counted: torch.Tensor | None = None) -> torch.Tensor:
    """Cross-entropy with masks; elements that do not count are zeros of the mean, as in FixMatch."""
    each = functional.binary_cross_entropy_with_logits(logits, masks.to(logits.dtype), reduction="none")
    return each.mean() if counted is None else (each * counted).mean()


def agreements(voices: Mapping[str, torch.Tensor | None]) -> dict[str, float]:
    """Dice of every two voices, for the log.

    Parameters
    ----------
    voices
        By name, float32 (N, C, ...) probabilities or masks, IGNORE where a voice says nothing; a class of an
        image in which either says nothing at all is left out. None: the voice is silent.

    Returns
    -------
    dict
        `agree_<one>_<other>`, Dice of the masks p > 0.5, mean over classes, then images; NaN where nothing is
        left.
    """
    heard = {name: voice.detach().cpu() for name, voice in voices.items() if voice is not None}
    return {
        f"agree_{one}_{other}": _dice(heard[one], heard[other])
        for one, other in itertools.combinations(heard, 2)
    }


def _dice(first: torch.Tensor, second: torch.Tensor) -> float:
    scores = []
    for one, other in zip(first.flatten(2), second.flatten(2), strict=True):
        counted = (one != IGNORE) & (other != IGNORE)
        kept = counted.any(dim=1)
        if kept.any():
            masks = [((voice > 0.5) & counted)[kept, None].numpy() for voice in (one, other)]
            scores.append(dice_per_class(masks[0], masks[1]).mean())
    return float(np.mean(scores)) if scores else math.nan
