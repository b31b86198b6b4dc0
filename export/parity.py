"""The gate: an exported network must give the masks that PyTorch gives, on the run's validation images.

Compares what leaves the pipeline, final masks, and reports the logits beside them. Knows no bundle; whoever
publishes asks the report whether it passed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from samdistill.arrays import Image
from samdistill.errors import BundleError, InputRejected
from samdistill.geometry import ModelFrame, sigmoid
from samdistill.metrics import dice_per_class
from samdistill.predictor import masks_of
from samdistill.runtime import Engine

Logits = npt.NDArray[np.float32]  # (N, C, H, W)


class ParityError(BundleError):
    """An exported network that does not do what the student does."""


@dataclass(frozen=True)
class Tolerances:
    """What an exported network may differ by.

    Attributes
    ----------
    min_mean_dice
        Mean over images of the mask Dice against PyTorch (classes of an image first).
    max_relative_difference
        Of a logit, as a share of the largest logit of its image (of 1, where that is smaller).
    max_flips
        Share of masks that are empty on one side only.
    """

    min_mean_dice: float
    max_relative_difference: float
    max_flips: float


TOLERANCES = {"fp32": Tolerances(min_mean_dice=0.999, max_relative_difference=0.001, max_flips=0.01)}


@dataclass(frozen=True)
class ParityReport:
    """What the gate measured.

    Attributes
    ----------
    precision, runtime, provider
        Of the exported network.
    images, masks
        How many were compared; masks = images x classes.
    mean_dice, worst_dice
        Of the masks against PyTorch's: mean over images, and the single worst mask.
    flips
        Masks that are empty on one side only.
    max_logit_difference, max_probability_difference
        In the model frame.
    max_relative_difference
        Of a logit, see Tolerances; on noise in other batches and sides too.
    tolerances
        What it was held against.
    """

    precision: str
    runtime: str
    provider: str
    images: int
    masks: int
    mean_dice: float
    worst_dice: float
    flips: int
    max_logit_difference: float
    max_probability_difference: float
    max_relative_difference: float
    tolerances: Tolerances

    def failures(self) -> list[str]:
        """What is not within the tolerances, a clause each; empty when the gate is passed."""
        allowed = self.tolerances
        # Written so that NaN fails.
        checks = [
            (
                self.mean_dice >= allowed.min_mean_dice,
                f"the mean mask Dice is {self.mean_dice:.4f} (at least {allowed.min_mean_dice})",
            ),
            (
                self.max_relative_difference <= allowed.max_relative_difference,
                f"logits differ by {self.max_relative_difference:.3g} of the largest "
                f"(at most {allowed.max_relative_difference})",
            ),
            (
                self.flips <= allowed.max_flips * self.masks,
                f"{self.flips} of {self.masks} masks are empty on one side only",
            ),
        ]
        return [message for passed, message in checks if not passed]

    def require(self) -> None:
        """Stop here unless the gate is passed.

        Raises
        ------
        ParityError
            With everything that is not within the tolerances.
        """
        failures = self.failures()
        if failures:
            raise ParityError(
                f"the exported {self.precision} network does not do what the student does: "
                f"{'; '.join(failures)}. Nothing was published."
            )

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values."""
        return asdict(self)


def torch_logits(student: nn.Module, pixels: npt.NDArray[np.uint8]) -> Logits:
    """The reference: uint8 (N, 3, H, W) through the student in PyTorch, fp32, on the CPU."""
    with torch.inference_mode():
        logits: Logits = student(torch.from_numpy(pixels)).numpy()
    return logits


def measure(
    student: nn.Module,
    engine: Engine,
    images: Iterable[Image],
    *,
    size: int,
    thresholds: tuple[float, ...],
    multi_label: bool,
    precision: str = "fp32",
    tell: Callable[[int], None] = lambda done: None,
) -> ParityReport:
    """Compare an exported network with its student.

    Parameters
    ----------
    student
        In eval mode on the CPU.
    engine
        The exported network: "pixels" in, "logits" out.
    images
        uint8 (H, W, 3), after the intensity rule; at least one.
    size
        Shortest side of the model frame, pixels.
    thresholds, multi_label
        As the manifest will have them.
    precision
        Key of TOLERANCES.
    tell
        Gets the number of images done.

    Raises
    ------
    InputRejected
        When there is no image.
    """
    dices: list[npt.NDArray[np.float64]] = []
    flips = 0
    logit_difference = probability_difference = 0.0
    relative = _on_noise(student, engine, size)
    for image in images:
        frame = ModelFrame.of(image.shape[:2], size)
        pixels = frame.pixels(image)[None]
        ours, theirs = torch_logits(student, pixels), engine.run({"pixels": pixels})["logits"]
        logit_difference = max(logit_difference, _largest(ours - theirs))
        probability_difference = max(probability_difference, _largest(sigmoid(ours) - sigmoid(theirs)))
        relative = max(relative, _relative(ours, theirs))
        expected, got = (
            masks_of(frame.probability_maps(one[0]), thresholds=thresholds, multi_label=multi_label)
            for one in (ours, theirs)
        )
        dices.append(dice_per_class(got, expected))
        flips += int(np.count_nonzero(got.any(axis=(1, 2)) != expected.any(axis=(1, 2))))
        tell(len(dices))
    if not dices:
        raise InputRejected("the parity gate must have at least one image to compare on, not none.")
    each = np.stack(dices)
    return ParityReport(
        precision=precision,
        runtime=engine.runtime,
        provider=engine.provider,
        images=len(each),
        masks=each.size,
        mean_dice=float(each.mean()),
        worst_dice=float(each.min()),
        flips=flips,
        max_logit_difference=logit_difference,
        max_probability_difference=probability_difference,
        max_relative_difference=relative,
        tolerances=TOLERANCES[precision],
    )


def _largest(values: npt.NDArray[np.float32]) -> float:
    """Largest amount; infinity where there is NaN, since max() would pass it over."""
    largest = float(np.abs(values).max())
    return float("inf") if np.isnan(largest) else largest


def _relative(ours: Logits, theirs: Logits) -> float:
    return _largest(ours - theirs) / max(1.0, _largest(ours))


def _on_noise(student: nn.Module, engine: Engine, size: int) -> float:
    """Relative difference on noise, in batches and sides that the validation images may not have had."""
    noise = np.random.default_rng(0)
    side = -(-size // 32) * 32
    worst = 0.0
    for batch, height, width in ((1, 32, 64), (3, side, side + 32)):
        pixels = noise.integers(0, 256, (batch, 3, height, width), dtype=np.uint8)
        worst = max(worst, _relative(torch_logits(student, pixels), engine.run({"pixels": pixels})["logits"]))
    return worst
