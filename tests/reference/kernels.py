"""Soft overlaps and atoms, straight from their definitions."""

from __future__ import annotations

import numpy as np


def soft_overlap(masks, maps):
    """(inside, outside, area_px, total) in float64."""
    p = maps.astype(np.float64)
    inside = np.array([[p[c][mask].sum() for c in range(len(p))] for mask in masks]).reshape(
        len(masks), len(p)
    )
    outside = np.array([[(1 - p[c][mask]).sum() for c in range(len(p))] for mask in masks]).reshape(
        inside.shape
    )
    return inside, outside, np.array([mask.sum() for mask in masks], np.int64), p.sum(axis=(1, 2))


def atoms(masks, maps):
    """(ids, covered_by, inside, outside, area_px): a dictionary from sets of masks to atoms."""
    p = maps.astype(np.float64)
    _, height, width = masks.shape
    ids = np.zeros((height, width), np.int32)
    number = {}
    for y in range(height):
        for x in range(width):
            cover = tuple(masks[:, y, x].tolist())
            if any(cover):
                ids[y, x] = number.setdefault(cover, len(number) + 1)
    covered_by = np.array(list(number), bool).reshape(len(number), len(masks))
    parts = [ids == a for a in range(1, len(number) + 1)]
    inside, outside, area, _ = soft_overlap(np.array(parts, bool).reshape(len(parts), height, width), p)
    return ids, covered_by, inside, outside, area
