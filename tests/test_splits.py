"""Splits: never through a group, validation out of the label budget, the same everywhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samdistill.errors import InputRejected
from samdistill.io import Case, Dataset, make_split
from samdistill.io.masks import MaskCode

GOLDEN_TEST_PART = ["006_000", "018_000"]


def memory_dataset(groups: list[tuple[int, int]], parts: dict[str, str] | None = None) -> Dataset:
    """A data set that lies nowhere: for each group its numbers of labelled and unlabelled cases."""
    code = MaskCode(("x",))
    cases = [
        Case(
            f"{g:03}_{n:03}",
            Path(f"/nowhere/{g}_{n}.png"),
            (Path("/nowhere/m.png"),) if n < labelled else None,
            f"g{g}",
            code,
        )
        for g, (labelled, unlabelled) in enumerate(groups)
        for n in range(labelled + unlabelled)
    ]
    return Dataset(Path("/nowhere"), tuple(cases), code, parts or {})


def group_sets(split: object) -> dict[str, set[str]]:
    names = ("train_labelled", "train_unlabelled", "validation", "test", "left_out")
    return {name: {case.group for case in getattr(split, name)} for name in names}


@pytest.mark.parametrize(
    "told",
    [
        {},
        {0: "validation", 8: "validation"},
        {1: "validation", 5: "validation"},
        {0: "train", 8: "train"},
        {1: "train", 5: "train"},
        {1: "train", 5: "validation"},
        {1: "train", 3: "train", 5: "test"},
    ],
)
@pytest.mark.parametrize("fractions", [(0.8, 0.1, 0.1), (0.9, 0.1, 0.0), (0.5, 0.3, 0.2)])
def test_a_smaller_budgets_labels_are_among_a_larger_ones(
    told: dict[int, str], fractions: tuple[float, float, float]
) -> None:
    """With groups, too, of which a whole one joins the validation images that were told or drawn."""
    sizes = [9, 7, 4, 1, 7, 3, 2, 7, 7]
    parts = {f"{g:03}_{n:03}": part for g, part in told.items() for n in range(sizes[g])}
    data = memory_dataset([(size, 0) for size in sizes], parts)
    for seed in range(20, 30):
        before: set[str] = set()
        for labels in range(4, 41):
            split = make_split(data, seed=seed, labels=labels, fractions=fractions)
            ids = {case.id for case in (*split.train_labelled, *split.validation)}
            assert before <= ids, (seed, labels)
            before = ids


def test_ungrouped_data_splits_80_10_10() -> None:
    split = make_split(memory_dataset([(1, 0)] * 100))
    assert {name: len(ids) for name, ids in split.ids().items()} == {
        "train_labelled": 80,
        "train_unlabelled": 0,
        "validation": 10,
        "test": 10,
    }


@pytest.mark.parametrize(
    "labels, train, validation",
    [
        (0.25, 19, 4),
        (0.1, 6, 3),
        (20, 16, 4),
        (12, 8, 4),
        (8, 6, 2),
        (4, 3, 1),
        (1, 3, 1),
        (0.001, 3, 1),
        (500, 80, 10),
    ],
)
def test_validation_comes_out_of_the_label_budget(labels: float, train: int, validation: int) -> None:
    """Of 100 labelled images 10 go to test; a share is a share of the other 90; at least 4 are labelled."""
    split = make_split(memory_dataset([(1, 0)] * 100), labels=labels)
    assert (len(split.train_labelled), len(split.validation)) == (train, validation)
    assert len(split.train_unlabelled) == 90 - train - validation


def test_the_budget_is_rounded_up_to_whole_groups() -> None:
    split = make_split(memory_dataset([(3, 0)] * 20), labels=10)
    assert len(split.validation) == 3
    assert len(split.train_labelled) == 9


def test_masks_out_of_budget_are_out_of_reach() -> None:
    split = make_split(memory_dataset([(1, 0)] * 50), labels=8)
    assert split.train_unlabelled
    assert all(case.mask_paths is None for case in split.train_unlabelled)
    assert "m.png" not in repr(split.train_unlabelled)


def test_the_test_part_stays_and_budgets_nest_as_labels_grow() -> None:
    dataset = memory_dataset([(1, 0)] * 120)
    previous: set[str] = set()
    tests = set()
    for labels in (4, 9, 20, 60, None):
        split = make_split(dataset, seed=5, labels=labels)
        seen = {case.id for case in split.train_labelled + split.validation}
        assert previous <= seen
        previous = seen
        tests.add(tuple(case.id for case in split.test))
    assert len(tests) == 1


def test_another_seed_gives_another_split_and_the_same_seed_the_same() -> None:
    dataset = memory_dataset([(1, 0)] * 60)
    assert make_split(dataset, seed=1) == make_split(dataset, seed=1)
    assert make_split(dataset, seed=1).ids() != make_split(dataset, seed=2).ids()


def test_a_split_is_the_same_on_every_machine() -> None:
    """Golden: computed once from SHA-256 of seed and group name; runs written earlier rely on it."""
    assert make_split(memory_dataset([(1, 0)] * 20), seed=0).ids()["test"] == GOLDEN_TEST_PART


def test_new_images_leave_most_of_a_split_as_it_was() -> None:
    before = make_split(memory_dataset([(1, 0)] * 100))
    after = make_split(memory_dataset([(1, 0)] * 104))
    test_before, test_after = ({case.id for case in split.test} for split in (before, after))
    assert len(test_before & test_after) >= 8


def test_told_validation_keeps_its_share_of_the_budget() -> None:
    dataset = memory_dataset([(1, 0)] * 40, {f"{g:03}_000": "validation" for g in range(10)})
    told = {f"{g:03}_000" for g in range(10)}
    full = make_split(dataset)
    assert {case.id for case in full.validation} == told - {case.id for case in full.test}
    small = make_split(dataset, labels=8)
    assert small.budget == 8
    assert {case.id for case in small.validation} <= told
    assert all(case.mask_paths is None for case in small.left_out)
    assert {case.id for case in small.validation + small.left_out + small.test} >= told


def test_where_training_and_test_are_told_validation_comes_out_of_training() -> None:
    parts = {f"{g:03}_000": "train" if g < 30 else "test" for g in range(40)}
    split = make_split(memory_dataset([(1, 0)] * 40, parts))
    assert len(split.test) == 10
    assert len(split.validation) == 4
    assert len(split.train_labelled) == 26


@pytest.mark.parametrize("part", ["validation", "test"])
@pytest.mark.parametrize("seed", range(4))
def test_an_unlabelled_image_told_to_be_held_out_holds_its_patient_out(part: str, seed: int) -> None:
    """Its labels may come later; nobody is to have trained on the same patient by then."""
    split = make_split(memory_dataset([(1, 0)] * 8 + [(2, 2)], {"008_003": part}), seed=seed)
    of = group_sets(split)
    assert "g8" not in of["train_labelled"] | of["train_unlabelled"]
    assert "g8" not in of["validation" if part == "test" else "test"]


@pytest.mark.parametrize("groups", [[], [(0, 9)], [(9, 0)], [(5, 0), (5, 0)]])
def test_too_few_labelled_groups_are_refused(groups: list[tuple[int, int]]) -> None:
    with pytest.raises(InputRejected, match="labelled images of at least"):
        make_split(memory_dataset(groups))


@pytest.mark.parametrize("labels", [0, -3, 0.0, 1.5, True])
def test_budgets_that_cannot_be_meant_are_refused(labels: float) -> None:
    with pytest.raises(ValueError, match="labels must be"):
        make_split(memory_dataset([(1, 0)] * 20), labels=labels)


@settings(deadline=None, max_examples=200)
@given(
    groups=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4)), min_size=3, max_size=40),
    seed=st.integers(0, 2**31),
    labels=st.one_of(st.none(), st.integers(1, 60), st.floats(0.01, 1.0)),
    told=st.dictionaries(st.integers(0, 39), st.sampled_from(["train", "validation", "test"]), max_size=12),
)
def test_no_group_is_ever_cut(
    groups: list[tuple[int, int]], seed: int, labels: float | None, told: dict[int, str]
) -> None:
    """Training, validation and test share no group; every case is in one part; the budget is kept."""
    parts = {f"{g:03}_000": part for g, part in told.items() if g < len(groups) and sum(groups[g])}
    dataset = memory_dataset(groups, parts)
    try:
        split = make_split(dataset, seed=seed, labels=labels)
    except InputRejected:
        return
    of = group_sets(split)
    training = of["train_labelled"] | of["train_unlabelled"]
    assert not training & of["validation"]
    assert not training & of["test"]
    assert not of["validation"] & of["test"]
    everywhere = [case.id for name in of for case in getattr(split, name)]
    assert sorted(everywhere) == [case.id for case in dataset.cases]
    assert split.train_labelled
    assert split.validation
    assert all(case.labelled for case in split.train_labelled + split.validation + split.test)
    assert not any(case.labelled for case in split.train_unlabelled + split.left_out)
    for case_id, part in parts.items():
        group = f"g{int(case_id[:3])}"
        if part == "test":
            assert group not in training | of["validation"]
        if part == "validation":
            assert group not in training
    if isinstance(labels, int):
        most = max(labelled for labelled, _ in groups)
        assert split.budget <= max(labels, 4) + 2 * most
