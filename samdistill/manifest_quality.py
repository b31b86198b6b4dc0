"""What a manifest says of how sure the student is: temperatures, rules fitted on validation images, ranges.

Frozen records of plain numbers, each checked when it is made; docs/quality.md tells what they mean. Knows no
image: `calibration`, `quality` and `routing` apply them, export fits them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from samdistill.manifest_records import require

HISTOGRAM_BINS = 16  # of each colour channel
LEAST_DICE = 0.7  # a case below it is a bad one
GAIN_QUANTILES = 21  # 0 %, 5 %, ..., 100 %
STUDENT_NUMBERS = ("expected_dice", "confidence", "sharpness", "area", "components", "largest_share")
TEACHER_NUMBERS = ("agreement", "predicted_iou")
RISING_NUMBERS = ("expected_dice", "confidence", "sharpness", *TEACHER_NUMBERS)  # of which more is better
UNLIKE_NUMBERS = ("area_off", "components_off", "intensity_distance", "embedding_distance")


def _require_known(what: str, names: Iterable[str], known: tuple[str, ...]) -> None:
    """A rule or a limit of a number that nobody computes would never apply."""
    strange = sorted(set(names) - set(known))
    require(not strange, f"{what} must be of {', '.join(known)}, not of {', '.join(strange)}.")


def _finite(name: str, values: tuple[float, ...]) -> None:
    # Within what sums and products of a few of them cannot leave.
    require(all(abs(v) <= 1e9 for v in values), f"{name} must be finite numbers, not {list(values)}.")


@dataclass(frozen=True)
class Calibration:
    """The temperature of each class, by which its logits are divided; one number a class in each list.

    Attributes
    ----------
    temperatures
        In 0.001..1000; 1 changes nothing, above 1 makes less sure.
    images
        Labelled validation images they were fitted on.
    nll_before, nll_after
        Negative log-likelihood of a pixel, mean over the validation images, nats.
    ece_before, ece_after
        Expected calibration error over 15 equal bins, in [0, 1].
    """

    temperatures: tuple[float, ...]
    images: int
    nll_before: tuple[float, ...]
    nll_after: tuple[float, ...]
    ece_before: tuple[float, ...]
    ece_after: tuple[float, ...]

    def __post_init__(self) -> None:
        count = len(self.temperatures)
        require(
            count > 0 and all(1e-3 <= t <= 1e3 for t in self.temperatures),
            f"temperatures must be 0.001 to 1000, one a class, not {list(self.temperatures)}.",
        )
        require(self.images > 0, f"images must be at least 1, not {self.images}.")
        for name in ("nll_before", "nll_after", "ece_before", "ece_after"):
            values = getattr(self, name)
            require(len(values) == count, f"{name} must be {count} numbers, one a class, not {len(values)}.")
            most = 1.0 if name.startswith("ece") else math.inf
            require(all(0 <= v <= most for v in values), f"{name} must be 0 or more, not {list(values)}.")
            _finite(name, values)


@dataclass(frozen=True)
class LinearRule:
    """intercept + sum of weight x (feature - centre) / scale, each quotient cut to -3..3.

    Attributes
    ----------
    features
        Names of numbers that docs/quality.md defines.
    centres, scales, weights
        One a feature; scales above 0.
    intercept
        The value where every feature is at its centre.
    """

    features: tuple[str, ...]
    centres: tuple[float, ...]
    scales: tuple[float, ...]
    weights: tuple[float, ...]
    intercept: float

    def __post_init__(self) -> None:
        count = len(self.features)
        require(len(set(self.features)) == count, f"features must differ, not repeat: {list(self.features)}.")
        for name in ("centres", "scales", "weights"):
            values = getattr(self, name)
            require(len(values) == count, f"{name} must be {count} numbers, as features, not {len(values)}.")
            _finite(name, values)
        require(all(scale > 0 for scale in self.scales), f"scales must be above 0, not {list(self.scales)}.")
        _finite("intercept", (self.intercept,))


@dataclass(frozen=True)
class ScoreRule:
    """The score of an image, an estimate of its Dice, and how far the estimate was off on validation images.

    Attributes
    ----------
    rule
        Gives the score, cut to 0..1.
    images
        Validation images it was fitted on.
    rmse
        Root mean square error of the score on images that it was not fitted on (cross-validated); null where
        none could be left out.
    accept
        Least score of flag "accept", above 1 where none is high enough; null where too few images were there
        to tell.
    reject
        Scores below have flag "reject"; null likewise.
    least
        One of RISING_NUMBERS -> the least that is nothing to remark on; an image below one is not accepted.
    """

    rule: LinearRule
    images: int
    rmse: float | None
    accept: float | None = None
    reject: float | None = None
    least: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(self.images > 0, f"images must be at least 1, not {self.images}.")
        require(self.rmse is None or 0 <= self.rmse <= 1, f"rmse must be 0..1 or null, not {self.rmse}.")
        _finite("accept and reject", tuple(v for v in (self.accept, self.reject) if v is not None))
        require(
            self.accept is None or self.reject is None or self.accept >= self.reject,
            f"accept must be at least reject, {self.reject}, not {self.accept}.",
        )
        _require_known("least", self.least, RISING_NUMBERS)
        _finite("least", tuple(self.least.values()))


@dataclass(frozen=True)
class ClassRange:
    """What the training labels of a class are like, least and most over the images.

    Attributes
    ----------
    area_share
        (least, most) share of the image that the class covers; least is 0 where it is absent from some.
    components
        (least, most) number of its 8-connected components.
    """

    area_share: tuple[float, ...]
    components: tuple[int, ...]

    def __post_init__(self) -> None:
        for name, most in (("area_share", 1.0), ("components", math.inf)):
            values = getattr(self, name)
            require(
                len(values) == 2 and 0 <= values[0] <= values[1] <= most,
                f"{name} must be least and most, not {list(values)}.",
            )


@dataclass(frozen=True)
class Reference:
    """What the training images are like, to tell whether another is.

    Attributes
    ----------
    images
        How many were looked at.
    classes
        One a class.
    intensity
        Mean cumulative histogram of each of three channels over 16 equal bins of 0..255, 48 numbers 0..1.
    embedding_mean, embedding_scale
        Of the teacher's embedding averaged over the image, one number a channel; null without a teacher.
    """

    images: int
    classes: tuple[ClassRange, ...]
    intensity: tuple[float, ...]
    embedding_mean: tuple[float, ...] | None = None
    embedding_scale: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        require(self.images > 0, f"images must be at least 1, not {self.images}.")
        wanted = 3 * HISTOGRAM_BINS
        require(
            len(self.intensity) == wanted and all(0 <= v <= 1 for v in self.intensity),
            f"intensity must be {wanted} numbers 0..1, not {len(self.intensity)}.",
        )
        mean, scale = self.embedding_mean, self.embedding_scale
        require(
            (mean is None) == (scale is None), "embedding_mean and embedding_scale must be given together."
        )
        if mean is not None and scale is not None:
            require(
                len(mean) == len(scale) > 0 and min(scale) > 0,
                "embedding_scale must be numbers above 0, as many as embedding_mean has.",
            )


@dataclass(frozen=True)
class QualityRule:
    """How an image's quality is judged.

    Attributes
    ----------
    least_dice
        A case below it is a bad one: 0.7, the one way this schema knows.
    student
        Of masks that are the student's; null where validation images were too few to learn from.
    reference
        What the training images are like.
    limits
        One of UNLIKE_NUMBERS -> the most that is nothing to remark on; an image above one is not accepted.
    refined
        Of images of which a mask is the teacher's; null where too few validation images were such.
    """

    least_dice: float
    student: ScoreRule | None
    reference: Reference
    limits: dict[str, float]
    refined: ScoreRule | None = None

    def __post_init__(self) -> None:
        require(self.least_dice == LEAST_DICE, f"least_dice must be {LEAST_DICE}, not {self.least_dice}.")
        _require_known("limits", self.limits, UNLIKE_NUMBERS)
        for name, score, known in (
            ("student", self.student, STUDENT_NUMBERS),
            ("refined", self.refined, (*STUDENT_NUMBERS, *TEACHER_NUMBERS)),
        ):
            if score is not None:
                _require_known(f"features of {name}", score.rule.features, known)
                _require_known(f"least of {name}", score.least, known)


@dataclass(frozen=True)
class RoutingRule:
    """Which images mode "auto" puts to the teacher.

    Attributes
    ----------
    refine
        False: none, since validation images showed no gain.
    reason
        Why, in words with numbers.
    rule
        Gives the expected gain in Dice from the student's answer; refined is what has more than 0.
    least_predicted_iou
        A class about whose mask the teacher is less sure keeps the student's, in mode "auto" alone.
    images
        Validation images it was fitted on.
    gain_quantiles
        The gains that the rule expects of these, 0 where nothing was found: 0 %, 5 %, ..., 100 %, for
        budgets.
    gain_always, gain_auto
        Mean gain in Dice on validation images if all were refined, and if the rule chose (cross-validated).
    gain_error
        Standard error of `gain_auto`.
    share
        Of the validation images the rule would refine (cross-validated).
    """

    refine: bool
    reason: str
    rule: LinearRule
    least_predicted_iou: float
    images: int
    gain_quantiles: tuple[float, ...]
    gain_always: float
    gain_auto: float
    gain_error: float | None
    share: float

    def __post_init__(self) -> None:
        require(bool(self.reason), "reason must be words, not empty.")
        _require_known("features of rule", self.rule.features, STUDENT_NUMBERS)
        require(self.images > 0, f"images must be at least 1, not {self.images}.")
        quantiles = self.gain_quantiles
        require(
            len(quantiles) == GAIN_QUANTILES and list(quantiles) == sorted(quantiles),
            f"gain_quantiles must be {GAIN_QUANTILES} rising numbers, not {list(quantiles)}.",
        )
        _finite("gain_quantiles", quantiles)
        _finite("gain_always and gain_auto", (self.gain_always, self.gain_auto))
        require(
            self.gain_error is None or self.gain_error >= 0,
            f"gain_error must be at least 0, not {self.gain_error}.",
        )
        for name in ("least_predicted_iou", "share"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"{name} must be 0..1, not {value}.")
