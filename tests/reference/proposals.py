"""Suppression and overlap, one box and one mask at a time."""

from __future__ import annotations

import numpy as np


def box_iou(a, b):
    """In the boxes' own float type, operation by operation as torchvision's CPU kernel."""
    zero = a.dtype.type(0)
    width = max(zero, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(zero, min(a[3], b[3]) - max(a[1], b[1]))
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def nms(boxes, scores, iou):
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        if all(not float(box_iou(boxes[k], boxes[i])) > iou for k in kept):
            kept.append(i)
    return np.array(kept, np.int64)


def mask_iou(masks_a, masks_b):
    iou = np.empty((len(masks_a), len(masks_b)))
    for i, a in enumerate(masks_a):
        for j, b in enumerate(masks_b):
            either = np.logical_or(a, b).sum()
            iou[i, j] = np.logical_and(a, b).sum() / either if either else 1.0
    return iou


def mask_nms(masks, scores, iou):
    kept = []
    for i in sorted(range(len(masks)), key=lambda i: (-scores[i], i)):
        if all(not mask_iou(masks[k : k + 1], masks[i : i + 1])[0, 0] > iou for k in kept):
            kept.append(i)
    return np.array(kept, np.int64)
