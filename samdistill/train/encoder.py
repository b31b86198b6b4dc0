"""The light student's encoder: plain convolutions, for training from random weights on few images.

Mobile encoders are made to be pretrained. From random weights they learn far more slowly than plain
convolutions with batch normalisation (docs/architecture.md has the figures), and where labels are few and the
machine is offline, random weights are what there is. Registered with segmentation_models_pytorch as `plain`.
"""

from __future__ import annotations

import itertools

import torch
from torch import nn
from torch.nn import functional

NAME = "plain"
WIDTHS = (12, 24, 48, 80, 112, 112)


class PlainEncoder(nn.Module):
    """Five stages, each a maximum pooling and two 3 x 3 convolutions, after one at full size.

    Parameters
    ----------
    widths
        Channels of the stem and of the five stages.
    depth, output_stride, in_channels
        As segmentation_models_pytorch passes them: 5, 32 and 3, nothing else.
    """

    def __init__(
        self,
        widths: tuple[int, ...] = WIDTHS,
        depth: int = 5,
        output_stride: int = 32,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if (depth, output_stride, in_channels) != (5, 32, 3):
            raise ValueError(
                f"depth, output_stride and in_channels must be 5, 32 and 3, not {depth}, {output_stride} "
                f"and {in_channels}."
            )
        self.out_channels = [3, *widths[1:]]
        self.output_stride = output_stride
        self.stem = _convolutions(3, widths[0], 1)
        self.stages = nn.ModuleList(
            _convolutions(before, after, 2) for before, after in itertools.pairwise(widths)
        )

    def set_in_channels(self, in_channels: int, pretrained: bool = True) -> None:
        """RGB or nothing."""
        if in_channels != 3:
            raise ValueError(f"in_channels must be 3, not {in_channels}.")

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Features of float32 (N, 3, H, W) at strides 1 (the pixels themselves), 2, 4, 8, 16 and 32."""
        features = [pixels]
        x = self.stem(pixels)
        for stage in self.stages:
            x = stage(functional.max_pool2d(x, 2))
            features.append(x)
        return features


def register() -> None:
    """Make the encoder known to segmentation_models_pytorch; again is free."""
    import segmentation_models_pytorch as smp

    smp.encoders.encoders[NAME] = {
        "encoder": PlainEncoder,
        "params": {"widths": WIDTHS},
        "pretrained_settings": {},
    }


def _convolutions(before: int, after: int, count: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number in range(count):
        layers += [
            nn.Conv2d(before if number == 0 else after, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)
