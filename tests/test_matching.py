"""Assignment against all permutations and against scipy."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from reference import matching as slow
from scipy.optimize import linear_sum_assignment

from samdistill.matching import assign


def check_form(
    weights: npt.NDArray[Any], rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]
) -> None:
    assert rows.dtype == columns.dtype == np.int64
    assert len(rows) == len(columns) == min(weights.shape)
    assert (np.diff(rows) > 0).all() and len(np.unique(columns)) == len(columns)


@settings(deadline=None, max_examples=400)
@given(
    arrays(
        np.float64,
        st.tuples(st.integers(0, 5), st.integers(0, 5)),
        elements=st.sampled_from([-3.0, -1.0, 0.0, 0.5, 1.0, 2.0, 7.0, np.inf]),
    ),
    st.booleans(),
)
def test_assign_finds_the_best_of_all_assignments(weights: npt.NDArray[np.float64], maximize: bool) -> None:
    if maximize:
        weights = -weights  # -inf forbids
    expected = slow.best_value(weights, maximize)
    if expected is None:
        with pytest.raises(ValueError, match="feasible"):
            assign(weights, maximize=maximize)
        return
    rows, columns = assign(weights, maximize=maximize)
    check_form(weights, rows, columns)
    assert weights[rows, columns].sum() == expected


@pytest.mark.parametrize("shape", [(1, 1), (3, 100), (100, 3), (32, 300), (120, 120), (1, 500), (500, 1)])
@pytest.mark.parametrize("kind", ["uniform", "ties", "structured", "sparse", "constant"])
@pytest.mark.parametrize("maximize", [True, False])
def test_assign_is_as_good_as_scipy(shape: tuple[int, int], kind: str, maximize: bool) -> None:
    rng = np.random.default_rng(shape[0] * 1000 + shape[1])
    weights = rng.random(shape)
    if kind == "ties":
        weights = np.round(weights * 4)
    elif kind == "structured":  # products are the hard case for augmenting paths
        weights = np.outer(np.arange(1, shape[0] + 1), np.arange(1, shape[1] + 1)).astype(float)
    elif kind == "sparse":
        weights[rng.random(shape) < 0.5] = -np.inf if maximize else np.inf
    elif kind == "constant":
        weights[:] = 2.5
    try:
        theirs = linear_sum_assignment(weights, maximize=maximize)
    except ValueError:
        with pytest.raises(ValueError, match="feasible"):
            assign(weights, maximize=maximize)
        return
    rows, columns = assign(weights, maximize=maximize)
    check_form(weights, rows, columns)
    np.testing.assert_allclose(weights[rows, columns].sum(), weights[theirs].sum(), rtol=1e-12)


@given(
    arrays(
        st.sampled_from([np.bool_, np.int8, np.uint16, np.int64, np.float32]),
        array_shapes(min_dims=2, max_dims=2),
    )
)
@settings(deadline=None, max_examples=60)
def test_any_number_type_is_taken(weights: npt.NDArray[Any]) -> None:
    if weights.dtype.kind == "f" and not np.isfinite(weights).all():
        weights = np.nan_to_num(weights, nan=0.0, posinf=1.0, neginf=-1.0)
    rows, columns = assign(weights)
    theirs = linear_sum_assignment(weights, maximize=True)
    exact = weights.astype(np.float64)
    np.testing.assert_allclose(exact[rows, columns].sum(), exact[theirs].sum(), rtol=1e-9)


def test_lists_strided_and_read_only_matrices_are_taken() -> None:
    assert [part.tolist() for part in assign([[1, 5], [4, 6]])] == [[0, 1], [1, 0]]
    weights = np.random.default_rng(0).random((14, 22))
    view = weights[::2, ::-2]
    view.flags.writeable = False
    rows, columns = assign(view)
    np.testing.assert_allclose(view[rows, columns].sum(), view[linear_sum_assignment(view, True)].sum())


@pytest.mark.parametrize("shape", [(0, 0), (0, 4), (4, 0)])
def test_empty_matrices_have_the_empty_assignment(shape: tuple[int, int]) -> None:
    rows, columns = assign(np.empty(shape))
    assert rows.shape == columns.shape == (0,)


@pytest.mark.parametrize("maximize", [True, False])
def test_nan_and_the_winning_infinity_are_errors_as_in_scipy(maximize: bool) -> None:
    for bad in (np.nan, np.inf if maximize else -np.inf):
        weights = np.ones((3, 4))
        weights[2, 1] = bad
        with pytest.raises(ValueError, match="invalid"):
            linear_sum_assignment(weights, maximize=maximize)
        with pytest.raises(ValueError, match="weights must be numbers"):
            assign(weights, maximize=maximize)


@pytest.mark.parametrize("bad", [np.ones(3), np.ones((2, 2, 2)), np.array([["a"]]), np.array([[1j]])])
def test_what_is_no_matrix_of_numbers_is_refused(bad: npt.NDArray[Any]) -> None:
    with pytest.raises(ValueError, match="matrix"):
        assign(bad)


def test_threads_do_not_disturb_each_other() -> None:
    rng = np.random.default_rng(1)
    inputs = [rng.random((30, 50)) for _ in range(8)]
    expected = [assign(weights)[1] for weights in inputs]
    wrong: list[int] = []

    def work(i: int) -> None:
        wrong.extend(i for _ in range(100) if not np.array_equal(assign(inputs[i])[1], expected[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
