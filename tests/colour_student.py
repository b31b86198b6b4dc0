"""A student whose answer is known: it finds colours pixel by pixel.

Class "red" is where red exceeds the mean of green and blue by more than 40.25, class "bright" where the mean
of the three exceeds 180.2. Tests check masks against that sentence; no training is needed for it.
"""

from __future__ import annotations

import torch
from torch import nn

CLASS_NAMES = ("red", "bright")
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
SLOPE = 0.1


class ColourStudent(nn.Module):
    """Two 1 x 1 convolutions' worth of colour, behind a normalisation as a real student's."""

    def __init__(self) -> None:
        super().__init__()
        mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.colour = nn.Conv2d(3, 2, 1)
        raw = torch.tensor([[1.0, -0.5, -0.5], [1 / 3, 1 / 3, 1 / 3]]) * SLOPE
        with torch.no_grad():
            self.colour.weight.copy_((raw * std.view(1, 3)).view(2, 3, 1, 1))
            self.colour.bias.copy_(raw @ mean.view(3) - torch.tensor([40.25, 180.2]) * SLOPE)
        self.eval()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.colour((pixels.float() - self.mean) / self.std)
        return logits
