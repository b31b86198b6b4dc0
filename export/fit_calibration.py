"""Temperatures from validation pixels: of each class the one that makes its logits likeliest (Guo 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from samdistill.arrays import Mask, Masks, ProbabilityMaps
from samdistill.calibration import Reliability, calibrated, logit
from samdistill.manifest_quality import Calibration

MOST_PIXELS = 20_000  # of an image's foreground and of its background, for each class; more tell no more
RANGE = (0.1, 10.0)  # of a temperature
STEPS = 60  # halvings of that range


@dataclass(frozen=True, eq=False)
class Drawn:
    """Pixels of one class of one image.

    Attributes
    ----------
    probabilities, truth
        (P,) float32 and bool.
    weights
        (P,) float64 share of the image's pixels that each stands for; their sum is 1.
    """

    probabilities: npt.NDArray[np.float32]
    truth: npt.NDArray[np.bool_]
    weights: npt.NDArray[np.float64]


@dataclass
class Pixels:
    """Collects pixels of labelled images: probabilities and whether each is foreground, image by image.

    Every image counts alike, however many pixels it has.
    """

    images: list[list[Drawn]] = field(default_factory=list)  # an image, a class

    def add(self, maps: ProbabilityMaps, truth: Masks, ignored: Mask) -> None:
        """Take (C, H, W) probability maps with their truth; ignored (H, W) pixels are left out."""
        counted = ~ignored.ravel()
        if counted.any():
            flat = zip(maps.reshape(len(maps), -1), truth.reshape(len(truth), -1), strict=True)
            self.images.append([_drawn(one, mask, counted) for one, mask in flat])


def _drawn(
    probabilities: npt.NDArray[np.float32], truth: npt.NDArray[np.bool_], counted: npt.NDArray[np.bool_]
) -> Drawn:
    """Of foreground and background apart: drawn of all, a small lesion would be a handful or none."""
    rng = np.random.default_rng(0)
    places, weights = [], []
    for kind in (truth & counted, ~truth & counted):
        all_of_it = np.flatnonzero(kind)
        # At random: in equal steps, a width that they divide shows few columns.
        some = all_of_it
        if len(some) > MOST_PIXELS:
            some = rng.choice(some, MOST_PIXELS, replace=False)
        places.append(some)
        weights.append(np.full(len(some), len(all_of_it) / max(len(some), 1)))
    chosen, share = np.concatenate(places), np.concatenate(weights)
    return Drawn(probabilities[chosen], truth[chosen], share / share.sum())


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
        drawn = [one[channel] for one in pixels.images]
        present = any(one.truth.any() for one in drawn)
        if present and not all(one.truth.all() for one in drawn):
            temperatures.append(temperature_of(drawn))
        else:
            temperatures.append(1.0)
            notes.append(
                f"{name} is {'everywhere' if present else 'nowhere'} in the validation masks, so "
                "its probabilities are not calibrated"
            )
    before = [_told(pixels, channel, 1.0) for channel in range(len(class_names))]
    after = [_told(pixels, channel, t) for channel, t in enumerate(temperatures)]
    calibration = Calibration(
        tuple(temperatures),
        len(pixels.images),
        nll_before=tuple(nll for nll, _ in before),
        nll_after=tuple(nll for nll, _ in after),
        ece_before=tuple(ece for _, ece in before),
        ece_after=tuple(ece for _, ece in after),
    )
    return calibration, notes


def temperature_of(images: Sequence[Drawn]) -> float:
    """The temperature in 0.1..10 with the least negative log-likelihood, mean over images of equal weight.

    Of 1 / temperature the likelihood is convex, so its slope is halved down to zero.
    """
    logits = [logit(one.probabilities).astype(np.float64) for one in images]

    def slope(inverse: float) -> float:
        return float(
            np.mean([
                one.weights @ ((0.5 * (1 + np.tanh(z * inverse / 2)) - one.truth) * z)
                for z, one in zip(logits, images, strict=True)
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
    for one in (image[channel] for image in pixels.images):
        p = calibrated(one.probabilities[None], (temperature,))[0]
        sure = np.clip(p.astype(np.float64), 1e-6, 1 - 1e-6)
        losses.append(float(-one.weights @ np.log(np.where(one.truth, sure, 1 - sure))))
        own = Reliability.of(p, one.truth, one.weights)
        total = own if total is None else total + own
    return float(np.mean(losses)), total.ece if total is not None else 0.0
