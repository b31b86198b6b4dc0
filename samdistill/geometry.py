"""The only place where coordinates change frame: resize, pad, image frame <-> model frame.

The canonical (model) frame is the whole image resized so that its shortest side is the student's size,
never a crop; the padding to a multiple of 32 lies right and below, so it moves no coordinate. Points map by
pixel centre, boxes by edge. Knows no model: the teacher's own resize rule lives in `teacher`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage

from samdistill import _core
from samdistill.arrays import Image, Labels, Mask, Masks, ProbabilityMaps, check_image, describe

MAX_ASPECT = 4.0
"""Longest over shortest side of the model frame; longer images are shrunk until the longest side fits."""


def model_size(image_size: tuple[int, int], size: int) -> tuple[int, int]:
    """Size of the model frame: shortest side to `size`, aspect kept, longest side at most 4 x `size`.

    Parameters
    ----------
    image_size
        (height, width) of the image, pixels.
    size
        Length of the shortest side in the model frame, pixels.

    Returns
    -------
    tuple
        (height, width), each at least 1.
    """
    height, width = image_size
    if height < 1 or width < 1 or size < 1:
        raise ValueError(f"image_size and size must be at least 1, not {image_size} and {size}.")
    scale = min(size / min(height, width), MAX_ASPECT * size / max(height, width))
    return max(1, math.floor(height * scale + 0.5)), max(1, math.floor(width * scale + 0.5))


def padded_size(size: tuple[int, int], multiple: int = 32) -> tuple[int, int]:
    """Round (height, width) up to a multiple, as the student's encoder needs it."""
    return -(-size[0] // multiple) * multiple, -(-size[1] // multiple) * multiple


def resize_image(image: Image, size: tuple[int, int]) -> Image:
    """Resize by area-aware bilinear interpolation, which averages when it shrinks.

    Pillow's BILINEAR to the last bit, always along rows first (Pillow 13 turns that round for some shapes).

    Parameters
    ----------
    image
        uint8 (H, W, 3) RGB.
    size
        (height, width) wanted.

    Returns
    -------
    Image
        uint8 (height, width, 3); the input itself when the size is already right.
    """
    if check_image(image).shape[:2] == tuple(size):
        return image
    _check_target(image.shape[:2], size)
    return _core.resize_rgb(np.ascontiguousarray(image), *size)


def resize_maps(maps: npt.NDArray[np.float32], size: tuple[int, int]) -> ProbabilityMaps:
    """Resize each map by the same interpolation as images; values stay within the input's range.

    Parameters
    ----------
    maps
        float32 (C, H, W), probability maps or logits.
    size
        (height, width) wanted.
    """
    if maps.ndim != 3 or maps.dtype != np.float32:
        raise ValueError(f"maps must be float32 (C, H, W), not {describe(maps)}.")
    if maps.shape[1:] == tuple(size):
        return maps
    _check_target(maps.shape[1:], size)
    return _core.resize_maps(np.ascontiguousarray(maps), *size)


def _check_target(given: tuple[int, ...], size: tuple[int, int]) -> None:
    if min(*given, *size) < 1:
        raise ValueError(f"size must be at least 1 x 1, not {size} out of {given}.")


def resize_masks(masks: Masks, size: tuple[int, int]) -> Masks:
    """Resize bool (C, H, W) masks: a pixel is foreground where the area-aware mean is above one half."""
    if masks.shape[1:] == tuple(size):
        return masks
    return resize_maps(masks.astype(np.float32), size) > 0.5


def shrink_masks(masks: Masks, size: tuple[int, int]) -> Masks:
    """Shrink masks where nothing of them may vanish, as in a picture; no areas are measured on these.

    As `resize_masks`, which loses what is less than a pixel wide; so where none of its foreground is near, a
    pixel is foreground where any of those it covers is.

    Parameters
    ----------
    masks
        bool (C, H, W).
    size
        (height, width) wanted, no side larger than it is.
    """
    kept = resize_masks(masks, size)
    rows, columns = (np.arange(new) * old // new for new, old in zip(size, masks.shape[1:], strict=True))
    touched = np.logical_or.reduceat(np.logical_or.reduceat(masks, rows, axis=1), columns, axis=2)
    framed = np.pad(kept, ((0, 0), (1, 1), (1, 1)))
    near = np.lib.stride_tricks.sliding_window_view(framed, (3, 3), axis=(1, 2)).any(axis=(3, 4))
    shrunk: Masks = kept | (touched & ~near)
    return shrunk


def resize_labels(labels: Labels, size: tuple[int, int]) -> Labels:
    """Resize int32 (H, W) labels by nearest pixel centre, which invents no label."""
    if labels.shape == tuple(size):
        return labels
    pillow = PillowImage.fromarray(np.ascontiguousarray(labels, dtype=np.int32))
    return np.asarray(pillow.resize((size[1], size[0]), PillowImage.Resampling.NEAREST), dtype=np.int32)


def pad_image(image: Image, size: tuple[int, int]) -> Image:
    """Extend an image right and below to (height, width) by repeating its last row and column."""
    below, right = size[0] - image.shape[0], size[1] - image.shape[1]
    if below == 0 and right == 0:
        return image
    return np.pad(image, ((0, below), (0, right), (0, 0)), mode="edge")


def map_points(
    points: npt.NDArray[np.floating], from_size: tuple[int, int], to_size: tuple[int, int]
) -> npt.NDArray[np.float32]:
    """Map (N, 2) xy points between frames of two sizes, by pixel centre (centres lie at integers)."""
    scale = np.array([to_size[1] / from_size[1], to_size[0] / from_size[0]])
    mapped: npt.NDArray[np.float32] = ((points + 0.5) * scale - 0.5).astype(np.float32)
    return mapped


def map_boxes(
    boxes: npt.NDArray[np.floating], from_size: tuple[int, int], to_size: tuple[int, int]
) -> npt.NDArray[np.float32]:
    """Map (N, 4) half-open xyxy boxes between frames of two sizes, by edge."""
    scale = np.array([to_size[1] / from_size[1], to_size[0] / from_size[0]] * 2)
    mapped: npt.NDArray[np.float32] = (boxes * scale).astype(np.float32)
    return mapped


def xywh_to_xyxy(boxes: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """Convert (N, 4) boxes of left, top, width, height into half-open xyxy."""
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1).astype(np.float32)


def outer_box(mask: Mask) -> tuple[int, int, int, int] | None:
    """The smallest half-open xyxy box around a (H, W) mask's foreground; None when there is none."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


@dataclass(frozen=True)
class ModelFrame:
    """How one image enters the student and how its answer comes back; used by training and inference alike.

    Parameters
    ----------
    image_size
        (height, width) of the image.
    size
        (height, width) of the model frame: the whole resized image.
    padded
        (height, width) of what the student sees: `size` rounded up to a multiple.
    """

    image_size: tuple[int, int]
    size: tuple[int, int]
    padded: tuple[int, int]

    @classmethod
    def of(cls, image_size: tuple[int, int], size: int, multiple: int = 32) -> ModelFrame:
        """The frame of an image of (height, width) pixels for a student of this shortest side."""
        inner = model_size(image_size, size)
        return cls(image_size, inner, padded_size(inner, multiple))

    def pixels(self, image: Image) -> npt.NDArray[np.uint8]:
        """Resize and pad a uint8 (H, W, 3) image into the student's uint8 (3, height, width)."""
        padded = pad_image(resize_image(image, self.size), self.padded)
        return np.ascontiguousarray(padded.transpose(2, 0, 1))

    def probability_maps(self, logits: npt.NDArray[np.float32]) -> ProbabilityMaps:
        """Turn the student's float32 (C, height, width) logits into probability maps (C, H, W) of the image.

        Cuts the padding, takes the sigmoid and resizes, in this order.
        """
        inner = logits[:, : self.size[0], : self.size[1]]
        return resize_maps(sigmoid(inner), self.image_size)


def sigmoid(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The logistic function, float32, without overflow."""
    half: npt.NDArray[np.float32] = np.tanh(logits * np.float32(0.5))
    half += np.float32(1.0)
    half *= np.float32(0.5)
    return half
