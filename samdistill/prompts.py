"""Prompts, and prompts out of probability maps, for training and inference alike.

Knows classes, components and pixels; knows no model and no frame but the image's own. `extract` covers two
papers with one configuration: `MINE` (knowledge mining: outer box and the likeliest pixels) and `BURDEN`
(SAM Carries the Burden: outer box, centre-of-mass points, the other classes' points as negatives).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from samdistill import _core
from samdistill.arrays import (
    Logits,
    Mask,
    Masks,
    PointLabels,
    Points,
    ProbabilityMap,
    ProbabilityMaps,
    describe,
)
from samdistill.components import (
    Keep,
    Morphology,
    check_probability_maps,
    core_cleaning,
    label,
    nan_error,
)

PointRule = Literal["likeliest", "centre", "none"]

MAX_COUNT = 4096


@dataclass(frozen=True, eq=False)
class Prompts:
    """One prompt set for one object, in the image frame. Arrays of another number type are copied once.

    Attributes
    ----------
    points
        (N, 2) float32, pixels, xy with pixel centres at integers, or None; N >= 1.
    point_labels
        (N,) int32: 1 foreground, 0 background, -1 padding. Given exactly when `points` are; all padding
        only beside a box or mask_logits.
    box
        (4,) float32, pixels, xyxy half-open, or None.
    mask_logits
        (H, W) float32, finite logits at the image's size, or None.
    """

    points: Points | None = None
    point_labels: PointLabels | None = None
    box: npt.NDArray[np.float32] | None = None
    mask_logits: Logits | None = None

    def __post_init__(self) -> None:
        if self.points is None and self.box is None and self.mask_logits is None:
            raise ValueError("Prompts must be given points, a box or mask_logits, not nothing.")
        if (self.points is None) != (self.point_labels is None):
            given, missing = ("point_labels", "points") if self.points is None else ("points", "point_labels")
            raise ValueError(
                f"{missing} must be given with {given}, not left out. 1 is foreground, 0 background."
            )
        if self.points is not None and self.point_labels is not None:
            points = _float32(self.points, "points", "(N, 2) finite xy with N >= 1")
            if points.ndim != 2 or points.shape[1] != 2 or len(points) == 0:
                raise ValueError(f"points must be (N, 2) finite xy with N >= 1, not {describe(points)}.")
            labels = np.asarray(self.point_labels)
            if labels.shape != (len(points),) or labels.dtype.kind not in "iu":
                raise ValueError(f"point_labels must be ({len(points)},) integers, not {describe(labels)}.")
            if labels.min() < -1 or labels.max() > 1:
                raise ValueError(f"point_labels must be 1, 0 or -1, not {labels}.")
            if labels.max() < 0 and self.box is None and self.mask_logits is None:
                raise ValueError("Prompts must be given points, a box or mask_logits, not padding alone.")
            object.__setattr__(self, "points", points)
            object.__setattr__(self, "point_labels", labels.astype(np.int32, copy=False))
        if self.box is not None:
            box = _float32(self.box, "box", "(4,) finite xyxy")
            if box.shape != (4,) or not (box[0] < box[2] and box[1] < box[3]):
                raise ValueError(
                    f"box must be (4,) xyxy with x0 < x1 and y0 < y1, not {box}. "
                    "Convert xywh with geometry.xywh_to_xyxy."
                )
            object.__setattr__(self, "box", box)
        if self.mask_logits is not None:
            logits = _float32(self.mask_logits, "mask_logits", "(H, W) finite logits")
            if logits.ndim != 2 or logits.size == 0:
                raise ValueError(f"mask_logits must be (H, W), not {describe(logits)}.")
            object.__setattr__(self, "mask_logits", logits)


def _float32(value: object, name: str, contract: str) -> npt.NDArray[np.float32]:
    array = np.asarray(value)
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{name} must be {contract}, not {describe(value)}.")
    array = array.astype(np.float32, copy=False)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be {contract}, not {array}.")
    return array


@dataclass(frozen=True)
class PromptConfig:
    """How probability maps become prompts. The defaults are knowledge mining's.

    `config.build` makes it of a TOML or manifest table, `config.to_dict` makes it plain again.

    Attributes
    ----------
    threshold
        A pixel belongs to the class when p > threshold (strictly), in [0, 1]; one for all classes or one
        for each.
    keep
        Which 8-connected components of a class stay: "all", the "likeliest" (by mean p), the "largest".
    min_area_px
        Components with fewer pixels go, before `keep` looks.
    morphology
        Applied to what is kept, or None.
    per_component
        One set for each component (8-connected, of the cleaned mask) instead of one for the class.
    box
        Give each set the outer box of its pixels.
    points
        "likeliest": the `count` pixels of highest probability, ties at random; "centre": the centre of
        mass of the pixels no other class has; "none".
    count
        How many likeliest points at most; a set with fewer pixels has fewer.
    spread_px
        Least distance between the likeliest points of a set; the likeliest comes first, then the likeliest
        that is far enough from all before it, so there may be fewer than `count`.
    snap
        Move the centre to the centre of the nearest pixel it was made from (first in raster order if
        several are); False leaves it where it is, outside a concave mask perhaps.
    negatives
        Add the positive points of all other classes as background points. With likeliest points those
        that lie in this class's own mask are left out.
    mask_logits
        Add logit(p) as a mask prompt. Pixels above the threshold that are not the set's own (cleaned away,
        or another component's) get -logit_limit.
    logit_limit
        Mask prompts are clipped to [-logit_limit, logit_limit].
    seed
        Decides ties; the same seed, map and configuration give the same points on every machine.
    """

    threshold: float | tuple[float, ...] = 0.5
    keep: Keep = "all"
    min_area_px: int = 0
    morphology: Morphology | None = None
    per_component: bool = False
    box: bool = True
    points: PointRule = "likeliest"
    count: int = 5
    spread_px: float = 0.0
    snap: bool = True
    negatives: bool = False
    mask_logits: bool = False
    logit_limit: float = 10.0
    seed: int = 0

    def __post_init__(self) -> None:
        thresholds = self.threshold if isinstance(self.threshold, tuple) else (self.threshold,)
        if not all(0 <= threshold <= 1 for threshold in thresholds):
            raise ValueError(f"threshold must be in [0, 1], not {self.threshold}.")
        if self.keep not in ("all", "likeliest", "largest"):
            raise ValueError(f"keep must be 'all', 'likeliest' or 'largest', not {self.keep!r}.")
        if self.min_area_px < 0:
            raise ValueError(f"min_area_px must be 0 or more, not {self.min_area_px}.")
        if self.morphology is not None and not isinstance(self.morphology, Morphology):
            raise TypeError(f"morphology must be a Morphology or None, not {self.morphology!r}.")
        if self.points not in ("likeliest", "centre", "none"):
            raise ValueError(f"points must be 'likeliest', 'centre' or 'none', not {self.points!r}.")
        if not 1 <= self.count <= MAX_COUNT:
            raise ValueError(
                f"count must be 1 to {MAX_COUNT}, not {self.count}. For no points set points='none'."
            )
        if not 0 <= self.spread_px < float("inf"):
            raise ValueError(f"spread_px must be 0 or more and finite, not {self.spread_px}.")
        if not 0 < self.logit_limit < float("inf"):
            raise ValueError(f"logit_limit must be more than 0 and finite, not {self.logit_limit}.")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be 0 to 2**63 - 1, not {self.seed}.")
        if not (self.box or self.mask_logits or self.points != "none"):
            raise ValueError("box, points and mask_logits must not all be off. Turn one on.")
        if self.negatives and self.points == "none":
            raise ValueError(
                "negatives must be False where points is 'none'. Choose 'centre' or 'likeliest'."
            )


MINE = PromptConfig()
BURDEN = PromptConfig(keep="likeliest", points="centre", negatives=True)


@dataclass(frozen=True, eq=False)
class Extraction:
    """Prompts and the cleaned masks they were made from.

    Attributes
    ----------
    prompts
        For each class its sets, none where nothing is there.
    masks
        (C, H, W) bool. A class with pixels but no set is one whose pixels all belong to other classes too,
        so that it has no centre: there the mask itself is the answer. So it is of such a component.
    """

    prompts: list[list[Prompts]]
    masks: Masks


def extract(probability_maps: ProbabilityMaps, config: PromptConfig = MINE) -> list[list[Prompts]]:
    """Make prompts out of probability maps.

    Parameters
    ----------
    probability_maps
        (C, H, W) float32 in [0, 1], uncalibrated, without NaN, image frame; channel i is class_id i + 1.
        Copied once if not C-contiguous.
    config
        See `PromptConfig`; the default is knowledge mining's.

    Returns
    -------
    list[list[Prompts]]
        For each class its sets in raster order of their first pixels, none where nothing is there, and none
        where points="centre" finds no pixel that is this class's alone (`extract_with_masks` tells the two
        apart).

    Raises
    ------
    ValueError
        Where a map holds NaN, among others.
    """
    return _extract(probability_maps, config, with_masks=config.mask_logits)[0]


def extract_with_masks(probability_maps: ProbabilityMaps, config: PromptConfig = MINE) -> Extraction:
    """Make prompts as `extract` does, and give the cleaned masks too, at little more cost."""
    prompts, masks = _extract(probability_maps, config, with_masks=True)
    assert masks is not None
    return Extraction(prompts, masks)


def _extract(
    probability_maps: ProbabilityMaps, config: PromptConfig, *, with_masks: bool
) -> tuple[list[list[Prompts]], Masks | None]:
    maps = check_probability_maps(probability_maps)
    cleaning = core_cleaning(len(maps), config.threshold, config.keep, config.min_area_px, config.morphology)
    try:
        table, masks = _core.extract_prompts(
            maps,
            *cleaning,
            config.per_component,
            _core.PointRule[config.points],
            config.count,
            config.spread_px,
            config.snap,
            config.negatives,
            config.seed,
            with_masks,
        )
    except _core.NotANumber as error:
        raise nan_error("probability_maps", maps.shape, error) from None
    class_index, components, boxes, points, point_labels, offsets = table
    prompts: list[list[Prompts]] = [[] for _ in maps]
    has_points = config.points != "none"
    first = 0
    for row, (index, component, last) in enumerate(
        zip(class_index.tolist(), components.tolist(), offsets[1:].tolist(), strict=True)
    ):
        logits = None
        if masks is not None and config.mask_logits:
            own = label(masks[index]).labels == component if component else masks[index]
            logits = mask_logits(maps[index], own, threshold=cleaning[0][index], limit=config.logit_limit)
        prompts[index].append(
            _unchecked(
                points[first:last] if has_points else None,
                point_labels[first:last] if has_points else None,
                boxes[row] if config.box else None,
                logits,
            )
        )
        first = last
    return prompts, masks


def mask_logits(probability_map: ProbabilityMap, own: Mask, *, threshold: float, limit: float) -> Logits:
    """Make a mask prompt: logit(p), clipped, with what is above the threshold but not in `own` denied.

    Parameters
    ----------
    probability_map
        (H, W) float32 in [0, 1].
    own
        (H, W) bool, the pixels of the set.
    threshold, limit
        Pixels of p > threshold outside `own` get -limit; all others logit(p) within [-limit, limit].

    Returns
    -------
    Logits
        (H, W) float32.

    Raises
    ------
    ValueError
        Where p lies outside [0, 1].
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        logits = np.log(probability_map) - np.log1p(-probability_map)
    np.clip(logits, -limit, limit, out=logits)
    if np.isnan(logits).any():
        raise ValueError("probability_map must be numbers in [0, 1], not logits. Apply a sigmoid.")
    logits[(probability_map > threshold) & ~own] = -limit
    return logits


def _unchecked(
    points: Points | None,
    point_labels: PointLabels | None,
    box: npt.NDArray[np.float32] | None,
    logits: Logits | None,
) -> Prompts:
    """Prompts of arrays the core has just made: checking them takes longer than making them."""
    prompts = object.__new__(Prompts)
    for name, value in (
        ("points", points),
        ("point_labels", point_labels),
        ("box", box),
        ("mask_logits", logits),
    ):
        object.__setattr__(prompts, name, value)
    return prompts
