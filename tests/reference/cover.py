"""The matcher by trying every choice, on pixels."""

from __future__ import annotations

from itertools import combinations

import numpy as np


def soft_iou(probability_map, mask):
    """Sum of p inside over (sum of p + sum of 1 - p inside); 0 where that is 0."""
    p = probability_map.astype(np.float64)
    either = p.sum() + (1 - p[mask]).sum()
    return p[mask].sum() / either if either > 0 else 0.0


def components(mask):
    """How many 8-connected components a mask has, by flooding."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    count = 0
    while left:
        count += 1
        front = [left.pop()]
        while front:
            y, x = front.pop()
            for near in [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]:
                if near in left:
                    left.remove(near)
                    front.append(near)
    return count


def best_value(maps, masks, lower, upper, limit=None):
    """The greatest sum of soft IoUs, each proposal in one class at most; None where there is no choice.

    With `limit`, the most proposals of each class, lower and upper are for components of the unions.
    """
    choices = []
    for c, plane in enumerate(maps):
        found = []
        for count in range(lower[c] if limit is None else 0, min((limit or upper)[c], len(masks)) + 1):
            for some in combinations(range(len(masks)), count):
                union = masks[list(some)].any(axis=0)
                if limit is None or lower[c] <= components(union) <= upper[c]:
                    found.append((soft_iou(plane, union), frozenset(some)))
        choices.append(sorted(found, key=lambda choice: -choice[0]))
    if not all(choices):
        return None
    best = None

    def go(c, taken, value):
        nonlocal best
        if c == len(choices):
            best = value if best is None else max(best, value)
            return
        hope = sum(rest[0][0] for rest in choices[c + 1 :])
        for score, some in choices[c]:
            if best is not None and value + score + hope <= best:
                break
            if not some & taken:
                go(c + 1, taken | some, value + score)

    go(0, frozenset(), 0.0)
    return best
