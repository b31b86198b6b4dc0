"""Pseudo labels on disk: one file an image, written whole or not at all, so that a round can be resumed.

A safetensors file holds the masks of teacher and student (bit-packed), the prompt sets, predicted IoU and
agreement a class; its header the case, the round, the teacher's hash and the sizes. Knows no training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from samdistill.errors import InputRejected
from samdistill.io.files import write_bytes
from samdistill.prompts import Prompts
from samdistill.refine import Refinement


@dataclass(frozen=True, eq=False)
class PseudoLabel:
    """One image's entry.

    Attributes
    ----------
    case_id
        Of the data set.
    refinement
        Masks, prompts and quality, at the image's own size.
    teacher_sha256
        Names the teacher's weights; empty where no teacher was asked.
    round
        From 1.
    """

    case_id: str
    refinement: Refinement
    teacher_sha256: str
    round: int


class PseudoStore:
    """A folder of pseudo labels.

    Parameters
    ----------
    folder
        Made at the first write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __contains__(self, case_id: str) -> bool:
        return self._path(case_id).is_file()

    def write(self, label: PseudoLabel) -> None:
        """Write or replace an image's entry."""
        one = label.refinement
        sets = [(number, each) for number, own in enumerate(one.prompts) for each in own]
        counts = [0 if each.points is None else len(each.points) for _, each in sets]
        points = [each.points for _, each in sets if each.points is not None]
        labels = [each.point_labels for _, each in sets if each.point_labels is not None]
        boxes = [np.full(4, np.nan, np.float32) if each.box is None else each.box for _, each in sets]
        tensors = {
            "masks": np.packbits(one.masks, axis=2),
            "student_masks": np.packbits(one.student_masks, axis=2),
            "predicted_iou": one.predicted_iou,
            "agreement": one.agreement,
            "set_class": np.array([number for number, _ in sets], np.int32),
            "set_points": np.array(counts, np.int32),
            "points": np.concatenate(points) if points else np.zeros((0, 2), np.float32),
            "point_labels": np.concatenate(labels) if labels else np.zeros(0, np.int32),
            "boxes": np.stack(boxes).astype(np.float32) if boxes else np.zeros((0, 4), np.float32),
        }
        header = {
            "case_id": label.case_id,
            "round": label.round,
            "teacher_sha256": label.teacher_sha256,
            "size": list(one.masks.shape[1:]),
        }
        path = self._path(label.case_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, save(tensors, {"label": json.dumps(header)}))

    def read(self, case_id: str) -> PseudoLabel:
        """Read an image's entry; mask prompts are not kept.

        Raises
        ------
        InputRejected
            When there is none, or it is damaged.
        """
        path = self._path(case_id)
        if not path.is_file():
            raise InputRejected(f"{self.folder} holds no pseudo label of {case_id}.")
        return _read(path)

    def __iter__(self) -> Iterator[PseudoLabel]:
        """All entries, in order of case."""
        labels = [_read(path) for path in sorted(self.folder.glob("*.safetensors"))]
        yield from sorted(labels, key=lambda label: label.case_id)

    def _path(self, case_id: str) -> Path:
        # Ids may hold slashes, be longer than a file name may, and need not be UTF-8.
        digest = hashlib.sha256(case_id.encode(errors="surrogateescape")).hexdigest()
        return self.folder / f"{digest[:24]}.safetensors"


def _read(path: Path) -> PseudoLabel:
    try:
        with safe_open(path, "np") as opened:
            header = json.loads((opened.metadata() or {})["label"])
            t = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        height, width = header["size"]
        masks, student = (
            np.unpackbits(t[name], axis=2, count=width).astype(np.bool_)
            for name in ("masks", "student_masks")
        )
        if masks.shape[1] != height:
            raise ValueError(f"its masks have {masks.shape[1]} rows, not {height}")
        prompts: list[list[Prompts]] = [[] for _ in masks]
        first = 0
        for number, count, box in zip(t["set_class"], t["set_points"], t["boxes"], strict=True):
            last = first + int(count)
            prompts[number].append(
                Prompts(
                    t["points"][first:last] if count else None,
                    t["point_labels"][first:last] if count else None,
                    None if np.isnan(box).any() else box,
                )
            )
            first = last
        refinement = Refinement(masks, student, prompts, t["predicted_iou"], t["agreement"])
        return PseudoLabel(header["case_id"], refinement, header["teacher_sha256"], header["round"])
    except (SafetensorError, KeyError, IndexError, TypeError, ValueError) as error:
        raise InputRejected(f"{path} is damaged: {error}. Delete it to have it made again.") from error
