"""Sums of probability maps over many masks, and the atoms many masks cut an image into; for training only.

The one place where numba is imported. Loops run without the GIL, on threads that this module starts and
joins; numba's own parallel loops are left alone, because its thread pools survive neither a fork nor two
callers at once. Compiled code is cached on disk; `warm_up` compiles or loads it before a progress bar starts.
Knows masks and maps; knows no matcher.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

from samdistill.arrays import Masks, ProbabilityMap, ProbabilityMaps, check_masks
from samdistill.components import check_probability_maps

Sums = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SoftOverlap:
    """What K masks cover of C probability maps.

    Attributes
    ----------
    inside
        (K, C) float64, the sum of p over mask k. A soft IoU is inside / (total + outside).
    outside
        (K, C) float64, the sum of 1 - p over mask k.
    area_px
        (K,) int64.
    total
        (C,) float64, the sum of p over the whole image.
    """

    inside: Sums
    outside: Sums
    area_px: npt.NDArray[np.int64]
    total: Sums

    def soft_iou(self) -> Sums:
        """(K, C) float64: the soft IoU of each mask with each map; 0 where both are empty."""
        either = self.total + self.outside
        return np.divide(self.inside, either, out=np.zeros_like(self.inside), where=either > 0)


@dataclass(frozen=True, eq=False)
class Atoms:
    """The pixels of an image, grouped by which of K masks cover them.

    Attributes
    ----------
    ids
        (H, W) int32: 0 where no mask is, else the atom, 1..A, numbered in raster order of first pixels.
    covered_by
        (A, K) bool: whether mask k covers atom a + 1.
    inside
        (A, C) float64, the sum of p over atom a + 1.
    outside
        (A, C) float64, the sum of 1 - p over atom a + 1.
    area_px
        (A,) int64.
    total
        (C,) float64, the sum of p over the whole image.
    """

    ids: npt.NDArray[np.int32]
    covered_by: npt.NDArray[np.bool_]
    inside: Sums
    outside: Sums
    area_px: npt.NDArray[np.int64]
    total: Sums

    def bitsets(self) -> npt.NDArray[np.uint64]:
        """(K, words) uint64: bit a % 64 of word a // 64 is set where mask k covers atom a + 1."""
        atoms, count = self.covered_by.shape
        bits = np.zeros((count, -(-atoms // 64) * 64), np.bool_)
        bits[:, :atoms] = self.covered_by.T
        return np.packbits(bits, axis=1, bitorder="little").view("<u8").astype(np.uint64, copy=False)


def soft_overlap(
    masks: Masks, probability_maps: ProbabilityMaps, *, threads: int | None = None
) -> SoftOverlap:
    """Sum every map over every mask.

    Parameters
    ----------
    masks
        (K, H, W) bool, or uint8 with foreground where it is not 0; copied once if not C-contiguous bool.
    probability_maps
        (C, H, W) float32 in [0, 1], without NaN, of the masks' size; copied once if not C-contiguous.
    threads
        How many to use; as many as there are processors if None. The sums do not depend on it.

    Returns
    -------
    SoftOverlap
        Sums in float64.

    Raises
    ------
    ValueError
        Where sizes differ or a map holds NaN.
    """
    masks, maps = _check(masks, probability_maps)
    inside = np.zeros((len(masks), len(maps)), np.float64)
    area = np.zeros(len(masks), np.int64)
    pixels, sums = masks.view(np.uint8), _row_sums(maps)
    _in_parallel(lambda first, last: _sum_masks(pixels, sums, first, last, inside, area), len(masks), threads)
    return SoftOverlap(inside, area[:, None] - inside, area, _totals(maps, threads))


def atoms(masks: Masks, probability_maps: ProbabilityMaps, *, threads: int | None = None) -> Atoms:
    """Group pixels by the masks that cover them, and sum every map over every group.

    By refining a partition: each mask splits the atoms it cuts, which takes one look at each pixel of each
    mask, and no hashing.

    Parameters
    ----------
    masks, probability_maps, threads
        As for `soft_overlap`.

    Returns
    -------
    Atoms
        Sums in float64.
    """
    masks, maps = _check(masks, probability_maps)
    ids, first_pixels, area = _refine(masks)
    inside = np.zeros((len(area), len(maps)), np.float64)
    _in_parallel(lambda first, last: _sum_atoms(ids, maps, first, last, inside), len(maps), threads)
    covered_by = np.ascontiguousarray(masks.reshape(len(masks), ids.size)[:, first_pixels].T)
    return Atoms(ids, covered_by, inside, area[:, None] - inside, area, _totals(maps, threads))


def best_iou(probability_map: ProbabilityMap) -> float:
    """Return the greatest soft IoU that any mask whatever has with a map; 0 where the map is 0 everywhere.

    The best mask is p > t with t = best / (1 + best), since a pixel pays as long as p > best * (1 - p); found
    by Dinkelbach's iteration ("On nonlinear fractional programming", Management Science 13(7), 1967).

    Parameters
    ----------
    probability_map
        (H, W) float32 in [0, 1], without NaN.
    """
    values = probability_map.ravel()
    total = float(values.sum(dtype=np.float64))
    best = 0.0
    while total > 0:
        inside, outside = _sum_above(values, best / (1 + best))
        better = inside / (total + outside)
        if better <= best * (1 + 1e-12):
            break
        best = better
    return best


def warm_up() -> None:
    """Compile the loops, or load them from numba's cache: seconds the first time on a machine."""
    maps = np.full((1, 1, 1), 0.5, np.float32)
    masks = np.ones((1, 1, 1), np.bool_)
    soft_overlap(masks, maps, threads=1)
    atoms(masks, maps, threads=1)
    best_iou(maps[0])


def _check(masks: Masks, probability_maps: ProbabilityMaps) -> tuple[Masks, ProbabilityMaps]:
    checked, maps = check_masks(masks), check_probability_maps(probability_maps)
    if checked.shape[1:] != maps.shape[1:]:
        raise ValueError(f"masks must have the size of the maps, {maps.shape[1:]}, not {checked.shape[1:]}.")
    return np.ascontiguousarray(checked), maps


def _totals(maps: ProbabilityMaps, threads: int | None) -> Sums:
    total = np.zeros(len(maps), np.float64)
    _in_parallel(lambda first, last: _sum_maps(maps, first, last, total), len(maps), threads)
    if np.isnan(total).any():
        raise ValueError(
            f"probability_maps must be numbers, not NaN in channel {int(np.argmax(np.isnan(total)))}."
        )
    return total


def _in_parallel(work: Callable[[int, int], None], count: int, threads: int | None) -> None:
    """Do work(first, last) for parts of 0..count; every item is done by one thread, in one order."""
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be 1 or more, not {threads}.")
    parts = min(threads or os.cpu_count() or 1, count)
    if parts <= 1:
        work(0, count)
        return
    edges = np.linspace(0, count, parts + 1).astype(int).tolist()
    with ThreadPoolExecutor(parts) as pool:
        list(pool.map(work, edges[:-1], edges[1:]))


@numba.njit(nogil=True, cache=True)
def _row_sums(maps):  # type: ignore[no-untyped-def]
    """Return (H, W + 1, C): the sums of the pixels left of each edge between two pixels, in its row."""
    classes, height, width = maps.shape
    sums = np.zeros((height, width + 1, classes), np.float64)
    for c in range(classes):
        for y in range(height):
            sum_ = 0.0
            for x in range(width):
                sum_ += np.float64(maps[c, y, x])
                sums[y, x + 1, c] = sum_
    return sums


@numba.njit(nogil=True, cache=True)
def _sum_masks(masks, sums, first, last, inside, area):  # type: ignore[no-untyped-def]
    """Add up runs. Masks are bytes; empty rows are passed over at once, others 32 pixels at a time."""
    _, height, width = masks.shape
    classes = sums.shape[2]
    for k in range(first, last):
        for y in range(height):
            row = masks[k, y]
            some = np.uint8(0)
            for x in range(width):
                some |= row[x]
            if some == 0:
                continue
            x, begin = 0, -1
            while x < width:
                end, edges = min(x + 32, width), 0
                if x + 32 <= width:
                    pixels = 0
                    for i in range(32):
                        pixels += row[x + i] != 0
                    if pixels == (0 if begin < 0 else 32):
                        x = end
                        continue
                    edges = int((row[x] != 0) != (begin >= 0))
                    for i in range(1, 32):
                        edges += row[x + i] != row[x + i - 1]
                    if edges == 1:  # the usual case: go straight there
                        x += 32 - pixels if begin < 0 else pixels
                while x < end:
                    if (row[x] != 0) != (begin >= 0):
                        if begin < 0:
                            begin = x
                        else:
                            area[k] += x - begin
                            for c in range(classes):
                                inside[k, c] += sums[y, x, c] - sums[y, begin, c]
                            begin = -1
                    x += 1
                    if edges == 1:
                        x = end
            if begin >= 0:
                area[k] += width - begin
                for c in range(classes):
                    inside[k, c] += sums[y, width, c] - sums[y, begin, c]


@numba.njit(nogil=True, cache=True, fastmath={"reassoc"})
def _sum_maps(maps, first, last, total):  # type: ignore[no-untyped-def]
    _, height, width = maps.shape
    for c in range(first, last):
        for y in range(height):
            part = 0.0
            for x in range(width):
                part += np.float64(maps[c, y, x])
            total[c] += part


@numba.njit(nogil=True, cache=True, fastmath={"reassoc"})
def _sum_above(values, threshold):  # type: ignore[no-untyped-def]
    """Return the sums of p and of 1 - p where p > threshold."""
    inside, pixels = 0.0, 0
    for i in range(values.size):
        above = np.float64(values[i]) > threshold
        inside += np.float64(values[i]) if above else 0.0
        pixels += above
    return inside, pixels - inside


@numba.njit(nogil=True, cache=True)
def _sum_atoms(ids, maps, first, last, inside):  # type: ignore[no-untyped-def]
    height, width = ids.shape
    for c in range(first, last):
        for y in range(height):
            for x in range(width):
                if ids[y, x] > 0:
                    inside[ids[y, x] - 1, c] += maps[c, y, x]


@numba.njit(nogil=True, cache=True)
def _refine(masks):  # type: ignore[no-untyped-def]
    """Return the ids, each atom's first pixel as y * W + x, and its area."""
    count, height, width = masks.shape
    size = height * width
    # At most `size` groups have pixels; one more is being made; and 0 is for the pixels no mask has had yet.
    group = np.zeros(size, np.int32)
    members = np.zeros(size + 2, np.int64)
    members[0] = size
    child = np.zeros(size + 2, np.int32)  # what mask k makes of a group,
    child_of = np.full(size + 2, -1, np.int32)  # if it is that k's
    free = np.empty(size + 2, np.int32)  # groups that lost all their pixels and may be used again
    free_count = 0
    used = 1
    for k in range(count):
        mask = masks[k].ravel()
        for i in range(size):
            if not mask[i]:
                continue
            old = group[i]
            if child_of[old] != k:
                child_of[old] = k
                if free_count:
                    free_count -= 1
                    child[old] = free[free_count]
                else:
                    child[old] = used
                    used += 1
            new = child[old]
            group[i] = new
            members[new] += 1
            members[old] -= 1
            if members[old] == 0 and old != 0:
                free[free_count] = old
                free_count += 1
    # Raster order of first pixels.
    number = np.zeros(used, np.int32)
    atom_count = 0
    for group_id in range(1, used):
        atom_count += members[group_id] > 0
    first_pixels = np.empty(atom_count, np.int64)
    area = np.empty(atom_count, np.int64)
    ids = np.zeros((height, width), np.int32)
    flat = ids.ravel()
    found = 0
    for i in range(size):
        old = group[i]
        if old == 0:
            continue
        if number[old] == 0:
            first_pixels[found] = i
            area[found] = members[old]
            found += 1
            number[old] = found
        flat[i] = number[old]
    return ids, first_pixels, area
