"""Golden cases: a made-up picture with the answer that PyTorch gave for it, as a bundle holds it.

An npz of plain arrays, never pickled ones. Knows how the files look and how far two answers are apart, no
bundle and no network.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from samdistill.arrays import Image, Mask, Masks, ProbabilityMaps
from samdistill.errors import BundleError
from samdistill.geometry import sigmoid
from samdistill.manifest import GoldenRecord
from samdistill.prompts import Prompts
from samdistill.teacher_frame import TeacherMasks

_LEVELS = np.float32(65535)
_INSIDE = np.float32(4.0)  # logit of a mask prompt inside the mask; outside its negative
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class GoldenCase:
    """A made-up picture with the answer expected of the student.

    Attributes
    ----------
    pixels
        (H, W) or (H, W, 3), before the intensity rule.
    masks
        (C, H, W) bool.
    probability_maps
        (C, H, W) float32, to 1 / 65535.
    """

    pixels: npt.NDArray[Any]
    masks: Masks
    probability_maps: ProbabilityMaps

    def to_npz(self) -> bytes:
        """The case as a bundle holds it; equal cases give equal bytes."""
        return _save(
            pixels=self.pixels,
            masks=np.packbits(self.masks),
            probability_maps=_levels(self.probability_maps),
        )

    @classmethod
    def from_npz(cls, content: bytes, name: str) -> GoldenCase:
        """Read a case back; `name` is for messages.

        Raises
        ------
        BundleError
            When it is no such file.
        """

        def read(arrays: Any) -> GoldenCase:
            maps = _probabilities(arrays["probability_maps"])
            return cls(arrays["pixels"], _bits(arrays["masks"], maps.shape), maps)

        return _load(content, name, read)


@dataclass(frozen=True, eq=False)
class TeacherCase:
    """A made-up picture with prompt sets and the answers expected of the teacher.

    Every set is answered twice, as the teacher chooses among its masks by itself and with the best of three.

    Attributes
    ----------
    pixels
        uint8 (H, W, 3).
    boxes
        (N, 4) float32, image frame; NaN where a set has none.
    points, point_labels
        (N, P, 2) float32 and (N, P) int32, -1 where there is none.
    mask, has_mask
        (H, W) bool, and (N,) which sets have it as their mask prompt.
    masks
        (2 N, H, W) bool.
    probabilities
        (2 N, 4h, 4w) float32, sigmoid of the low-resolution logits, to 1 / 65535.
    predicted_iou
        (2 N,) float32.
    """

    pixels: Image
    boxes: npt.NDArray[np.float32]
    points: npt.NDArray[np.float32]
    point_labels: npt.NDArray[np.int32]
    mask: Mask
    has_mask: npt.NDArray[np.bool_]
    masks: Masks
    probabilities: npt.NDArray[np.float32]
    predicted_iou: npt.NDArray[np.float32]

    def prompts(self) -> list[Prompts]:
        """The prompt sets."""
        logits = np.where(self.mask, _INSIDE, -_INSIDE)
        sets = []
        for box, points, labels, has_mask in zip(
            self.boxes, self.points, self.point_labels, self.has_mask, strict=True
        ):
            real = labels >= 0
            sets.append(
                Prompts(
                    points=points[real] if real.any() else None,
                    point_labels=labels[real] if real.any() else None,
                    box=None if np.isnan(box).any() else box,
                    mask_logits=logits if has_mask else None,
                )
            )
        return sets

    def answered_by(self, segment: Callable[[list[Prompts], bool | None], TeacherMasks]) -> TeacherCase:
        """The same picture and sets with the answers of a teacher: (sets, multimask) to masks."""
        sets = self.prompts()
        both = [segment(sets, None), segment(sets, True)]
        return TeacherCase(
            self.pixels,
            self.boxes,
            self.points,
            self.point_labels,
            self.mask,
            self.has_mask,
            np.stack([mask for one in both for mask in one.masks]),
            sigmoid(np.concatenate([one.low_res_logits for one in both])),
            np.concatenate([one.predicted_iou for one in both]),
        )

    def to_npz(self) -> bytes:
        """The case as a bundle holds it; equal cases give equal bytes."""
        return _save(
            pixels=self.pixels,
            boxes=self.boxes,
            points=self.points,
            point_labels=self.point_labels,
            mask=np.packbits(self.mask),
            has_mask=self.has_mask,
            masks=np.packbits(self.masks),
            probabilities=_levels(self.probabilities),
            predicted_iou=self.predicted_iou,
        )

    @classmethod
    def from_npz(cls, content: bytes, name: str) -> TeacherCase:
        """Read a case back; parameters and errors as for `GoldenCase`."""

        def read(arrays: Any) -> TeacherCase:
            pixels, probabilities = arrays["pixels"], _probabilities(arrays["probabilities"])
            return cls(
                pixels,
                arrays["boxes"],
                arrays["points"],
                arrays["point_labels"],
                _bits(arrays["mask"], pixels.shape[:2]),
                arrays["has_mask"],
                _bits(arrays["masks"], (len(probabilities), *pixels.shape[:2])),
                probabilities,
                arrays["predicted_iou"],
            )

        return _load(content, name, read)


@dataclass(frozen=True)
class GoldenResult:
    """How far a bundle's answer is from a golden case.

    Attributes
    ----------
    name
        Of the case.
    max_probability_difference
        Over all pixels and masks; of a teacher's predicted IoU too.
    changed_pixels
        Largest share of an image's pixels that differ in any one mask.
    passed
        Both within what the manifest allows.
    engine
        What computed it.
    """

    name: str
    max_probability_difference: float
    changed_pixels: float
    passed: bool
    engine: str = ""


def compare(
    masks: Masks, probabilities: npt.NDArray[np.float32], case: GoldenCase, record: GoldenRecord
) -> GoldenResult:
    """Measure a student's answer against a golden case.

    Raises
    ------
    BundleError
        When the case has another number of classes or another size.
    """
    _same_shape(masks, case.masks, record)
    return _result(record, masks, case.masks, probabilities - case.probability_maps)


def compare_teacher(answer: TeacherCase, case: TeacherCase, record: GoldenRecord) -> GoldenResult:
    """Measure a teacher's answers against a golden case; errors as for `compare`."""
    _same_shape(answer.masks, case.masks, record)
    _same_shape(answer.probabilities, case.probabilities, record)
    differences = np.concatenate(
        [
            (answer.probabilities - case.probabilities).ravel(),
            (answer.predicted_iou - case.predicted_iou).ravel(),
        ]
    )
    return _result(record, answer.masks, case.masks, differences)


def _result(
    record: GoldenRecord, masks: Masks, expected: Masks, differences: npt.NDArray[np.float32]
) -> GoldenResult:
    difference = float(np.abs(differences).max())
    changed = float((masks != expected).mean(axis=(1, 2)).max())
    passed = difference <= record.max_probability_difference and changed <= record.max_changed_pixels
    return GoldenResult(record.name, difference, changed, passed)


def _same_shape(found: npt.NDArray[Any], expected: npt.NDArray[Any], record: GoldenRecord) -> None:
    if found.shape != expected.shape:
        raise BundleError(
            f"golden case {record.name} must have masks of {found.shape}, not {expected.shape}."
        )


def _save(**arrays: npt.NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def _load(content: bytes, name: str, read: Callable[[Any], T]) -> T:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return read(arrays)
    except (
        ValueError,
        KeyError,
        TypeError,
        IndexError,
        EOFError,
        OSError,
        RuntimeError,  # of zipfile, for what it cannot unpack
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise BundleError(f"{name} is no golden case: {error}.") from error


def _levels(probabilities: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    levels: npt.NDArray[np.uint16] = np.rint(probabilities * _LEVELS).astype(np.uint16)
    return levels


def _probabilities(levels: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    probabilities: npt.NDArray[np.float32] = levels.astype(np.float32) / _LEVELS
    return probabilities


def _bits(packed: npt.NDArray[np.uint8], shape: tuple[int, ...]) -> Masks:
    return np.unpackbits(packed, count=int(np.prod(shape))).reshape(shape).astype(bool)
