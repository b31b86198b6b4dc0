"""The drawing tools the phantoms share: scene coordinates, smooth noise, irregular blobs, relief, light.

A scene is measured in units of its shorter side, so that a phantom looks the same at every size. Per-pixel
arithmetic keeps to +, -, *, / and square roots, which every processor rounds alike, and randomness to the
uniform numbers of PCG64: the same seed gives the same pixels on any machine and any numpy that keeps them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage
from PIL import ImageFilter

from samdistill.arrays import Image

Field: TypeAlias = npt.NDArray[Any]  # float32 (H, W), or broadcastable to it


def smoothstep(field: Field, low: float, high: float) -> Field:
    """Rise smoothly from 0 where field <= low to 1 where field >= high (falls when low > high)."""
    t: Field = np.clip((field - np.float32(low)) / np.float32(high - low), 0.0, 1.0)
    curve: Field = t * t * (np.float32(3.0) - np.float32(2.0) * t)
    return curve


def bell(field: Field, width: float) -> Field:
    """Fall from 1 at 0 to almost 0 beyond a few widths, without an exponential."""
    t = field / np.float32(width)
    t = np.float32(1.0) / (np.float32(1.0) + t * t)
    return t * t


def mix(first: npt.ArrayLike, second: npt.ArrayLike, share: Field) -> Field:
    """Go from first (share 0) to second (share 1); colours (3,) mix into (H, W, 3) with share (H, W, 1)."""
    a, b = np.asarray(first, np.float32), np.asarray(second, np.float32)
    return a + (b - a) * share


def to_uint8(field: Field) -> npt.NDArray[np.uint8]:
    """Round [0, 1] to 0..255; what lies outside is cut."""
    return (np.clip(field, 0.0, 1.0) * np.float32(255.0) + np.float32(0.5)).astype(np.uint8)


def soften(image: Image, radius_px: float) -> Image:
    """Blur a finished picture as a lens or a moving head would; radius 0 leaves it alone."""
    if radius_px <= 0:
        return image
    return np.asarray(PillowImage.fromarray(image).filter(ImageFilter.GaussianBlur(radius_px)))


@dataclass(frozen=True)
class Blob:
    """An irregular ellipse: `level` is 0 at its centre, 1 on its outline, larger outside."""

    level: Field
    x: float
    y: float
    radius: float


class Canvas:
    """A scene's coordinates and its source of randomness.

    Parameters
    ----------
    size
        (height, width) in pixels.
    rng
        Draws the scene; every call advances it.
    """

    def __init__(self, size: tuple[int, int], rng: np.random.Generator) -> None:
        self.size = size
        self.rng = rng
        self.unit_px = min(size)
        self.height, self.width = size[0] / self.unit_px, size[1] / self.unit_px
        self.y: Field = ((np.arange(size[0], dtype=np.float32) + 0.5) / self.unit_px)[:, None]
        self.x: Field = ((np.arange(size[1], dtype=np.float32) + 0.5) / self.unit_px)[None, :]

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(self.rng.random())

    def chance(self, probability: float) -> bool:
        return float(self.rng.random()) < probability

    def count(self, low: int, high: int) -> int:
        """Draw a whole number, both ends included."""
        return min(low + int(float(self.rng.random()) * (high - low + 1)), high)

    def place(self, margin: float) -> tuple[float, float]:
        """Draw a point (x, y) of the scene at least `margin` from its border."""
        return self.uniform(margin, self.width - margin), self.uniform(margin, self.height - margin)

    def noise(self, cells: float, *, stretch: float = 1.0) -> Field:
        """(H, W) float32 in about [-1, 1]: smooth value noise with `cells` bumps along one unit.

        `stretch` > 1 makes the bumps that much wider than high.
        """
        rows = max(2, math.ceil(self.height * cells) + 1)
        columns = max(2, math.ceil(self.width * cells / stretch) + 1)
        grid = self.rng.random((rows, columns), dtype=np.float32) * np.float32(2.0) - np.float32(1.0)
        return resize(grid, self.size)

    def fractal(self, cells: float, octaves: int, *, stretch: float = 1.0) -> Field:
        """Sum `octaves` noises, each twice as fine and half as strong as the one before; about [-1, 1]."""
        total = self.noise(cells, stretch=stretch)
        for octave in range(1, octaves):
            total = total + self.noise(cells * 2**octave, stretch=stretch) * np.float32(0.5**octave)
        return total * np.float32(0.6)

    def grain(self) -> Field:
        """(H, W) float32 in [-1, 1]: independent for each pixel, triangular, deviation 0.41."""
        return self.rng.random(self.size, dtype=np.float32) - self.rng.random(self.size, dtype=np.float32)

    def texture(self, wide: float, high: float) -> Field:
        """(H, W) float32, deviation 1: white noise after binomial blurs of variance `wide` and `high` px²."""
        field: Field = self.rng.random(self.size, dtype=np.float32) - np.float32(0.5)
        power = 1.0 / 12.0
        for axis, variance in ((1, wide), (0, high)):
            passes = max(0, round(2 * variance))
            for _ in range(passes):
                field = np.float32(2.0) * field + np.roll(field, 1, axis) + np.roll(field, -1, axis)
                field *= np.float32(0.25)
            # Of whole numbers: neither fits a float for large pictures.
            power *= math.comb(4 * passes, 2 * passes) / 4 ** (2 * passes)
        return field * np.float32(1.0 / math.sqrt(power))

    def distance(self, x: float, y: float) -> Field:
        dx, dy = self.x - np.float32(x), self.y - np.float32(y)
        return np.sqrt(dx * dx + dy * dy)

    def blob(self, x: float, y: float, radius: float, *, aspect: float, wobble: float) -> Blob:
        """Make an ellipse of the given mean radius in a random direction, its outline pushed about by noise.

        Parameters
        ----------
        x, y, radius
            In scene units.
        aspect
            Long axis over short axis.
        wobble
            How far the outline strays, as a share of the radius; up to about 0.5 it stays in one piece.
        """
        angle = self.uniform(0.0, math.pi)
        c, s = math.cos(angle), math.sin(angle)
        dx, dy = self.x - np.float32(x), self.y - np.float32(y)
        long, short = radius * math.sqrt(aspect), radius / math.sqrt(aspect)
        u = (dx * np.float32(c) + dy * np.float32(s)) / np.float32(long)
        v = (dy * np.float32(c) - dx * np.float32(s)) / np.float32(short)
        # The noise is tied to the blob's size: about as many bumps round a small one as round a large one.
        push = self.noise(min(0.7 / radius, 24.0)) + np.float32(0.4) * self.noise(min(2.2 / radius, 60.0))
        return Blob(np.sqrt(u * u + v * v) + push * np.float32(wobble * 0.7), x, y, radius)

    def slopes(self, relief: Field) -> tuple[Field, Field]:
        """Differentiate a relief (H, W) in scene units: (d/dx, d/dy), each (H, W)."""
        padded = np.pad(relief, 1, mode="edge")
        half = np.float32(self.unit_px / 2)
        return (padded[1:-1, 2:] - padded[1:-1, :-2]) * half, (padded[2:, 1:-1] - padded[:-2, 1:-1]) * half


def resize(field: Field, size: tuple[int, int]) -> Field:
    """Resample a float32 field to (height, width), bicubic."""
    picture = PillowImage.fromarray(np.ascontiguousarray(field, dtype=np.float32))
    return np.asarray(picture.resize((size[1], size[0]), PillowImage.Resampling.BICUBIC))
