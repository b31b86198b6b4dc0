"""Fits the rule of mode `auto`: which images gain by being refined, or that none can be shown to.

The gain is in Dice, of mode "refine" over "fast" on validation images. The rule is kept only where what it
gains exceeds its standard error, cross-validated with everything that is chosen on the way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from samdistill.export.fit_rules import LEAST_GROUPS, Vector, fit_best, out_of_fold, value_of
from samdistill.export.fit_seen import Seen
from samdistill.judging import Look
from samdistill.manifest_quality import GAIN_QUANTILES, STUDENT_NUMBERS, LinearRule, RoutingRule

IOU_STEPS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9)  # that the least predicted IoU may be
OF_GAIN = (
    ("largest_share",),
    ("confidence",),
    ("largest_share", "components", "confidence"),
    STUDENT_NUMBERS,
)


def fit_routing(looks: Sequence[Look], seen: Sequence[Seen]) -> RoutingRule:
    """The rule of mode "auto", and whether it gains anything on images that it was not fitted on."""
    groups = [one.group for one in seen]
    empty = np.array([one.empty for one in seen])
    rows = [one.numbers for one in looks]

    def fit_on(indices: Sequence[int]) -> tuple[LinearRule, float]:
        asked = [i for i in indices if not empty[i]]
        if not asked:
            return LinearRule((), (), (), (), 0.0), 0.0
        step = max(IOU_STEPS, key=lambda least: (np.mean([_gain(seen[i], least) for i in asked]), -least))
        target = np.array([_gain(seen[i], step) for i in asked])
        rule = fit_best([rows[i] for i in asked], target, [groups[i] for i in asked], OF_GAIN)
        return rule, step

    steps: dict[int, float] = {}

    def remembered(indices: Sequence[int]) -> Callable[[int], float]:
        rule, step = fit_on(indices)

        def say(i: int) -> float:
            steps[i] = step
            return value_of(rule, rows[i])

        return say

    expected = out_of_fold(groups, remembered)
    rule, least = fit_on(range(len(seen)))
    always = float(np.mean([_gain(one, 0.0) for one in seen]))
    if not np.isfinite(expected).all():
        expected = np.zeros(len(seen))
    chosen = (expected > 0) & ~empty
    won = np.array([_gain(one, steps[i]) if chosen[i] else 0.0 for i, one in enumerate(seen)])
    gain, error, share = float(won.mean()), _standard_error(won, groups), float(chosen.mean())
    refine = error is not None and gain > error
    told = "too few to tell an error" if error is None else f"standard error {100 * error:.1f}"
    reason = (
        f"on {len(seen)} validation images, cross-validated, refining the {share:.0%} for which a gain is "
        f"expected gains {100 * gain:+.1f} points of Dice ({told}), refining all {100 * always:+.1f}: "
        + ("so auto refines by the rule" if refine else "no gain is shown, so auto refines none")
    )
    # Of the very rule that decides, and each the value of an image: budgets are kept by them, and many images
    # may expect just as much. One in which nothing was found is never refined, whatever the rule says.
    own = np.where(empty, 0.0, [value_of(rule, row) for row in rows])
    quantiles = np.quantile(own, np.arange(GAIN_QUANTILES) / (GAIN_QUANTILES - 1), method="inverted_cdf")
    return RoutingRule(
        refine, reason, rule, least, len(seen), tuple(map(float, quantiles)), always, gain, error, share
    )


def _gain(one: Seen, least_predicted_iou: float) -> float:
    """What refining wins, in Dice, where classes of a lower predicted IoU keep the student's mask."""
    if one.refined is None or one.refined_dice is None:
        return 0.0
    sure = np.nan_to_num(one.refined.predicted_iou, nan=0.0) >= least_predicted_iou
    return float(np.where(sure, one.refined_dice - one.dice, 0.0).mean())


def _standard_error(values: Vector, groups: Sequence[str]) -> float | None:
    """Of the mean, over groups; None with fewer than LEAST_GROUPS."""
    names = list(dict.fromkeys(groups))
    if len(names) < LEAST_GROUPS:
        return None
    total = np.array([sum(v for v, g in zip(values, groups, strict=True) if g == name) for name in names])
    return float(total.std(ddof=1) * math.sqrt(len(names)) / len(values))
