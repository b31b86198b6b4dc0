"""Calibration, the numbers of an answer, its score and flag: as defined, and None where there are none."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from reference.quality import class_numbers
from reference.quality import reliability as slow_reliability
from test_manifest import changed
from test_manifest import judged as with_quality

from samdistill import quality
from samdistill.calibration import BINS, Reliability, calibrated
from samdistill.export.fit_calibration import MOST_PIXELS, Drawn, Pixels, fit_calibration, temperature_of
from samdistill.export.fit_quality import OF_STUDENT, _score
from samdistill.export.fit_rules import bounds, fit_best, fit_ridge, folds, out_of_fold, value_of
from samdistill.export.model_card import model_card
from samdistill.geometry import sigmoid
from samdistill.manifest import parse
from samdistill.manifest_quality import ClassRange, LinearRule, QualityRule, Reference, ScoreRule
from samdistill.quality import NUMBERS, judge, student_numbers

PROBABILITIES = st.floats(0, 1, width=32)
PICTURES = st.tuples(st.integers(1, 7), st.integers(1, 7)).flatmap(
    lambda size: st.tuples(
        arrays(np.float32, size, elements=PROBABILITIES), arrays(np.bool_, size, elements=st.booleans())
    )
)
RULE = LinearRule(("confidence",), (0.8,), (0.1,), (0.1,), 0.7)
REFERENCE = Reference(9, (ClassRange((0.1, 0.5), (1, 2)),), tuple(np.tile(np.arange(1, 17) / 16, 3)))
QUALITY = QualityRule(
    0.7,
    ScoreRule(RULE, 9, 0.1, accept=0.75, reject=0.45),
    REFERENCE,
    {"area_off": 0.5, "components_off": 1.0},
)


# --- calibration


@given(arrays(np.float32, (2, 5, 4), elements=PROBABILITIES), st.floats(0.5, 5), st.floats(0.02, 0.98))
def test_no_temperature_changes_a_mask_at_any_threshold(
    maps: Any, temperature: float, threshold: float
) -> None:
    after = calibrated(maps, (temperature, 1.0))
    at = np.float32(threshold)
    for channel, one in enumerate((temperature, 1.0)):
        moved = calibrated(np.full((1, 1), at), (one,))[0, 0]
        # Where float32 cannot tell map and threshold apart any more, neither can calibration.
        clear = np.abs(maps[channel] - at) > 1e-4
        np.testing.assert_array_equal(((after[channel] > moved) == (maps[channel] > at))[clear], True)
    assert ((after > 0.5) == (maps > 0.5))[np.abs(maps - 0.5) > 1e-6].all()
    assert after.dtype == np.float32
    assert (after >= 0).all()
    assert (after <= 1).all()


def test_one_temperature_a_class_is_asked_for() -> None:
    with pytest.raises(ValueError, match="one a class, 2, not 1"):
        calibrated(np.zeros((2, 3, 3), np.float32), (1.0,))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_made_the_labels_is_found(temperature: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 4, (4, 20_000)).astype(np.float32)
    truth = rng.random(logits.shape) < sigmoid(logits / np.float32(temperature))
    weights = np.full(logits.shape[1], 1 / logits.shape[1])
    found = temperature_of([Drawn(p, y, weights) for p, y in zip(sigmoid(logits), truth, strict=True)])
    assert found == pytest.approx(temperature, rel=0.03)


def test_calibration_lowers_loss_and_error_and_leaves_out_ignored_pixels() -> None:
    rng = np.random.default_rng(1)
    pixels, spoiled = Pixels(), Pixels()
    for _ in range(5):
        logits = rng.normal(0, 3, (1, 60, 50)).astype(np.float32)
        truth = rng.random(logits.shape) < sigmoid(logits / np.float32(3))
        ignored = np.zeros((60, 50), np.bool_)
        pixels.add(sigmoid(logits), truth, ignored)
        wrong, ignored = truth.copy(), ignored.copy()
        wrong[:, :30], ignored[:30] = ~wrong[:, :30], True
        spoiled.add(sigmoid(logits), wrong, ignored)
    made, notes = fit_calibration(pixels, ["a"])
    assert made.nll_after[0] < made.nll_before[0]
    assert made.ece_after[0] < made.ece_before[0] / 3
    assert notes == []
    assert fit_calibration(spoiled, ["a"])[0].temperatures[0] == pytest.approx(made.temperatures[0], rel=0.1)


def test_a_class_without_a_foreground_pixel_keeps_its_probabilities_and_says_so() -> None:
    pixels = Pixels()
    pixels.add(np.full((1, 4, 4), 0.3, np.float32), np.zeros((1, 4, 4), np.bool_), np.zeros((4, 4), np.bool_))
    made, notes = fit_calibration(pixels, ["lesion"])
    assert made.temperatures == (1.0,)
    assert notes == ["lesion is nowhere in the validation masks, so its probabilities are not calibrated"]


def test_a_large_image_is_seen_in_all_its_columns_and_its_small_lesion_whole() -> None:
    """One of 2 % of the image between two multiples of 50, and one of 100 px: 1000 x 1000 px are 50 draws."""
    truth = np.zeros((2, 1000, 1000), np.bool_)
    truth[0, 200:700, 405:445] = True
    truth[1, 200:210, 405:415] = True
    pixels = Pixels()
    pixels.add(truth.astype(np.float32), truth, np.zeros((1000, 1000), np.bool_))
    (large, small), _ = pixels.images[0], fit_calibration(pixels, ["large", "small"])
    assert large.truth.sum() == MOST_PIXELS
    assert small.truth.sum() == 100
    for drawn, share in ((large, 0.02), (small, 0.0001)):
        assert len(drawn.truth) == drawn.truth.sum() + MOST_PIXELS
        assert drawn.weights[drawn.truth].sum() == pytest.approx(share)
        assert drawn.weights.sum() == pytest.approx(1)
        np.testing.assert_array_equal(drawn.probabilities > 0.5, drawn.truth)


def test_pixels_that_are_drawn_tell_the_temperature_of_all() -> None:
    rng = np.random.default_rng(4)
    logits = rng.normal(-6, 2, (1, 500, 500)).astype(np.float32)
    truth = rng.random(logits.shape) < sigmoid(logits / np.float32(2))
    every, drawn, nothing = Pixels(), Pixels(), np.zeros((500, 500), np.bool_)
    drawn.add(sigmoid(logits), truth, nothing)
    every.images.append([Drawn(sigmoid(logits).ravel(), truth.ravel(), np.full(250_000, 1 / 250_000))])
    one, other = (fit_calibration(pixels, ["a"])[0] for pixels in (every, drawn))
    assert len(drawn.images[0][0].truth) < 50_000
    assert other.temperatures[0] == pytest.approx(one.temperatures[0], rel=0.02)
    assert other.nll_after[0] == pytest.approx(one.nll_after[0], rel=0.02)
    assert other.ece_before[0] == pytest.approx(one.ece_before[0], rel=0.05)


@given(PICTURES)
def test_reliability_is_what_counting_gives(picture: Any) -> None:
    maps, truth = picture
    found = Reliability.of(maps, truth)
    wanted = np.array(slow_reliability(maps.ravel(), truth.ravel(), BINS))
    got = np.stack([found.count, found.probability, found.positive], axis=1)
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    twice = found + found
    assert twice.ece == pytest.approx(found.ece)
    error = sum(abs(p - y) for _, p, y in wanted) / maps.size
    assert found.ece == pytest.approx(error, abs=1e-6)


# --- numbers


@settings(max_examples=60)
@given(PICTURES)
def test_the_students_numbers_are_what_their_definition_says(picture: Any) -> None:
    maps, mask = picture
    found = student_numbers(maps[None], mask[None])
    wanted = class_numbers(maps, mask)
    assert found == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def test_numbers_are_means_over_the_classes() -> None:
    maps = np.full((2, 6, 6), 0.9, np.float32)
    masks = np.stack([np.ones((6, 6), np.bool_), np.zeros((6, 6), np.bool_)])
    assert student_numbers(maps, masks)["confidence"] == pytest.approx((0.9 + 0.1) / 2, abs=1e-6)


@pytest.mark.parametrize(
    ("side", "off"),
    [(3, np.log2(10 / 9)), (4, 0.0), (7, 0.0), (10, 1.0), (2, np.log2(10 / 4)), (0, np.log2(10))],
)
def test_areas_out_of_range_are_told_in_doublings(side: int, off: float) -> None:
    """Of 100 px at least 10 and at most 50 are covered; a square of side 3 is 9 px."""
    mask = np.zeros((1, 10, 10), np.bool_)
    mask[:, :side, :side] = True
    found = quality.shape_numbers(mask, REFERENCE)["area_off"]
    assert found == pytest.approx(off)


def test_component_counts_out_of_range_are_counted() -> None:
    mask = np.zeros((1, 20, 20), np.bool_)
    mask[:, ::6, ::6] = True  # 16 single pixels
    assert quality.shape_numbers(mask, REFERENCE)["components_off"] == 14
    assert quality.shape_numbers(~mask, REFERENCE)["components_off"] == 0
    assert quality.shape_numbers(mask & False, REFERENCE)["components_off"] == 1


def test_intensity_distance_is_0_to_itself_and_1_from_black_to_white() -> None:
    black, white = np.zeros((3, 4, 5), np.uint8), np.full((3, 4, 5), 255, np.uint8)
    histogram = quality.intensity_histogram(black)
    assert quality.intensity_distance(histogram, histogram) == 0
    assert quality.intensity_distance(histogram, quality.intensity_histogram(white)) == pytest.approx(15 / 16)


@given(PICTURES, st.integers(1, 9), st.integers(1, 9))
def test_sampled_masks_hold_what_lies_at_their_pixel_centres(picture: Any, height: int, width: int) -> None:
    _, mask = picture
    found = quality.sampled(mask[None], (height, width))[0]
    rows, columns = (
        [int((i + 0.5) * of / to) for i in range(to)]
        for to, of in zip((height, width), mask.shape, strict=True)
    )
    wanted = mask[np.ix_(rows, columns)]
    if wanted.any():
        np.testing.assert_array_equal(found, wanted)
    assert found.any() == mask.any()


def test_a_lesion_narrower_than_the_stride_is_judged_as_one_and_not_as_nothing() -> None:
    maps = np.full((1, 96, 96), 0.001, np.float32)
    maps[0, 39:43, 39:43] = 0.97
    for shift in range(11):
        mask = np.zeros((1, 1024, 1024), np.bool_)
        mask[0, 427 + shift : 434 + shift, 427 + shift : 434 + shift] = True
        found = student_numbers(maps, quality.sampled(mask, (96, 96)))
        assert found["components"] == 1
        assert found["confidence"] == pytest.approx(0.97)


# --- score and flag


def judged(confidence: float, rule: QualityRule = QUALITY, **options: Any) -> quality.Quality:
    numbers = dict.fromkeys(quality.STUDENT_NUMBERS, 0.5) | {"confidence": confidence}
    mask = np.zeros((1, 10, 10), np.bool_)
    mask[:, :5, :4] = True
    return judge(rule, {**numbers, "intensity_distance": 0.1}, mask, **options)


@pytest.mark.parametrize(
    ("confidence", "score", "flag", "reasons"),
    [
        (0.9, 0.8, "accept", ()), (0.8, 0.7, "review", ("score",)), (0.5, 0.4, "reject", ("score",)),
        (9.0, 1.0, "accept", ()), (-9.0, 0.4, "reject", ("score",)),
    ],
)  # fmt: skip
def test_the_flag_follows_the_score(confidence: float, score: float, flag: str, reasons: Any) -> None:
    """Far out a number counts as three scales from the centre."""
    found = judged(confidence)
    assert found.score == pytest.approx(score)
    assert (found.flag, found.reasons) == (flag, reasons)


def test_what_is_unlike_the_training_data_is_not_accepted() -> None:
    mask = np.ones((1, 10, 10), np.bool_)
    numbers = dict.fromkeys(quality.STUDENT_NUMBERS, 0.9)
    found = judge(QUALITY, numbers, mask)
    assert (found.flag, found.reasons) == ("review", ("area_off",))


def test_what_lies_below_all_validation_images_is_not_accepted() -> None:
    assert QUALITY.student is not None
    known = {"confidence": 0.85, "sharpness": 0.5}
    rule = replace(QUALITY, student=replace(QUALITY.student, least=known))
    assert judged(0.9, rule).flag == "accept"
    found = judged(0.9, replace(rule, student=replace(QUALITY.student, least={**known, "sharpness": 0.6})))
    assert (found.flag, found.reasons) == ("review", ("sharpness",))


def test_a_score_below_abstain_is_rejected() -> None:
    assert judged(0.9, abstain=0.81).flag == "reject"
    assert judged(0.9, abstain=0.81).reasons == ("abstain",)
    assert judged(0.9, abstain=0.79).flag == "accept"


def test_too_few_validation_images_accept_and_reject_nothing() -> None:
    assert QUALITY.student is not None
    rule = replace(QUALITY, student=replace(QUALITY.student, accept=None, reject=None))
    numbers = dict.fromkeys(quality.STUDENT_NUMBERS, 0.99)
    assert judge(rule, numbers, np.zeros((1, 10, 10), np.bool_)).flag == "review"
    found = judged(0.9, replace(QUALITY, student=None))
    assert (found.score, found.flag) == (None, None)
    assert found.missing["score"] == "too few validation images were there to learn from"


def test_every_number_has_a_value_or_a_reason() -> None:
    for found in (
        quality.unknown("no rule"),
        judged(0.9),
        judged(0.9, teacher={"agreement": None, "predicted_iou": None}),
        judged(
            0.9, teacher={"agreement": 0.8, "predicted_iou": 0.9, "embedding_distance": 1.0}, stability=1.0
        ),
    ):
        assert set(found.numbers) == set(NUMBERS)
        for name, value in found.numbers.items():
            assert (value is None) == (name in found.missing), name
        assert (found.score is None) == ("score" in found.missing) == (found.flag is None)


@pytest.mark.parametrize(
    ("teacher", "stability", "why"),
    [
        (None, None, "the teacher was not asked"),
        ({"agreement": 0.8}, None, "not asked for"),
        ({"agreement": None}, np.nan, "there was nothing to ask about"),
    ],
)
def test_why_there_is_no_stability_is_told(teacher: Any, stability: float | None, why: str) -> None:
    found = judged(0.9, teacher=teacher, stability=stability)
    assert (found.numbers["stability"], found.missing["stability"]) == (None, why)


def test_a_rule_whose_number_is_missing_gives_no_score() -> None:
    rule = replace(QUALITY, refined=ScoreRule(replace(RULE, features=("agreement",)), 9, 0.1))
    mask = np.zeros((1, 10, 10), np.bool_)
    numbers = dict.fromkeys(quality.STUDENT_NUMBERS, 0.9)
    found = judge(rule, numbers, mask, teacher={"agreement": None}, refined=True)
    assert found.score is None
    assert found.flag is None
    assert "number" in found.missing["score"]


def test_no_rule_of_the_students_scores_a_mask_of_the_teachers() -> None:
    assert QUALITY.refined is None
    found = judged(0.9, teacher={"agreement": 0.8, "predicted_iou": 0.9}, refined=True)
    assert (found.score, found.flag) == (None, None)
    assert "too few validation images had a mask of the teacher's" in found.missing["score"]
    assert found.numbers["agreement"] == 0.8


def test_an_answer_without_a_score_is_rejected_where_a_least_one_is_asked_for() -> None:
    found = judged(0.9, teacher={"agreement": 0.8, "predicted_iou": 0.9}, refined=True, abstain=0.1)
    assert (found.score, found.flag, found.reasons) == (None, "reject", ("abstain",))


def test_of_several_images_the_worst_is_told() -> None:
    told = quality.told([judged(0.9), judged(0.5), judged(0.8)])
    assert (told["flag"], told["image"]) == ("reject", 1)
    assert told["flags"] == {"accept": 1, "reject": 1, "review": 1}
    assert "image" not in quality.told([judged(0.9)])


def test_an_image_without_a_score_hides_no_rejected_one_and_is_hidden_by_no_other() -> None:
    nothing = quality.unknown("no rule")
    assert quality.told([judged(0.9), nothing, judged(0.5)])["flag"] == "reject"
    assert quality.told([judged(0.9), judged(0.8), nothing])["flag"] is None


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=12))
def test_auroc_is_the_share_of_pairs_told_apart(cases: list[tuple[float, bool]]) -> None:
    pairs = [(g, b) for g, bad in cases if not bad for b, other in cases if other]
    wanted = np.mean([(g > b) + 0.5 * (g == b) for g, b in pairs]) if pairs else float("nan")
    found = quality.auroc([score for score, _ in cases], [bad for _, bad in cases])
    assert found == pytest.approx(wanted, nan_ok=True)


def test_auroc_of_a_large_data_set_does_not_look_at_pairs() -> None:
    """Of 2 n cases in rising order every other one is bad: the i-th of them lies below n - i good ones."""
    n = 300_000
    found = quality.auroc(np.arange(2 * n).tolist(), [True, False] * n)
    assert found == pytest.approx((n + 1) / (2 * n))


# --- fitting


def test_ridge_without_ridge_is_least_squares() -> None:
    rng = np.random.default_rng(2)
    table = rng.normal(size=(40, 2))
    target = 0.3 + table @ [0.5, -0.2]
    rows = [{"a": float(x), "b": float(y)} for x, y in table]
    rule = fit_ridge(rows, target, ("a", "b"), 1e-9)
    inside = (np.abs(table - table.mean(axis=0)) < 3 * table.std(axis=0)).all(axis=1)
    found = np.array([value_of(rule, row) for row in rows])
    np.testing.assert_allclose(found[inside], target[inside], atol=1e-6)


def test_no_image_is_judged_by_a_rule_that_saw_it_or_its_group() -> None:
    groups = ["a", "b", "a", "c", "b", "d"]
    saw: list[set[str]] = []

    def fit(indices: Any) -> Any:
        own = {groups[i] for i in indices}
        saw.append(own)

        def say(i: int) -> float:
            assert groups[i] not in own
            return 1.0

        return say

    assert (out_of_fold(groups, fit) == 1).all()
    assert len(saw) == 4
    assert sorted(i for part in folds(groups) for i in part) == list(range(6))
    assert len(folds([str(i) for i in range(37)])) == 10


def test_a_number_that_tells_nothing_is_held_back_and_one_that_tells_is_chosen() -> None:
    rng = np.random.default_rng(3)
    rows = [{"noise": float(a), "signal": float(b)} for a, b in rng.normal(size=(30, 2))]
    target = np.array([0.5 + 0.2 * row["signal"] for row in rows])
    groups = [str(i) for i in range(30)]
    rule = fit_best(rows, target, groups, (("noise",), ("signal",)))
    assert rule.features == ("signal",)
    nothing = fit_best(rows, rng.normal(size=30), groups, (("noise",),))
    assert abs(nothing.weights[0]) < 0.1
    alone = fit_best(rows[:1], target[:1], groups[:1], (("signal",),))
    assert (alone.features, alone.intercept) == ((), target[0])


@pytest.mark.parametrize(("count", "wanted"), [(3, None), (4, (0.0, 3.0)), (9, (1.0, 7.0))])
def test_bounds_are_order_statistics_and_want_enough_images(count: int, wanted: Any) -> None:
    assert bounds(np.random.default_rng(0).permutation(count).astype(float), 0.2) == wanted


def test_no_number_of_which_more_is_better_lowers_the_score_by_being_high() -> None:
    rng = np.random.default_rng(5)
    table = rng.normal(size=(20, 2))
    rows = [{"confidence": float(a), "area": float(b)} for a, b in table]
    target = 0.5 - 0.1 * table[:, 0] - 0.05 * table[:, 1]
    assert fit_ridge(rows, target, ("confidence", "area"), 1.0).weights[0] < 0
    found = fit_ridge(rows, target, ("confidence", "area"), 1.0, ("confidence",))
    alone = fit_ridge(rows, target, ("area",), 1.0)
    assert found == alone
    nothing = fit_best(rows, target, [str(i) for i in range(20)], (("confidence",),), ("confidence",))
    assert (nothing.features, nothing.intercept) == ((), pytest.approx(target.mean()))


def picture(confidence: float, background: float = 0.01) -> quality.Numbers:
    mask = np.zeros((1, 64, 64), np.bool_)
    mask[0, 16:48, 16:48] = True
    return student_numbers(np.where(mask, confidence, background).astype(np.float32), mask)


def score_of(confidences: Any, groups: Any) -> ScoreRule | None:
    dice = [0.9 + 0.05 * (one - 0.95) for one in confidences]
    seen: Any = [SimpleNamespace(group=one) for one in groups]
    return _score([picture(one) for one in confidences], dice, seen, OF_STUDENT)


def test_a_failed_answer_is_not_accepted_though_all_validation_images_were_good() -> None:
    """Their numbers are so alike, cut to 3 scales, that no answer at all has a low score."""
    confidences = 0.97 + 0.02 * np.random.default_rng(1).random(8)
    score = score_of(confidences, range(8))
    assert score is not None
    rule = replace(QUALITY, student=score)
    mask = np.zeros((1, 64, 64), np.bool_)
    mask[0, 16:48, 16:48] = True
    for inside, outside, flag in ((0.975, 0.01, "accept"), (0.98, 0.49, "review"), (0.6, 0.01, "review")):
        found = judge(rule, picture(inside, outside), mask)
        assert found.score is not None
        assert score.accept is not None
        assert found.score > score.accept
        assert found.flag == flag
    assert {"confidence", "expected_dice"} <= set(judge(rule, picture(0.51, 0.4), mask).reasons)


@pytest.mark.parametrize(
    ("groups", "most"), [("aaaaaaaa", None), ("aabbccaa", None), ("aabbccdd", 1), ("abcdefgh", 2)]
)
def test_few_patients_allow_few_numbers_in_a_rule_and_fewer_than_four_none(groups: str, most: Any) -> None:
    found = score_of(np.linspace(0.6, 0.99, 8), groups)
    assert (found is None) == (most is None)
    assert found is None or 1 <= len(found.rule.features) <= most


@pytest.mark.parametrize(
    ("accept", "reject", "told"),
    [
        (0.8, 0.5, "An answer is accepted from a score of 0.80 on; below 0.50 it is rejected."),
        (1.05, 0.6, "No score is high enough to accept an answer; below 0.60 it is rejected."),
        (0.0, -0.1, "An answer is accepted at any score; none is low enough to reject it."),
        (1.2, 1.1, "No score is high enough to accept an answer; none is high enough not to reject it."),
    ],
)
def test_the_model_card_promises_no_score_that_there_cannot_be(
    accept: float, reject: float, told: str
) -> None:
    values = changed(with_quality("quality.student.accept", accept))
    values["quality"]["student"]["reject"] = reject
    assert told in model_card(parse(json.dumps(values).encode()))
    values["quality"]["student"] = None
    assert "no answer is flagged" in model_card(parse(json.dumps(values).encode()))
