"""Assignment by trying every one."""

from __future__ import annotations

from itertools import permutations

import numpy as np


def best_value(weights, maximize):
    """The value of the best assignment, or None where every one uses a forbidden (infinite) entry."""
    matrix = np.asarray(weights, dtype=float)
    if matrix.shape[0] > matrix.shape[1]:
        matrix = matrix.T
    rows = range(matrix.shape[0])
    values = [
        sum(matrix[r, c] for r, c in zip(rows, chosen, strict=True))
        for chosen in permutations(range(matrix.shape[1]), len(rows))
    ]
    finite = [value for value in values if np.isfinite(value)]
    return (max if maximize else min)(finite) if finite else None
