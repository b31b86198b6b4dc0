"""Dice, IoU, HD95, ASD and the bootstrap: worked by hand, and against MONAI and surface-distance."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from samdistill.errors import DeviceUnavailable
from samdistill.metrics import asd, dice, dice_per_class, hd95, iou, iou_per_class, surface_distances
from samdistill.statistics import bootstrap_mean, paired_difference

Mask = npt.NDArray[np.bool_]
EMPTY = np.zeros((5, 7), bool)
FULL = np.ones((5, 7), bool)
shapes = st.tuples(st.integers(1, 14), st.integers(1, 14))
pairs = shapes.flatmap(lambda shape: st.tuples(arrays(np.bool_, shape), arrays(np.bool_, shape)))
spacings = st.tuples(st.floats(0.1, 5.0), st.floats(0.1, 5.0))


def block(y0: int, y1: int, x0: int, x1: int, shape: tuple[int, int] = (12, 12)) -> Mask:
    mask = np.zeros(shape, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def disc(radius: float, centre: tuple[float, float], size: int = 96) -> Mask:
    y, x = np.mgrid[:size, :size]
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2


# ---- by hand


def test_dice_and_iou_of_two_overlapping_blocks_are_those_worked_by_hand() -> None:
    """12 and 16 pixels, 8 of them shared: Dice 16/28, IoU 8/20."""
    first, second = block(0, 3, 0, 4), block(1, 5, 0, 4)
    assert dice(first, second) == pytest.approx(16 / 28)
    assert iou(first, second) == pytest.approx(8 / 20)


def test_the_empty_mask_policy_is_one_for_both_zero_for_one_nan_for_distances() -> None:
    for score in (dice, iou):
        assert score(EMPTY, EMPTY) == 1.0
        assert score(EMPTY, FULL) == 0.0
        assert score(FULL, EMPTY) == 0.0
        assert score(FULL, FULL) == 1.0
    for distance in (hd95, asd):
        for pair in ((EMPTY, EMPTY), (EMPTY, FULL), (FULL, EMPTY)):
            assert math.isnan(distance(*pair))
        assert distance(FULL, FULL) == 0.0


def test_distances_of_two_single_pixels_are_their_distance_in_the_units_of_the_spacing() -> None:
    first, second = block(1, 2, 1, 2), block(4, 5, 5, 6)  # 3 rows and 4 columns apart
    assert hd95(first, second) == pytest.approx(5.0)
    assert asd(first, second) == pytest.approx(5.0)
    assert hd95(first, second, spacing=(2.0, 0.5)) == pytest.approx(math.hypot(6.0, 2.0))


def test_distances_of_a_line_and_a_longer_line_are_those_worked_by_hand() -> None:
    """A row of 4 pixels and one of 6: outward distances 0 0 0 0, inward 0 0 0 0 1 2."""
    short, long = block(2, 3, 0, 4), block(2, 3, 0, 6)
    there = surface_distances(short, long)
    assert there is not None
    np.testing.assert_array_equal(there[0], [0, 0, 0, 0])
    np.testing.assert_array_equal(there[1], [0, 0, 0, 0, 1, 2])
    assert asd(short, long) == pytest.approx(3 / 10)
    # The 95th percentile of 0 0 0 0 1 2 lies a quarter of a step below the last: 4.75 of 5 steps.
    assert hd95(short, long) == pytest.approx(1.75)


def test_the_surface_is_the_pixels_with_a_background_neighbour_and_the_images_border() -> None:
    """The inner 3 x 5 pixels of a full 5 x 7 image are not surface; the 20 at its border are."""
    distances = surface_distances(FULL, FULL)
    assert distances is not None
    assert len(distances[0]) == 20


def test_ignored_pixels_count_in_neither_mask() -> None:
    truth, prediction = block(2, 6, 2, 6), block(2, 6, 2, 9)
    ignore = block(0, 12, 6, 12)
    assert dice(prediction, truth) < 1.0
    assert dice(prediction, truth, ignore=ignore) == 1.0
    assert iou(prediction, truth, ignore=ignore) == 1.0
    assert hd95(prediction, truth, ignore=ignore) == 0.0
    assert asd(prediction, truth, ignore=ignore) == 0.0
    assert dice(prediction, truth, ignore=np.ones_like(truth)) == 1.0, "nothing counted, nothing wrong"
    assert math.isnan(hd95(prediction, truth, ignore=np.ones_like(truth)))


def test_an_absent_class_counts_as_right_when_nothing_was_predicted_and_as_wrong_otherwise() -> None:
    truths = np.stack([block(0, 4, 0, 4), block(0, 0, 0, 0)])
    quiet = np.stack([block(0, 4, 0, 4), block(0, 0, 0, 0)])
    loud = np.stack([block(0, 4, 0, 4), block(7, 8, 7, 8)])
    np.testing.assert_array_equal(dice_per_class(quiet, truths), [1.0, 1.0])
    np.testing.assert_array_equal(dice_per_class(loud, truths), [1.0, 0.0])
    np.testing.assert_array_equal(iou_per_class(loud, truths), [1.0, 0.0])


# ---- properties


@settings(deadline=None, max_examples=150)
@given(pairs)
@example((EMPTY, EMPTY))
@example((EMPTY, FULL))
@example((np.ones((1, 1), bool), np.ones((1, 1), bool)))
def test_dice_and_iou_equal_counting_pixels_one_by_one(pair: tuple[Mask, Mask]) -> None:
    prediction, truth = ({(int(y), int(x)) for y, x in np.argwhere(mask)} for mask in pair)
    either = len(prediction | truth)
    expected = 1.0 if either == 0 else len(prediction & truth) / either
    assert iou(*pair) == pytest.approx(expected, abs=1e-12)
    assert dice(*pair) == pytest.approx(2 * expected / (1 + expected), abs=1e-12)
    assert dice(pair[0].astype(np.uint8) * 255, pair[1]) == dice(*pair), "uint8 counts where it is not 0"


@pytest.mark.filterwarnings("ignore::FutureWarning")  # MONAI's, about its own arguments
@settings(deadline=None, max_examples=100)
@given(pairs, spacings)
@example((FULL, block(2, 3, 3, 4, (5, 7))), (1.0, 1.0))
def test_hd95_and_asd_equal_those_of_monai_where_neither_mask_is_empty(
    pair: tuple[Mask, Mask], spacing: tuple[float, float]
) -> None:
    monai, torch = monai_metrics()
    prediction, truth = pair
    if not (prediction.any() and truth.any()):
        assert math.isnan(hd95(prediction, truth)) and math.isnan(asd(prediction, truth))
        return
    batch = [torch.from_numpy(mask.copy())[None, None] for mask in pair]
    kept = {"include_background": True, "spacing": list(spacing)}
    theirs = monai.compute_hausdorff_distance(*batch, percentile=95, **kept).item()
    assert hd95(prediction, truth, spacing=spacing) == pytest.approx(theirs, rel=1e-5, abs=1e-5)
    theirs = monai.compute_average_surface_distance(*batch, symmetric=True, **kept).item()
    assert asd(prediction, truth, spacing=spacing) == pytest.approx(theirs, rel=1e-5, abs=1e-5)


@settings(deadline=None, max_examples=100)
@given(pairs)
def test_dice_and_iou_equal_those_of_monai_where_the_truth_is_not_empty(pair: tuple[Mask, Mask]) -> None:
    monai, torch = monai_metrics()
    prediction, truth = pair
    if not truth.any():
        return
    batch = [torch.from_numpy(mask.copy())[None, None] for mask in pair]
    assert dice(prediction, truth) == pytest.approx(monai.compute_dice(*batch).item(), abs=1e-6)
    assert iou(prediction, truth) == pytest.approx(monai.compute_iou(*batch).item(), abs=1e-6)


@settings(deadline=None, max_examples=80)
@given(pairs, spacings)
def test_distances_do_not_depend_on_order_place_or_mirror(
    pair: tuple[Mask, Mask], spacing: tuple[float, float]
) -> None:
    prediction, truth = pair
    value = hd95(prediction, truth, spacing=spacing), asd(prediction, truth, spacing=spacing)
    for change in (lambda m: np.pad(m, ((3, 1), (0, 5))), lambda m: m[::-1, ::-1]):
        changed = change(prediction), change(truth)
        np.testing.assert_allclose(
            (hd95(*changed, spacing=spacing), asd(*changed, spacing=spacing)), value, atol=1e-9
        )
    np.testing.assert_allclose(
        (hd95(truth, prediction, spacing=spacing), asd(truth, prediction, spacing=spacing)), value, atol=1e-9
    )


@settings(deadline=None, max_examples=60)
@given(
    st.floats(6, 25),
    st.floats(6, 25),
    st.tuples(st.floats(-15, 15), st.floats(-15, 15)),
    st.floats(0.4, 2.5),
)
def test_hd95_and_asd_of_discs_lie_within_a_pixel_of_surface_distance(
    radius: float, other: float, shift: tuple[float, float], spacing: float
) -> None:
    """Its contour runs between the pixels and counts length, ours runs through the outermost pixels."""
    prediction, truth = disc(radius, (48, 48)), disc(other, (48 + shift[0], 48 + shift[1]))
    ours = {"spacing": (spacing, spacing)}
    their_hd95, their_asd = by_surface_distance(prediction, truth, spacing)
    assert hd95(prediction, truth, **ours) == pytest.approx(their_hd95, abs=spacing)
    assert asd(prediction, truth, **ours) == pytest.approx(their_asd, abs=spacing)


def test_equal_masks_have_no_distance_in_either_library() -> None:
    mask = disc(12, (40, 40))
    assert by_surface_distance(mask, mask, 1.0) == (0.0, 0.0)
    assert (hd95(mask, mask), asd(mask, mask)) == (0.0, 0.0)


@pytest.mark.data
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", ["polyps", "nerves", "nuclei", "fetal_head", "atrium"])
def test_on_real_masks_hd95_and_asd_are_those_of_monai_and_near_those_of_surface_distance(
    data_root: Path, name: str
) -> None:
    monai, torch = monai_metrics()
    for path in sorted((data_root / name / "masks").glob("*.png"))[::20][:6]:
        truth = np.asarray(Image.open(path)) > 0
        prediction = np.zeros_like(truth)
        prediction[3:, 4:] = truth[:-3, :-4]
        batch = [torch.from_numpy(mask)[None, None] for mask in (prediction, truth)]
        kept = {"include_background": True}
        theirs = monai.compute_hausdorff_distance(*batch, percentile=95, **kept).item()
        assert hd95(prediction, truth) == pytest.approx(theirs, rel=1e-5)
        theirs = monai.compute_average_surface_distance(*batch, symmetric=True, **kept).item()
        assert asd(prediction, truth) == pytest.approx(theirs, rel=1e-5)
        assert asd(prediction, truth) == pytest.approx(by_surface_distance(prediction, truth, 1.0)[1], abs=1)


# ---- contracts


@pytest.mark.parametrize("score", [dice, iou, hd95, asd])
def test_masks_of_two_sizes_are_refused_with_both_sizes(score) -> None:
    with pytest.raises(ValueError, match=r"must have truth.* shape .*5, 7.*, not .*4, 7"):
        score(np.zeros((4, 7), bool), EMPTY)
    with pytest.raises(ValueError, match="ignore must have the masks' shape"):
        score(EMPTY, EMPTY, ignore=np.zeros((4, 7), bool))


def test_probabilities_are_refused_instead_of_being_read_as_masks() -> None:
    with pytest.raises(ValueError, match="prediction must be bool or uint8"):
        dice(np.zeros((5, 7), np.float32), EMPTY)


@pytest.mark.parametrize("spacing", [(0.0, 1.0), (1.0, -1.0), (1.0, math.nan), (1.0, 1.0, 1.0)])
def test_a_spacing_that_is_no_pixel_size_is_refused(spacing) -> None:
    with pytest.raises(ValueError, match="spacing must be two positive numbers"):
        hd95(FULL, FULL, spacing=spacing)


def test_without_scipy_distances_name_the_extra_and_overlap_still_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "scipy.spatial", None)
    with pytest.raises(DeviceUnavailable, match=r"samdistill\[evaluate\]"):
        hd95(FULL, FULL)
    assert dice(FULL, FULL) == 1.0


def test_importing_metrics_loads_neither_scipy_nor_torch() -> None:
    code = (
        "import sys, samdistill.metrics, samdistill.statistics;"
        "print([m for m in ('scipy', 'torch', 'numba', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- bootstrap


def test_the_interval_of_a_mean_is_near_the_one_of_the_central_limit_theorem() -> None:
    values = np.random.default_rng(1).normal(0.8, 0.1, 400)
    estimate = bootstrap_mean(values)
    error = 1.96 * values.std() / 20
    assert estimate.mean == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - error, abs=0.1 * error)
    assert estimate.high == pytest.approx(values.mean() + error, abs=0.1 * error)


def test_the_interval_covers_the_true_mean_about_as_often_as_its_level_says() -> None:
    random = np.random.default_rng(2)
    hits = 0
    for trial in range(300):
        estimate = bootstrap_mean(random.beta(8, 2, 60), draws=400, seed=trial)
        hits += estimate.low <= 0.8 <= estimate.high
    assert 0.90 <= hits / 300 <= 0.98


def test_an_interval_over_groups_is_wider_when_cases_of_a_group_are_alike() -> None:
    groups = np.repeat(np.arange(12), 10)
    values = np.random.default_rng(3).normal(0.7, 0.1, 12)[groups]
    single, grouped = bootstrap_mean(values), bootstrap_mean(values, groups=groups.tolist())
    assert grouped.mean == pytest.approx(single.mean)
    assert grouped.high - grouped.low == pytest.approx(math.sqrt(10) * (single.high - single.low), rel=0.15)


def test_cases_without_a_value_are_counted_and_left_out() -> None:
    estimate = bootstrap_mean([1.0, math.nan, 3.0])
    assert (estimate.mean, estimate.count, estimate.missing) == (2.0, 2, 1)
    nothing = bootstrap_mean([math.nan])
    assert math.isnan(nothing.mean) and (nothing.count, nothing.missing) == (0, 1)


def test_one_case_or_one_group_has_a_mean_and_no_interval() -> None:
    for estimate in (bootstrap_mean([0.5]), bootstrap_mean([0.25, 0.75], groups=["a", "a"])):
        assert estimate.mean == 0.5
        assert math.isnan(estimate.low) and math.isnan(estimate.high)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    values = np.random.default_rng(4).random(30)
    assert bootstrap_mean(values, seed=5) == bootstrap_mean(values, seed=5)
    assert bootstrap_mean(values, seed=5) != bootstrap_mean(values, seed=6)


def test_a_paired_difference_sees_a_small_constant_gain_under_a_large_spread() -> None:
    second = np.random.default_rng(5).random(50)
    gain = paired_difference(second + 0.01, second)
    assert gain.low == pytest.approx(0.01) and gain.high == pytest.approx(0.01)
    missing = paired_difference([1.0, math.nan, 1.0], [0.5, 0.5, math.nan])
    assert (missing.mean, missing.count, missing.missing) == (0.5, 1, 2)


def test_bootstrap_arguments_out_of_contract_are_refused() -> None:
    with pytest.raises(ValueError, match="groups must name one group a value"):
        bootstrap_mean([1.0, 2.0], groups=["a"])
    with pytest.raises(ValueError, match="values must be"):
        bootstrap_mean([[1.0]])
    with pytest.raises(ValueError, match="draws must be"):
        bootstrap_mean([1.0], draws=0)
    with pytest.raises(ValueError, match="first must have"):
        paired_difference([1.0], [1.0, 2.0])


# ---- the libraries compared with, whose own warnings are not ours to answer for


def monai_metrics():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import monai.metrics
        import torch
    return monai.metrics, torch


def by_surface_distance(prediction: Mask, truth: Mask, spacing: float) -> tuple[float, float]:
    """HD95 and the length-weighted mean of both directions, by DeepMind's library."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import surface_distance

        found = surface_distance.compute_surface_distances(truth, prediction, (spacing, spacing))
        robust = surface_distance.compute_robust_hausdorff(found, 95)
    lengths = found["surfel_areas_gt"], found["surfel_areas_pred"]
    distances = found["distances_gt_to_pred"], found["distances_pred_to_gt"]
    total = sum(float(np.sum(d * length)) for d, length in zip(distances, lengths, strict=True))
    return float(robust), total / float(np.sum(lengths[0]) + np.sum(lengths[1]))
