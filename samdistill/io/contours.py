"""Outlines as GeoJSON and COCO; knows the two formats, not how outlines are found.

Coordinates are pixel edges: pixel (y, x) spans x..x + 1 and y..y + 1, from the image's upper left corner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from samdistill.arrays import Mask

Ring = Sequence[tuple[int, int]]  # corners xy, not closed; around foreground clockwise as seen


def feature(
    rings: Sequence[Ring], *, name: str, class_id: int, area_px: int, image: int | None = None
) -> dict[str, Any]:
    """One component as a GeoJSON feature.

    Parameters
    ----------
    rings
        Its outline first, then its holes.
    name, class_id
        Its class.
    area_px
        Of the component.
    image
        Which image of a file with several.
    """
    properties: dict[str, Any] = {"class": name, "class_id": class_id, "area_px": area_px}
    if image is not None:
        properties["image"] = image
    # Clockwise with y down is counter-clockwise by the numbers, as RFC 7946 wants outlines.
    closed = [[list(point) for point in (*ring, ring[0])] for ring in rings]
    return {
        "type": "Feature",
        "properties": properties,
        "geometry": {"type": "Polygon", "coordinates": closed},
    }


def collection(features: Sequence[dict[str, Any]], size: tuple[int, int], images: int) -> dict[str, Any]:
    """A GeoJSON feature collection, with the images' (height, width) and number beside it."""
    height, width = size
    return {
        "type": "FeatureCollection",
        "image_size": {"height": height, "width": width},
        "images": images,
        "features": list(features),
    }


def coco_annotation(
    found: Mapping[str, Any], size: tuple[int, int], *, annotation_id: int, image_id: int
) -> dict[str, Any]:
    """A GeoJSON feature as a COCO annotation; the box is COCO's own left, top, width, height.

    A component with holes, which COCO's polygons cannot have, becomes a run-length mask.
    """
    rings = found["geometry"]["coordinates"]
    outline = np.array(rings[0])
    (left, top), (right, bottom) = outline.min(axis=0).tolist(), outline.max(axis=0).tolist()
    holes = len(rings) > 1
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": found["properties"]["class_id"],
        "area": found["properties"]["area_px"],
        "bbox": [left, top, right - left, bottom - top],
        "iscrowd": 0,
        "segmentation": run_lengths(rings, size) if holes else [outline[:-1].ravel().tolist()],
    }


def run_lengths(rings: Sequence[Sequence[Sequence[int]]], size: tuple[int, int]) -> dict[str, Any]:
    """COCO's uncompressed run lengths of a polygon with holes: down the columns, background first."""
    flat = filled(rings, size).T.ravel()
    changes = np.flatnonzero(np.diff(flat, prepend=False, append=not flat[-1]))
    counts = np.diff(changes, prepend=0).tolist()
    return {"size": list(size), "counts": counts}


def filled(rings: Sequence[Sequence[Sequence[int]]], size: tuple[int, int]) -> Mask:
    """The pixels inside closed rings along pixel edges, (H, W) bool; holes are outside."""
    toggles = np.zeros((size[0], size[1] + 1), np.bool_)
    for ring in rings:
        for (x0, y0), (x1, y1) in pairwise(ring):
            if x0 == x1:
                toggles[min(y0, y1) : max(y0, y1), x0] ^= True
    inside: Mask = np.logical_xor.accumulate(toggles, axis=1)[:, :-1]
    return inside
