"""Means with bootstrap confidence intervals, over cases or over groups of cases; knows no metric.

Cases of one patient resemble each other, so where a data set has groups whole groups are drawn: an interval
over single images would be too narrow. Percentile bootstrap (Efron and Tibshirani 1993, section 13.3).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

DRAWS = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean with its confidence interval.

    Parameters
    ----------
    mean
        Over the cases that have a value; NaN when none has.
    low, high
        Bounds of the interval; NaN with fewer than two groups, from which no spread can be told.
    count
        Cases with a value.
    missing
        Cases without one (NaN), left out of everything else.
    """

    mean: float
    low: float
    high: float
    count: int
    missing: int = 0


def bootstrap_mean(
    values: npt.ArrayLike,
    *,
    groups: Sequence[Hashable] | None = None,
    draws: int = DRAWS,
    level: float = LEVEL,
    seed: int = 0,
) -> Estimate:
    """Mean of one number a case, and the interval that redrawing the cases gives.

    Parameters
    ----------
    values
        (N,) numbers; NaN is a case without a value.
    groups
        (N,) the group (patient) of each case; whole groups are drawn. None draws single cases.
    draws
        Resamples, at least 1.
    level
        Share of resampled means inside the interval, in (0, 1).
    seed
        The same seed, values and groups give the same interval.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1:
        raise ValueError(f"values must be (N,) numbers, not of shape {numbers.shape}.")
    if groups is not None and len(groups) != len(numbers):
        raise ValueError(f"groups must name one group a value: {len(numbers)}, not {len(groups)}.")
    if draws < 1 or not 0 < level < 1:
        raise ValueError(f"draws must be at least 1 and level in (0, 1), not {draws} and {level}.")
    known = ~np.isnan(numbers)
    count, missing = int(known.sum()), int((~known).sum())
    if count == 0:
        return Estimate(float("nan"), float("nan"), float("nan"), 0, missing)
    names = list(range(len(numbers))) if groups is None else list(groups)
    order: dict[Hashable, int] = {}  # numbered as they come, so that equal input gives equal draws
    index = np.array([order.setdefault(names[i], len(order)) for i in np.flatnonzero(known)])
    sums, sizes = np.bincount(index, numbers[known]), np.bincount(index)
    mean = float(sums.sum() / count)
    if len(order) < 2:
        return Estimate(mean, float("nan"), float("nan"), count, missing)
    random = np.random.default_rng(seed)
    means = np.empty(draws)
    for draw in range(draws):
        drawn = random.integers(len(order), size=len(order))
        means[draw] = sums[drawn].sum() / sizes[drawn].sum()
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(mean, float(low), float(high), count, missing)


def paired_difference(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    *,
    groups: Sequence[Hashable] | None = None,
    draws: int = DRAWS,
    level: float = LEVEL,
    seed: int = 0,
) -> Estimate:
    """Mean of first - second over the same cases, with its interval; a case NaN in either is missing.

    An interval that excludes 0 says that the two differ on cases like these. Parameters as in
    `bootstrap_mean`.
    """
    left, right = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if left.shape != right.shape:
        raise ValueError(f"first must have second's shape {right.shape}, not {left.shape}.")
    return bootstrap_mean(left - right, groups=groups, draws=draws, level=level, seed=seed)
