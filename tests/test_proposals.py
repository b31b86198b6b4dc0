"""Proposals, suppression and mask overlap, against one-at-a-time references, BLAS and torchvision's rule."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from reference import proposals as slow

from samdistill import _core
from samdistill.proposals import MaskRuns, Proposals, boxes_of, mask_iou, mask_nms, nms, stability_scores

Masks = npt.NDArray[np.bool_]


@st.composite
def boxes_and_scores(draw: st.DrawFn) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Boxes on a coarse grid, so that many overlap, nest and repeat, and scores with ties."""
    count = draw(st.integers(0, 25))
    corners = draw(arrays(np.int64, (count, 2), elements=st.integers(-3, 6)))
    sides = draw(arrays(np.int64, (count, 2), elements=st.integers(1, 6)))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    boxes = np.concatenate([corners, corners + sides], axis=1).astype(dtype) * dtype(
        draw(st.sampled_from([1, 0.3]))
    )
    return boxes, draw(arrays(np.float32, count, elements=st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0])))


@st.composite
def two_mask_sets(draw: st.DrawFn) -> tuple[Masks, Masks]:
    height, width = draw(st.integers(0, 9)), draw(st.sampled_from([0, 1, 5, 63, 64, 65, 130]))
    a, b = (draw(arrays(np.bool_, (draw(st.integers(0, 4)), height, width))) for _ in range(2))
    return a, b


@settings(deadline=None, max_examples=300)
@given(boxes_and_scores(), st.sampled_from([0.0, 0.2, 1 / 3, 0.5, 0.75, 1.0]))
def test_nms_keeps_what_the_reference_keeps(
    drawn: tuple[npt.NDArray[Any], npt.NDArray[Any]], iou: float
) -> None:
    boxes, scores = drawn
    np.testing.assert_array_equal(nms(boxes, scores, iou), slow.nms(boxes, scores, iou))


def test_nms_of_many_float_boxes_agrees_to_the_last_box() -> None:
    rng = np.random.default_rng(0)
    corners = rng.random((300, 2), dtype=np.float32) * 200
    boxes = np.concatenate([corners, corners + 5 + 60 * rng.random((300, 2), dtype=np.float32)], axis=1)
    scores = rng.random(300).astype(np.float32)
    kept = nms(boxes, scores, 0.4)
    np.testing.assert_array_equal(kept, slow.nms(boxes, scores, 0.4))
    assert 20 < len(kept) < 250
    assert (np.diff(scores[kept]) <= 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nms_rounds_as_torchvision_does_where_an_overlap_is_the_threshold_itself(dtype: type) -> None:
    """A fused multiply-add in the overlap, or a threshold rounded up, would drop or keep the wrong box."""
    rng = np.random.default_rng(5)
    scores = np.array([1.0, 0.5])
    for _ in range(300):
        corners = rng.random((2, 2)).astype(dtype)
        boxes = np.concatenate([corners, corners + 1 + rng.random((2, 2)).astype(dtype)], axis=1)
        overlap = float(slow.box_iou(*boxes))
        assert len(nms(boxes, scores, overlap)) == 2
        assert len(nms(boxes, scores, np.nextafter(overlap, 0))) == 1


def test_nms_of_integer_boxes_and_equal_scores_prefers_the_lower_index() -> None:
    boxes = np.array([[0, 0, 4, 4], [0, 0, 4, 4], [10, 0, 14, 4]])
    np.testing.assert_array_equal(nms(boxes, np.array([1, 1, 5])), [2, 0])


@settings(deadline=None, max_examples=150)
@given(two_mask_sets())
def test_mask_iou_is_counted_right(sets: tuple[Masks, Masks]) -> None:
    a, b = sets
    np.testing.assert_array_equal(mask_iou(a, b), slow.mask_iou(a, b))
    np.testing.assert_array_equal(mask_iou(a, a), slow.mask_iou(a, a))


@pytest.mark.parametrize("shape", [(20, 256, 256), (7, 40_000, 3), (7, 1, 5000), (3, 1024, 1024)])
def test_mask_iou_agrees_with_blas(shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(1)
    a, b = rng.random(shape) < 0.3, rng.random((shape[0] + 2, *shape[1:])) < 0.6
    a[0], a[1], b[0] = False, True, False
    a[2, : shape[1] // 2], a[2, :, : shape[2] // 3] = False, False
    flat_a, flat_b = a.reshape(len(a), -1).astype(np.float64), b.reshape(len(b), -1).astype(np.float64)
    both = flat_a @ flat_b.T
    either = flat_a.sum(1)[:, None] + flat_b.sum(1) - both
    expected = np.where(either > 0, both / np.maximum(either, 1), 1.0)
    np.testing.assert_array_equal(mask_iou(a, b), expected)


def test_mask_iou_takes_uint8_read_only_and_strided_masks() -> None:
    rng = np.random.default_rng(2)
    a = rng.random((3, 20, 70)) < 0.5
    flipped = np.asfortranarray(a)
    flipped.flags.writeable = False
    expected = slow.mask_iou(a, a)
    np.testing.assert_array_equal(mask_iou(flipped, a), expected)
    np.testing.assert_array_equal(mask_iou(a.astype(np.uint8) * 7, a), expected)
    with pytest.raises(ValueError, match="size of masks_a"):
        mask_iou(a, a[:, :, :69])
    with pytest.raises(ValueError, match="bool or uint8"):
        mask_iou(a.astype(np.float32), a)
    with pytest.raises(TypeError, match="masks_a"):
        mask_iou([a], a)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 6).flatmap(lambda k: arrays(np.bool_, (k, 3, 5))), st.sampled_from([0.0, 0.3, 0.5, 1.0])
)
def test_mask_nms_keeps_what_the_reference_keeps(masks: Masks, iou: float) -> None:
    scores = (np.arange(len(masks)) * 7 % 3).astype(np.float32)
    np.testing.assert_array_equal(mask_nms(masks, scores, iou), slow.mask_nms(masks, scores, iou))


def test_many_threads_get_the_overlaps_one_gets() -> None:
    masks = np.random.default_rng(4).random((12, 40, 70)) < 0.4
    expected = slow.mask_iou(masks, masks)
    wrong: list[int] = []

    def work(i: int) -> None:
        wrong.extend(i for _ in range(50) if not np.array_equal(mask_iou(masks, masks), expected))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_stability_is_the_overlap_of_two_cuts() -> None:
    logits = np.array([[[-2, -0.5, 0.5, 2, 3]], [[-9, -9, -9, -9, -9]]], np.float32)
    np.testing.assert_allclose(stability_scores(logits), [2 / 4, 0])
    np.testing.assert_allclose(stability_scores(logits, threshold=1, offset=1.5), [1 / 3, 0])
    with pytest.raises(ValueError, match=r"\(K, H, W\)"):
        stability_scores(logits[0])


def test_boxes_of_masks_are_half_open() -> None:
    masks = np.zeros((2, 6, 9), bool)
    masks[0, 2, 3], masks[1, 1:5, 0:9] = True, True
    np.testing.assert_array_equal(boxes_of(masks), [[3, 2, 4, 3], [0, 1, 9, 5]])
    with pytest.raises(ValueError, match="index 1"):
        boxes_of(np.stack([masks[0], np.zeros((6, 9), bool)]))


def proposals(count: int = 3) -> Proposals:
    masks = np.zeros((count, 5, 5), bool)
    masks[np.arange(count), np.arange(count), 1] = True
    ramp = np.linspace(0, 1, count, dtype=np.float32)
    return Proposals(masks, boxes_of(masks), ramp, ramp[::-1].copy())


def test_proposals_are_selected_by_index_or_by_truth() -> None:
    found = proposals()
    picked = found.select(np.array([2, 0]))
    assert len(picked) == 2 and picked.masks[0, 2, 1]
    np.testing.assert_array_equal(picked.iou_predictions, [1, 0])
    assert len(found.select(found.iou_predictions > 0.4)) == 2
    assert len(found.select(np.empty(0, np.int64))) == 0


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("masks", np.zeros((3, 5, 5), np.uint8), "bool"),
        ("masks", np.zeros((2, 5, 5), bool), r"\(2, 4\)"),
        ("boxes", np.array([[0, 0, 1, 1]] * 3), "float32"),
        ("boxes", np.array([[2, 0, 1, 1]] * 3, np.float32), "x0 < x1"),
        ("iou_predictions", np.zeros(2, np.float32), r"iou_predictions must be numbers \(3,\)"),
        ("stability_scores", np.full(3, np.nan, np.float32), "NaN at index 0"),
        ("stability_scores", np.zeros(3), "float32"),
    ],
)
def test_proposals_refuse_what_breaks_their_contract(field: str, value: object, message: str) -> None:
    good = proposals()
    fields = {name: getattr(good, name) for name in ("masks", "boxes", "iou_predictions", "stability_scores")}
    with pytest.raises(ValueError, match=message):
        Proposals(**{**fields, field: value})


def test_suppression_refuses_bad_scores_and_thresholds() -> None:
    boxes = np.array([[0, 0, 1, 1.0]])
    with pytest.raises(ValueError, match="NaN"):
        nms(boxes, np.array([np.nan]))
    with pytest.raises(ValueError, match="iou"):
        nms(boxes, np.array([1.0]), iou=1.5)
    with pytest.raises(ValueError, match=r"scores must be numbers \(1,\)"):
        nms(boxes, np.array([1.0, 2.0]))
    with pytest.raises(ValueError, match="row 0"):
        nms(np.array([[0, 0, 0, 1.0]]), np.array([1.0]))


@settings(deadline=None, max_examples=200)
@given(two_mask_sets())
def test_runs_are_the_cores_and_give_the_masks_back(drawn: tuple[Masks, Masks]) -> None:
    masks = np.concatenate(drawn)
    if 0 in masks.shape[1:]:
        with pytest.raises(ValueError, match="image_size must be"):
            MaskRuns.of(masks)
        return
    runs = MaskRuns.of(masks)
    assert len(runs) == len(runs.counts) == len(masks)
    by_core = [_core.summarize(np.ascontiguousarray(mask, np.float32), 0.5, True)[0] for mask in masks]
    assert runs.edges.ravel().tolist() == [edge for edges in by_core for edge in edges.tolist()]
    np.testing.assert_array_equal(runs.to_masks(), masks)
    np.testing.assert_array_equal(MaskRuns.of(masks.astype(np.uint8) * 7).to_masks(), masks)


def test_a_run_may_go_on_in_the_next_row() -> None:
    runs = MaskRuns(np.array([[1, 7], [0, 12], [3, 4]], np.int32), np.array([1, 0, 1, 1]), (3, 4))
    expected = np.zeros((4, 12), np.bool_)
    expected[0, 1:7] = expected[2] = expected[3, 3] = True
    np.testing.assert_array_equal(runs.to_masks(), expected.reshape(4, 3, 4))


RUNS: dict[str, Any] = {
    "edges": np.array([[0, 2], [5, 6], [1, 3]], np.int32),
    "counts": np.array([2, 1]),
    "image_size": (2, 3),
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": (2, 0)}, "image_size must be"),
        ({"image_size": (6,)}, "image_size must be"),
        ({"image_size": (1 << 16, 1 << 16)}, "image_size must be"),
        ({"edges": RUNS["edges"].astype(np.int64)}, "edges must be int32"),
        ({"edges": RUNS["edges"].ravel()}, "edges must be int32"),
        ({"edges": RUNS["edges"].tolist()}, "edges must be int32"),
        ({"counts": np.array([2, 2])}, "counts must be 0 or more and sum up to 3"),
        ({"counts": np.array([4, -1])}, "counts must be 0 or more"),
        ({"counts": np.array([2.0, 1.0])}, "counts must be int64"),
        ({"counts": np.array([3])}, r"not \[1 3\] at row 2"),
        ({"image_size": (1, 5)}, r"edges must be begin < end within 1 x 5 pixels.* not \[5 6\] at row 1"),
        ({"edges": np.array([[0, 2], [1, 6], [1, 3]], np.int32)}, r"not \[1 6\] at row 1"),
        ({"edges": np.array([[2, 2], [5, 6], [1, 3]], np.int32)}, r"not \[2 2\] at row 0"),
        ({"edges": np.array([[-1, 2], [5, 6], [1, 3]], np.int32)}, r"not \[-1  2\] at row 0"),
    ],
)
def test_what_are_no_runs_is_refused(changes: dict[str, Any], message: str) -> None:
    MaskRuns(**RUNS)
    with pytest.raises(ValueError, match=message):
        MaskRuns(**{**RUNS, **changes})
