"""Calibrated probabilities: what a temperature does to a map, and how far probabilities are from frequencies.

A temperature divides a class's logits. It is applied to the finished map, pixel by pixel, so the order of
pixels stays and with it every mask: p > t is as calibrated(p) > calibrated(t) at any threshold, so far as
float32 tells them apart. Masks, prompts and cleaning go by the uncalibrated maps. Knows no network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from samdistill.arrays import Mask, ProbabilityMaps

BINS = 15  # of equal width, as usual (Guo et al. 2017, section 2)
LEAST = 1e-6  # a probability nearer to 0 or 1 counts as this far: float32 has no logit for 1


def logit(probabilities: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The logit, float32; probabilities within 1e-6 of 0 and 1 as if they were 1e-6 from them."""
    inside = np.clip(probabilities, np.float32(LEAST), np.float32(1 - LEAST))
    logits: npt.NDArray[np.float32] = np.log(inside / (1 - inside))
    return logits


def calibrated(probability_maps: ProbabilityMaps, temperatures: Sequence[float]) -> ProbabilityMaps:
    """Divide each class's logits by its temperature.

    Parameters
    ----------
    probability_maps
        (C, ...) float32 in [0, 1].
    temperatures
        C numbers above 0.

    Returns
    -------
    ProbabilityMaps
        The same shape.
    """
    if len(temperatures) != len(probability_maps):
        raise ValueError(
            f"temperatures must be one a class, {len(probability_maps)}, not {len(temperatures)}."
        )
    out = np.empty_like(probability_maps)
    for channel, one, temperature in zip(out, probability_maps, temperatures, strict=True):
        # Not geometry's: this one keeps small probabilities apart.
        with np.errstate(over="ignore"):
            channel[...] = 1 / (1 + np.exp(-logit(one) / np.float32(temperature)))
    return out


@dataclass(frozen=True)
class Reliability:
    """Probabilities against frequencies, a class at a time: sums over the pixels of each bin.

    Sums of several images are added with +.

    Attributes
    ----------
    count, probability, positive
        (BINS,) float64: pixels in each bin, the sum of their probabilities, and how many are foreground.
    """

    count: npt.NDArray[np.float64]
    probability: npt.NDArray[np.float64]
    positive: npt.NDArray[np.float64]

    @classmethod
    def of(
        cls,
        probabilities: npt.NDArray[np.float32],
        truth: Mask,
        weights: npt.NDArray[np.float64] | None = None,
    ) -> Reliability:
        """Bin pixels of any one shape, probabilities in [0, 1] and whether each is foreground.

        With `weights`, of the same shape, each counts as so many.
        """
        flat = probabilities.ravel()
        bins = np.minimum((flat * BINS).astype(np.int64), BINS - 1)
        ones = np.ones(flat.shape) if weights is None else weights.ravel()
        sums = [np.bincount(bins, each, BINS) for each in (ones, ones * flat, ones * truth.ravel())]
        return cls(*(one.astype(np.float64) for one in sums))

    def __add__(self, other: Reliability) -> Reliability:
        return Reliability(
            self.count + other.count, self.probability + other.probability, self.positive + other.positive
        )

    @property
    def ece(self) -> float:
        """Expected calibration error: mean over the pixels of |mean probability - frequency| of their bin."""
        total = self.count.sum()
        return float(np.abs(self.probability - self.positive).sum() / total) if total else float("nan")

    def points(self) -> list[tuple[float, float, float]]:
        """(mean probability, frequency of foreground, share of the pixels) of each bin that holds any."""
        total = self.count.sum()
        return [
            (float(p / n), float(y / n), float(n / total))
            for n, p, y in zip(self.count, self.probability, self.positive, strict=True)
            if n
        ]
