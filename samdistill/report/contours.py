"""Outlines of masks along the pixels' edges, as paths of an SVG: as sharp at any zoom as the mask is."""

from __future__ import annotations

import numpy as np

from samdistill.arrays import Mask, check_mask

EAST, SOUTH, WEST, NORTH = range(4)
Ring = list[tuple[int, int]]  # corners xy in pixel edges: pixel (y, x) spans x..x+1 and y..y+1


def trace(mask: Mask) -> list[Ring]:
    """Walk around the foreground and its holes.

    Parameters
    ----------
    mask
        (H, W) bool or uint8; non-zero is foreground.

    Returns
    -------
    list
        Closed rings of corners, foreground on the right hand, so clockwise around objects and
        counter-clockwise around holes. Pixels that touch at a corner belong together.
    """
    mask = check_mask(mask)
    columns = mask.shape[1] + 1
    edges = _edges(mask)
    there = [bytes(some) for some in edges]  # those walked along, too: where a ring ends it must not go on
    steps = (1, columns, -1, -columns)  # of the flat corner index, by direction
    rings = []
    for first in np.flatnonzero(np.frombuffer(edges[EAST], np.uint8)).tolist():
        if not edges[EAST][first]:
            continue  # walked along already
        ring: Ring = []
        corner, direction, last = first, EAST, NORTH
        while edges[direction][corner]:
            if direction != last:
                ring.append((corner % columns, corner // columns))
            edges[direction][corner] = 0
            corner, last = corner + steps[direction], direction
            # Turning left first crosses to the pixel that touches at this corner.
            direction = next(
                (d for d in ((last - 1) % 4, last, (last + 1) % 4) if there[d][corner]), direction
            )
        rings.append(ring)
    return rings


def path_data(mask: Mask) -> str:
    """The `d` of an SVG path around a mask, in pixel edges; empty for an empty mask."""
    return "".join(_ring_data(ring) for ring in trace(mask))


def _edges(mask: Mask) -> list[bytearray]:
    """For each direction, which corners (flat index) an edge with foreground on its right leaves from."""
    framed = np.pad(mask, 1)
    # Corner (y, x) has the pixels (y-1, x-1), (y-1, x), (y, x-1), (y, x) around it.
    above_left, above, left, here = framed[:-1, :-1], framed[:-1, 1:], framed[1:, :-1], framed[1:, 1:]
    leaving = (here & ~above, left & ~here, above_left & ~left, above & ~above_left)
    return [bytearray(np.ascontiguousarray(one).tobytes()) for one in leaving]


def _ring_data(ring: Ring) -> str:
    (x, y), *others = ring
    parts = [f"M{x} {y}"]
    for index, (x, y) in enumerate(others):
        parts.append(f"V{y}" if index % 2 else f"H{x}")
    return "".join(parts) + "Z"
