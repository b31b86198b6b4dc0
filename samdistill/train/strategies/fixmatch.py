"""Strategy `fixmatch`: FixMatch (Sohn et al. 2020) for masks.

What the student is sure of in a weak view, max(p, 1 - p) >= tau, it learns in a strong view of the same:
L = L_sup + lambda_c mean (sure * CE(p_strong, mask_weak)). Weak is a view as on labelled images; strong is
the same view, so that pixels correspond, under strong changes of light and colour and with a grey box over
it, behind which it has to guess. The paper's lambda is constant and 1.
"""

from __future__ import annotations

import torch
from torch import nn

from samdistill.train.consistency import HalvedBatches, agreements, binary_ce, supervised_loss
from samdistill.train.consistency_config import ConsistencyConfig
from samdistill.train.ema import batch_statistics
from samdistill.train.loop import Objective
from samdistill.train.schedules import ramp_up
from samdistill.train.strategies.mean_teacher import first_student, fit_whole_run, whole_run
from samdistill.train.training import Training


class FixMatch(Objective):
    """Confident masks of weak views are the labels of strong ones.

    Parameters
    ----------
    training
        Whose images and configuration.
    """

    def __init__(self, training: Training) -> None:
        self._config = training.config.consistency
        self._steps = whole_run(training)
        self._batches = HalvedBatches(training)
        self._supervised = supervised_loss(training)

    def loss(self, student: nn.Module, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss of a step; numbers: the weight, the parts, the confident share, who agrees with whom."""
        halves = self._batches(step)
        count = len(halves.unlabelled)
        with torch.no_grad(), batch_statistics(student):
            # Normalised with the labelled half, as the strong views will be.
            weak = student(torch.cat([halves.labelled, halves.unlabelled]))[-count:].sigmoid()
        sure = torch.maximum(weak, 1 - weak) >= self._config.min_confidence
        logits = student(torch.cat([halves.labelled, strengthen(halves.unlabelled, self._config)]))
        supervised = self._supervised(logits[:-count], halves.targets)
        strong = logits[-count:]
        learned = binary_ce(strong, weak > 0.5, sure)
        weight = self._config.weight * ramp_up(self._config.schedule, step / self._steps)
        numbers = {
            "lambda_c": weight,
            "loss_supervised": float(supervised.detach()),
            "loss_consistency": float(learned.detach()),
            "certain": float(sure.float().mean()),
        }
        voices = {"student": weak, "strong": strong.sigmoid(), "truth": halves.truth}
        return supervised + weight * learned, {**numbers, **agreements(voices)}


def strengthen(pixels: torch.Tensor, config: ConsistencyConfig) -> torch.Tensor:
    """Strong views of float32 (N, 3, ...) views, 0..255: other light, other colour, a grey box."""
    n, axes = len(pixels), pixels.dim() - 2

    def drawn(channels: int) -> torch.Tensor:
        """(N, channels, 1, ...), uniform in -1..1."""
        return 2 * torch.rand(n, channels, *[1] * axes, device=pixels.device) - 1

    light = config.strong_light
    gain, offset = 1 + light * drawn(1), 255 * light * (drawn(1) + 0.5 * drawn(3))
    seen = (gain * (pixels - 127.5) + 127.5 + offset).clamp(0, 255)
    hidden = torch.ones_like(pixels[:, :1], dtype=torch.bool)
    for axis, side in enumerate(pixels.shape[2:], start=2):
        width = round(config.strong_cutout * side)
        start = (torch.rand(n, device=pixels.device) * (side - width + 1)).long()
        place = torch.arange(side, device=pixels.device) - start[:, None]
        inside = (place >= 0) & (place < width)
        hidden &= inside.view(n, 1, *[side if number == axis else 1 for number in range(2, axes + 2)])
    return torch.where(hidden, 127.5, seen)


def fixmatch(training: Training) -> None:
    """One phase over the whole run."""
    fit_whole_run(training, first_student(training), FixMatch(training))
