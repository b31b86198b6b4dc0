"""The gate: an exported network must give the masks that PyTorch gives, on the run's validation images.

Compares what leaves the pipeline, final masks, and reports the numbers behind them. Here lie the gate itself
and the student's way through it; `teacher_parity` has the teacher's. Knows no bundle; whoever publishes asks
the report whether it passed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from samdistill.arrays import Image, Mask, Masks, ProbabilityMaps
from samdistill.errors import BundleError, InputRejected
from samdistill.export.spool import Spool
from samdistill.geometry import ModelFrame
from samdistill.metrics import dice_per_class, found_classes, found_dice
from samdistill.predictor import masks_of
from samdistill.runtime import Engine

Logits = npt.NDArray[np.float32]  # (N, C, H, W)
Truth = tuple[Masks, Mask]  # (C, H, W), and (H, W) the pixels that are ignored
LEAST_TRUTH_DICE = 0.5  # of masks that come from trained weights
SMALLEST_PX = 64  # masks below count only as empty or not


class ParityError(BundleError):
    """An exported network that does not do what the original does."""


@dataclass(frozen=True)
class Tolerances:
    """What an exported network may differ by.

    Attributes
    ----------
    min_mean_dice
        Mean over masks of the Dice against PyTorch's.
    min_low_dice
        Its 1st percentile.
    max_flips
        Share of masks that are empty on one side only.
    max_truth_loss
        By how much the mean Dice against the truth may be lower than PyTorch's.
    max_relative_difference
        Of an output, as a share of the largest value of its image (of 1, where that is smaller).
    """

    min_mean_dice: float
    max_relative_difference: float
    min_low_dice: float = 0.90
    max_flips: float = 0.01
    max_truth_loss: float = 0.005


TOLERANCES = {
    "fp32": Tolerances(min_mean_dice=0.999, max_relative_difference=0.001),
    "bf16": Tolerances(min_mean_dice=0.995, max_relative_difference=0.25),
    "fp16": Tolerances(min_mean_dice=0.995, max_relative_difference=0.05),
    "mixed": Tolerances(min_mean_dice=0.995, max_relative_difference=0.05),
    "int8": Tolerances(min_mean_dice=0.995, max_relative_difference=0.5),
}


@dataclass(frozen=True)
class ParityReport:
    """What the gate measured.

    Attributes
    ----------
    model
        student, encoder or decoder.
    precision, runtime, provider
        Of the exported network.
    images, masks
        How many were compared.
    mean_dice, low_dice, worst_dice
        Of the masks against PyTorch's, over those of at least 64 px (over all, where none is): mean, 1st
        percentile, and the worst.
    flips
        Masks that are empty on one side only.
    truth_dice, pytorch_truth_dice
        Against the truth, of the exported network and of PyTorch; None where no image is labelled.
    max_difference, max_relative_difference
        Of an output from PyTorch's, see Tolerances.
    tolerances
        What it was held against.
    """

    model: str
    precision: str
    runtime: str
    provider: str
    images: int
    masks: int
    mean_dice: float
    low_dice: float
    worst_dice: float
    flips: int
    truth_dice: float | None
    pytorch_truth_dice: float | None
    max_difference: float
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
                self.low_dice >= allowed.min_low_dice,
                f"the 1st percentile of the mask Dice is {self.low_dice:.4f} "
                f"(at least {allowed.min_low_dice})",
            ),
            (
                self.flips <= allowed.max_flips * self.masks,
                f"{self.flips} of {self.masks} masks are empty on one side only",
            ),
            (
                self.truth_loss <= allowed.max_truth_loss,
                f"the Dice against the truth is lower by {self.truth_loss:.4f} "
                f"(at most {allowed.max_truth_loss})",
            ),
            (
                self.max_relative_difference <= allowed.max_relative_difference,
                f"outputs differ by {self.max_relative_difference:.3g} of the largest "
                f"(at most {allowed.max_relative_difference})",
            ),
        ]
        return [message for passed, message in checks if not passed]

    @property
    def truth_loss(self) -> float:
        """How much Dice against the truth is lost; 0 where there is no truth."""
        if self.truth_dice is None or self.pytorch_truth_dice is None:
            return 0.0
        return self.pytorch_truth_dice - self.truth_dice

    @property
    def telling(self) -> bool:
        """Whether agreement of masks means anything: not where PyTorch's own are noise, or nobody knows.

        Weights that were never trained give masks at the threshold, which any rounding turns.
        """
        return self.pytorch_truth_dice is not None and self.pytorch_truth_dice >= LEAST_TRUTH_DICE

    @property
    def verified(self) -> bool:
        """Whether passing says that masks hold: in low precision only where they mean anything."""
        return self.precision == "fp32" or self.telling

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
                f"the {self.model} exported in {self.precision} does not do in {self.runtime} what PyTorch "
                f"does: {'; '.join(failures)}. Nothing was published."
            )

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON can hold it: what is infinite or NaN, of a network that failed, is None."""
        plain = asdict(self).items()
        return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in plain}


class Agreement:
    """Collects how far answers are from PyTorch's.

    Parameters
    ----------
    model, precision
        Whose answers.
    engine
        What computes.
    """

    def __init__(self, model: str, precision: str, engine: Engine) -> None:
        self._of = (model, precision, engine.runtime, engine.provider)
        self._dices: list[npt.NDArray[np.float64]] = []
        self._large: list[npt.NDArray[np.bool_]] = []
        self._truths: list[tuple[float, float]] = []
        self._flips = 0
        self._difference = self._relative = 0.0

    def add_masks(self, got: Masks, expected: Masks) -> None:
        """Compare (K, H, W) masks of one image."""
        self._dices.append(dice_per_class(got, expected))
        self._large.append(expected.sum(axis=(1, 2)) >= SMALLEST_PX)
        self._flips += int(np.count_nonzero(got.any(axis=(1, 2)) != expected.any(axis=(1, 2))))

    def add_truth(self, got: Masks, expected: Masks, truth: Truth) -> None:
        """Compare one image's (C, H, W) masks with the truth, and PyTorch's with it.

        By the classes that are in the truth or in PyTorch's masks: agreeing on nothing tells nothing.
        """
        found = found_classes(expected, truth[0], ignore=truth[1])
        if found.any():
            means = [
                found_dice(dice_per_class(masks, truth[0], ignore=truth[1]), found)
                for masks in (got, expected)
            ]
            self._truths.append((means[0], means[1]))

    def add_output(self, got: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> None:
        """Compare one image's output."""
        with np.errstate(invalid="ignore"):
            difference = largest(got - expected)
        # Infinity by infinity would be NaN, which max() passes over.
        relative = difference / max(1.0, largest(expected)) if math.isfinite(difference) else difference
        self._difference = max(self._difference, difference)
        self._relative = max(self._relative, relative)

    def report(self) -> ParityReport:
        """Sum up.

        Raises
        ------
        InputRejected
            When there was no image.
        """
        if not self._dices:
            raise InputRejected("the parity gate must have at least one image to compare on, not none.")
        every, large = np.concatenate(self._dices), np.concatenate(self._large)
        counted = every[large] if large.any() else every
        truths = np.array(self._truths).mean(axis=0) if self._truths else None
        return ParityReport(
            *self._of,
            images=len(self._dices),
            masks=len(every),
            mean_dice=float(counted.mean()),
            low_dice=float(np.percentile(counted, 1)),
            worst_dice=float(counted.min()),
            flips=self._flips,
            truth_dice=None if truths is None else float(truths[0]),
            pytorch_truth_dice=None if truths is None else float(truths[1]),
            max_difference=self._difference,
            max_relative_difference=self._relative,
            tolerances=TOLERANCES[self._of[1]],
        )


def largest(values: npt.NDArray[np.float32]) -> float:
    """Largest amount; infinity where there is NaN, since max() would pass it over."""
    amount = float(np.abs(values).max())
    return float("inf") if np.isnan(amount) else amount


def torch_logits(student: nn.Module, pixels: npt.NDArray[np.uint8]) -> Logits:
    """The reference: uint8 (N, 3, H, W) through the student in PyTorch, fp32, on the CPU."""
    with torch.inference_mode():
        logits: Logits = student(torch.from_numpy(pixels)).numpy()
    return logits


@dataclass(frozen=True, eq=False)
class StudentAnswer:
    """What PyTorch makes of one image; masks are None for noise, where only numbers are compared."""

    pixels: npt.NDArray[np.uint8]  # (N, 3, H, W)
    logits: Logits
    frame: ModelFrame | None
    masks: Masks | None
    truth: Truth | None


class StudentReference:
    """PyTorch's answers, computed once for every engine that is held against them, and kept on disk.

    Parameters
    ----------
    student
        In eval mode on the CPU.
    images
        uint8 (H, W, 3), after the intensity rule, with their truth or None; at least one.
    size
        Shortest side of the model frame, pixels.
    thresholds, multi_label
        As the manifest will have them.
    """

    def __init__(
        self,
        student: nn.Module,
        images: Iterable[tuple[Image, Truth | None]],
        *,
        size: int,
        thresholds: tuple[float, ...],
        multi_label: bool,
    ) -> None:
        self._size, self._thresholds, self._multi_label = size, thresholds, multi_label
        self.answers = Spool[StudentAnswer]()
        # Other batches and sides than the validation images may have had.
        noise, side = np.random.default_rng(0), -(-size // 32) * 32
        for batch, height, width in ((1, 32, 64), (3, side, side + 32)):
            pixels = noise.integers(0, 256, (batch, 3, height, width), dtype=np.uint8)
            self.answers.append(StudentAnswer(pixels, torch_logits(student, pixels), None, None, None))
        for image, truth in images:
            frame = ModelFrame.of((image.shape[0], image.shape[1]), size)
            pixels = frame.pixels(image)[None]
            logits = torch_logits(student, pixels)
            self.answers.append(StudentAnswer(pixels, logits, frame, self._masks(frame, logits), truth))

    def _masks(self, frame: ModelFrame, logits: Logits) -> Masks:
        maps = np.nan_to_num(frame.probability_maps(logits[0]))  # the report tells of NaN by the outputs
        return masks_of(maps, thresholds=self._thresholds, multi_label=self._multi_label)

    def answer(self, engine: Engine, image: Image) -> tuple[Masks, ProbabilityMaps]:
        """What an exported network makes of a uint8 (H, W, 3) image: masks and probability maps."""
        frame = ModelFrame.of((image.shape[0], image.shape[1]), self._size)
        logits = engine.run({"pixels": frame.pixels(image)[None]})["logits"]
        return self._masks(frame, logits), frame.probability_maps(logits[0])

    def measure(self, engine: Engine, *, precision: str = "fp32") -> ParityReport:
        """Compare an exported network, "pixels" in and "logits" out, with PyTorch.

        Parameters
        ----------
        precision
            Key of TOLERANCES.

        Raises
        ------
        InputRejected
            When there was no image.
        """
        agreement = Agreement("student", precision, engine)
        for answer in self.answers:
            logits = engine.run({"pixels": answer.pixels})["logits"]
            agreement.add_output(logits, answer.logits)
            if answer.frame is not None and answer.masks is not None:
                masks = self._masks(answer.frame, logits)
                agreement.add_masks(masks, answer.masks)
                if answer.truth is not None:
                    agreement.add_truth(masks, answer.masks, answer.truth)
        return agreement.report()
