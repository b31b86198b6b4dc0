"""The teacher's way through the gate: every combination of prompts, against PyTorch, on validation images.

Among them are those of the bundle's own way of asking, in its own passes. Knows no bundle and no student.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from samdistill.arrays import Image, Mask, Masks
from samdistill.bundled_teacher import BundledTeacher
from samdistill.export.parity import Agreement, ParityReport, Truth
from samdistill.export.spool import Spool
from samdistill.manifest import Part, TeacherRecord
from samdistill.prompts import Extraction, PromptConfig, Prompts, extract, extract_with_masks
from samdistill.refine import MINE, Pass, RefineConfig, Segmenter, answer_all, select, suited
from samdistill.runtime import Engine
from samdistill.teacher import Embedding, Teacher, TeacherMasks
from samdistill.teacher_frame import TeacherFrame, prompt_arrays

MOST_OBJECTS = 3  # prompted of one image
_INSIDE = np.float32(4.0)
_SETS = PromptConfig(count=3, spread_px=2.0)


def combinations(
    mask: Mask, *, boxes_only: bool = False, second_pass: Pass | Literal["none"] = "none"
) -> list[Prompts]:
    """Every combination of prompts for one object: (H, W) bool with at least one pixel.

    Box; one point; points; box and points; both and mask logits; what a second pass gives with mask logits,
    where that is something else. With `boxes_only` the box.
    """
    maps = mask[None].astype(np.float32)
    (found,) = extract(maps, _SETS)[0]
    box = Prompts(box=found.box)
    if boxes_only or found.points is None or found.point_labels is None:
        return [box]
    # A background point as well: the corner of the image that is farthest from the box's centre.
    height, width = mask.shape
    assert found.box is not None
    x = 0 if found.box[[0, 2]].mean() > width / 2 else width - 1
    y = 0 if found.box[[1, 3]].mean() > height / 2 else height - 1
    points = np.concatenate([found.points, np.array([[x, y]], np.float32)])
    labels = np.append(found.point_labels, np.int32(0))
    logits = np.where(mask, _INSIDE, -_INSIDE)
    both = Prompts(points=points, point_labels=labels, box=found.box)
    sets = [
        box,
        Prompts(points=points[:1], point_labels=labels[:1]),
        Prompts(points=points, point_labels=labels),
        both,
        replace(both, mask_logits=logits),
    ]
    if second_pass != "none" and second_pass != "all":
        sets.append(replace(select(both, second_pass), mask_logits=logits))
    return sets


def objects(size: tuple[int, int], masks: Masks | None) -> Masks:
    """What is prompted in an image: its true objects, or its middle where there is none."""
    if masks is not None and masks.any():
        found: Masks = masks[masks.any(axis=(1, 2))][:MOST_OBJECTS]
        return found
    middle = np.zeros((1, *size), np.bool_)
    height, width = size
    middle[0, height // 4 : height - height // 4, width // 4 : width - width // 4] = True
    return middle


@dataclass(frozen=True, eq=False)
class TeacherAnswer:
    """What PyTorch makes of one image's prompt sets, as it chooses and with the best of three for the box.

    And what it makes of the image's objects, each for a class, when it is asked in the bundle's own way.
    """

    image: Image
    truth: Masks | None
    embedding: Embedding
    sets: list[Prompts]
    chosen: TeacherMasks
    best_of_three: TeacherMasks
    extraction: Extraction
    refined: Masks


class TeacherReference:
    """PyTorch's answers, computed once for every engine that is held against them, and kept on disk.

    Parameters
    ----------
    teacher
        On the CPU.
    record
        What the manifest will say of it.
    images
        uint8 (H, W, 3) with their truth or None; at least one.
    prompts
        How the bundle's student will prompt it.
    """

    def __init__(
        self,
        teacher: Teacher,
        record: TeacherRecord,
        images: Iterable[tuple[Image, Truth | None]],
        prompts: RefineConfig = MINE,
    ) -> None:
        self._record = record
        self._config = suited(prompts, teacher.preprocessing)
        boxes_only, again = teacher.preprocessing == "medsam", self._config.second_pass
        self.answers = Spool[TeacherAnswer]()
        for image, truth in images:
            found = objects((image.shape[0], image.shape[1]), None if truth is None else truth[0])
            sets = [
                one for mask in found for one in combinations(mask, boxes_only=boxes_only, second_pass=again)
            ]
            # Of 0 and 1, and of as many objects as there are: thresholds of the bundle's classes fit neither.
            asked = replace(self._config.prompts, threshold=0.5)
            extraction = extract_with_masks(found.astype(np.float32), asked)
            (embedding,) = teacher.embed([image])
            self.answers.append(
                TeacherAnswer(
                    image,
                    found if truth is not None and truth[0].any() else None,
                    embedding,
                    sets,
                    teacher.segment([embedding], [sets]),
                    teacher.segment([embedding], [sets[:1]], multimask=True),
                    extraction,
                    self._refined(teacher, embedding, extraction),
                )
            )

    def _refined(self, segmenter: Segmenter, embedding: Any, extraction: Extraction) -> Masks:
        """Ask in the bundle's way, in one pass or two: (K, H, W) masks of the objects that have prompts."""
        asked = [number for number, sets in enumerate(extraction.prompts) if sets]
        if not asked:
            return extraction.masks[:0]
        (answer,) = answer_all(segmenter, [embedding], [extraction], self._config)
        masks: Masks = answer.masks[asked]
        return masks

    def examples(self, encoder: Engine) -> dict[Part, dict[str, npt.NDArray[Any]]]:
        """Inputs of one call of each network: the first image, and its first prompt set."""
        answer, record = self.answers[0], self._record
        frame = TeacherFrame(answer.embedding.image_size, record.side, record.preprocessing)
        seen: dict[str, npt.NDArray[Any]] = {
            "pixels": frame.pixels(answer.image)[None],
            "input_size": np.array([frame.input_size], np.int64),
        }
        height, width = record.mask_size
        asked = {
            "embeddings": answer.embedding.features.numpy()[None],
            "image_index": np.zeros(1, np.int64),
            **prompt_arrays([frame], [answer.sets[:1]], (height, width))._asdict(),
            "multimask": np.zeros(1, np.bool_),
        }
        return {"encoder": {name: seen[name] for name in encoder.inputs}, "decoder": asked}

    def measure(
        self, encoder: Engine, decoder: Engine, *, model: Part = "encoder", precision: str = "fp32"
    ) -> ParityReport:
        """Compare an exported encoder and decoder with PyTorch.

        Parameters
        ----------
        model
            Which of the two is on trial; the report names it and compares its output.
        precision
            Of that one, a key of TOLERANCES.

        Raises
        ------
        InputRejected
            When there was no image.
        """
        exported = BundledTeacher(self._record, encoder, decoder)
        agreement = Agreement(model, precision, encoder if model == "encoder" else decoder)
        for answer in self.answers:
            (embedding,) = exported.embed([answer.image])
            if model == "encoder":
                agreement.add_output(embedding.features, answer.embedding.features.numpy())
            else:  # what the encoder gave is not the decoder's doing
                embedding = replace(embedding, features=answer.embedding.features.numpy())
            chosen = exported.segment([embedding], [answer.sets])
            best = exported.segment([embedding], [answer.sets[:1]], multimask=True)
            for got, expected in ((chosen, answer.chosen), (best, answer.best_of_three)):
                if model == "decoder":
                    agreement.add_output(got.low_res_logits, expected.low_res_logits)
                    agreement.add_output(got.predicted_iou, expected.predicted_iou)
            agreement.add_masks(
                np.stack(
                    [*chosen.masks, *best.masks, *self._refined(exported, embedding, answer.extraction)]
                ),
                np.stack([*answer.chosen.masks, *answer.best_of_three.masks, *answer.refined]),
            )
            if answer.truth is not None:  # the first set of each object is its box
                step = len(answer.sets) // len(answer.truth)
                boxed = [np.stack(one.masks[::step]) for one in (chosen, answer.chosen)]
                nothing = np.zeros(answer.truth.shape[1:], np.bool_)
                agreement.add_truth(boxed[0], boxed[1], (answer.truth, nothing))
        return agreement.report()
