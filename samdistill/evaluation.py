"""How good predictions are: every labelled case scored, then means with intervals. Draws nothing.

Of an image the mean over its classes comes first, then the mean over images; what is empty counts as
`metrics` says. Images that a model was trained on are told apart by `unseen`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from samdistill.arrays import Mask, Masks
from samdistill.errors import InputRejected
from samdistill.io.dataset import Case
from samdistill.io.files import sha256_file
from samdistill.io.images import Pixels
from samdistill.metrics import Scores, dice_per_class, found_dice, hd95_and_asd, iou_per_class
from samdistill.predictor import BATCH_PIXELS, Mode, Segmentation
from samdistill.quality import Quality
from samdistill.refined import Kept, Refined
from samdistill.routing import Route
from samdistill.statistics import LEVEL, Estimate, bootstrap_mean, paired_difference
from samdistill.trust import ClassTrust, judged, trust_of

SCHEMA = 1
METRICS = ("dice", "dice_present", "iou", "hd95_px", "asd_px")
HASH_DIGITS = 16  # of an image's SHA-256 in a bundle's provenance["trained_on"]
BATCH = 8


class HasMasks(Protocol):
    """What a prediction must have: masks (C, H, W) bool, image frame."""

    @property
    def masks(self) -> Masks: ...


class Predicts(Protocol):
    """What is evaluated: a `Predictor`, or anything else that turns raw pixels into masks."""

    @property
    def class_names(self) -> tuple[str, ...]: ...

    def predict_batch(self, images: Sequence[Pixels], mode: Mode = ...) -> Sequence[HasMasks]: ...


@dataclass(frozen=True)
class Prediction:
    """A case with everything needed to score or draw it.

    Parameters
    ----------
    case
        Of the data set.
    pixels
        Raw, as the file has them.
    masks, truth
        (C, H, W) bool, image frame, in the predictor's order of classes.
    ignored
        (H, W) bool: pixels that count in neither.
    refined
        What the bundle's teacher was asked; None where it was not.
    segmentation
        The whole answer; None where it is another method's.
    """

    case: Case
    pixels: Pixels
    masks: Masks
    truth: Masks
    ignored: Mask
    refined: Refined | None = None
    segmentation: Segmentation | None = None


@dataclass(frozen=True)
class CaseScores:
    """One case, one number a class in each array.

    Parameters
    ----------
    id, group
        Of the case.
    dice, iou
        (C,) in [0, 1].
    hd95_px, asd_px
        (C,) pixels; NaN where prediction or truth is empty.
    present
        (C,) whether the class is in the truth.
    predicted
        (C,) whether it is in the prediction.
    kept
        For each class why its mask is the student's, None where it is the teacher's; None where the teacher
        was not asked.
    quality
        How the bundle judges the answer; None where it is another method's.
    route
        What mode "auto" decided; None in the others.
    """

    id: str
    group: str
    dice: Scores
    iou: Scores
    hd95_px: Scores
    asd_px: Scores
    present: npt.NDArray[np.bool_]
    predicted: npt.NDArray[np.bool_]
    kept: tuple[Kept | None, ...] | None = None
    quality: Quality | None = None
    route: Route | None = None

    def of_class(self, channel: int) -> dict[str, float]:
        """The metrics of one class; `dice_present` is NaN where it is absent."""
        dice = float(self.dice[channel])
        return {
            "dice": dice,
            "dice_present": dice if self.present[channel] else math.nan,
            "iou": float(self.iou[channel]),
            "hd95_px": float(self.hd95_px[channel]),
            "asd_px": float(self.asd_px[channel]),
        }

    def means(self) -> dict[str, float]:
        """The metrics of the image: the mean over the classes that have a value, NaN where none has."""
        classes = [self.of_class(channel) for channel in range(len(self.dice))]
        return {metric: _mean([scores[metric] for scores in classes]) for metric in METRICS}


@dataclass(frozen=True)
class ClassSummary:
    """One class over all cases.

    Parameters
    ----------
    metrics
        Metric -> its mean and interval.
    present, missed, false_alarms
        Cases with the class in the truth; of these, cases without any predicted pixel of it; cases with
        predicted pixels of an absent class.
    """

    metrics: dict[str, Estimate]
    present: int
    missed: int
    false_alarms: int


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Parameters
    ----------
    class_names
        Of channel 0, 1, ...
    mode
        The predictor's mode.
    metrics
        Metric -> mean and interval over images.
    classes
        One summary a class, in the order of `class_names`.
    cases
        In the order they were given.
    grouped
        Whether intervals come from redrawing groups instead of single cases.
    trust
        How the probabilities of each class compare with frequencies; None where there are none.
    """

    class_names: tuple[str, ...]
    mode: Mode
    metrics: dict[str, Estimate]
    classes: tuple[ClassSummary, ...]
    cases: tuple[CaseScores, ...]
    grouped: bool
    trust: tuple[ClassTrust, ...] | None = None

    def judged(self) -> dict[str, Any] | None:
        """How well scores and flags tell bad cases, as `trust.judged`; None without a score."""
        known = [case for case in self.cases if case.quality is not None]
        dice = [found_dice(c.dice, c.present | c.predicted) for c in known]
        return judged([c.quality for c in known if c.quality], dice)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON can hold it: what is NaN here is None there."""
        plain: dict[str, Any] = {
            "schema": SCHEMA,
            "mode": self.mode,
            **{metric: self.metrics[metric].mean for metric in METRICS},
            "intervals": {metric: asdict(self.metrics[metric]) for metric in METRICS},
            "interval_level": LEVEL,
            "interval_unit": "group" if self.grouped else "case",
            "missed": sum(one.missed for one in self.classes),
            "false_alarms": sum(one.false_alarms for one in self.classes),
            "classes": {
                name: {
                    **{metric: asdict(one.metrics[metric]) for metric in METRICS},
                    "present": one.present,
                    "missed": one.missed,
                    "false_alarms": one.false_alarms,
                }
                for name, one in zip(self.class_names, self.classes, strict=True)
            },
            "cases": [
                {
                    "id": case.id,
                    **case.means(),
                    "classes": {name: case.of_class(i) for i, name in enumerate(self.class_names)},
                }
                for case in self.cases
            ],
        }
        asked = [case for case in self.cases if case.kept is not None]
        if asked:
            plain["refined"] = {
                name: dict(Counter(_source(case, i) for case in asked))
                for i, name in enumerate(self.class_names)
            }
            for told, case in zip(plain["cases"], self.cases, strict=True):
                if case.kept is not None:
                    told["refined"] = {name: _source(case, i) for i, name in enumerate(self.class_names)}
        if self.trust is not None:
            of_classes = zip(self.class_names, self.trust, strict=True)
            plain["calibration"] = {name: one.to_dict() for name, one in of_classes}
        plain["quality"] = self.judged()
        for told, case in zip(plain["cases"], self.cases, strict=True):
            if case.quality is not None:
                told["quality"] = case.quality.to_dict()
            if case.route is not None:
                told["routed"] = asdict(case.route)
        without_nan: dict[str, Any] = nan_to_none(plain)
        return without_nan


def evaluate(
    predictor: Predicts,
    cases: Sequence[Case],
    mode: Mode = "fast",
    *,
    seed: int = 0,
    on_case: Callable[[CaseScores], None] | None = None,
) -> Evaluation:
    """Predict every case and compare with its masks.

    Parameters
    ----------
    predictor
        What is evaluated.
    cases
        Labelled cases of a data set with the predictor's classes, in any order of classes.
    mode
        "fast", "refine" or "auto".
    seed
        Of the bootstrap.
    on_case
        Called with each case's scores as they come, for progress.

    Raises
    ------
    InputRejected
        When there is nothing to score, a file cannot be read or the classes differ. A case is never left out
        because it fails: means over fewer cases would not be what they say.
    DeviceUnavailable
        When scipy is not installed.
    """
    if not cases:
        raise InputRejected("nothing to evaluate: there must be at least one labelled case.")
    scored = []
    trust: tuple[ClassTrust, ...] | None = None
    for one in predictions(predictor, cases, mode):
        scores = score_case(one.case.id, one.case.group, one.masks, one.truth, ignore=one.ignored)
        if one.segmentation is not None:
            own = trust_of(one.segmentation, one.truth, one.ignored)
            trust = own if trust is None else tuple(a + b for a, b in zip(trust, own, strict=True))
            scores = replace(scores, quality=one.segmentation.quality, route=one.segmentation.route)
        scored.append(scores if one.refined is None else replace(scores, kept=one.refined.kept))
        if on_case is not None:
            on_case(scored[-1])
    return replace(summarize(scored, class_names=predictor.class_names, mode=mode, seed=seed), trust=trust)


def predictions(predictor: Predicts, cases: Sequence[Case], mode: Mode = "fast") -> Iterator[Prediction]:
    """Predict labelled cases a few at a time, in their order; parameters and exceptions as in `evaluate`."""
    for some, pixels in _read(cases):
        try:
            found = predictor.predict_batch(pixels, mode)
        except ValueError as error:  # the depth of the pixels and the bundle's intensity rule disagree
            others = f" and the next {len(some) - 1}" if len(some) > 1 else ""
            raise InputRejected(f"{some[0].image_path}{others}: {error}") from error
        for case, raw, segmentation in zip(some, pixels, found, strict=True):
            truth, ignored = case.read_labels()
            truth = truth[channel_order(case, predictor.class_names)]
            masks = segmentation.masks
            if masks.shape != truth.shape:
                raise ValueError(
                    f"masks of case {case.id} must be (C, H, W) {truth.shape}, not {masks.shape}."
                )
            whole = segmentation if isinstance(segmentation, Segmentation) else None
            refined = None if whole is None else whole.refined
            yield Prediction(case, raw, masks, truth, ignored, refined, whole)


def _read(cases: Sequence[Case]) -> Iterator[tuple[list[Case], list[Pixels]]]:
    """A few cases with their pixels, of large images fewer: their maps lie in memory at once."""
    some: list[Case] = []
    pixels: list[Pixels] = []
    for case in cases:
        some.append(case)
        pixels.append(case.read_image())
        if len(some) == BATCH or sum(one.shape[0] * one.shape[1] for one in pixels) > BATCH_PIXELS:
            yield some, pixels
            some, pixels = [], []
    if some:
        yield some, pixels


def score_case(
    case_id: str, group: str, masks: Masks, truth: Masks, *, ignore: Mask | None = None
) -> CaseScores:
    """Score one prediction (C, H, W) against the truth (C, H, W); ignored (H, W) pixels count in neither."""
    if ignore is not None:
        masks, truth = masks & ~ignore, truth & ~ignore
    distances = [hd95_and_asd(mask, true) for mask, true in zip(masks, truth, strict=True)]
    return CaseScores(
        id=case_id,
        group=group,
        dice=dice_per_class(masks, truth),
        iou=iou_per_class(masks, truth),
        hd95_px=np.array([one[0] for one in distances]),
        asd_px=np.array([one[1] for one in distances]),
        present=np.array([one.any() for one in truth]),
        predicted=np.array([one.any() for one in masks]),
    )


def summarize(
    cases: Sequence[CaseScores], *, class_names: Sequence[str], mode: Mode = "fast", seed: int = 0
) -> Evaluation:
    """Make means and intervals of scored cases; groups are redrawn whole where any has several cases."""
    groups = [case.group for case in cases]
    grouped = len(set(groups)) < len(groups)

    def estimates(rows: Sequence[dict[str, float]]) -> dict[str, Estimate]:
        return {
            metric: bootstrap_mean([row[metric] for row in rows], groups=groups, seed=seed)
            for metric in METRICS
        }

    classes = tuple(
        ClassSummary(
            metrics=estimates([case.of_class(channel) for case in cases]),
            present=sum(bool(case.present[channel]) for case in cases),
            missed=sum(bool(case.present[channel] and not case.predicted[channel]) for case in cases),
            false_alarms=sum(bool(case.predicted[channel] and not case.present[channel]) for case in cases),
        )
        for channel in range(len(class_names))
    )
    overall = estimates([case.means() for case in cases])
    return Evaluation(tuple(class_names), mode, overall, classes, tuple(cases), grouped)


def compare(first: Evaluation, second: Evaluation, *, seed: int = 0) -> dict[str, Estimate]:
    """Metric by metric the mean of first - second over the same cases, with its paired bootstrap interval.

    Raises
    ------
    ValueError
        When the two did not score the same cases in the same order.
    """
    if [case.id for case in first.cases] != [case.id for case in second.cases]:
        raise ValueError("first and second must have scored the same cases in the same order.")
    left, right = [[case.means() for case in one.cases] for one in (first, second)]
    return {
        metric: paired_difference(
            [row[metric] for row in left],
            [row[metric] for row in right],
            groups=[case.group for case in first.cases],
            seed=seed,
        )
        for metric in METRICS
    }


def unseen(cases: Sequence[Case], trained_on: Collection[str]) -> tuple[Case, ...]:
    """The cases a model was not trained on.

    Parameters
    ----------
    cases
        Of the data set to be evaluated, the unlabelled ones too: they tell of groups.
    trained_on
        The first 16 hexadecimal digits of the SHA-256 of each image file that training or validation used,
        as a bundle's provenance["trained_on"] has them.

    Returns
    -------
    tuple
        The labelled cases whose image is not among them and whose group holds no such image: a second picture
        of a patient that was trained on is no fair test.
    """
    if not trained_on:
        return tuple(case for case in cases if case.labelled)
    known = set(trained_on)
    paths = {case.image_path for case in cases}  # the slices of a scan share one
    found = {path for path in paths if sha256_file(path)[:HASH_DIGITS] in known}
    seen = {case.group for case in cases if case.image_path in found}
    return tuple(case for case in cases if case.labelled and case.group not in seen)


def channel_order(case: Case, class_names: tuple[str, ...]) -> list[int]:
    """Where each of the predictor's classes lies in the case's masks."""
    names = case.code.class_names
    if set(names) != set(class_names):
        raise InputRejected(
            f"the data set must have the classes {', '.join(class_names)}, not {', '.join(names)}."
        )
    return [names.index(name) for name in class_names]


def _source(case: CaseScores, channel: int) -> str:
    """Whose mask a class has: "teacher", or why it is the student's."""
    assert case.kept is not None
    return case.kept[channel] or "teacher"


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def nan_to_none(value: Any) -> Any:
    """Nested dicts and lists with None for NaN, as JSON can hold them."""
    if isinstance(value, dict):
        return {key: nan_to_none(one) for key, one in value.items()}
    if isinstance(value, list):
        return [nan_to_none(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value
