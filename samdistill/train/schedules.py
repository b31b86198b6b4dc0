"""Weights that rise or fall over a run, as functions of its share t/T. Knows no loss.

SemiSAM, section 2, prints `exponential`, exp(-5 (1 - t/T)); `gaussian`, exp(-5 (1 - t/T)^2), is what the
public code of it, of UA-MT and of their predecessors computes.
"""

from __future__ import annotations

import math

from samdistill.train.consistency_config import Shape


def ramp_up(shape: Shape, share: float) -> float:
    """Factor that comes to 1 at the end of the run.

    Parameters
    ----------
    shape
        "gaussian", "exponential", "constant" (1 throughout) or "off" (0 throughout).
    share
        t/T in [0, 1].
    """
    if shape == "off":
        return 0.0
    return 1.0 if shape == "constant" else math.exp(-5 * (1 - share) ** _POWERS[shape])


def ramp_down(shape: Shape, share: float) -> float:
    """Factor that is 1 at the start of the run; parameters as in `ramp_up`."""
    return ramp_up(shape, 1 - share)


_POWERS = {"gaussian": 2, "exponential": 1}
