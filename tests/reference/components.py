"""Slow, obvious components: flood fill, and cleaning pixel by pixel or with scipy.ndimage."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

CROSS = [(-1, 0), (0, -1), (0, 1), (1, 0)]
CORNERS = [(-1, -1), (-1, 1), (1, -1), (1, 1)]


@dataclass
class Table:
    """What `samdistill.components.Components` says, by hand."""

    labels: npt.NDArray[np.int32]
    area_px: list[int]
    boxes: list[tuple[int, int, int, int]]
    centroids: list[tuple[float, float]]
    mean_probability: list[float]


def label(mask: npt.NDArray[np.bool_], connectivity: int = 8, probability=None) -> Table:
    """Flood each component from its first pixel in raster order."""
    height, width = mask.shape
    neighbours = CROSS + (CORNERS if connectivity == 8 else [])
    table = Table(np.zeros(mask.shape, np.int32), [], [], [], [])
    for y, x in zip(*np.nonzero(mask), strict=True):
        if table.labels[y, x]:
            continue
        number = len(table.area_px) + 1
        table.labels[y, x] = number
        pixels = [(int(y), int(x))]
        for py, px in pixels:  # grows while it is walked
            for dy, dx in neighbours:
                ny, nx = py + dy, px + dx
                if 0 <= ny < height and 0 <= nx < width and mask[ny, nx] and not table.labels[ny, nx]:
                    table.labels[ny, nx] = number
                    pixels.append((ny, nx))
        ys, xs = [p[0] for p in pixels], [p[1] for p in pixels]
        table.area_px.append(len(pixels))
        table.boxes.append((min(xs), min(ys), max(xs) + 1, max(ys) + 1))
        table.centroids.append((sum(xs) / len(pixels), sum(ys) / len(pixels)))
        if probability is not None:
            table.mean_probability.append(sum(float(probability[p]) for p in pixels) / len(pixels))
    return table


def morph(
    mask: npt.NDArray[np.bool_], operation: str, footprint: npt.NDArray[np.uint8]
) -> npt.NDArray[np.bool_]:
    """Ask, for each pixel, whether any (dilation) or all (erosion) of the pixels under the footprint are set.

    The footprint's centre is at (size - 1) // 2. Pixels outside the image do not matter.
    """
    height, width = mask.shape
    offsets = np.argwhere(footprint) - (np.array(footprint.shape) - 1) // 2
    result = np.zeros_like(mask)
    for y in range(height):
        for x in range(width):
            under = [
                mask[y + dy, x + dx] for dy, dx in offsets if 0 <= y + dy < height and 0 <= x + dx < width
            ]
            result[y, x] = any(under) if operation == "dilation" else all(under)
    return result


def clean(probability_maps, threshold=0.5, keep="likeliest", min_area_px=0, morphology=None):
    """Binarise, keep components, then erode or dilate, one class after the other."""
    masks = []
    for probability in probability_maps:
        table = label(probability > np.float32(threshold), 8, probability)
        large = [k for k, area in enumerate(table.area_px) if area >= min_area_px]
        if keep != "all" and large:
            worth = table.mean_probability if keep == "likeliest" else table.area_px
            large = [max(large, key=lambda k: worth[k])]  # max gives the first of equals
        mask = np.isin(table.labels, [k + 1 for k in large])
        if morphology is not None:
            mask = morph(mask, morphology.operation, morphology.footprint())
        masks.append(mask)
    return np.array(masks, bool).reshape(np.shape(probability_maps))


def clean_with_scipy(probability_maps, threshold=0.5, keep="likeliest", min_area_px=0, morphology=None):
    """Do the same with scipy.ndimage and numpy, as one would write it; only for footprints of odd size."""
    masks = np.zeros(probability_maps.shape, bool)
    for mask, probability in zip(masks, probability_maps, strict=True):
        labels, count = ndimage.label(probability > np.float32(threshold), np.ones((3, 3)))
        if count == 0:
            continue
        numbers = np.arange(1, count + 1)
        area = np.bincount(labels.ravel())[1:]
        worth = ndimage.mean(probability, labels, numbers) if keep == "likeliest" else area
        worth = np.where(area >= min_area_px, worth, -1)
        if worth.max() < 0:
            continue
        if keep == "all":
            mask[:] = np.isin(labels, numbers[area >= min_area_px])
        else:
            mask[:] = labels == numbers[np.argmax(worth)]
        if morphology is not None:
            footprint = morphology.footprint().astype(bool)
            if morphology.operation == "dilation":
                mask[:] = ndimage.binary_dilation(mask, footprint)
            else:
                mask[:] = ndimage.binary_erosion(mask, footprint, border_value=1)
    return masks
