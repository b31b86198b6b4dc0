"""Frames: sizes, and coordinates that come back to where they were."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PillowImage

from samdistill import geometry
from samdistill.geometry import ModelFrame

sizes = st.tuples(st.integers(1, 3000), st.integers(1, 3000))


@given(sizes, st.integers(32, 512))
def test_the_shortest_side_is_the_students_unless_the_image_is_too_long(
    size: tuple[int, int], side: int
) -> None:
    height, width = geometry.model_size(size, side)
    if max(size) <= geometry.MAX_ASPECT * min(size):
        assert min(height, width) == side
        long = side * max(size) / min(size)
        assert abs(max(height, width) - long) <= 0.5 + 1e-6
    else:
        assert max(height, width) == geometry.MAX_ASPECT * side
    assert min(height, width) >= 1


@given(sizes, sizes, st.integers(0, 2**31))
def test_points_and_boxes_return_to_where_they_were(
    a: tuple[int, int], b: tuple[int, int], seed: int
) -> None:
    points = np.random.default_rng(seed).uniform(0, 1, (5, 2)) * [a[1], a[0]]
    there = geometry.map_points(geometry.map_points(points, a, b), b, a)
    np.testing.assert_allclose(there, points, atol=1e-3 * max(a))
    boxes = np.concatenate([points, points + 2], axis=1)
    back = geometry.map_boxes(geometry.map_boxes(boxes, a, b), b, a)
    np.testing.assert_allclose(back, boxes, atol=1e-3 * max(a))


def test_points_map_by_centre_and_boxes_by_edge() -> None:
    """By hand, 2 x 2 pixels into 4 x 4: the first pixel has its centre 0 at 0.5, its edges at 0 and 2."""
    np.testing.assert_allclose(geometry.map_points(np.array([[0.0, 1.0]]), (2, 2), (4, 4)), [[0.5, 2.5]])
    np.testing.assert_allclose(geometry.map_boxes(np.array([[0.0, 0, 1, 1]]), (2, 2), (4, 4)), [[0, 0, 2, 2]])


def test_a_frame_pads_right_and_below_and_cuts_it_again() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    frame = ModelFrame.of((40, 50), 40)
    assert (frame.size, frame.padded) == ((40, 50), (64, 64))
    pixels = frame.pixels(image)
    np.testing.assert_array_equal(pixels[:, :40, :50], image.transpose(2, 0, 1))
    np.testing.assert_array_equal(pixels[:, 40:, :50], np.broadcast_to(image[-1].T[:, None], (3, 24, 50)))
    logits = np.full((1, 64, 64), 9, np.float32)
    logits[:, :40, :50] = 0
    np.testing.assert_allclose(frame.probability_maps(logits), np.full((1, 40, 50), 0.5))


def test_the_sigmoid_neither_overflows_nor_leaves_its_range() -> None:
    logits = np.array([-1e30, -90, 0, 90, 1e30], np.float32)
    np.testing.assert_allclose(geometry.sigmoid(logits), [0, 0, 0.5, 1, 1], atol=1e-6)


@pytest.mark.parametrize("size", [(7, 9), (30, 50), (1, 1)])
def test_resized_masks_and_labels_invent_nothing(size: tuple[int, int]) -> None:
    labels = np.random.default_rng(3).integers(0, 4, (20, 30)).astype(np.int32)
    resized = geometry.resize_labels(labels, size)
    assert resized.shape == size
    assert set(np.unique(resized)) <= set(np.unique(labels))
    np.testing.assert_array_equal(geometry.resize_labels(labels, (40, 90)), labels.repeat(2, 0).repeat(3, 1))
    full = np.ones((2, 20, 30), bool)
    assert geometry.resize_masks(full, size).all()
    assert not geometry.resize_masks(~full, size).any()


def test_xywh_becomes_xyxy() -> None:
    np.testing.assert_array_equal(geometry.xywh_to_xyxy(np.array([[1.0, 2, 3, 4]])), [[1, 2, 4, 6]])


def test_the_outer_box_is_half_open_and_none_where_nothing_is() -> None:
    mask = np.zeros((6, 8), bool)
    assert geometry.outer_box(mask) is None
    mask[2, 3] = mask[4, 6] = True
    assert geometry.outer_box(mask) == (3, 2, 7, 5)


def by_pillow(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Along rows, then along columns, as two calls, so that every version of Pillow has the same order."""
    image = PillowImage.fromarray(pixels)
    bilinear = PillowImage.Resampling.BILINEAR
    return np.asarray(image.resize((size[1], len(pixels)), bilinear).resize((size[1], size[0]), bilinear))


sides = st.integers(1, 70)


@given(sides, sides, sides, sides, st.integers(0, 2**31))
def test_images_and_maps_are_resized_as_by_pillow_to_the_last_bit(
    height: int, width: int, to_height: int, to_width: int, seed: int
) -> None:
    size, random = (to_height, to_width), np.random.default_rng(seed)
    image = random.integers(0, 256, (height, width, 3)).astype(np.uint8)
    np.testing.assert_array_equal(geometry.resize_image(image, size), by_pillow(image, size))
    maps = random.random((2, height, width), np.float32)
    resized = geometry.resize_maps(maps, size)
    for one, given_map in zip(resized, maps, strict=True):
        np.testing.assert_array_equal(one, by_pillow(given_map, size))


@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1), (2400, 3)])
def test_extreme_shapes_are_resized_as_by_pillow(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3)).astype(np.uint8)
    for size in ((17, 40), (1, 1), (shape[0], 2), (2, shape[1])):
        np.testing.assert_array_equal(geometry.resize_image(image, size), by_pillow(image, size))


def test_arrays_that_lie_otherwise_in_memory_are_resized_alike() -> None:
    image = np.random.default_rng(2).integers(0, 256, (40, 30, 3)).astype(np.uint8)
    turned = image.transpose(1, 0, 2)
    np.testing.assert_array_equal(
        geometry.resize_image(turned, (9, 11)), geometry.resize_image(turned.copy(), (9, 11))
    )
    maps = image.transpose(2, 0, 1).astype(np.float32)
    np.testing.assert_array_equal(
        geometry.resize_maps(maps[:, ::2], (9, 11)), geometry.resize_maps(maps[:, ::2].copy(), (9, 11))
    )


def test_broken_values_stay_visible_and_empty_sizes_are_refused() -> None:
    maps = np.zeros((1, 8, 8), np.float32)
    maps[0, 3, 3] = np.nan
    assert np.isnan(geometry.resize_maps(maps, (20, 20))).any()
    assert np.isnan(geometry.resize_maps(maps, (3, 3))).any()
    for size in ((0, 4), (4, 0)):
        with pytest.raises(ValueError, match="size must be at least 1 x 1"):
            geometry.resize_image(np.zeros((5, 5, 3), np.uint8), size)
        with pytest.raises(ValueError, match="size must be at least 1 x 1"):
            geometry.resize_maps(maps, size)


@pytest.mark.parametrize(
    "image", [np.zeros((4, 5, 4), np.uint8), np.zeros((4, 5), np.uint8), np.zeros((4, 5, 3))]
)
def test_what_is_no_rgb_image_is_refused_before_the_core_reads_it(image: np.ndarray) -> None:
    for size in ((2, 3), (4, 5)):
        with pytest.raises(ValueError, match=r"image must be uint8 \(H, W, 3\) RGB"):
            geometry.resize_image(image, size)
