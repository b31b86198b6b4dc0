"""What a predictor answers: masks and maps of one image, and everything that is known of them.

Knows no network and no bundle; `predictor` makes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, cast, get_args

import numpy as np

from samdistill.arrays import Labels, Masks, ProbabilityMaps
from samdistill.calibration import calibrated
from samdistill.components import clean, without_overlap
from samdistill.errors import UsageError
from samdistill.judging import NO_RULE
from samdistill.manifest import CleaningRule
from samdistill.quality import Quality, unknown
from samdistill.refined import Refined
from samdistill.routing import Route

Mode = Literal["fast", "refine", "auto"]


@dataclass(frozen=True)
class Segmentation:
    """The answer for one image.

    Attributes
    ----------
    masks
        (C, H, W) bool, image frame; channel i is class_id i + 1. They overlap only where `multi_label`.
    probability_maps
        (C, H, W) float32 in [0, 1], image frame, uncalibrated, before any cleaning.
    class_names
        C names.
    multi_label
        Whether classes may overlap.
    mode
        What was asked for: "fast", "refine" or "auto".
    refined
        What the teacher was asked, and for which classes the student's mask stands all the same; None where
        it was not asked.
    route
        Whether the teacher was asked in mode "auto", and why; None in the others.
    quality
        How far the answer is to be trusted; see docs/quality.md.
    temperatures
        C numbers that calibrate the maps; None where the bundle has none.
    """

    masks: Masks
    probability_maps: ProbabilityMaps
    class_names: tuple[str, ...]
    multi_label: bool
    mode: Mode
    refined: Refined | None = None
    route: Route | None = None
    quality: Quality = field(default_factory=lambda: unknown(NO_RULE))
    temperatures: tuple[float, ...] | None = None

    @property
    def calibrated_maps(self) -> ProbabilityMaps | None:
        """(C, H, W) float32, `probability_maps` calibrated; None where the bundle has no temperatures.

        Masks by any threshold are as before, at the threshold that calibration makes of it.
        """
        return None if self.temperatures is None else calibrated(self.probability_maps, self.temperatures)

    def labels(self) -> Labels:
        """(H, W) int32 class ids, 0 = background.

        Raises
        ------
        UsageError
            When classes may overlap, since one number a pixel cannot say so.
        """
        if self.multi_label:
            raise UsageError("labels() must be asked of classes that do not overlap; use masks.")
        ids = np.arange(1, len(self.masks) + 1, dtype=np.int32)
        labels: Labels = (self.masks * ids[:, None, None]).sum(axis=0, dtype=np.int32)
        return labels


def parse_mode(text: str) -> Mode:
    """Read a mode's name.

    Raises
    ------
    UsageError
        When there is none of this name.
    """
    for mode in get_args(Mode):
        if mode == text:
            return cast(Mode, mode)
    raise UsageError(f"mode must be one of {', '.join(get_args(Mode))}, not {text!r}.")


def masks_of(
    probability_maps: ProbabilityMaps,
    *,
    thresholds: Sequence[float],
    multi_label: bool,
    cleaning: CleaningRule | None = None,
) -> Masks:
    """Turn probability maps into masks: threshold, cleaning, one class a pixel.

    Parameters
    ----------
    probability_maps
        (C, H, W) float32 in [0, 1].
    thresholds
        C numbers; the comparison is strict.
    multi_label
        Whether classes may overlap. Where not, a pixel that several claim goes to the most probable of them,
        among equals to the first.
    cleaning
        Which components stay; None keeps all.

    Returns
    -------
    Masks
        (C, H, W) bool.
    """
    rule = cleaning or CleaningRule()
    masks = clean(probability_maps, threshold=tuple(thresholds), keep=rule.keep, min_area_px=rule.min_area_px)
    return without_overlap(masks, probability_maps) if len(masks) > 1 and not multi_label else masks
