"""Soft overlaps and atoms against their definitions."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from reference import kernels as slow

from samdistill import kernels

Masks = npt.NDArray[np.bool_]
Maps = npt.NDArray[np.float32]


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    kernels.warm_up()


@st.composite
def masks_and_maps(draw: st.DrawFn) -> tuple[Masks, Maps]:
    size = draw(st.tuples(st.integers(0, 6), st.integers(0, 9)))
    masks = draw(arrays(np.bool_, (draw(st.integers(0, 7)), *size)))
    maps = draw(arrays(np.float32, (draw(st.integers(0, 3)), *size), elements=st.floats(0, 1, width=32)))
    return masks, maps


def check(masks: Masks, maps: Maps, threads: int | None = None) -> None:
    overlap = kernels.soft_overlap(masks, maps, threads=threads)
    inside, outside, area, total = slow.soft_overlap(masks, maps)
    np.testing.assert_allclose(overlap.inside, inside, atol=1e-9)
    np.testing.assert_allclose(overlap.outside, outside, atol=1e-9)
    np.testing.assert_array_equal(overlap.area_px, area)
    np.testing.assert_allclose(overlap.total, total, atol=1e-9)
    found = kernels.atoms(masks, maps, threads=threads)
    ids, covered_by, inside, outside, area = slow.atoms(masks, maps)
    np.testing.assert_array_equal(found.ids, ids)
    np.testing.assert_array_equal(found.covered_by, covered_by)
    np.testing.assert_allclose(found.inside, inside, atol=1e-9)
    np.testing.assert_allclose(found.outside, outside, atol=1e-9)
    np.testing.assert_array_equal(found.area_px, area)
    np.testing.assert_allclose(found.total, total, atol=1e-9)
    bits = np.unpackbits(found.bitsets().view(np.uint8), axis=1, bitorder="little")[:, : len(area)]
    np.testing.assert_array_equal(bits.astype(bool), covered_by.T)


@settings(deadline=None, max_examples=200)
@given(masks_and_maps(), st.sampled_from([1, 2, 5]))
@example((np.ones((5, 1, 1), bool), np.ones((1, 1, 1), np.float32)), 2)
@example((np.tril(np.ones((9, 9), bool))[:, None, :], np.ones((2, 1, 9), np.float32)), 1)
def test_sums_and_atoms_are_what_their_definitions_say(drawn: tuple[Masks, Maps], threads: int) -> None:
    check(*drawn, threads)


@pytest.mark.parametrize("shape", [(40_000, 3), (1, 3000), (70, 65)])
def test_odd_sizes_agree_too(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    check(rng.random((4, *shape)) < 0.4, rng.random((2, *shape), dtype=np.float32))


def test_long_runs_that_begin_and_end_anywhere_agree_too() -> None:
    rng = np.random.default_rng(4)
    edges = np.sort(rng.integers(0, 200, (3, 90, 4)), axis=2)  # two runs a row, also none and joined ones
    x = np.arange(200)
    masks = ((edges[..., ::2, None] <= x) & (x < edges[..., 1::2, None])).any(axis=2)
    check(np.concatenate([masks, ~masks]), rng.random((2, 90, 200), dtype=np.float32))


@pytest.mark.parametrize("byte", [2, 255])
def test_a_mask_that_is_a_view_of_other_bytes_than_1_counts_as_numpy_counts_it(byte: int) -> None:
    rng = np.random.default_rng(5)
    blobs = np.array([rng.integers(0, byte + 1, (40, 200)), np.full((40, 200), byte)]).astype(np.uint8)
    blobs[1, :, 37:150] = 0
    check(blobs.view(np.bool_), rng.random((2, 40, 200), dtype=np.float32))


def test_every_pixel_may_be_an_atom_of_its_own() -> None:
    pixels = np.arange(64).reshape(8, 8)
    masks = np.array([pixels >> bit & 1 for bit in range(6)], bool)
    found = kernels.atoms(np.concatenate([masks, ~masks]), np.ones((1, 8, 8), np.float32))
    np.testing.assert_array_equal(found.ids.ravel(), np.arange(1, 65))
    np.testing.assert_array_equal(found.area_px, np.ones(64))


def test_soft_iou_is_sum_inside_over_total_plus_outside() -> None:
    p = np.zeros((1, 4, 4), np.float32)
    p[0, :2] = 0.75
    masks = np.zeros((2, 4, 4), bool)
    masks[0, :2, :2] = True
    overlap = kernels.soft_overlap(masks, p)
    np.testing.assert_allclose(overlap.soft_iou(), [[3 / (6 + 1)], [0]])
    nothing = kernels.soft_overlap(masks[1:], np.zeros((1, 4, 4), np.float32))
    np.testing.assert_array_equal(nothing.soft_iou(), [[0]])


def test_sums_do_not_depend_on_the_number_of_threads() -> None:
    rng = np.random.default_rng(1)
    masks, maps = rng.random((9, 50, 60)) < 0.3, rng.random((3, 50, 60), dtype=np.float32)
    one, many = (kernels.soft_overlap(masks, maps, threads=threads) for threads in (1, 4))
    np.testing.assert_array_equal(one.inside, many.inside)
    first, second = (kernels.atoms(masks, maps, threads=threads) for threads in (1, 4))
    np.testing.assert_array_equal(first.inside, second.inside)


def test_uint8_strided_and_read_only_arrays_are_taken() -> None:
    rng = np.random.default_rng(2)
    masks, maps = rng.random((3, 8, 9)) < 0.5, rng.random((2, 8, 9), dtype=np.float32)
    expected = kernels.soft_overlap(masks, maps).inside
    turned = np.asfortranarray(maps)
    turned.flags.writeable = False
    np.testing.assert_array_equal(kernels.soft_overlap(masks.astype(np.uint8) * 9, turned).inside, expected)


def test_wrong_arrays_and_nan_are_errors() -> None:
    masks, maps = np.ones((2, 4, 5), bool), np.ones((2, 4, 5), np.float32)
    with pytest.raises(ValueError, match="float32"):
        kernels.soft_overlap(masks, maps.astype(np.float64))
    with pytest.raises(ValueError, match="size of the maps"):
        kernels.atoms(masks[:, :3], maps)
    with pytest.raises(ValueError, match="threads"):
        kernels.soft_overlap(masks, maps, threads=0)
    maps[1, 3, 4] = np.nan
    for kernel in (kernels.soft_overlap, kernels.atoms):
        with pytest.raises(ValueError, match="NaN in channel 1"):
            kernel(masks, maps)


def test_many_callers_at_once_get_the_answers_one_gets() -> None:
    rng = np.random.default_rng(3)
    masks, maps = rng.random((6, 30, 40)) < 0.5, rng.random((2, 30, 40), dtype=np.float32)
    expected = kernels.atoms(masks, maps)
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(20):
            found = kernels.atoms(masks, maps, threads=2)
            if not (
                np.array_equal(found.ids, expected.ids) and np.array_equal(found.inside, expected.inside)
            ):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_forked_child_can_call_after_its_parent_did() -> None:
    """A data loader's workers are forked; numba's own thread pools would end them."""
    code = (
        "import os, numpy as np, samdistill.kernels as k\n"
        "call = lambda: k.soft_overlap(np.ones((4, 9, 9), bool), np.ones((1, 9, 9), np.float32), threads=2)\n"
        "call()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    call()\n"
        "    os._exit(7)\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 7
