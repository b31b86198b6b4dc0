"""Temperatures from validation pixels: of each class the one that makes its logits likeliest (Guo 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from samdistill.arrays import Mask, Masks, ProbabilityMaps
from samdistill.calibration import Reliability, calibrated, logit
from samdistill.manifest_quality import Calibration

MOST_PIXELS = 20_000  # of an image and class; more tell no more
RANGE = (0.1, 10.0)  # of a temperature
STEPS = 60  # halvings of that range


@dataclass
class Pixels:
    """Collects pixels of labelled images: probabilities and whether each is foreground, image by image.

    Every image counts alike, however many pixels it has.
    """

    maps: list[ProbabilityMaps] = field(default_factory=list)  # (C, P) each
    truths: list[Masks] = field(default_factory=list)  # (C, P) each

    def add(self, maps: ProbabilityMaps, truth: Masks, ignored: Mask) -> None:
        """Take (C, H, W) probability maps with their truth; ignored (H, W) pixels are left out."""
        chosen = np.flatnonzero(~ignored.ravel())
        if len(chosen) > MOST_PIXELS:  # at random: in equal steps, a width that they divide shows few columns
            chosen = np.random.default_rng(0).choice(chosen, MOST_PIXELS, replace=False)
        if len(chosen):
            self.maps.append(maps.reshape(len(maps), -1)[:, chosen])
            self.truths.append(truth.reshape(len(truth), -1)[:, chosen])


def fit_calibration(pixels: Pixels, class_names: Sequence[str]) -> tuple[Calibration, list[str]]:
    """One temperature a class.

    Returns
    -------
    tuple
        The calibration, and what is to be said of it: a class without a foreground or without a background
        pixel keeps temperature 1.
    """
    notes = []
    temperatures = []
    for channel, name in enumerate(class_names):
        truth = [one[channel] for one in pixels.truths]
        share = np.mean([one.mean() for one in truth])
        if 0 < share < 1:
            temperatures.append(temperature_of([one[channel] for one in pixels.maps], truth))
        else:
            temperatures.append(1.0)
            notes.append(
                f"{name} is {'nowhere' if share == 0 else 'everywhere'} in the validation masks, so "
                "its probabilities are not calibrated"
            )
    before = [_told(pixels, channel, 1.0) for channel in range(len(class_names))]
    after = [_told(pixels, channel, t) for channel, t in enumerate(temperatures)]
    calibration = Calibration(
        tuple(temperatures),
        len(pixels.maps),
        nll_before=tuple(nll for nll, _ in before),
        nll_after=tuple(nll for nll, _ in after),
        ece_before=tuple(ece for _, ece in before),
        ece_after=tuple(ece for _, ece in after),
    )
    return calibration, notes


def temperature_of(
    probabilities: Sequence[npt.NDArray[np.float32]], truth: Sequence[npt.NDArray[np.bool_]]
) -> float:
    """The temperature in 0.1..10 with the least negative log-likelihood, mean over images of equal weight.

    Of 1 / temperature the likelihood is convex, so its slope is halved down to zero.
    """
    logits = [logit(one).astype(np.float64) for one in probabilities]

    def slope(inverse: float) -> float:
        return float(
            np.mean([
                np.mean((0.5 * (1 + np.tanh(z * inverse / 2)) - y) * z)
                for z, y in zip(logits, truth, strict=True)
            ])
        )  # fmt: skip

    low, high = 1 / RANGE[1], 1 / RANGE[0]
    for _ in range(STEPS):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return float(1 / np.sqrt(low * high))


def _told(pixels: Pixels, channel: int, temperature: float) -> tuple[float, float]:
    """Negative log-likelihood, mean over images, and expected calibration error of a class."""
    losses, total = [], None
    for maps, truths in zip(pixels.maps, pixels.truths, strict=True):
        p = calibrated(maps[channel][None], (temperature,))[0]
        y = truths[channel]
        sure = np.clip(p.astype(np.float64), 1e-6, 1 - 1e-6)
        losses.append(float(-np.mean(np.log(np.where(y, sure, 1 - sure)))))
        own = Reliability.of(p, y)
        total = own if total is None else total + own
    return float(np.mean(losses)), total.ece if total is not None else 0.0
