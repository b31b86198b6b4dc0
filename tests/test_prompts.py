"""Prompts: validation, the two papers' configurations, and the core against the plain numpy pipeline."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from reference import prompts as slow

from samdistill.components import Morphology
from samdistill.config import build, to_dict
from samdistill.prompts import BURDEN, MINE, PromptConfig, Prompts, extract, extract_with_masks

Maps = npt.NDArray[np.float32]


def drawn_maps(classes: int = 3, side: int = 12) -> st.SearchStrategy[Maps]:
    """Maps of multiples of 1/16, so that ties are common and sums are exact."""
    shapes = st.tuples(st.integers(0, classes), st.integers(1, side), st.integers(1, 9 * side))
    values = st.sampled_from([0.0, 0.25, 0.5, 0.5625, 0.75, 0.9375, 1.0])
    return shapes.flatmap(lambda shape: arrays(np.float32, shape, elements=values, fill=values))


morphologies = st.none() | st.builds(
    Morphology,
    operation=st.sampled_from(["erosion", "dilation"]),
    element=st.sampled_from(["square", "disk", "diamond", "star"]),
    radius=st.integers(0, 2),
)
configs = st.builds(
    PromptConfig,
    threshold=st.sampled_from([0.0, 0.5, 0.9]),
    keep=st.sampled_from(["all", "likeliest", "largest"]),
    min_area_px=st.integers(0, 4),
    morphology=morphologies,
    per_component=st.booleans(),
    points=st.sampled_from(["likeliest", "centre"]),
    count=st.integers(1, 7),
    spread_px=st.sampled_from([0.0, 1.0, 1.5, 3.0, 1e9]),
    snap=st.booleans(),
    negatives=st.booleans(),
    seed=st.integers(0, 2**63 - 1),
)


def assert_same(maps: Maps, config: PromptConfig) -> None:
    found = extract_with_masks(maps, config)
    masks, sets = slow.extract(maps, config)
    np.testing.assert_array_equal(found.masks, masks)
    assert [len(of_class) for of_class in found.prompts] == [len(of_class) for of_class in sets]
    for c, of_class in enumerate(found.prompts):
        for prompts, (box, points, labels, own) in zip(of_class, sets[c], strict=True):
            assert prompts.points is not None and prompts.points.dtype == np.float32
            np.testing.assert_allclose(prompts.points, points, rtol=1e-6)
            np.testing.assert_array_equal(prompts.point_labels, labels)
            np.testing.assert_array_equal(prompts.box, box)
            if config.mask_logits:
                expected = slow.mask_logits(maps[c], config.threshold, own, config.logit_limit)
                np.testing.assert_allclose(prompts.mask_logits, expected, atol=1e-5)


@settings(deadline=None, max_examples=500)
@given(drawn_maps(), configs)
def test_extract_is_the_plain_numpy_pipeline(maps: Maps, config: PromptConfig) -> None:
    assert_same(maps, config)


@settings(deadline=None, max_examples=40)
@given(drawn_maps(), configs)
def test_mask_prompts_are_clipped_logits_that_deny_what_is_not_the_sets_own(
    maps: Maps, config: PromptConfig
) -> None:
    assert_same(maps, replace(config, mask_logits=True, logit_limit=6.0))


@pytest.mark.parametrize("shape", [(40_000, 3), (3, 40_000), (1, 129), (64, 64), (65, 1)])
@pytest.mark.parametrize("config", [MINE, replace(MINE, per_component=True, count=2, spread_px=5.0), BURDEN])
def test_odd_sizes_and_random_values_agree_too(shape: tuple[int, int], config: PromptConfig) -> None:
    maps = np.random.default_rng(1).random((2, *shape), dtype=np.float32)
    assert_same(maps, replace(config, threshold=0.999))


def test_real_looking_maps_agree_in_the_papers_configurations() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    noise = np.random.default_rng(2).normal(size=(4, 150, 170))
    smooth = np.stack([ndimage.gaussian_filter(plane, 9) for plane in noise])
    maps = (1 / (1 + np.exp(-300 * (smooth - 0.02)))).astype(np.float32)  # saturates: plateaus of exactly 1
    assert (maps == 1).sum() > 100
    wider = Morphology("dilation", "square", 4)
    for config in (MINE, BURDEN, replace(BURDEN, morphology=wider), replace(MINE, spread_px=12.5, count=9)):
        assert_same(maps, config)


def test_mining_takes_the_outer_box_and_the_likeliest_pixels() -> None:
    p = np.zeros((1, 8, 9), np.float32)
    p[0, 1, 2], p[0, 6, 5], p[0, 3, 3] = 0.6, 0.9, 0.7
    (prompts,) = extract(p, PromptConfig(count=2))[0]
    np.testing.assert_array_equal(prompts.box, [2, 1, 6, 7])
    np.testing.assert_array_equal(prompts.points, [[5, 6], [3, 3]])
    np.testing.assert_array_equal(prompts.point_labels, [1, 1])


def test_ties_are_drawn_by_the_seed_alone_and_evenly() -> None:
    p = np.full((1, 4, 5), 0.9, np.float32)
    picks = [extract(p, PromptConfig(count=1, seed=seed))[0][0].points for seed in range(2000)]
    again = [extract(p, PromptConfig(count=1, seed=seed))[0][0].points for seed in range(2000)]
    np.testing.assert_array_equal(picks, again)
    hits = np.zeros((4, 5))
    for pick in picks:
        assert pick is not None
        hits[int(pick[0, 1]), int(pick[0, 0])] += 1
    assert hits.min() > 60 and hits.max() < 145  # 100 expected, standard deviation 10


def test_spread_points_keep_their_distance() -> None:
    p = np.random.default_rng(0).random((1, 60, 60), dtype=np.float32)
    (prompts,) = extract(p, PromptConfig(count=12, spread_px=11.3))[0]
    assert prompts.points is not None and len(prompts.points) == 12
    gaps = np.linalg.norm(prompts.points[:, None] - prompts.points[None], axis=-1)
    assert gaps[~np.eye(12, dtype=bool)].min() >= 11.3


def test_burdens_centre_outside_a_concave_mask_is_snapped_to_it_unless_told_otherwise() -> None:
    p = np.zeros((1, 9, 9), np.float32)
    p[0, 1:8, 1:8] = 0.9
    p[0, 2:7, 2:8] = 0  # a C, open to the right
    (snapped,), (literal,) = extract(p, BURDEN)[0], extract(p, replace(BURDEN, snap=False))[0]
    assert snapped.points is not None and literal.points is not None
    x, y = snapped.points[0]
    assert p[0, int(y), int(x)] > 0.5
    rows, columns = np.nonzero(p[0])
    np.testing.assert_allclose(literal.points[0], [columns.mean(), rows.mean()])
    x, y = np.rint(literal.points[0]).astype(int)
    assert p[0, y, x] == 0


def test_burdens_negatives_are_the_centres_of_the_other_present_classes() -> None:
    p = np.zeros((3, 10, 20), np.float32)
    p[0, 2:5, 2:5], p[2, 6:9, 12:15] = 0.9, 0.8
    first, absent, third = extract(p, BURDEN)
    assert absent == []
    np.testing.assert_array_equal(first[0].points, [[3, 3], [13, 7]])
    np.testing.assert_array_equal(first[0].point_labels, [1, 0])
    np.testing.assert_array_equal(third[0].points, [[13, 7], [3, 3]])
    alone = extract(p[:1], BURDEN)[0][0]
    np.testing.assert_array_equal(alone.points, [[3, 3]])


def test_a_class_without_exclusive_pixels_has_no_set_but_keeps_its_mask() -> None:
    p = np.zeros((2, 10, 10), np.float32)
    p[0, 2:8, 2:8], p[1, 3:5, 3:5] = 0.9, 0.9
    found = extract_with_masks(p, BURDEN)
    assert len(found.prompts[0]) == 1 and found.prompts[1] == []
    assert found.masks[1].sum() == 4
    np.testing.assert_array_equal(found.prompts[0][0].point_labels, [1])


def test_negatives_among_likeliest_points_never_deny_the_class_itself() -> None:
    p = np.zeros((2, 6, 6), np.float32)
    p[0, :, :4], p[1, :, 3:] = 0.8, 0.7
    p[1, 0, 3], p[1, 5, 5] = 0.99, 0.98
    (first,), _ = extract(p, PromptConfig(count=2, negatives=True))
    assert first.points is not None and first.point_labels is not None
    np.testing.assert_array_equal(first.points[first.point_labels == 0], [[5, 5]])


def test_each_component_gets_its_own_box_points_and_logits() -> None:
    p = np.zeros((1, 10, 12), np.float32)
    p[0, 1:4, 1:4], p[0, 6:9, 7:11] = 0.9, 0.8
    left, right = extract(p, PromptConfig(per_component=True, count=1, mask_logits=True))[0]
    np.testing.assert_array_equal([left.box, right.box], [[1, 1, 4, 4], [7, 6, 11, 9]])
    assert left.mask_logits is not None
    assert left.mask_logits[2, 2] > 0 and left.mask_logits[7, 8] == -10


@pytest.mark.parametrize("config", [MINE, BURDEN, replace(MINE, per_component=True)])
def test_nothing_there_gives_no_prompts(config: PromptConfig) -> None:
    assert extract(np.full((2, 7, 9), 0.5, np.float32), config) == [[], []]
    assert extract(np.empty((0, 7, 9), np.float32), config) == []
    assert extract(np.empty((2, 0, 9), np.float32), config) == [[], []]


def test_one_pixel_and_all_pixels() -> None:
    (one,) = extract(np.ones((1, 1, 1), np.float32), BURDEN)[0]
    np.testing.assert_array_equal(one.box, [0, 0, 1, 1])
    np.testing.assert_array_equal(one.points, [[0, 0]])
    (full,) = extract(np.ones((1, 5, 70), np.float32), MINE)[0]
    np.testing.assert_array_equal(full.box, [0, 0, 70, 5])
    assert full.points is not None and len(np.unique(full.points, axis=0)) == 5


@pytest.mark.parametrize("place", [(0, 0, 0), (1, 3, 69), (1, 4, 64)])
def test_nan_is_an_error_that_says_where(place: tuple[int, int, int]) -> None:
    p = np.full((2, 5, 70), 0.2, np.float32)
    p[place] = np.nan
    with pytest.raises(ValueError, match=rf"NaN at \({place[0]}, {place[1]}, {place[2]}\)"):
        extract(p, BURDEN)
    with pytest.raises(ValueError, match="NaN"):
        extract(np.full_like(p, np.nan))


def test_wrong_arrays_are_refused_and_strided_or_read_only_ones_are_not() -> None:
    p = np.random.default_rng(0).random((2, 20, 30), dtype=np.float32)
    with pytest.raises(ValueError, match="float32"):
        extract(p.astype(np.float64))
    with pytest.raises(ValueError, match=r"\(C, H, W\)"):
        extract(p[0])
    with pytest.raises(ValueError, match="one a class"):
        extract(p, PromptConfig(threshold=(0.5, 0.5, 0.5)))
    strided = np.asfortranarray(p)
    strided.flags.writeable = False
    for one, other in zip(extract(p, MINE), extract(strided, MINE), strict=True):
        np.testing.assert_array_equal(one[0].points, other[0].points)


def test_thresholds_may_differ_between_classes() -> None:
    p = np.full((2, 4, 4), 0.6, np.float32)
    assert [len(sets) for sets in extract(p, PromptConfig(threshold=(0.5, 0.7)))] == [1, 0]


def test_many_threads_get_the_answers_one_gets() -> None:
    rng = np.random.default_rng(3)
    inputs = [rng.random((2, 50, 60), dtype=np.float32) for _ in range(8)]
    expected = [extract(p, MINE) for p in inputs]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(20):
            for one, other in zip(extract(inputs[i], MINE), expected[i], strict=True):
                if not np.array_equal(one[0].points, other[0].points):
                    wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "not nothing"),
        ({"points": [[1, 2]]}, "point_labels must be given"),
        ({"point_labels": [1], "box": [0, 0, 1, 1]}, "points must be given"),
        ({"points": [1, 2], "point_labels": [1]}, r"\(N, 2\)"),
        ({"points": np.empty((0, 2)), "point_labels": np.empty(0, int)}, "N >= 1"),
        ({"points": [[1, np.nan]], "point_labels": [1]}, "finite"),
        ({"points": [[1, 2]], "point_labels": [2]}, "1, 0 or -1"),
        ({"points": [[1, 2], [3, 4]], "point_labels": [-1, -1]}, "not padding alone"),
        ({"points": [[1, 2]], "point_labels": [1, 1]}, r"\(1,\) integers"),
        ({"points": [[1, 2]], "point_labels": [1.0]}, "integers"),
        ({"box": [4, 1, 4, 9]}, "x0 < x1"),
        ({"box": [[1, 1, 4, 9]]}, r"\(4,\)"),
        ({"mask_logits": np.full((2, 2), np.inf)}, "finite"),
        ({"mask_logits": np.zeros(4)}, r"\(H, W\)"),
    ],
)
def test_prompts_refuse_what_breaks_their_contract(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Prompts(**arguments)  # type: ignore[arg-type]


def test_points_that_are_all_padding_may_stand_beside_a_box_or_a_mask() -> None:
    padding = {"points": np.zeros((2, 2)), "point_labels": np.array([-1, -1])}
    for other in ({"box": np.array([0, 0, 3, 4])}, {"mask_logits": np.zeros((2, 2))}):
        Prompts(**padding, **other)  # type: ignore[arg-type]


def test_prompts_take_plain_lists_as_float32() -> None:
    prompts = Prompts(points=[[1, 2]], point_labels=[1], box=[0, 0, 3, 4])  # type: ignore[arg-type]
    assert prompts.points is not None and prompts.box is not None and prompts.point_labels is not None
    assert (prompts.points.dtype, prompts.point_labels.dtype, prompts.box.dtype) == ("f4", "i4", "f4")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": 1.5}, "threshold"),
        ({"keep": "best"}, "keep"),
        ({"min_area_px": -1}, "min_area_px"),
        ({"count": 0}, "count"),
        ({"spread_px": -1.0}, "spread_px"),
        ({"spread_px": float("nan")}, "spread_px"),
        ({"seed": -1}, "seed"),
        ({"logit_limit": 0.0}, "logit_limit"),
        ({"points": "none", "box": False}, "must not all be off"),
        ({"points": "none", "negatives": True}, "negatives"),
    ],
)
def test_config_refuses_what_cannot_be_done(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PromptConfig(**arguments)  # type: ignore[arg-type]


def test_config_comes_back_from_its_plain_table() -> None:
    config = replace(BURDEN, morphology=Morphology("dilation", width=8), threshold=(0.4, 0.5))
    assert build(PromptConfig, to_dict(config)) == config
    assert build(PromptConfig, {}) == MINE
