"""The exponential moving average of a student, the one that every strategy uses. Knows no loss.

It answers as the public code of mean teacher and UA-MT lets it: with noise on its input and batch
normalisation by the batch at hand, without gradient. Unlike there, its answers leave no trace: the running
statistics are an average of the student's, like everything else in it, so it also answers in eval mode.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning_fabric import Fabric
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from samdistill.train.consistency_config import ConsistencyConfig
from samdistill.train.student import Student


class Ema:
    """A student whose every number is the moving average of another's.

    Parameters
    ----------
    student
        Whose; copied as it is.
    fabric
        Where it computes and in which precision.
    config
        Noise and the largest alpha.
    """

    def __init__(self, student: Student, fabric: Fabric, config: ConsistencyConfig) -> None:
        self.network = copy.deepcopy(student).to(fabric.device).requires_grad_(False).train()
        self._fabric = fabric
        self._config = config

    @torch.no_grad()
    def update(self, student: nn.Module, step: int) -> None:
        """Follow the student after the optimiser's step t, counted from 0.

        alpha = min(1 - 1 / (t + 1), limit): a plain mean at first, then exponential.
        """
        alpha = min(1 - 1 / (step + 1), self._config.ema_limit)
        own, others = self.network.state_dict(), student.state_dict()
        for name, value in own.items():
            if value.is_floating_point():
                value.lerp_(others[name], 1 - alpha)
            else:
                value.copy_(others[name])

    @torch.no_grad()
    def answer(self, pixels: torch.Tensor) -> torch.Tensor:
        """Probabilities of noisy pixels; every call draws noise of its own.

        Parameters
        ----------
        pixels
            float32 (N, 3, ...), 0..255. The noise is in units of the student's normalisation, a tenth of a
            standard deviation, which is why it is scaled here: the student normalises inside.

        Returns
        -------
        torch.Tensor
            float32 (N, C, ...) in [0, 1].
        """
        config = self._config
        noise = (config.noise * torch.randn_like(pixels)).clamp(-config.noise_limit, config.noise_limit)
        seen = pixels + noise * self.network.get_buffer("std")
        with batch_statistics(self.network), self._fabric.autocast():
            logits: torch.Tensor = self.network(twice(seen))
        return logits[: len(pixels)].float().sigmoid()


def twice(pixels: torch.Tensor) -> torch.Tensor:
    """A batch of one image twice over, since batch normalisation wants two; others as they are."""
    return torch.cat([pixels, pixels]) if len(pixels) == 1 else pixels


@contextmanager
def batch_statistics(network: nn.Module) -> Iterator[None]:
    """Inside, batch normalisation uses the batch at hand and remembers nothing of it."""
    before = network.training
    layers = [
        module
        for module in network.modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    ]
    network.train()
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True
        network.train(before)
