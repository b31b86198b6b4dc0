"""Proposals: masks of no class with their boxes and scores, their run-length form, and what thins them out.

Knows masks, boxes and scores; knows no teacher and no class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from samdistill import _core
from samdistill.arrays import Boxes, Logits, Masks, check_boxes, check_masks, describe
from samdistill.components import MAX_PIXELS

Indices = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Proposals:
    """What a teacher finds in one image when it is asked for everything; K may be 0.

    Attributes
    ----------
    masks
        (K, H, W) bool, image frame.
    boxes
        (K, 4) float32, pixels, xyxy half-open, image frame.
    iou_predictions
        (K,) float32, the teacher's own estimate of each mask's IoU.
    stability_scores
        (K,) float32 in [0, 1], see `stability_scores`.
    """

    masks: Masks
    boxes: Boxes
    iou_predictions: Scores
    stability_scores: Scores

    def __post_init__(self) -> None:
        count = len(check_masks(self.masks))
        if self.masks.dtype != np.bool_:
            raise ValueError(f"masks must be bool (K, H, W), not {describe(self.masks)}.")
        if check_boxes(self.boxes).dtype != np.float32 or len(self.boxes) != count:
            raise ValueError(f"boxes must be float32 ({count}, 4), one a mask, not {describe(self.boxes)}.")
        for name in ("iou_predictions", "stability_scores"):
            scores = _check_scores(getattr(self, name), count, name)
            if scores.dtype != np.float32:
                raise ValueError(f"{name} must be float32 ({count},), not {describe(scores)}.")

    def __len__(self) -> int:
        return len(self.masks)

    def select(self, indices: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> Self:
        """Return the proposals at (M,) integer indices, in that order, or where a (K,) bool array is True."""
        return type(self)(
            masks=self.masks[indices],
            boxes=self.boxes[indices],
            iou_predictions=self.iou_predictions[indices],
            stability_scores=self.stability_scores[indices],
        )


@dataclass(frozen=True, eq=False)
class MaskRuns:
    """Masks in the core's run-length form: small to keep and to send, and to be had without painting masks.

    Attributes
    ----------
    edges
        (R, 2) int32, pixels: begin and end (one past the last pixel) of each run of foreground, counted along
        rows, y * W + x, image frame. First all runs of mask 0, then of mask 1, ...; those of a mask in raster
        order, none over another. Run lengths along columns, as COCO's, are not these.
    counts
        (K,) int64, how many runs each mask has; K may be 0.
    image_size
        (height, width), pixels.
    """

    edges: npt.NDArray[np.int32]
    counts: Indices
    image_size: tuple[int, int]

    def __post_init__(self) -> None:
        sides = tuple(self.image_size)
        if len(sides) != 2 or min(sides) < 1 or sides[0] * sides[1] > MAX_PIXELS:
            raise ValueError(
                f"image_size must be (height, width), each 1 or more, of fewer than 2^31 pixels, not {sides}."
            )
        height, width = sides
        edges, counts = self.edges, self.counts
        if not isinstance(edges, np.ndarray) or edges.dtype != np.int32 or edges.shape[1:] != (2,):
            raise ValueError(f"edges must be int32 (R, 2), begin and end of each run, not {describe(edges)}.")
        if not isinstance(counts, np.ndarray) or counts.dtype != np.int64 or counts.ndim != 1:
            raise ValueError(f"counts must be int64 (K,), one a mask, not {describe(counts)}.")
        if (counts < 0).any() or counts.sum() != len(edges):
            raise ValueError(f"counts must be 0 or more and sum up to {len(edges)}, the runs, not {counts}.")
        least = np.zeros(len(edges), np.int64)  # where a run may begin
        least[1:] = edges[:-1, 1]
        least[(np.cumsum(counts) - counts)[counts > 0]] = 0
        wrong = (edges[:, 0] < least) | (edges[:, 1] <= edges[:, 0]) | (edges[:, 1] > height * width)
        if wrong.any():
            row = int(np.argmax(wrong))
            raise ValueError(
                f"edges must be begin < end within {height} x {width} pixels, in raster order in each mask, "
                f"not {edges[row]} at row {row}."
            )

    def __len__(self) -> int:
        return len(self.counts)

    @classmethod
    def of(cls, masks: Masks) -> Self:
        """Take (K, H, W) bool or uint8 masks apart into runs, none of which goes on in the next row."""
        masks = check_masks(masks)
        count, height, width = masks.shape
        steps = np.zeros((count, height, width + 2), np.int8)
        steps[:, :, 1:-1] = masks
        steps = np.diff(steps, axis=2)
        mask, y, x = np.nonzero(steps == 1)
        ends = np.nonzero(steps == -1)
        edges = np.stack([y * width + x, ends[1] * width + ends[2]], axis=1).astype(np.int32)
        return cls(edges, np.bincount(mask, minlength=count).astype(np.int64), (height, width))

    def to_masks(self) -> Masks:
        """(K, H, W) bool."""
        masks = np.empty((len(self), *self.image_size), np.bool_)
        runs = np.split(np.ascontiguousarray(self.edges), np.cumsum(self.counts)[:-1])
        for mask, own in zip(masks, runs, strict=False):  # split gives one part where there is no mask
            mask[:] = _core.paint(own, np.ones(len(own), np.int32), *self.image_size)
        return masks


def boxes_of(masks: Masks) -> Boxes:
    """Return the outer box of each mask.

    Parameters
    ----------
    masks
        (K, H, W) bool, none of them empty.

    Returns
    -------
    Boxes
        (K, 4) float32, pixels, xyxy half-open.
    """
    masks = check_masks(masks)
    boxes = np.empty((len(masks), 4), np.float32)
    for k, mask in enumerate(masks):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if len(rows) == 0:
            raise ValueError(f"masks must all have a pixel, not none at index {k}. Leave empty masks out.")
        boxes[k] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes


def nms(boxes: npt.NDArray[Any], scores: npt.NDArray[Any], iou: float = 0.5) -> Indices:
    """Keep each box whose IoU with no better kept box is greater than `iou`.

    As `torchvision.ops.nms`, bit for bit on float32 and float64 boxes; integers are computed in float64.

    Parameters
    ----------
    boxes
        (N, 4) xyxy half-open.
    scores
        (N,) numbers, none NaN. The greater comes first; of equal ones the one with the lower index.
    iou
        In [0, 1].

    Returns
    -------
    Indices
        (M,) int64 into `boxes`, best first.
    """
    boxes = check_boxes(boxes)
    scores = _check_scores(scores, len(boxes), "scores")
    _check_iou(iou)
    if boxes.dtype not in (np.float32, np.float64):
        boxes = boxes.astype(np.float64)
    return _core.nms(np.ascontiguousarray(boxes), _best_first(scores), iou)


def mask_iou(masks_a: Masks, masks_b: Masks) -> npt.NDArray[np.float64]:
    """IoU of every mask with every other.

    Parameters
    ----------
    masks_a
        (A, H, W) bool, or uint8 with foreground where it is not 0; copied once if not C-contiguous bool.
    masks_b
        (B, H, W) of the same size; give the same array for the overlaps within one set.

    Returns
    -------
    ndarray
        (A, B) float64; 1 where both masks are empty.
    """
    first = check_masks(masks_a, name="masks_a")
    second = first if masks_b is masks_a else check_masks(masks_b, name="masks_b")
    if first.shape[1:] != second.shape[1:]:
        raise ValueError(f"masks_b must have the size of masks_a, {first.shape[1:]}, not {second.shape[1:]}.")
    first = np.ascontiguousarray(first)
    return _core.mask_iou(first, first if masks_b is masks_a else np.ascontiguousarray(second))


def mask_nms(masks: Masks, scores: npt.NDArray[Any], iou: float = 0.5) -> Indices:
    """Keep each mask whose IoU with no better kept mask is greater than `iou`; `nms` on masks for boxes."""
    _check_iou(iou)
    overlap = mask_iou(masks, masks) > iou
    order = _best_first(_check_scores(scores, len(masks), "scores"))
    dropped = np.zeros(len(masks), np.bool_)
    kept = []
    for index in order:
        if not dropped[index]:
            kept.append(index)
            dropped |= overlap[index]
    return np.asarray(kept, np.int64)


def stability_scores(logits: Logits, *, threshold: float = 0.0, offset: float = 1.0) -> Scores:
    """IoU of each mask cut `offset` above the threshold with the one cut `offset` below it.

    SAM's `calculate_stability_score`, but 0 instead of NaN where nothing exceeds the lower cut.

    Parameters
    ----------
    logits
        (K, H, W) float, mask logits in any frame.
    threshold, offset
        In logits.

    Returns
    -------
    Scores
        (K,) float32 in [0, 1].
    """
    if not isinstance(logits, np.ndarray) or logits.ndim != 3 or logits.dtype.kind != "f":
        raise ValueError(f"logits must be float (K, H, W), not {describe(logits)}.")
    if not offset >= 0:
        raise ValueError(f"offset must be 0 or more, not {offset}.")
    inner = np.array([np.count_nonzero(plane > threshold + offset) for plane in logits], np.float32)
    outer = np.array([np.count_nonzero(plane > threshold - offset) for plane in logits], np.float32)
    return np.divide(inner, outer, out=np.zeros_like(inner), where=outer > 0)


def _best_first(scores: npt.NDArray[Any]) -> Indices:
    keys = scores if scores.dtype.kind == "f" else scores.astype(np.float64)
    return np.argsort(-keys, kind="stable").astype(np.int64, copy=False)


def _check_scores(scores: object, count: int, name: str) -> npt.NDArray[Any]:
    if not isinstance(scores, np.ndarray) or scores.shape != (count,) or scores.dtype.kind not in "biuf":
        raise ValueError(f"{name} must be numbers ({count},), not {describe(scores)}.")
    if np.isnan(scores).any():
        raise ValueError(f"{name} must be numbers, not NaN at index {int(np.argmax(np.isnan(scores)))}.")
    return scores


def _check_iou(iou: float) -> None:
    if not 0 <= iou <= 1:
        raise ValueError(f"iou must be in [0, 1], not {iou}.")
