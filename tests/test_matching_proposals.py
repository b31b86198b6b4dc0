"""The constrained matcher against every choice, and what its contract promises."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import cover as slow

from samdistill import kernels
from samdistill.errors import InputRejected
from samdistill.matching import Match, match
from samdistill.proposals import MaskRuns, Proposals, boxes_of, mask_nms

Masks = npt.NDArray[np.bool_]
Maps = npt.NDArray[np.float32]
UNLIMITED: dict[str, Any] = {"time_limit_s": None, "node_limit": None}


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    kernels.warm_up()


def random_case(seed: int, most: int = 9) -> tuple[Maps, Masks, list[int], list[int]]:
    """Maps (noise, or unions of proposals under noise), proposals (also ragged ones, duplicates), bounds."""
    rng = np.random.default_rng(seed)
    count, classes = int(rng.integers(0, most + 1)), int(rng.integers(1, 4))
    height, width = rng.integers(4, 14, 2)
    masks = np.zeros((count, height, width), np.bool_)
    for k in range(count):
        y, x = rng.integers(0, [height, width])
        masks[k, y : y + rng.integers(1, height), x : x + rng.integers(1, width)] = True
        if rng.random() < 0.3:
            masks[k] ^= rng.random((height, width)) < 0.3
            masks[k, 0, 0] = True
        if k and rng.random() < 0.15:
            masks[k] = masks[rng.integers(k)]
    maps = rng.random((classes, height, width)).astype(np.float32)
    for c in range(classes if count else 0):
        if rng.random() < 0.6:
            target = masks[rng.integers(0, count, rng.integers(1, 4))].any(axis=0)
            maps[c] = np.where(target, 1 - 0.3 * maps[c], 0.3 * maps[c])
    lower = rng.integers(0, 3, classes)
    upper = np.minimum(lower + rng.integers(0, 3, classes), 3)
    return maps, masks, np.minimum(lower, upper).tolist(), upper.tolist()


def check_promises(found: Match, masks: Masks, maps: Maps) -> None:
    everything = np.concatenate(found.selected)
    assert len(np.unique(everything)) == len(everything)
    for c, chosen in enumerate(found.selected):
        assert chosen.dtype == np.int64 and (np.diff(chosen) > 0).all()
        np.testing.assert_array_equal(found.masks[c], masks[chosen].any(axis=0))
        assert found.scores[c] == pytest.approx(slow.soft_iou(maps[c], found.masks[c]), abs=1e-9)
        assert found.present[c] or len(chosen) == 0
    assert found.value == pytest.approx(found.scores.sum(), abs=1e-12)
    assert found.value <= found.upper_bound and found.gap >= 0
    assert (found.scores <= found.ceilings + 1e-9).all()


@pytest.mark.parametrize("seed", range(120))
def test_it_is_as_good_as_the_best_of_all_choices(seed: int) -> None:
    maps, masks, lower, upper = random_case(seed)
    found = match(maps, masks, lower=lower, upper=upper, count_absent=True, **UNLIMITED)
    best = slow.best_value(maps, masks, lower, upper)
    assert (found.status == "infeasible") == (best is None)
    check_promises(found, masks, maps)
    if best is not None:
        assert found.value == pytest.approx(best, abs=1e-9)
        assert found.status == "optimal" and found.gap < 1e-9 and found.reason == ""
        assert all(a <= len(s) <= b for a, s, b in zip(lower, found.selected, upper, strict=True))


@pytest.mark.parametrize("seed", range(60))
def test_counting_components_it_is_as_good_too(seed: int) -> None:
    maps, masks, lower, upper = random_case(1000 + seed, most=6)
    found = match(
        maps,
        masks,
        lower=lower,
        upper=upper,
        counted="components",
        max_proposals=3,
        count_absent=True,
        **UNLIMITED,
    )
    best = slow.best_value(maps, masks, lower, upper, limit=[3] * len(maps))
    assert (found.status == "infeasible") == (best is None)
    if best is not None:
        assert found.value == pytest.approx(best, abs=1e-9)
        check_promises(found, masks, maps)
        for c, mask in enumerate(found.masks):
            assert lower[c] <= slow.components(mask) <= upper[c] and len(found.selected[c]) <= 3


def test_counting_components_an_answer_is_found_where_only_poor_proposals_are_within_the_bounds() -> None:
    """Those that fit best are in many pieces, and five classes want the few that are not."""
    rng = np.random.default_rng(0)
    masks = np.zeros((24, 30, 30), np.bool_)
    for mask in masks[:18]:
        for piece in rng.choice(25, 4, replace=False):
            y, x = divmod(int(piece), 5)
            mask[6 * y : 6 * y + 4, 6 * x : 6 * x + 4] = True
    for k, mask in enumerate(masks[18:]):
        mask[6 * k % 30, : 2 + k] = True
    maps = np.full((5, 30, 30), 0.6, np.float32)
    bounds: dict[str, Any] = {"lower": 1, "upper": 2, "counted": "components", "max_proposals": 2}
    found = match(maps, masks, **bounds, node_limit=300, time_limit_s=None)
    assert found.status == "feasible" and 0 < found.value <= found.upper_bound
    check_promises(found, masks, maps)
    assert all(1 <= slow.components(mask) <= 2 for mask in found.masks)


def test_counting_components_of_ragged_proposals_takes_no_image_for_each_of_them() -> None:
    """400 islands of a few pixels: whole images of them would be 100 times the proposals."""
    masks = np.zeros((4, 400, 400), np.bool_)
    for k in range(4):
        masks[k, k::40, k::40] = True
    maps = masks.any(axis=0)[None].astype(np.float32)
    tracemalloc.start()
    found = match(maps, masks, lower=100, upper=400, counted="components", max_proposals=4)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.selected[0].tolist() == [0, 1, 2, 3] and slow.components(found.masks[0]) == 100
    assert most < 40 * masks.nbytes


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 6))
def test_a_limit_never_costs_the_certificate(seed: int, nodes: int) -> None:
    maps, masks, lower, upper = random_case(seed)
    full = match(maps, masks, lower=lower, upper=upper, **UNLIMITED)
    early = match(maps, masks, lower=lower, upper=upper, node_limit=nodes, time_limit_s=None)
    assert early.nodes <= nodes and early.stopped in ("", "nodes")
    if early.status != "infeasible":
        check_promises(early, masks, maps)
        assert early.value <= full.value + 1e-9
    if full.status != "infeasible":
        assert early.upper_bound >= full.value - 1e-9


def test_without_time_there_is_an_answer_all_the_same_and_it_says_so() -> None:
    """The time is looked at before the first node too: a large input may have no end of work there."""
    stopped = 0
    for seed in range(100):
        maps, masks, lower, upper = random_case(seed)
        full = match(maps, masks, lower=lower, upper=upper, **UNLIMITED)
        early = match(maps, masks, lower=lower, upper=upper, time_limit_s=1e-9)
        assert (early.status == "infeasible") == (full.status == "infeasible")
        assert early.stopped in ("", "time") and early.nodes == 0
        check_promises(early, masks, maps)
        assert early.value <= full.value + 1e-9 and early.upper_bound >= full.value - 1e-9
        if not early.stopped:
            assert early.value == pytest.approx(full.value, abs=1e-9)
        stopped += early.stopped == "time" and full.nodes == 0
    assert stopped > 0


def test_atoms_are_made_once_however_often_bounds_are_relaxed(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    atoms = kernels.atoms
    monkeypatch.setattr(kernels, "atoms", lambda *a, **b: made.append(1) or atoms(*a, **b))
    maps = np.full((1, 40, 40), 0.6, np.float32)
    eased = match(maps, squares(4, 8, 12, 16), lower=4, upper=4, counted="components", on_infeasible="relax")
    assert (eased.lower, eased.status) == ((1,), "optimal")
    assert len(made) == 1


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.randoms(use_true_random=False))
def test_the_order_of_proposals_does_not_matter(seed: int, random: Any) -> None:
    maps, masks, lower, upper = random_case(seed)
    order = list(range(len(masks)))
    random.shuffle(order)
    one = match(maps, masks, lower=lower, upper=upper, **UNLIMITED)
    other = match(maps, masks[order], lower=lower, upper=upper, **UNLIMITED)
    assert one.status == other.status and one.value == pytest.approx(other.value, abs=1e-9)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6))
def test_more_proposals_never_make_it_worse(seed: int) -> None:
    maps, masks, lower, upper = random_case(seed)
    all_of_them = match(maps, masks, lower=lower, upper=upper, **UNLIMITED)
    fewer = match(maps, masks[:-1], lower=lower, upper=upper, **UNLIMITED)
    if fewer.status == "optimal":
        assert all_of_them.value >= fewer.value - 1e-9


@pytest.mark.parametrize("seed", range(12))
def test_masks_may_come_as_runs(seed: int) -> None:
    maps, masks, lower, upper = random_case(seed)
    dense = match(maps, masks, lower=lower, upper=upper, **UNLIMITED)
    runs = match(maps, MaskRuns.of(masks), lower=lower, upper=upper, **UNLIMITED)
    assert (runs.value, runs.status) == (dense.value, dense.status)
    np.testing.assert_array_equal(runs.masks, dense.masks)
    empty = MaskRuns(np.empty((0, 2), np.int32), np.zeros(1, np.int64), maps.shape[1:])
    with pytest.raises(ValueError, match="proposals must all have a pixel"):
        match(maps, empty, lower=0, upper=1)


def test_the_same_input_gives_the_same_answer() -> None:
    maps, masks, lower, upper = random_case(3)
    one, other = (match(maps, masks, lower=lower, upper=upper) for _ in range(2))
    for a, b in zip(one.selected, other.selected, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (one.value, one.upper_bound, one.nodes) == (other.value, other.upper_bound, other.nodes)


def squares(*sides: int) -> Masks:
    """Squares of so many pixels a side, all around one centre."""
    y, x = np.mgrid[:40, :40]
    return np.array([np.maximum(abs(2 * y - 39), abs(2 * x - 39)) < side for side in sides])


def test_a_whole_is_not_chosen_beside_its_part() -> None:
    """Where rows of an assignment are duplicated, both are: each is good alone, together they are not."""
    part, whole, target = squares(10, 32, 10)
    part[15, 15] = part[24, 24] = False
    found = match(target[None].astype(np.float32), np.array([part, whole]), lower=1, upper=2)
    assert found.selected[0].tolist() == [0] and found.value == pytest.approx(0.98)


@pytest.mark.parametrize(("pixels", "ceiling"), [(1000, 0.87), (200, 0.64)])
def test_the_ceiling_says_what_a_perfect_proposal_would_reach(pixels: int, ceiling: float) -> None:
    maps = np.full((1, 100, 100), 0.01, np.float32)
    perfect = np.zeros((1, 100, 100), np.bool_)
    perfect.reshape(-1)[:pixels] = True
    maps[perfect] = 0.95
    found = match(maps, perfect, lower=1, upper=1)
    assert found.beta == found.ceiling == pytest.approx(ceiling, abs=0.005)
    assert match(maps, perfect, lower=1, upper=1, iou="hard").beta == 1.0


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 10**6))
def test_no_mask_whatever_exceeds_the_ceiling(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p = (rng.random((5, 6)) ** rng.integers(1, 5)).astype(np.float32)
    by_threshold = [slow.soft_iou(p, p >= t) for t in np.unique(p)]
    assert kernels.best_iou(p) == pytest.approx(max(by_threshold), rel=1e-9)
    assert slow.soft_iou(p, rng.random(p.shape) < 0.5) <= kernels.best_iou(p) + 1e-9


def test_a_class_that_may_be_absent_and_is_counts_nowhere() -> None:
    masks = squares(8, 20)
    maps = np.stack([masks[0] * np.float32(0.9), np.full((40, 40), 0.4, np.float32)])
    found = match(maps, masks, lower=[1, 0], upper=[1, 1])
    assert found.present.tolist() == [True, False] and found.selected[1].size == 0
    assert found.beta == found.scores[0]
    literal = match(maps, masks, lower=[1, 0], upper=[1, 1], count_absent=True)
    assert literal.present.all() and literal.beta == pytest.approx(literal.scores.mean())
    nothing = match(maps[1:], masks, lower=0, upper=1)
    assert np.isnan(nothing.beta) and nothing.status == "optimal" and nothing.value == 0


@pytest.mark.parametrize("upper", [1, 2])
def test_a_class_that_no_proposal_overlaps_gets_none(upper: int) -> None:
    maps, masks = np.zeros((3, 40, 40), np.float32), np.zeros((4, 40, 40), np.bool_)
    for k in range(4):
        masks[k, 5:10, 10 * k : 10 * k + 5] = True
    maps[0], maps[1] = masks[1], masks[2]
    maps[2, -3:, -3:] = 1  # where there is no proposal
    found = match(maps, masks, lower=0, upper=upper)
    assert [one.tolist() for one in found.selected] == [[1], [2], []] and not found.masks[2].any()
    assert len(match(maps, masks, lower=[0, 0, 1], upper=upper).selected[2]) == 1


def test_odd_images_have_answers() -> None:
    everything = np.ones((3, 6, 7), np.bool_)
    maps = np.full((2, 6, 7), 0.75, np.float32)
    whole = match(maps, everything, lower=1, upper=2)
    assert whole.status == "optimal" and whole.scores.tolist() == [0.75, 0.75]
    assert len(np.unique(np.concatenate(whole.selected))) == sum(map(len, whole.selected))
    zero = match(np.zeros((1, 6, 7), np.float32), everything, lower=2, upper=3)
    assert zero.status == "optimal" and zero.beta == zero.ceiling == 0 and len(zero.selected[0]) == 2
    none = match(maps, everything[:0], lower=0, upper=3)
    assert none.status == "optimal" and none.value == 0 and not none.masks.any()
    assert match(maps, everything, lower=0, upper=0).value == 0


def test_bounds_that_cannot_be_met() -> None:
    maps, masks = np.full((2, 40, 40), 0.6, np.float32), squares(8, 20, 30)
    rejected = match(maps, masks, lower=2, upper=2)
    assert rejected.status == "infeasible" and rejected.reason == "4 proposals are needed and there are 3"
    assert not rejected.masks.any() and rejected.beta == rejected.upper_bound == 0
    relaxed = match(maps, masks, lower=2, upper=2, on_infeasible="relax")
    assert relaxed.status == "optimal" and relaxed.lower == (2, 1)
    assert relaxed.reason.startswith("lower was relaxed to [2, 1]: 4 proposals")
    with pytest.raises(InputRejected, match="4 proposals are needed and there are 3"):
        match(maps, masks, lower=2, upper=2, on_infeasible="raise")
    nested = match(maps[:1], masks, lower=2, upper=3, counted="components")
    assert nested.status == "infeasible" and "a number of components within the bounds" in nested.reason
    eased = match(maps[:1], masks, lower=2, upper=3, counted="components", on_infeasible="relax")
    assert eased.status == "optimal" and eased.lower == (1,)
    assert match(maps, masks[:0], lower=1, upper=1, on_infeasible="relax").lower == (0, 0)
    for counted in ("proposals", "components"):  # without a search for each of a million bounds
        many: Any = {"lower": [10**6, 10**6], "upper": 10**6, "counted": counted, "on_infeasible": "relax"}
        assert match(maps, masks, **many).lower == ((2, 1) if counted == "proposals" else (1, 1))


def test_thinned_proposals_keep_a_part_from_passing_for_a_second_object() -> None:
    whole, nearly, other = squares(20, 20, 1)
    nearly[10] = False
    other[2:9, 2:9] = True
    masks = np.array([whole, nearly, other])
    maps = (whole | other)[None].astype(np.float32)
    kept = mask_nms(masks, np.array([0.9, 0.8, 0.7]), 0.9)
    assert kept.tolist() == [0, 2]
    assert match(maps, masks[kept], lower=2, upper=2).value == pytest.approx(1.0, abs=0.01)
    proposals = Proposals(masks, boxes_of(masks), np.ones(3, np.float32), np.ones(3, np.float32))
    assert match(maps, proposals, lower=2, upper=2).selected[0].tolist() == [0, 2]


MAPS, MASKS = np.full((2, 40, 40), 0.6, np.float32), squares(8, 20)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lower": 2}, "lower must be at most upper, not 2 where upper is 1, in class 1"),
        ({"lower": -1}, "lower must be 0 or more"),
        ({"upper": [1, 1, 1]}, "upper must be a whole number, or 2 of them"),
        ({"upper": 1.5}, "upper must be a whole number"),
        ({"iou": "dice"}, "iou must be one of soft, hard"),
        ({"counted": "pixels"}, "counted must be one of"),
        ({"on_infeasible": "ignore"}, "on_infeasible must be one of"),
        ({"max_proposals": 3}, "max_proposals must be None where proposals are counted"),
        ({"time_limit_s": 0}, "time_limit_s must be more than 0"),
        ({"time_limit_s": float("nan")}, "time_limit_s must be more than 0"),
        ({"time_limit_s": "1"}, "time_limit_s must be more than 0, or None, not '1'"),
        ({"node_limit": 0}, "node_limit must be a whole number, 1 or more"),
        ({"node_limit": 1.5}, "node_limit must be a whole number, 1 or more, or None, not 1.5"),
        ({"node_limit": 2**63}, "node_limit must be a whole number"),
        ({"upper": 2**63}, "upper must be a whole number"),
        ({"upper": [[1, 2], [1]]}, "upper must be a whole number, or 2 of them"),
        ({"proposals": MASKS[:, :20]}, "proposals must have the size of the maps"),
        (
            {"proposals": np.zeros((2, 40, 40), np.bool_)},
            "proposals must all have a pixel, not none at index 0",
        ),
        ({"probability_maps": MAPS * 9 - 4}, "probability_maps must be in .0, 1."),
        ({"probability_maps": MAPS * np.float32("nan")}, "probability_maps must be in .0, 1. and no NaN"),
        ({"probability_maps": MAPS.astype(np.float64)}, "must be float32"),
        ({"probability_maps": MAPS[:0]}, "must have a class and a pixel"),
    ],
)
def test_what_cannot_be_matched_is_refused(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"probability_maps": MAPS, "proposals": MASKS, "lower": 1, "upper": 1}
    with pytest.raises(ValueError, match=message):
        match(**{**arguments, **changes})
