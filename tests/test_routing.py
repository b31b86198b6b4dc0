"""Which images mode auto asks the teacher about: budgets, the rule's fit, and that a share is kept."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from samdistill.errors import UsageError
from samdistill.export.fit_routing import fit_routing
from samdistill.export.fit_seen import Seen
from samdistill.geometry import ModelFrame
from samdistill.judging import Look
from samdistill.manifest_quality import STUDENT_NUMBERS, LinearRule, RoutingRule
from samdistill.refined import Refined
from samdistill.routing import Budget, decide, least_gain

GAINS = tuple(float(v) for v in np.linspace(-0.1, 0.1, 21))
BY_AREA = LinearRule(("area",), (0.4,), (0.1,), (0.1,), 0.0)


@pytest.mark.parametrize(
    ("text", "share", "seconds"),
    [("0.4", 0.4, None), ("40%", 0.4, None), ("1", 1.0, None), ("0.2s", None, 0.2), ("150 ms", None, 0.15)],
)
def test_budgets_are_read(text: str, share: float | None, seconds: float | None) -> None:
    found = Budget.parse(text)
    assert (found.share, found.seconds) == (pytest.approx(share), pytest.approx(seconds))


@pytest.mark.parametrize("text", ["", "much", "1.5", "-0.1", "140%", "0s", "5m", "nan", "1.2.3s", "%"])
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="budget must be a share such as"):
        Budget.parse(text)


def test_a_budget_asks_for_the_gain_that_so_many_validation_images_reached() -> None:
    rule = RoutingRule(True, "x", BY_AREA, 0.0, 8, GAINS, 0.0, 0.1, 0.0, 0.5)
    assert least_gain(rule, None) == least_gain(rule, 1.0) == 0
    assert least_gain(rule, 0.25) == pytest.approx(0.05)
    assert least_gain(rule, 0.9) == 0, "never below what helps"
    assert least_gain(rule, 0.0) == math.inf
    assert decide(rule, {"area": 0.45}, least=0.02).why == "gain"
    assert decide(rule, {"area": 0.45}, least=0.06).why == "budget"
    assert decide(rule, {"area": None}).why == "no gain"


def seen(gain: float, number: int, iou: float = 0.9) -> Seen:
    """A validation image on which refining wins so much."""
    masks = np.ones((1, 8, 8), np.bool_)
    pixels, logits = np.zeros((3, 8, 8), np.uint8), np.zeros((1, 8, 8), np.float32)
    found = np.ones(1, np.bool_)
    refined = Refined((None,), ((),), np.array([iou], np.float32), np.array([0.9], np.float32))
    return Seen(
        str(number), ModelFrame.of((8, 8), 8), pixels, logits, masks, np.array([0.5]), found, False, {},
        refined_masks=masks, refined=refined, refined_dice=np.array([0.5 + gain]), refined_found=found,
    )  # fmt: skip


def look_of(confidence: float) -> Look:
    numbers = dict.fromkeys(STUDENT_NUMBERS, 0.5) | {"confidence": confidence}
    return Look(np.zeros((1, 8, 8), np.float32), numbers, np.zeros(48))


@pytest.mark.parametrize(
    ("share", "refined"),
    [(0.03, 0), (0.05, 2), (0.1, 4), (0.21, 5), (0.5, 5), (0.75, 5), (0.8, 35), (0.95, 40), (0.99, 40)],
)
def test_a_budget_is_kept_where_many_images_expect_the_same_gain(share: float, refined: int) -> None:
    """As all of one component may; and an empty image, which is never refined, takes nothing of it."""
    signal = [*[0.95] * 5, *[1.0] * 30, 1.02, 1.04, 1.06, 1.08, 1.1, *[2.0] * 4]
    looks, cases = [look_of(v) for v in signal], [seen(v - 0.9, i) for i, v in enumerate(signal)]
    cases[40:] = [replace(one, empty=True, refined=None) for one in cases[40:]]
    rule = fit_routing(looks, cases)
    assert rule.refine
    least = least_gain(rule, share)
    routes = [
        decide(rule, view.numbers, least=least, empty=one.empty)
        for view, one in zip(looks, cases, strict=True)
    ]
    assert sum(one.refine for one in routes) == refined
    assert refined <= share * len(cases)


def test_a_gain_that_depends_on_the_student_is_found_and_told_of_images_left_out() -> None:
    signal = np.random.default_rng(0).normal(size=24)
    rule = fit_routing([look_of(v) for v in signal], [seen(0.1 * v, i) for i, v in enumerate(signal)])
    assert rule.refine
    assert "confidence" in rule.rule.features
    assert rule.gain_auto > 0.8 * np.clip(0.1 * signal, 0, None).mean()
    assert abs(rule.gain_always) < 0.05


@pytest.mark.parametrize("count", [1, 3, 8, 24])
def test_where_no_gain_can_be_shown_none_is_refined_and_the_manifest_says_why(count: int) -> None:
    rng = np.random.default_rng(1)
    looks = [look_of(v) for v in rng.normal(size=count)]
    rule = fit_routing(looks, [seen(v, i) for i, v in enumerate(rng.normal(-0.1, 0.1, count))])
    assert not rule.refine
    assert f"on {count} validation images" in rule.reason
    assert "no gain is shown" in rule.reason


def test_doubt_is_chosen_where_the_teachers_own_estimate_tells_its_failures() -> None:
    rng = np.random.default_rng(2)
    bad = rng.random(30) < 0.4
    cases = [seen(-0.3 if one else 0.1, i, iou=0.4 if one else 0.9) for i, one in enumerate(bad)]
    rule = fit_routing([look_of(v) for v in rng.normal(size=30)], cases)
    assert rule.refine
    assert 0.4 < rule.least_predicted_iou <= 0.9
