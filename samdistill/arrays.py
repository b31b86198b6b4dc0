"""Names for the arrays that cross public boundaries, and the checks of their contracts.

Knows shapes, dtypes and ranges; knows no file, no model and no algorithm.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]  # (H, W, 3) RGB
Mask = npt.NDArray[np.bool_]  # (H, W)
Masks = npt.NDArray[np.bool_]  # (C, H, W) or (K, H, W)
Labels = npt.NDArray[np.int32]  # (H, W), 0 = background
Logits = npt.NDArray[np.float32]  # (C, H, W), unbounded
ProbabilityMap = npt.NDArray[np.float32]  # (H, W) in [0, 1]
ProbabilityMaps = npt.NDArray[np.float32]  # (C, H, W) in [0, 1]
Points = npt.NDArray[np.float32]  # (N, 2) xy, pixel centre at integers
PointLabels = npt.NDArray[np.int32]  # (N,): 1 foreground, 0 background, -1 padding
Boxes = npt.NDArray[np.float32]  # (N, 4) xyxy, half-open


def describe(value: object) -> str:
    """Say what a value is in an error message: `float64 of shape (3, 4)`, or its type."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {value.shape}"
    return type(value).__name__


def check_image(image: object, *, name: str = "image") -> Image:
    """Require a uint8 (H, W, 3) RGB image with at least one pixel.

    Raises
    ------
    TypeError
        When it is no array.
    ValueError
        When shape or dtype differ.
    """
    if not isinstance(image, np.ndarray):
        raise TypeError(f"{name} must be a uint8 array (H, W, 3), not {describe(image)}.")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(
            f"{name} must be uint8 (H, W, 3) RGB with at least one pixel, not {describe(image)}. "
            "Read files with samdistill.io.read_image, or apply an IntensityRule to other pixels."
        )
    return image


def check_mask(mask: object, *, name: str = "mask") -> Mask:
    """Require a bool (H, W) mask; uint8 counts as foreground where it is not 0 (a copy is made)."""
    if not isinstance(mask, np.ndarray):
        raise TypeError(f"{name} must be a bool array (H, W), not {describe(mask)}.")
    if mask.ndim != 2 or mask.dtype not in (np.bool_, np.uint8):
        raise ValueError(f"{name} must be bool or uint8 (H, W), not {describe(mask)}.")
    return mask if mask.dtype == np.bool_ else mask != 0


def check_masks(masks: object, *, name: str = "masks") -> Masks:
    """Require bool (N, H, W) masks; uint8 counts as foreground where it is not 0 (a copy is made)."""
    if not isinstance(masks, np.ndarray):
        raise TypeError(f"{name} must be a bool array (N, H, W), not {describe(masks)}.")
    if masks.ndim != 3 or masks.dtype not in (np.bool_, np.uint8):
        raise ValueError(f"{name} must be bool or uint8 (N, H, W), not {describe(masks)}.")
    return masks if masks.dtype == np.bool_ else masks != 0


def check_boxes(boxes: object, *, name: str = "boxes") -> npt.NDArray[Any]:
    """Require (N, 4) half-open xyxy boxes, float or integer, finite, each with x0 < x1 and y0 < y1."""
    if not isinstance(boxes, np.ndarray):
        raise TypeError(f"{name} must be an array (N, 4) xyxy, not {describe(boxes)}.")
    if boxes.ndim != 2 or boxes.shape[1] != 4 or boxes.dtype.kind not in "iuf":
        raise ValueError(f"{name} must be a number array (N, 4) xyxy, not {describe(boxes)}.")
    wrong = ~((boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3]) & np.isfinite(boxes).all(axis=1))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"{name} must be (N, 4) xyxy with x0 < x1 and y0 < y1, not {boxes[row]} at row {row}. "
            "Convert xywh with geometry.xywh_to_xyxy."
        )
    return boxes
