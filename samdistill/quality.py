"""How far an answer is to be trusted: numbers with a meaning each, a score, and a flag.

docs/quality.md defines every number. What cannot be computed is None and says why: never a silent default.
The numbers of a student's answer are taken in the model frame, where they cost next to nothing. Knows no
network and no file; the rules are the manifest's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from samdistill.arrays import Masks, ProbabilityMaps
from samdistill.components import label
from samdistill.geometry import shrink_masks
from samdistill.manifest_quality import (
    HISTOGRAM_BINS,
    STUDENT_NUMBERS,
    TEACHER_NUMBERS,
    UNLIKE_NUMBERS,
    LinearRule,
    QualityRule,
    Reference,
)
from samdistill.metrics import surface

Flag = Literal["accept", "review", "reject"]
Numbers = dict[str, float]
Vector = npt.NDArray[np.float64]

NUMBERS = (*STUDENT_NUMBERS, *TEACHER_NUMBERS, "stability", *UNLIKE_NUMBERS)
CUT = 3.0  # scales from the centre; what lies farther counts as this far


@dataclass(frozen=True)
class Quality:
    """What is known of one image's answer.

    Attributes
    ----------
    numbers
        Every name of NUMBERS -> its value, None where there is none.
    missing
        Name of each number that is None, "score" too -> why.
    score
        Estimate of the image's Dice, in [0, 1]; None without a rule.
    flag
        "accept", "review" or "reject"; None without a score, but "reject" where a least score was asked for.
    reasons
        Why it is not accepted, as short names: "score", "abstain", or the numbers beyond their limits.
    """

    numbers: dict[str, float | None]
    missing: dict[str, str]
    score: float | None = None
    flag: Flag | None = None
    reasons: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, numbers rounded to 6 digits."""
        rounded = {key: None if value is None else round(value, 6) for key, value in self.numbers.items()}
        score = None if self.score is None else round(self.score, 6)
        reasons = list(self.reasons)
        return {
            "flag": self.flag, "score": score, "reasons": reasons, "numbers": rounded, "missing": self.missing
        }  # fmt: skip


def unknown(reason: str) -> Quality:
    """Nothing is known, and why."""
    return Quality(dict.fromkeys(NUMBERS), dict.fromkeys((*NUMBERS, "score"), reason))


def student_numbers(maps: ProbabilityMaps, masks: Masks) -> Numbers:
    """What the student's own probabilities say of masks, means over the classes.

    Parameters
    ----------
    maps
        (C, h, w) float32 in [0, 1], calibrated, model frame.
    masks
        (C, h, w) bool, model frame; the student's or those that took their place.

    Returns
    -------
    dict
        A value for each name of STUDENT_NUMBERS.
    """
    rows = [_class_numbers(one, mask) for one, mask in zip(maps, masks, strict=True)]
    return {name: float(np.mean([row[name] for row in rows])) for name in STUDENT_NUMBERS}


def _class_numbers(probabilities: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_]) -> Numbers:
    area = int(np.count_nonzero(mask))
    inside = np.clip(probabilities.astype(np.float64), 1e-6, 1 - 1e-6)
    entropy = -(inside * np.log2(inside) + (1 - inside) * np.log2(1 - inside)).sum()
    if area == 0:
        # Right if there is nothing, wrong if there is: the likeliest pixel says how likely that is.
        nothing = 1 - float(inside.max())
        return {
            "expected_dice": nothing, "confidence": nothing, "sharpness": 1 / (1 + float(entropy)),
            "area": 0.0, "components": 0.0, "largest_share": 1.0,
        }  # fmt: skip
    covered = float(inside[mask].sum())
    areas = label(mask).area_px
    edge = int(np.count_nonzero(surface(mask)))
    return {
        "expected_dice": 2 * covered / (area + float(inside.sum())),
        "confidence": covered / area,
        "sharpness": 1 / (1 + float(entropy) / edge),
        "area": float(np.sqrt(area / mask.size)),
        "components": float(len(areas)),
        "largest_share": float(areas.max() / area),
    }


def sampled(masks: Masks, size: tuple[int, int]) -> Masks:
    """(C, H, W) masks in a frame of (height, width) by nearest pixel centres: quick, and good enough here.

    A class that lies between all of them would be judged as one that is nowhere: it is shrunk with care.
    """
    rows, columns = (
        ((np.arange(to) + 0.5) * (of / to)).astype(np.int64)
        for to, of in zip(size, masks.shape[1:], strict=True)
    )
    found: Masks = masks[:, rows[:, None], columns]
    for channel in np.flatnonzero(~found.any(axis=(1, 2))):
        if masks[channel].any():
            found[channel] = shrink_masks(masks[channel : channel + 1], size)[0]
    return found


def shape_numbers(masks: Masks, reference: Reference) -> Numbers:
    """How far areas and component counts lie outside those of the training labels, worst over the classes.

    Parameters
    ----------
    masks
        (C, H, W) bool, image frame, final.

    Returns
    -------
    dict
        area_off, in doublings beyond the least or most; components_off, components beyond them; 0 within.
    """
    area_off = components_off = 0.0
    for mask, known in zip(masks, reference.classes, strict=True):
        area, pixels = int(np.count_nonzero(mask)), mask.size
        least, most = (share * pixels for share in known.area_share)
        if area > most:
            area_off = max(area_off, float(np.log2(area / max(most, 1.0))))
        elif area < least:
            area_off = max(area_off, float(np.log2(least / max(area, 1))))
        count = len(label(mask)) if area else 0
        beyond = max(known.components[0] - count, count - known.components[1], 0)
        components_off = max(components_off, float(beyond))
    return {"area_off": area_off, "components_off": components_off}


def intensity_histogram(pixels: npt.NDArray[np.uint8]) -> Vector:
    """Cumulative histograms of uint8 (3, h, w) pixels, 16 equal bins a channel: (48,) float64 in [0, 1]."""
    width = 256 // HISTOGRAM_BINS
    counts = [np.bincount(one.ravel() // width, minlength=HISTOGRAM_BINS) for one in pixels]
    histograms: Vector = np.concatenate([np.cumsum(one) / one.sum() for one in counts])
    return histograms


def intensity_distance(histogram: Vector, reference: Sequence[float]) -> float:
    """Mean over the channels of the earth mover's distance of two histograms, as a share of the range."""
    return float(np.abs(histogram - np.asarray(reference)).mean())


def embedding_distance(embedding: Vector, mean: Sequence[float], scale: Sequence[float]) -> float:
    """Root mean square over the channels of (value - mean) / scale, of an embedding averaged to (E,)."""
    off = (embedding - np.asarray(mean)) / np.asarray(scale)
    return float(np.sqrt(np.mean(off**2)))


def evaluate_rule(rule: LinearRule, numbers: Mapping[str, float | None]) -> float | None:
    """The value of a rule; None where a number it needs is missing."""
    value = rule.intercept
    for name, centre, scale, weight in zip(
        rule.features, rule.centres, rule.scales, rule.weights, strict=True
    ):
        number = numbers.get(name)
        if number is None:
            return None
        value += weight * float(np.clip((number - centre) / scale, -CUT, CUT))
    return value


def judge(
    rule: QualityRule,
    image: Numbers,
    masks: Masks,
    *,
    teacher: Mapping[str, float | None] | None = None,
    stability: float | None = None,
    refined: bool = False,
    abstain: float | None = None,
) -> Quality:
    """Put an image's numbers together, score it and flag it.

    Parameters
    ----------
    rule
        The bundle's.
    image
        What `student_numbers` says of the masks, and intensity_distance.
    masks
        (C, H, W) bool, image frame, final.
    teacher
        agreement, predicted_iou and embedding_distance where the teacher was asked; None where not.
    stability
        Where it was asked for, NaN where there was nothing to ask about; None where not.
    refined
        Whether a mask is the teacher's, so that the rule of refined masks holds.
    abstain
        A score below is rejected, whatever the rule says, and so is an answer without a score.
    """
    found: dict[str, float | None] = dict.fromkeys(NUMBERS)
    found.update(image)
    found.update(shape_numbers(masks, rule.reference))
    found.update(teacher or {})
    found["stability"] = None if stability is None or np.isnan(stability) else stability
    why = {}
    for name in (*TEACHER_NUMBERS, "embedding_distance"):
        if found[name] is None:
            why[name] = "the teacher was not asked" if teacher is None else "there was nothing to ask about"
    if teacher is None:
        why["stability"] = "the teacher was not asked"
    elif found["stability"] is None:
        why["stability"] = "not asked for" if stability is None else "there was nothing to ask about"
    if "embedding_distance" in why and teacher is not None and rule.reference.embedding_mean is None:
        why["embedding_distance"] = "the bundle holds no training embeddings"
    own = rule.refined if refined else rule.student
    value = None if own is None else evaluate_rule(own.rule, found)
    if own is None or value is None:
        which = "had a mask of the teacher's" if refined else "were there"
        few = f"too few validation images {which} to learn from"
        why["score"] = few if own is None else "a number that the rule needs is missing"
        # What is not known to be good enough is not good enough for whoever names a least score.
        return Quality(found, why) if abstain is None else Quality(found, why, None, "reject", ("abstain",))
    score = min(max(value, 0.0), 1.0)
    beyond = [name for name, limit in rule.limits.items() if (n := found.get(name)) is not None and n > limit]
    beyond += [name for name, least in own.least.items() if (n := found.get(name)) is not None and n < least]
    flag, reasons = _flag(score, own.accept, own.reject, beyond, abstain)
    return Quality(found, why, score, flag, reasons)


def _flag(
    score: float, accept: float | None, reject: float | None, beyond: list[str], abstain: float | None
) -> tuple[Flag, tuple[str, ...]]:
    if abstain is not None and score < abstain:
        return "reject", ("abstain", *beyond)
    if reject is not None and score < reject:
        return "reject", ("score", *beyond)
    sure = accept is not None and score >= accept
    if sure and not beyond:
        return "accept", ()
    return "review", (*(() if sure else ("score",)), *beyond)


def told(qualities: Sequence[Quality]) -> dict[str, Any]:
    """The quality of a file's images for a record: the worst one's, and of several where it is and how many.

    Returns
    -------
    dict
        As `Quality.to_dict`; for several images also `image`, the index of the worst by its flag and then its
        score, and `flags`, flag -> how many.
    """
    # Nothing is known against an image without a flag, nor for it.
    order = {"reject": 0, None: 1, "review": 2, "accept": 3}
    worst = min(range(len(qualities)), key=lambda i: (order[qualities[i].flag], qualities[i].score or 0.0))
    plain = qualities[worst].to_dict()
    if len(qualities) > 1:
        flags = [str(one.flag).lower() for one in qualities]
        plain |= {"image": worst, "flags": {flag: flags.count(flag) for flag in sorted(set(flags))}}
    return plain


def auroc(scores: Sequence[float], bad: Sequence[bool]) -> float:
    """P(score of a bad case < score of a good one), ties half, so how well scores tell; NaN without both."""
    low = np.asarray(scores, np.float64)
    is_bad = np.asarray(bad, np.bool_)
    if is_bad.all() or not is_bad.any():
        return float("nan")
    bad_ones, good_ones = np.sort(low[is_bad]), low[~is_bad]
    below, not_above = (np.searchsorted(bad_ones, good_ones, side) for side in ("left", "right"))
    return float((below + not_above).mean() / (2 * len(bad_ones)))
