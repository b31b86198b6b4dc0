"""Fits linear rules to a handful of validation images, and says how well they did on images they did not see.

Ridge regression on standardised numbers; which numbers and how much ridge is chosen by cross-validation, and
what is told of a rule comes from another cross-validation around that choice, so that little data cannot look
good by chance. Folds keep groups (patients) whole. numpy alone; knows no image and no bundle.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from samdistill.manifest_quality import LinearRule
from samdistill.quality import CUT, evaluate_rule

Vector = npt.NDArray[np.float64]
Numbers = Mapping[str, float]
Fit = Callable[[Sequence[int]], Callable[[int], float]]

RIDGES = (1.0, 8.0, 64.0, 512.0)  # times the unit variance of a standardised number
FOLDS = 10
LEAST_GROUPS = 4  # for a rule, and for each number in it; fewer tell neither a slope nor an error
LEAST_SPREAD = 1e-3  # a number that spreads less over the images is divided by this


def folds(groups: Sequence[str], most: int = FOLDS) -> list[list[int]]:
    """Divide images into folds that keep groups whole: one a group, or `most` of them, filled in turns."""
    order = {name: number for number, name in enumerate(dict.fromkeys(groups))}
    count = min(most, len(order))
    return [[i for i, name in enumerate(groups) if order[name] % count == fold] for fold in range(count)]


def out_of_fold(groups: Sequence[str], fit: Fit) -> Vector:
    """What a way of fitting says of each image when that image's fold was left out; NaN with one group.

    Parameters
    ----------
    groups
        Of each image.
    fit
        Gets the indices of the images it may see, gives what it then says of an image by its index.
    """
    values = np.full(len(groups), np.nan)
    parts = folds(groups)
    if len(parts) < 2:
        return values
    for left_out in parts:
        hidden = set(left_out)
        say = fit([i for i in range(len(groups)) if i not in hidden])
        for i in left_out:
            values[i] = say(i)
    return values


def fit_ridge(
    rows: Sequence[Numbers],
    target: Vector,
    features: Sequence[str],
    ridge: float,
    rising: Collection[str] = (),
) -> LinearRule:
    """Ridge regression of one number an image on some of its numbers; the intercept is not held back.

    Those of `rising` have no negative weight: the most negative is left out, and the others are fitted again.
    """
    table = np.array([[row[name] for name in features] for row in rows]).reshape(len(rows), len(features))
    centre = table.mean(axis=0)
    scale = np.maximum(table.std(axis=0), LEAST_SPREAD)
    standard = np.clip((table - centre) / scale, -CUT, CUT)
    offset = standard.mean(axis=0)
    inner = standard - offset
    mean = float(target.mean())
    weights = np.linalg.solve(inner.T @ inner + ridge * np.eye(len(features)), inner.T @ (target - mean))
    wrong = {n: w for n, w in zip(features, weights, strict=True) if n in rising and w < 0}
    if wrong:
        worst = min(wrong, key=wrong.__getitem__)
        return fit_ridge(rows, target, [name for name in features if name != worst], ridge, rising)
    centres, scales, slopes = (tuple(float(v) for v in one) for one in (centre, scale, weights))
    return LinearRule(tuple(features), centres, scales, slopes, mean - float(offset @ weights))


def fit_best(
    rows: Sequence[Numbers],
    target: Vector,
    groups: Sequence[str],
    candidates: Sequence[Sequence[str]],
    rising: Collection[str] = (),
) -> LinearRule:
    """The rule of those numbers and that ridge whose cross-validated error is least, among equals the first.

    `rising` as for `fit_ridge`. With a single group there is nothing to choose by: a rule without any number,
    the mean.
    """
    if len(set(groups)) < 2:
        return LinearRule((), (), (), (), float(target.mean()))
    best: tuple[float, Sequence[str], float] | None = None
    for features in candidates:
        for ridge in RIDGES:
            fit = _ridge_fit(rows, target, features, ridge, rising)
            error = float(np.mean((out_of_fold(groups, fit) - target) ** 2))
            if best is None or error < best[0] - 1e-12:
                best = error, features, ridge
    assert best is not None
    return fit_ridge(rows, target, best[1], best[2], rising)


def _ridge_fit(
    rows: Sequence[Numbers], target: Vector, features: Sequence[str], ridge: float, rising: Collection[str]
) -> Fit:
    def fit(seen: Sequence[int]) -> Callable[[int], float]:
        rule = fit_ridge([rows[i] for i in seen], target[list(seen)], features, ridge, rising)
        return lambda i: value_of(rule, rows[i])

    return fit


def value_of(rule: LinearRule, row: Numbers) -> float:
    """The value of a rule for an image that has all its numbers."""
    value = evaluate_rule(rule, row)
    assert value is not None
    return value


def bounds(errors: Vector, level: float) -> tuple[float, float] | None:
    """How far the truth lies from its estimate, from below and from above, each but for `level` of images.

    Parameters
    ----------
    errors
        (N,) truth - estimate of images that the estimate did not see.
    level
        In (0, 0.5).

    Returns
    -------
    tuple or None
        The k-th smallest and the k-th largest, k = floor(level (N + 1)), which holds for a further image
        whatever the errors' distribution (conformal prediction, Vovk et al. 2005, section 2.2); None with too
        few images for any k.
    """
    k = int(level * (len(errors) + 1))
    if k < 1 or not np.isfinite(errors).all():
        return None
    ordered = np.sort(errors)
    return float(ordered[k - 1]), float(ordered[-k])
