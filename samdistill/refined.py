"""The bundle's teacher asked about a student's answer: which masks it gives, and where the student's stands.

The recipe is `refine`'s, the configuration the manifest's; here its answers become what a user gets: cleaned
as the bundle says, without overlap where classes may not, and a class about which the teacher has nothing to
say keeps the student's mask and says why. Knows no student and no file.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import islice
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from samdistill.arrays import Image, Mask, Masks, ProbabilityMaps
from samdistill.bundled_teacher import BundledEmbedding, BundledTeacher
from samdistill.components import clean, without_overlap
from samdistill.manifest import CleaningRule, Manifest
from samdistill.metrics import dice
from samdistill.prompts import Extraction, Prompts, extract_with_masks
from samdistill.refine import RefineConfig, Refinement, answer_all, one_by_one, select, suited

Kept = Literal["empty", "discarded", "unprompted", "unanswered", "doubtful", "overlapped"]
JITTER = 0.05  # of a box's sides, or of what a set without one covers
DIRECTIONS = ((1, 1), (-1, -1), (1, -1), (-1, 1))  # xy, in which every prompt of a set is moved


@dataclass(frozen=True, eq=False)
class Refined:
    """What the teacher was asked about one image, and where the student's mask stands all the same.

    Attributes
    ----------
    kept
        For each class None where the mask is the teacher's, else why it is the student's: "empty", the
        student found nothing to ask about; "discarded", the prompts leave out all it found; "unprompted", its
        pixels all belong to other classes too, so that they have no centre to prompt with; "unanswered", the
        teacher answered with nothing; "doubtful", it is less sure of its answer than was asked for;
        "overlapped", other classes are likelier wherever it answered.
    prompts
        For each class its prompt sets, image frame; as the bundle makes them, before its passes choose.
    predicted_iou
        (C,) float32, the teacher's own estimate, mean over the class's sets; NaN where it was not asked.
    agreement
        (C,) float32 in [0, 1], Dice of what the teacher answered and the student's mask that it was asked
        about; NaN where it was not asked.
    embedding
        (E,) float64, the image's embedding averaged over the image; None where it was not embedded.
    stability
        (C,) float32 in [0, 1], mean Dice of what the teacher answers to the first pass's prompts and to the
        same prompts moved a little; NaN where it was not asked; None where that was not wanted.
    """

    kept: tuple[Kept | None, ...]
    prompts: tuple[tuple[Prompts, ...], ...]
    predicted_iou: npt.NDArray[np.float32]
    agreement: npt.NDArray[np.float32]
    embedding: npt.NDArray[np.float64] | None = None
    stability: npt.NDArray[np.float32] | None = None

    @property
    def any(self) -> bool:
        """Whether a mask of any class is the teacher's."""
        return None in self.kept

    def light(self) -> Refined:
        """The same without what is large: the prompts, with their logits, and the embedding."""
        return replace(self, prompts=(), embedding=None)


def refine_images(
    teacher: BundledTeacher,
    manifest: Manifest,
    images: Sequence[Image],
    probability_maps: Sequence[ProbabilityMaps],
    student_masks: Sequence[Masks],
    *,
    least_predicted_iou: float = -math.inf,
    stability: bool = False,
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
    least_predicted_iou
        A class about whose mask the teacher is less sure keeps the student's; its estimate may be below 0.
    stability
        Ask once more, with every prompt moved four ways, in one call for all images.

    Returns
    -------
    list
        For each image the final masks, (C, H, W) bool, image frame, and what was asked.
    """
    config = config_of(manifest)
    extractions = [extract_with_masks(maps, config.prompts) for maps in probability_maps]
    asked = [number for number, one in enumerate(extractions) if any(one.prompts)]
    answers: dict[int, Refinement] = {}
    pooled: dict[int, npt.NDArray[np.float64]] = {}
    steady: dict[int, npt.NDArray[np.float32]] = {}
    if asked:
        embeddings = teacher.embed([images[number] for number in asked])
        some = [extractions[number] for number in asked]
        answers = dict(zip(asked, answer_all(teacher, embeddings, some, config), strict=True))
        pooled = dict(zip(asked, map(average, embeddings), strict=True))
        if stability:
            steady = dict(zip(asked, _stability(teacher, embeddings, some, config), strict=True))
    results = []
    for number, (extraction, maps, mine) in enumerate(
        zip(extractions, probability_maps, student_masks, strict=True)
    ):
        masks, refined = _final(
            answers.get(number), extraction, maps, mine, manifest, least_predicted_iou=least_predicted_iou
        )
        unsteady = np.full(len(maps), np.nan, np.float32) if stability else None
        steadiness = steady.get(number, unsteady)
        results.append((masks, replace(refined, embedding=pooled.get(number), stability=steadiness)))
    return results


def average(embedding: BundledEmbedding) -> npt.NDArray[np.float64]:
    """(E,) mean of an embedding over the part that is no padding."""
    frame, (rows, columns) = embedding.frame, embedding.features.shape[1:]
    height, width = frame.input_size
    inner = embedding.features[:, : -(-height * rows // frame.side), : -(-width * columns // frame.side)]
    mean: npt.NDArray[np.float64] = inner.mean(axis=(1, 2), dtype=np.float64)
    return mean


def _stability(
    teacher: BundledTeacher,
    embeddings: Sequence[BundledEmbedding],
    extractions: Sequence[Extraction],
    config: RefineConfig,
) -> list[npt.NDArray[np.float32]]:
    """(C,) of each image: the first pass's prompts and moved ones, asked about together."""
    sets: list[list[Prompts]] = []
    for extraction in extractions:
        size = extraction.masks.shape[1:]
        own = [select(one, config.first_pass) for each in extraction.prompts for one in each]
        moved = [_moved(one, way, size) for way in DIRECTIONS for one in own]
        sets.append([*own, *moved])
    sizes = [embedding.image_size for embedding in embeddings]
    masks = (mask for mask, _ in one_by_one(teacher, embeddings, sets, sizes))
    found = []
    for extraction in extractions:
        nothing = np.zeros(extraction.masks.shape[1:], np.bool_)
        rounds: list[list[Mask]] = []
        for _ in range(1 + len(DIRECTIONS)):
            united = [reduce(np.logical_or, islice(masks, len(each)), nothing) for each in extraction.prompts]
            rounds.append(united)
        values = np.full(len(extraction.prompts), np.nan, np.float32)
        for number, each in enumerate(extraction.prompts):
            if each:
                base, *others = (one[number] for one in rounds)
                values[number] = np.mean([dice(base, other) for other in others])
        found.append(values)
    return found


def _moved(prompts: Prompts, way: tuple[int, int], size: tuple[int, ...]) -> Prompts:
    """A set moved by 5 % of its box, else of what its points span but at least a pixel, within the image."""
    height, width = size
    edges = np.array([width, height], np.float32)
    if prompts.box is not None:
        span = prompts.box[2:] - prompts.box[:2]
    elif prompts.points is not None:
        span = np.maximum(np.ptp(prompts.points, axis=0), 1 / JITTER)
    else:
        return prompts
    step = np.array(way, np.float32) * np.float32(JITTER) * span
    points, box = prompts.points, prompts.box
    if points is not None:
        points = np.clip(points + step, 0, edges - 1)
    if box is not None:
        first = np.clip(box[:2] + step, 0, edges - 1)
        box = np.concatenate([first, np.clip(box[2:] + step, first + 1, edges)])
    return replace(prompts, points=points, box=box)


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
    return suited(manifest.prompts, manifest.teacher.preprocessing)


def _final(
    answer: Refinement | None,
    extraction: Extraction,
    maps: ProbabilityMaps,
    student_masks: Masks,
    manifest: Manifest,
    *,
    least_predicted_iou: float,
) -> tuple[Masks, Refined]:
    """The masks of one image; None is an image about which there was nothing to ask."""
    prompts = tuple(tuple(sets) for sets in extraction.prompts)
    unknown = np.full(len(maps), np.nan, np.float32)
    kept: list[Kept | None] = [
        None if sets else "unprompted" if mask.any() else "discarded" if own.any() else "empty"
        for sets, mask, own in zip(prompts, extraction.masks, student_masks, strict=True)
    ]
    if answer is None:
        return student_masks, Refined(tuple(kept), prompts, unknown, unknown)
    answered = answer.masks if manifest.cleaning is None else _cleaned(answer.masks, maps, manifest.cleaning)
    masks = student_masks.copy()
    for number, mask in enumerate(answered):
        if kept[number] is not None:
            continue
        if not mask.any():
            kept[number] = "unanswered"
        elif answer.predicted_iou[number] < least_predicted_iou:
            kept[number] = "doubtful"
        else:
            masks[number] = mask
    if len(masks) > 1 and not manifest.multi_label:
        masks = _apart(masks, student_masks, maps, kept)
    return masks, Refined(tuple(kept), prompts, answer.predicted_iou, answer.agreement)


def _apart(masks: Masks, student_masks: Masks, maps: ProbabilityMaps, kept: list[Kept | None]) -> Masks:
    """The masks without overlap; a class that would lose all its pixels to others keeps the student's whole.

    The student's own do not overlap, so that there is always room for them.
    """
    whole = np.zeros(len(masks), np.bool_)
    while True:
        masks = masks & ~student_masks[whole].any(axis=0)
        masks[whole] = student_masks[whole]
        alone = without_overlap(masks, maps)
        asked = np.array([why is None for why in kept])
        lost = ~alone.any(axis=(1, 2)) & (asked | student_masks.any(axis=(1, 2))) & ~whole
        if not lost.any():
            return alone
        for number in np.flatnonzero(lost & asked):
            kept[number] = "overlapped"
        whole |= lost


def _cleaned(masks: Masks, maps: ProbabilityMaps, rule: CleaningRule) -> Masks:
    """The bundle's cleaning on the teacher's masks; the maps still say which component is likeliest."""
    within = np.where(masks, np.maximum(maps, np.finfo(np.float32).tiny), np.float32(0))
    return clean(within, threshold=0.0, keep=rule.keep, min_area_px=rule.min_area_px)
