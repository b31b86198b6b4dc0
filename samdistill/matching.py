"""Who gets what: linear assignment over the core. Knows weights; knows not where masks came from."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from samdistill import _core
from samdistill.arrays import describe


def assign(
    weights: npt.ArrayLike, *, maximize: bool = True
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Choose min(R, C) entries, no two in one row or column, of greatest sum (Crouse 2016).

    The contract of `scipy.optimize.linear_sum_assignment`, but for the default of `maximize`. Among equally
    good assignments the choice is fixed, though not scipy's.

    Parameters
    ----------
    weights
        (R, C) numbers or bools; -inf forbids an entry (+inf when minimizing). Anything but C-contiguous
        float64 is copied once.
    maximize
        False for the least sum.

    Returns
    -------
    rows, columns
        (min(R, C),) int64 each, sorted by row.

    Raises
    ------
    ValueError
        When `weights` is no matrix of numbers, has NaN or the infinity that would always win, or when every
        assignment uses a forbidden entry.
    """
    matrix = np.asarray(weights)
    if matrix.ndim != 2 or matrix.dtype.kind not in "biuf":
        raise ValueError(f"weights must be a matrix (R, C) of numbers or bools, not {describe(matrix)}.")
    status, rows, columns = _core.assign(np.ascontiguousarray(matrix, dtype=np.float64), maximize)
    if status == 1:
        forbidden = "-inf" if maximize else "inf"
        raise ValueError(
            f"weights must be numbers, or {forbidden} where an entry is forbidden, not NaN or "
            f"{'inf' if maximize else '-inf'}."
        )
    if status == 2:
        raise ValueError("weights must allow an assignment, not forbid entries until none is feasible.")
    return rows, columns
