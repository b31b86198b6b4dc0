"""How far probabilities, scores and flags can be trusted, as labelled cases tell it. Predicts nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from samdistill.arrays import Mask, Masks
from samdistill.calibration import Reliability
from samdistill.manifest_quality import LEAST_DICE
from samdistill.quality import Flag, Quality, auroc
from samdistill.segmentation import Segmentation


@dataclass(frozen=True)
class ClassTrust:
    """Probabilities of one class against frequencies over all pixels that count.

    Attributes
    ----------
    uncalibrated
        Of the student's own probabilities.
    calibrated
        Of those after the bundle's temperature; None where it has none.
    """

    uncalibrated: Reliability
    calibrated: Reliability | None

    def __add__(self, other: ClassTrust) -> ClassTrust:
        after = None
        if self.calibrated is not None and other.calibrated is not None:
            after = self.calibrated + other.calibrated
        return ClassTrust(self.uncalibrated + other.uncalibrated, after)

    def to_dict(self) -> dict[str, Any]:
        """Expected calibration errors, and the points of the reliability plot."""
        plain: dict[str, Any] = {
            "ece_uncalibrated": self.uncalibrated.ece,
            "ece": None if self.calibrated is None else self.calibrated.ece,
        }
        shown = self.calibrated or self.uncalibrated
        keys = ("probability", "frequency", "share")
        plain["bins"] = [dict(zip(keys, point, strict=True)) for point in shown.points()]
        return plain


def trust_of(segmentation: Segmentation, truth: Masks, ignored: Mask) -> tuple[ClassTrust, ...]:
    """The pixels of one image, a class at a time; ignored (H, W) pixels do not count."""
    counted = ~ignored
    maps, after = segmentation.probability_maps, segmentation.calibrated_maps
    return tuple(
        ClassTrust(
            Reliability.of(maps[channel][counted], mask[counted]),
            None if after is None else Reliability.of(after[channel][counted], mask[counted]),
        )
        for channel, mask in enumerate(truth)
    )


def judged(qualities: Sequence[Quality], dice: Sequence[float]) -> dict[str, Any] | None:
    """How well scores and flags tell bad cases.

    Parameters
    ----------
    qualities, dice
        One a case; its Dice as `metrics.found_dice`.

    Returns
    -------
    dict or None
        `least_dice`; `bad`, how many cases are below; `auroc` of the score for these; `rmse` of the score as
        an estimate of Dice; `flags`, flag -> `cases`, `dice`, their mean, and `bad`, how many; `unscored`,
        how many cases have no score and count in none of these. None where no case has one.
    """
    known = [(one, value) for one, value in zip(qualities, dice, strict=True) if one.score is not None]
    if not known:
        return None
    scores = [one.score or 0.0 for one, _ in known]
    values = np.array([value for _, value in known])
    bad = values < LEAST_DICE
    flags = np.array([one.flag for one, _ in known])
    return {
        "least_dice": LEAST_DICE,
        "bad": int(bad.sum()),
        "auroc": auroc(scores, bad.tolist()),
        "rmse": float(np.sqrt(np.mean((np.array(scores) - values) ** 2))),
        "flags": {
            flag: {
                "cases": int((flags == flag).sum()),
                "dice": float(values[flags == flag].mean()) if (flags == flag).any() else math.nan,
                "bad": int(bad[flags == flag].sum()),
            }
            for flag in get_args(Flag)
        },
        "unscored": len(qualities) - len(known),
    }
