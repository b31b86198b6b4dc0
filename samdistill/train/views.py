"""Views: what the student sees of a model frame, drawn at random and applied to pixels and masks alike.

A view is one affine map and a photometric change, so a pseudo label made in the canonical frame can be warped
by the very view the student trains on. Knows no data set and no loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from samdistill.arrays import Image
from samdistill.train.config import AugmentConfig


@dataclass(frozen=True)
class View:
    """One view of a frame.

    Parameters
    ----------
    matrix
        float64 (2, 3); maps a view's pixel (x, y, 1) to the frame's pixel, both by pixel centre.
    size
        Side of the square view, pixels.
    gain, offset
        float32 (3,); RGB becomes gain * (RGB - 127.5) + 127.5 + offset, clipped to 0..255.
    """

    matrix: npt.NDArray[np.float64]
    size: int
    gain: npt.NDArray[np.float32]
    offset: npt.NDArray[np.float32]

    def pixels(self, image: Image) -> torch.Tensor:
        """What the view shows of a uint8 (H, W, 3) frame: float32 (3, size, size), 0..255."""
        seen = self._sample(
            torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float(), "bilinear"
        )
        gain, offset = (torch.from_numpy(v).view(3, 1, 1) for v in (self.gain, self.offset))
        return (gain * (seen - 127.5) + 127.5 + offset).clamp(0, 255)

    def targets(self, targets: npt.NDArray[np.float32]) -> torch.Tensor:
        """What the view shows of float32 (C, H, W) targets, by nearest pixel: float32 (C, size, size)."""
        return self._sample(torch.from_numpy(np.ascontiguousarray(targets)), "nearest")

    def _sample(self, channels: torch.Tensor, mode: str) -> torch.Tensor:
        """Read (C, H, W) through the view; beyond the frame's edge it is mirrored."""
        height, width = channels.shape[1:]
        axis = torch.arange(self.size, dtype=torch.float64)
        matrix = torch.from_numpy(self.matrix)
        x = matrix[0, 0] * axis[None, :] + matrix[0, 1] * axis[:, None] + matrix[0, 2]
        y = matrix[1, 0] * axis[None, :] + matrix[1, 1] * axis[:, None] + matrix[1, 2]
        grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1).float()
        sampled: torch.Tensor = functional.grid_sample(
            channels[None], grid[None], mode=mode, padding_mode="reflection", align_corners=False
        )
        return sampled[0]


def draw_view(
    generator: np.random.Generator, frame_size: tuple[int, int], size: int, config: AugmentConfig
) -> View:
    """Draw a view of a frame of (height, width) pixels.

    Always takes the same number of random numbers, so that switching one change off leaves the others as they
    were.
    """
    chance = generator.random(4)
    angle, scale, crop_x, crop_y = generator.uniform(-1, 1, 4)
    brightness, contrast = generator.uniform(-1, 1, 2)
    colour = generator.uniform(-1, 1, 3)

    linear = np.eye(2)
    if chance[0] < config.flip:
        linear = linear @ np.diag([-1.0, 1.0])
    if chance[1] < config.flip:
        linear = linear @ np.diag([1.0, -1.0])
    if chance[2] < config.transpose:
        linear = linear @ np.array([[0.0, 1.0], [1.0, 0.0]])
    if chance[3] < config.rotate:
        radians = math.radians(config.rotate_degrees) * angle
        linear = linear @ np.array(
            [[math.cos(radians), -math.sin(radians)], [math.sin(radians), math.cos(radians)]]
        )
    linear = linear * (1 + config.zoom) ** -scale
    height, width = frame_size
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    if config.crop == "random":
        centre = centre + np.array([crop_x * max(0, width - size), crop_y * max(0, height - size)]) / 2
    else:  # half a pixel before the middle where no crop lies in it: between pixels it would be a blur
        centre = centre - np.array([(width - size) % 2, (height - size) % 2]) / 2
    middle = np.full(2, (size - 1) / 2)
    matrix = np.concatenate([linear, (centre - linear @ middle)[:, None]], axis=1)
    return View(
        matrix,
        size,
        np.repeat(np.float32(1 + config.contrast * contrast), 3),
        (255 * (config.brightness * brightness + config.colour * colour)).astype(np.float32),
    )
