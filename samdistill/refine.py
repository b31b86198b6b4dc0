"""From a student's probability maps to a teacher's masks: prompts, one decoder pass or two, answers united.

One recipe for the pseudo labels of training and for the mode `refine` of inference. Two papers are its
configurations: `MINE` (knowledge mining: one pass) and `BURDEN` (SAM Carries the Burden: the box, then points
with the first answer's logits). Knows no network: what segments is handed in.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from samdistill import prompts as prompting
from samdistill.arrays import Mask, Masks, ProbabilityMaps
from samdistill.components import label
from samdistill.config import build, load_toml
from samdistill.errors import UsageError
from samdistill.geometry import map_boxes, map_points, resize_maps
from samdistill.metrics import dice
from samdistill.prompts import Extraction, PromptConfig, Prompts, extract_with_masks
from samdistill.teacher_frame import Preprocessing

Pass = Literal["all", "box", "points", "positive-points"]
MOST_MASK_PIXELS = 1 << 28  # of the answers that are held at a time, a byte each


@dataclass(frozen=True)
class RefineConfig:
    """How a student's answer is put to a teacher.

    Attributes
    ----------
    prompts
        How probability maps become prompt sets.
    first_pass
        What of each set the teacher gets: "all" of it, its "box", its "points" or its "positive-points".
    second_pass
        The same for a second pass that also gets the first one's low-resolution logits, or "none".
    """

    prompts: PromptConfig = field(default_factory=PromptConfig)
    first_pass: Pass = "all"
    second_pass: Pass | Literal["none"] = "none"

    def __post_init__(self) -> None:
        for name in ("first_pass", "second_pass"):
            wanted = getattr(self, name)
            if wanted == "box" and not self.prompts.box:
                raise ValueError(f"{name} must not be 'box' where prompts.box is off. Turn it on.")
            if wanted in ("points", "positive-points") and self.prompts.points == "none":
                raise ValueError(
                    f"{name} must not be {wanted!r} where prompts.points is 'none'. "
                    "Choose 'centre' or 'likeliest'."
                )


MINE = RefineConfig()
BURDEN = RefineConfig(prompting.BURDEN, first_pass="box", second_pass="points")
BOX = RefineConfig(PromptConfig(per_component=True, points="none", min_area_px=40), first_pass="box")
"""A box around each component, specks left out: what wins most at inference (benchmarks/routing.py)."""

NAMED = {"mine": MINE, "burden": BURDEN, "box": BOX}


def load_prompts(name: str) -> RefineConfig:
    """The configuration that a name, "mine" or "burden" (the papers') or "box", or a TOML file stands for.

    Parameters
    ----------
    name
        What the file leaves open is as in `RefineConfig`.

    Raises
    ------
    UsageError
        When it is neither, or the file is not as RefineConfig would have it.
    """
    if name in NAMED:
        return NAMED[name]
    if not Path(name).is_file():
        raise UsageError(f"prompts must be {', '.join(NAMED)} or a TOML file, not {name!r}.")
    return build(RefineConfig, load_toml(Path(name)), where=name)


def check_thresholds(config: RefineConfig, classes: int) -> None:
    """Refuse prompts with one threshold a class whose classes are others, before anything dear is done.

    Raises
    ------
    UsageError
        Then.
    """
    threshold = config.prompts.threshold
    if isinstance(threshold, tuple) and len(threshold) != classes:
        raise UsageError(
            f"threshold of the prompts must be one number or {classes}, one a class, not {len(threshold)}."
        )


class SegmentedSets(Protocol):
    """What a segmenter answers; see `teacher.TeacherMasks`."""

    @property
    def masks(self) -> list[Mask]: ...
    @property
    def low_res_logits(self) -> npt.NDArray[np.float32]: ...
    @property
    def predicted_iou(self) -> npt.NDArray[np.float32]: ...


class Segmenter(Protocol):
    """Anything promptable: the teacher of training, a bundle's decoder."""

    def segment(
        self,
        embeddings: Sequence[Any],
        prompts: Sequence[Sequence[Prompts]],
        *,
        previous: npt.NDArray[np.float32] | None = None,
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> SegmentedSets:
        """Answer every prompt set of every image in one decoder call, masks at `sizes`."""
        ...


@dataclass(frozen=True, eq=False)
class Refinement:
    """A student's answer for one image, and the teacher's to it.

    Attributes
    ----------
    masks
        (C, H, W) bool, the united answers. A class whose pixels all belong to other classes too has no centre
        to prompt with: there the cleaned student mask stands. So does such a component of a class that is
        prompted by components, unless the answers about the others are empty. An empty class stays empty.
    student_masks
        (C, H, W) bool, the cleaned student masks the prompts were made of.
    prompts
        For each class its prompt sets, in the frame of the maps.
    predicted_iou
        (C,) float32, the teacher's own estimate, mean over the class's sets; NaN where there is none.
    agreement
        (C,) float32, Dice between student mask and teacher mask; NaN where the teacher was not asked.
    """

    masks: Masks
    student_masks: Masks
    prompts: list[list[Prompts]]
    predicted_iou: npt.NDArray[np.float32]
    agreement: npt.NDArray[np.float32]

    @property
    def empty(self) -> bool:
        """Whether the student found nothing, so that there was nothing to ask."""
        return not self.student_masks.any()

    @property
    def estimated_dice(self) -> npt.NDArray[np.float32]:
        """(C,) float32, 2 IoU / (1 + IoU) of the predicted IoU (SAM Carries the Burden, quality)."""
        estimate: npt.NDArray[np.float32] = 2 * self.predicted_iou / (1 + self.predicted_iou)
        return estimate


def refine(
    segmenter: Segmenter,
    embeddings: Sequence[Any],
    probability_maps: Sequence[ProbabilityMaps],
    config: RefineConfig = MINE,
) -> list[Refinement]:
    """Ask a segmenter for better masks than the student's: one decoder call a pass for all images together.

    Where the answers would take more than `MOST_MASK_PIXELS` it is asked in parts: a thousand objects of a
    large image are not held as a thousand masks of it.

    Parameters
    ----------
    segmenter
        A teacher or a bundle's decoder.
    embeddings
        One an image, with `image_size` (height, width).
    probability_maps
        (C, H, W) float32 in [0, 1] each, uncalibrated, of the whole image at any size: the answers come in
        the maps' frame.
    config
        Prompts and passes.
    """
    extractions = [extract_with_masks(maps, config.prompts) for maps in probability_maps]
    return answer_all(segmenter, embeddings, extractions, config)


def answer_all(
    segmenter: Segmenter,
    embeddings: Sequence[Any],
    extractions: Sequence[Extraction],
    config: RefineConfig = MINE,
) -> list[Refinement]:
    """The part of `refine` that comes after the prompts are made, for whoever embeds only what has some.

    Parameters
    ----------
    segmenter, embeddings, config
        As in `refine`.
    extractions
        What `extract_with_masks` made of each image's maps with `config.prompts`.
    """
    sizes = [(one.masks.shape[1], one.masks.shape[2]) for one in extractions]
    flat = [
        [_mapped(one, size, embedding.image_size) for sets in extraction.prompts for one in sets]
        for extraction, size, embedding in zip(extractions, sizes, embeddings, strict=True)
    ]
    answers = one_by_one(segmenter, embeddings, flat, sizes, config.first_pass, config.second_pass)
    refinements = []
    for extraction in extractions:
        masks = extraction.masks.copy()
        iou = np.full(len(masks), np.nan, np.float32)
        agreement = np.full(len(masks), np.nan, np.float32)
        for class_index, sets in enumerate(extraction.prompts):
            if sets:
                masks[class_index], sure = False, []
                for mask, predicted_iou in itertools.islice(answers, len(sets)):
                    masks[class_index] |= mask
                    sure.append(predicted_iou)
                iou[class_index] = np.mean(sure)
                left = _without_set(extraction, class_index, config.prompts)
                agreement[class_index] = dice(masks[class_index], extraction.masks[class_index] & ~left)
                if masks[class_index].any():
                    masks[class_index] |= left
        refinements.append(Refinement(masks, extraction.masks, extraction.prompts, iou, agreement))
    return refinements


def one_by_one(
    segmenter: Segmenter,
    embeddings: Sequence[Any],
    prompts: Sequence[Sequence[Prompts]],
    sizes: Sequence[tuple[int, int]],
    first_pass: Pass = "all",
    second_pass: Pass | Literal["none"] = "none",
) -> Iterator[tuple[Mask, np.float32]]:
    """Each set's mask and predicted IoU, in flattened order; asked for together, as far as memory goes.

    Parameters
    ----------
    prompts
        For each image its sets, in the embedding's image frame.
    sizes
        (height, width) of each image's masks.
    """
    for part in _parts(prompts, sizes):
        own = [embeddings[number] for number, _ in part]
        asked = [prompts[number][sets] for number, sets in part]
        at = [sizes[number] for number, _ in part]
        answer = segmenter.segment(
            own, [[select(one, first_pass) for one in sets] for sets in asked], sizes=at
        )
        if second_pass != "none":
            again = [[select(one, second_pass) for one in sets] for sets in asked]
            answer = segmenter.segment(own, again, previous=answer.low_res_logits, sizes=at)
        yield from zip(answer.masks, answer.predicted_iou, strict=True)
        del answer  # before the next ones are made


def _parts(
    prompts: Sequence[Sequence[Prompts]], sizes: Sequence[tuple[int, int]]
) -> Iterator[list[tuple[int, slice]]]:
    """Numbers of images and which of their sets, in order, whose masks may be held together."""
    part: list[tuple[int, slice]] = []
    left = MOST_MASK_PIXELS
    for number, (sets, (height, width)) in enumerate(zip(prompts, sizes, strict=True)):
        start = 0
        while start < len(sets):
            room = left // (height * width)
            if room < 1 and part:
                yield part
                part, left = [], MOST_MASK_PIXELS
                continue
            stop = min(len(sets), start + max(1, room))
            part.append((number, slice(start, stop)))
            left -= (stop - start) * height * width
            start = stop
    if part:
        yield part


def _without_set(extraction: Extraction, class_index: int, config: PromptConfig) -> Mask:
    """(H, W) bool, the components of a class with sets that have none: no pixel of theirs is its alone."""
    mask = extraction.masks[class_index]
    if not (config.per_component and config.points == "centre"):
        return np.zeros_like(mask)
    labels = label(mask).labels
    prompted = labels[np.count_nonzero(extraction.masks, axis=0) == 1]
    left: Mask = mask & ~np.isin(labels, prompted)
    return left


def suited(config: RefineConfig, preprocessing: Preprocessing) -> RefineConfig:
    """The same as this teacher can be asked: MedSAM, which takes boxes alone, for the box in one pass."""
    if preprocessing != "medsam":
        return config
    return replace(config, prompts=replace(config.prompts, box=True), first_pass="box", second_pass="none")


def select(prompts: Prompts, wanted: Pass) -> Prompts:
    """The part of a prompt set that a pass gives to the teacher."""
    if wanted == "all":
        return prompts
    if wanted == "box":
        return Prompts(box=prompts.box)
    if wanted == "points":
        return Prompts(prompts.points, prompts.point_labels)
    assert prompts.points is not None
    assert prompts.point_labels is not None
    positive = prompts.point_labels == 1
    return Prompts(prompts.points[positive], prompts.point_labels[positive])


def _mapped(prompts: Prompts, from_size: tuple[int, int], to_size: tuple[int, int]) -> Prompts:
    """A prompt set of one frame in another."""
    if from_size == to_size:
        return prompts
    return replace(
        prompts,
        points=None if prompts.points is None else map_points(prompts.points, from_size, to_size),
        box=None if prompts.box is None else map_boxes(prompts.box[None], from_size, to_size)[0],
        mask_logits=None
        if prompts.mask_logits is None
        else resize_maps(prompts.mask_logits[None], to_size)[0],
    )
