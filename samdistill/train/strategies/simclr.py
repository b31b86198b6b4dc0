"""Pre-training before any strategy: SimCLR (Chen et al. 2020) on all training images, labels unread.

Two views of each image of a batch; an image's views are to be closer to each other, after the encoder and a
projection, than to the views of any other image. Knowledge mining, ablations: it helps the supervised student
and lowers the mined one.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from lightning_fabric import Fabric
from torch import nn
from torch.nn import functional

from samdistill.train.data import Batches
from samdistill.train.loop import Objective
from samdistill.train.student import Student
from samdistill.train.training import Training

TEMPERATURE = 0.5
PROJECTED = 64


class SimCLR(Objective):
    """NT-Xent over two views of each image (SimCLR, eq. 1).

    Parameters
    ----------
    student
        Whose encoder learns.
    fabric
        Devices and precision.
    first, second
        The two views' batches: the same images, views of their own.
    """

    def __init__(self, student: Student, fabric: Fabric, first: Batches, second: Batches) -> None:
        self._views = (first, second)
        self._features: torch.Tensor | None = None
        width = student.net.encoder.out_channels[-1]
        self._own = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, PROJECTED))
        # With its own device and synchronisation, as the loop gives them to the student.
        self._projection = fabric.setup_module(self._own)
        # The whole student runs, so that it works the same under any wrapper; its encoder is listened to.
        self._ear = student.net.encoder.register_forward_hook(self._listen)

    def networks(self) -> dict[str, nn.Module]:
        """The projection, thrown away afterwards."""
        return {"projection": self._own}

    def loss(self, student: nn.Module, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss of a step."""
        device = next(student.parameters()).device
        pixels = [
            view.pixels(batches.store[index].image)
            for batches in self._views
            for index, view in batches.draw(step)
        ]
        logits = student(torch.stack(pixels).to(device, memory_format=torch.channels_last))
        assert self._features is not None
        projected = self._projection(self._features.float().mean(dim=(2, 3)))
        self._features = None
        return nt_xent(projected) + 0.0 * logits.sum(), {}

    def stop_listening(self) -> None:
        """Leave the student as it was: copies of it would take all images along."""
        self._ear.remove()

    def _listen(self, module: nn.Module, inputs: object, features: list[torch.Tensor]) -> None:
        self._features = features[-1]


def nt_xent(projected: torch.Tensor) -> torch.Tensor:
    """Mean over both views of -log softmax of the other view's similarity; rows i and i + N are one image."""
    count = len(projected) // 2
    unit = functional.normalize(projected, dim=1)
    similarity = unit @ unit.T / TEMPERATURE
    similarity = similarity.masked_fill(
        torch.eye(2 * count, dtype=torch.bool, device=unit.device), float("-inf")
    )
    partner = torch.arange(2 * count, device=unit.device).roll(count)
    return functional.cross_entropy(similarity, partner)


def pretrain(training: Training, student: Student) -> None:
    """Train the encoder; the student is changed in place."""
    config = training.config
    strong = replace(
        config.augment, zoom=0.3, crop="random", brightness=0.2, contrast=0.4, colour=0.1, flip=0.5
    )
    store = training.images
    first, second = (
        training.batches(store, config.batch, stream=stream, augment=strong, order=10) for stream in (10, 11)
    )
    objective = SimCLR(student, training.fabric, first, second)
    training.fit(
        student,
        objective,
        name="simclr",
        number=-1,
        images=len(store),
        steps=config.pretrain_steps,
    )
    objective.stop_listening()
