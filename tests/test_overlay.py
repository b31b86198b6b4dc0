"""Overlays: outlines on pixels, and contours as SVG paths."""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageDraw

from samdistill.components import label
from samdistill.prompts import Prompts
from samdistill.report.contours import path_data, trace
from samdistill.report.overlay import (
    COLOURS,
    SHADOW_OPACITY,
    class_colour,
    draw_overlay,
    line_width,
    outline_layer,
    prompt_layer,
    truth_colour,
)

Mask = npt.NDArray[np.bool_]
GREY = np.full((40, 50, 3), 90, np.uint8)
masks_of_any_shape = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(
    lambda shape: arrays(np.bool_, shape)
)


def block(y0: int, y1: int, x0: int, x1: int) -> Mask:
    mask = np.zeros(GREY.shape[:2], bool)
    mask[y0:y1, x0:x1] = True
    return mask


def coloured(picture: npt.NDArray[np.uint8], rgb: tuple[int, int, int]) -> Mask:
    return (picture == rgb).all(axis=2)


# ---- on pixels


def test_the_outline_is_the_masks_own_outermost_pixels_and_the_rest_keeps_its_pixels() -> None:
    mask = block(10, 20, 10, 30)
    drawn = draw_overlay(GREY, mask[None])
    line = coloured(drawn, class_colour(0))
    np.testing.assert_array_equal(line, mask & ~block(11, 19, 11, 29))
    beyond_the_rim = ~block(9, 21, 9, 31) | block(12, 18, 12, 28)
    assert (drawn[beyond_the_rim] == 90).all(), "pixels away from the line are as they were"
    rim = round(90 * (1 - round(255 * SHADOW_OPACITY) / 255))
    assert (drawn[9, 10:30] == rim).all() and (drawn[11, 11:29] == rim).all()
    assert (GREY == 90).all(), "the image itself is not drawn on"


def test_an_empty_mask_draws_nothing_and_one_pixel_is_seen() -> None:
    np.testing.assert_array_equal(draw_overlay(GREY, np.zeros((2, 40, 50), bool)), GREY)
    dot = block(5, 6, 7, 8)
    np.testing.assert_array_equal(coloured(draw_overlay(GREY, dot[None]), class_colour(0)), dot)


def test_a_mask_that_fills_the_image_has_its_outline_along_the_border() -> None:
    drawn = draw_overlay(GREY, np.ones((1, 40, 50), bool))
    line = coloured(drawn, class_colour(0))
    assert line[0].all() and line[-1].all() and line[:, 0].all() and line[:, -1].all()
    assert not line[1:-1, 1:-1].any()


def test_truth_is_dashed_and_lighter_and_lies_over_the_prediction() -> None:
    mask = block(8, 32, 8, 42)
    drawn = draw_overlay(GREY, mask[None], truth=mask[None])
    truth, prediction = coloured(drawn, truth_colour(0)), coloured(drawn, class_colour(0))
    outline = mask & ~block(9, 31, 9, 41)
    assert not (truth & prediction).any()
    assert 0.35 < truth.sum() / outline.sum() < 0.65, "about every second piece is left out"
    for side in (np.s_[8, 8:42], np.s_[31, 8:42], np.s_[8:32, 8], np.s_[8:32, 41]):
        changes = np.count_nonzero(np.diff(truth[side].astype(int)))
        assert changes >= 2, "every side of the box has dashes and gaps"
    assert sum(truth_colour(0)) > sum(class_colour(0))


def test_two_classes_have_two_colours_and_the_later_is_on_top() -> None:
    both = np.stack([block(5, 25, 5, 25), block(5, 25, 5, 45)])
    drawn = draw_overlay(GREY, both)
    assert coloured(drawn, class_colour(1))[5, 5]
    assert coloured(drawn, class_colour(0))[10, 24]


def test_without_outlines_the_area_is_tinted_and_the_pixels_still_show() -> None:
    image = GREY.copy()
    image[12, 12] = 200
    drawn = draw_overlay(image, block(10, 20, 10, 30)[None], outline=False)
    assert (drawn[12, 12] != drawn[13, 13]).any()
    assert (drawn[15, 15] != 90).any() and (drawn[5, 5] == 90).all()


def test_lines_grow_with_the_image_so_that_they_show_on_a_screen() -> None:
    assert [line_width((side, 2 * side)) for side in (64, 256, 640, 3000)] == [1, 1, 2, 9]
    wide = outline_layer(np.ones((1, 30, 30), bool), width=3)
    opaque = wide[..., 3] == 255
    assert opaque[:3].all() and not opaque[5:25, 5:25].any()


def test_colours_are_distinct_also_to_the_colour_blind() -> None:
    """Deuteranopia after Machado, Oliveira and Fernandes 2009: no two of the first six come close."""
    deutan = np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    )
    linear = (np.array(COLOURS[:6]) / 255.0) ** 2.2
    seen = np.clip(linear @ deutan.T, 0, 1) ** (1 / 2.2)
    apart = np.linalg.norm(seen[:, None] - seen[None], axis=-1)[~np.eye(6, dtype=bool)]
    assert apart.min() > 0.1


def test_masks_of_another_size_or_dtype_are_refused() -> None:
    with pytest.raises(ValueError, match=r"masks must have the image's size \(40, 50\), not \(4, 5\)"):
        draw_overlay(GREY, np.zeros((1, 4, 5), bool))
    with pytest.raises(ValueError, match=r"masks must be bool or uint8 \(N, H, W\)"):
        draw_overlay(GREY, np.zeros((1, 40, 50), np.float32))
    with pytest.raises(ValueError, match="image must be uint8"):
        draw_overlay(GREY.astype(np.float32), np.zeros((1, 40, 50), bool))


# ---- as paths


def filled(rings: list[list[tuple[int, int]]], shape: tuple[int, ...]) -> Mask:
    """Fill rings by the even-odd rule: inside, a ray to the left crosses an odd number of vertical edges."""
    crossings = np.zeros((shape[0], shape[1] + 1), int)
    for ring in rings:
        for (x0, y0), (x1, y1) in zip(ring, ring[1:] + ring[:1], strict=True):
            assert (x0 == x1) != (y0 == y1), "edges run along the pixels"
            if x0 == x1:
                crossings[min(y0, y1) : max(y0, y1), x0] += 1
    return np.cumsum(crossings, axis=1)[:, :-1] % 2 == 1


@settings(deadline=None, max_examples=200)
@given(masks_of_any_shape)
@example(np.zeros((3, 3), bool))
@example(np.ones((1, 1), bool))
@example(np.eye(4, dtype=bool))
def test_filling_the_traced_rings_gives_the_mask_back(mask: Mask) -> None:
    rings = trace(mask)
    np.testing.assert_array_equal(filled(rings, mask.shape), mask)
    corners = sum(len(ring) for ring in rings)
    assert corners % 2 == 0 and all(len(ring) >= 4 for ring in rings)
    found = label(mask, connectivity=4)
    for number in range(1, len(found) + 1):
        for ring in trace(found.labels == number):
            assert len(set(ring)) == len(ring), "no ring meets itself: GeoJSON allows none"


def test_rings_are_the_components_with_eight_neighbours_and_their_holes() -> None:
    ring = np.ones((5, 5), bool)
    ring[2, 2] = False
    assert trace(ring) == [[(0, 0), (5, 0), (5, 5), (0, 5)], [(2, 3), (3, 3), (3, 2), (2, 2)]]
    assert len(trace(np.eye(6, dtype=bool))) == 1, "pixels that touch at a corner belong together"
    assert trace(np.zeros((4, 4), bool)) == []


def test_path_data_draws_what_was_traced() -> None:
    mask = block(2, 4, 3, 7)
    assert path_data(mask) == "M3 2H7V4H3Z"
    assert path_data(np.zeros((4, 4), bool)) == ""
    star = np.random.default_rng(0).random((20, 20)) > 0.4
    points = []
    for ring in re.findall(r"M[^Z]*Z", path_data(star)):
        x, y = (int(value) for value in re.match(r"M(\d+) (\d+)", ring).groups())
        points.append([(x, y)])
        for letter, value in re.findall(r"([HV])(\d+)", ring):
            x, y = (int(value), y) if letter == "H" else (x, int(value))
            points[-1].append((x, y))
    np.testing.assert_array_equal(filled(points, star.shape), star)


def test_the_paths_place_matches_the_pixels_when_drawn_ten_times_larger() -> None:
    mask = np.zeros((20, 30), bool)
    mask[4:9, 6:19] = True
    mask[9:12, 10:13] = True
    canvas = Image.new("1", (300, 200))
    ImageDraw.Draw(canvas).polygon([(10 * x, 10 * y) for x, y in trace(mask)[0]], fill=1)
    centres = np.asarray(canvas)[5::10, 5::10]
    np.testing.assert_array_equal(centres, mask)


def test_prompts_are_boxes_on_their_outermost_pixels_and_points_of_two_looks() -> None:
    points, labels = np.array([[8, 6], [20, 6]], np.float32), np.array([1, 0], np.int32)
    one = Prompts(points, labels, np.array([2, 3, 28, 17], np.float32))
    layer = prompt_layer([[], [one]], (20, 30))
    colour = (*COLOURS[1], 255)
    assert tuple(layer[3, 2]) == tuple(layer[16, 27]) == tuple(layer[6, 8]) == colour
    assert tuple(layer[6, 20]) == (255, 255, 255, 255)
    y, x = np.nonzero(layer[..., 3])
    assert (x.min(), y.min(), x.max(), y.max()) == (2, 3, 27, 16)
    assert not layer[12, 15].any()
    assert not prompt_layer([[Prompts(box=one.box)]], (20, 30))[6, 8].any()
