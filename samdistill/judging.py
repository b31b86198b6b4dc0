"""Puts a bundle's rules to work on one image: what is seen of it, whether to refine it, how far to trust it.

`quality` and `routing` hold the arithmetic, the manifest the numbers; here they meet a student's logits and a
teacher's answer. Knows no runtime and no file.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from samdistill import quality, routing
from samdistill.arrays import Masks, ProbabilityMaps
from samdistill.calibration import calibrated
from samdistill.errors import UsageError
from samdistill.geometry import ModelFrame, sigmoid
from samdistill.manifest import Manifest
from samdistill.quality import Numbers, Quality
from samdistill.refined import Refined
from samdistill.routing import Budget, Route

NO_RULE = "the bundle was exported without labelled validation images"
IN_TILES = "the image was cut into tiles"
TIMED = 3  # calls, whose median counts


@dataclass(frozen=True, eq=False)
class Look:
    """What is kept of an image for judging it.

    Attributes
    ----------
    maps
        (C, h, w) float32, the student's, calibrated, model frame.
    numbers
        `quality.student_numbers` of the student's masks.
    intensity
        (48,) float64, the image's cumulative histograms.
    """

    maps: ProbabilityMaps
    numbers: Numbers
    intensity: npt.NDArray[np.float64]

    def numbers_of(self, masks: Masks) -> Numbers:
        """`quality.student_numbers` of other masks, (C, H, W) bool, image frame, by the same maps."""
        return _numbers_of(self.maps, masks)


def look(
    frame: ModelFrame,
    pixels: npt.NDArray[np.uint8],
    logits: npt.NDArray[np.float32],
    masks: Masks,
    temperatures: tuple[float, ...],
) -> Look:
    """See what the student makes of an image.

    Parameters
    ----------
    frame
        How the image lies in the student's input.
    pixels, logits
        uint8 (3, height, width) and float32 (C, height, width), the student's input and output, padded.
    masks
        (C, H, W) bool, image frame, the student's final ones.
    """
    height, width = frame.size
    maps = calibrated(sigmoid(logits[:, :height, :width]), temperatures)
    return Look(maps, _numbers_of(maps, masks), quality.intensity_histogram(pixels[:, :height, :width]))


def _numbers_of(maps: ProbabilityMaps, masks: Masks) -> Numbers:
    return quality.student_numbers(maps, quality.sampled(masks, (maps.shape[1], maps.shape[2])))


def teacher_numbers(refined: Refined) -> dict[str, float | None]:
    """A value for each name of TEACHER_NUMBERS, means over the classes asked about; None without any."""
    return {"agreement": _mean(refined.agreement), "predicted_iou": _mean(refined.predicted_iou)}


def check_abstain(manifest: Manifest, abstain: float | None, mode: str | None = None) -> None:
    """Refuse a least score that is no Dice (ValueError), or where the bundle has no rule to score by.

    Parameters
    ----------
    mode
        "refine" wants a rule of refined masks; any other, or None, a rule at all.

    Raises
    ------
    UsageError
        In the latter case.
    """
    if abstain is None:
        return
    if not 0 <= abstain <= 1:
        raise ValueError(f"abstain must be a Dice, 0..1, not {abstain}.")
    rule = manifest.quality
    if rule is None or (rule.student is None and rule.refined is None):
        few = "without" if rule is None else "with too few"
        raise UsageError(
            f"abstain must be left out: this bundle does not judge its answers; it was exported {few} "
            "labelled validation images."
        )
    if mode == "refine" and rule.refined is None:
        raise UsageError(
            "abstain must be left out in mode refine: this bundle does not judge refined masks; too few "
            "validation images had a mask of the teacher's."
        )


class Judge:
    """A bundle's rules; see docs/quality.md.

    Parameters
    ----------
    manifest
        The bundle's.
    abstain
        Images with a lower score, or none, are rejected, whatever the bundle's own threshold; None leaves it
        at that.

    Raises
    ------
    ValueError, UsageError
        As `check_abstain`.
    """

    def __init__(self, manifest: Manifest, abstain: float | None = None) -> None:
        check_abstain(manifest, abstain)
        self._manifest, self._abstain = manifest, abstain

    def route(self, seen: Look, masks: Masks, *, least: float) -> Route:
        """Decide whether the teacher is asked about an image; `least` as `routing.least_gain` gives it."""
        rule = self._manifest.routing
        assert rule is not None
        return routing.decide(rule, seen.numbers, least=least, empty=not masks.any())

    def quality(self, seen: Look | None, masks: Masks, refined: Refined | None) -> Quality:
        """Judge an image's final masks, (C, H, W) bool, image frame; None is an image that was not seen."""
        rule = self._manifest.quality
        if rule is None or seen is None:
            return quality.unknown(NO_RULE if rule is None else IN_TILES)
        reference = rule.reference
        replaced = refined is not None and refined.any
        numbers = {
            **(seen.numbers_of(masks) if replaced else seen.numbers),
            "intensity_distance": quality.intensity_distance(seen.intensity, reference.intensity),
        }
        teacher: dict[str, float | None] | None = None
        stability: float | None = None
        if refined is not None:
            teacher = teacher_numbers(refined)
            if refined.embedding is not None and reference.embedding_mean and reference.embedding_scale:
                teacher["embedding_distance"] = quality.embedding_distance(
                    refined.embedding, reference.embedding_mean, reference.embedding_scale
                )
            if refined.stability is not None:
                steady = _mean(refined.stability)
                stability = np.nan if steady is None else steady
        return quality.judge(
            rule,
            numbers,
            masks,
            teacher=teacher,
            stability=stability,
            refined=replaced,
            abstain=self._abstain,
        )


def _mean(values: npt.NDArray[np.float32]) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else None


def share_of(budget: Budget, student: Callable[[], object], teacher: Callable[[], object]) -> float:
    """The share of the images that a budget allows to be refined.

    Parameters
    ----------
    budget
        Where it is in seconds, both parts are timed here and now.
    student, teacher
        One image's work each.
    """
    if budget.share is not None:
        return budget.share
    assert budget.seconds is not None
    fast, extra = _seconds(student), _seconds(teacher)
    return min(max((budget.seconds - fast) / extra, 0.0), 1.0)


def _seconds(call: Callable[[], object]) -> float:
    call()
    times = []
    for _ in range(TIMED):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return float(np.median(times))
