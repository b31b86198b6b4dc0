"""The bundle's teacher asked about a student's answer: which masks it gives, and where the student's stands.

The recipe is `refine`'s, the configuration the manifest's; here its answers become what a user gets: cleaned
as the bundle says, without overlap where classes may not, and a class about which the teacher has nothing to
say keeps the student's mask and says why. Knows no student and no file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from samdistill.arrays import Image, Masks, ProbabilityMaps
from samdistill.bundled_teacher import BundledTeacher
from samdistill.components import clean, without_overlap
from samdistill.manifest import CleaningRule, Manifest
from samdistill.prompts import Extraction, Prompts, extract_with_masks
from samdistill.refine import RefineConfig, Refinement, answer_all, boxes_alone

Kept = Literal["empty", "unprompted", "unanswered"]


@dataclass(frozen=True, eq=False)
class Refined:
    """What the teacher was asked about one image, and where the student's mask stands all the same.

    Attributes
    ----------
    kept
        For each class None where the mask is the teacher's, else why it is the student's: "empty", the
        student found nothing to ask about; "unprompted", its pixels all belong to other classes too, so that
        they have no centre to prompt with; "unanswered", the teacher answered with nothing.
    prompts
        For each class its prompt sets, image frame; as the bundle makes them, before its passes choose.
    predicted_iou
        (C,) float32, the teacher's own estimate, mean over the class's sets; NaN where it was not asked.
    agreement
        (C,) float32 in [0, 1], Dice of what the teacher answered and the student's mask that it was asked
        about; NaN where it was not asked.
    """

    kept: tuple[Kept | None, ...]
    prompts: tuple[tuple[Prompts, ...], ...]
    predicted_iou: npt.NDArray[np.float32]
    agreement: npt.NDArray[np.float32]

    @property
    def any(self) -> bool:
        """Whether a mask of any class is the teacher's."""
        return None in self.kept


def refine_images(
    teacher: BundledTeacher,
    manifest: Manifest,
    images: Sequence[Image],
    probability_maps: Sequence[ProbabilityMaps],
    student_masks: Sequence[Masks],
) -> list[tuple[Masks, Refined]]:
    """Ask the teacher about some images, all classes and components of all of them in one call a pass.

    Parameters
    ----------
    teacher, manifest
        The bundle's.
    images
        uint8 (H, W, 3) RGB each. Each is embedded once, and one without any prompt not at all.
    probability_maps
        (C, H, W) float32 in [0, 1] each, the student's, uncalibrated, image frame.
    student_masks
        (C, H, W) bool each, the final masks of mode "fast": what a class keeps.

    Returns
    -------
    list
        For each image the final masks, (C, H, W) bool, image frame, and what was asked.
    """
    config = config_of(manifest)
    extractions = [extract_with_masks(maps, config.prompts) for maps in probability_maps]
    asked = [number for number, one in enumerate(extractions) if any(one.prompts)]
    answers: dict[int, Refinement] = {}
    if asked:
        embeddings = teacher.embed([images[number] for number in asked])
        found = answer_all(teacher, embeddings, [extractions[number] for number in asked], config)
        answers = dict(zip(asked, found, strict=True))
    return [
        _final(answers.get(number), extraction, maps, mine, manifest)
        for number, (extraction, maps, mine) in enumerate(
            zip(extractions, probability_maps, student_masks, strict=True)
        )
    ]


def told(refined: Sequence[Refined], class_names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What came of asking about some images, for a record.

    Returns
    -------
    dict
        Class name -> `teacher`, how many images have the teacher's mask; `kept`, reason -> how many have the
        student's; `predicted_iou` and `agreement`, means over the images asked about, None without any.
    """
    return {
        name: {
            "teacher": sum(one.kept[number] is None for one in refined),
            "kept": dict(Counter(why for one in refined if (why := one.kept[number]) is not None)),
            "predicted_iou": _mean([one.predicted_iou[number] for one in refined]),
            "agreement": _mean([one.agreement[number] for one in refined]),
        }
        for number, name in enumerate(class_names)
    }


def _mean(values: Sequence[np.float32]) -> float | None:
    known = [float(value) for value in values if not np.isnan(value)]
    return round(sum(known) / len(known), 6) if known else None


def config_of(manifest: Manifest) -> RefineConfig:
    """How a bundle's student prompts its teacher; MedSAM gets the boxes alone, whatever the bundle says."""
    assert manifest.prompts is not None
    assert manifest.teacher is not None
    boxes_only = manifest.teacher.preprocessing == "medsam"
    return boxes_alone(manifest.prompts) if boxes_only else manifest.prompts


def _final(
    answer: Refinement | None,
    extraction: Extraction,
    maps: ProbabilityMaps,
    student_masks: Masks,
    manifest: Manifest,
) -> tuple[Masks, Refined]:
    """The masks of one image; None is an image about which there was nothing to ask."""
    prompts = tuple(tuple(sets) for sets in extraction.prompts)
    unknown = np.full(len(maps), np.nan, np.float32)
    kept: list[Kept | None] = [
        None if sets else "unprompted" if mask.any() else "empty"
        for sets, mask in zip(prompts, extraction.masks, strict=True)
    ]
    if answer is None:
        return student_masks, Refined(tuple(kept), prompts, unknown, unknown)
    answered = answer.masks if manifest.cleaning is None else _cleaned(answer.masks, maps, manifest.cleaning)
    masks = student_masks.copy()
    for number, mask in enumerate(answered):
        if kept[number] is None and mask.any():
            masks[number] = mask
        elif kept[number] is None:
            kept[number] = "unanswered"
    if len(masks) > 1 and not manifest.multi_label:
        masks = without_overlap(masks, maps)
    return masks, Refined(tuple(kept), prompts, answer.predicted_iou, answer.agreement)


def _cleaned(masks: Masks, maps: ProbabilityMaps, rule: CleaningRule) -> Masks:
    """The bundle's cleaning on the teacher's masks; the maps still say which component is likeliest."""
    within = np.where(masks, np.maximum(maps, np.finfo(np.float32).tiny), np.float32(0))
    return clean(within, threshold=0.0, keep=rule.keep, min_area_px=rule.min_area_px)
