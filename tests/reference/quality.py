"""The numbers of docs/quality.md, pixel by pixel as it defines them."""

from __future__ import annotations

import math
from typing import Any


def class_numbers(probabilities: Any, mask: Any) -> dict[str, float]:
    height, width = mask.shape
    p = [[min(max(float(probabilities[y][x]), 1e-6), 1 - 1e-6) for x in range(width)] for y in range(height)]
    inside = [(y, x) for y in range(height) for x in range(width) if mask[y][x]]
    everywhere = sum(map(sum, p))
    entropy = -sum(q * math.log2(q) + (1 - q) * math.log2(1 - q) for row in p for q in row)
    if not inside:
        nothing = 1 - max(map(max, p))
        return {
            "expected_dice": nothing, "confidence": nothing, "sharpness": 1 / (1 + entropy),
            "area": 0.0, "components": 0.0, "largest_share": 1.0,
        }  # fmt: skip
    covered = sum(p[y][x] for y, x in inside)
    own = set(inside)
    edge = sum(any(n not in own for n in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1))) for y, x in inside)
    sizes = []
    left = set(inside)
    while left:
        todo, size = [left.pop()], 0
        while todo:
            y, x = todo.pop()
            size += 1
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            todo += near
        sizes.append(size)
    return {
        "expected_dice": 2 * covered / (len(inside) + everywhere),
        "confidence": covered / len(inside),
        "sharpness": 1 / (1 + entropy / edge),
        "area": math.sqrt(len(inside) / (height * width)),
        "components": float(len(sizes)),
        "largest_share": max(sizes) / len(inside),
    }


def reliability(probabilities: Any, truth: Any, bins: int) -> list[tuple[float, float, float]]:
    """Pixels, sum of probabilities and foreground pixels of each bin."""
    sums = [[0.0, 0.0, 0.0] for _ in range(bins)]
    for p, y in zip(probabilities, truth, strict=True):
        own = sums[min(int(p * bins), bins - 1)]
        own[0] += 1
        own[1] += float(p)
        own[2] += bool(y)
    return [(a, b, c) for a, b, c in sums]
