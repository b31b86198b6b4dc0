"""Views: the same warp for pixels and targets, and exact where it can be."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samdistill.train.config import AugmentConfig
from samdistill.train.views import View, draw_view

STILL = AugmentConfig(flip=0, transpose=0, rotate=0)


def frame(height: int, width: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("width", [64, 65])
def test_an_unchanged_view_is_the_centre_crop(width: int) -> None:
    """Pixel by pixel, also where no crop lies quite in the middle: half a pixel off it would be a blur."""
    image = frame(40, width)
    view = draw_view(np.random.default_rng(0), (40, width), 40, STILL)
    expected = image[:, 12:52].transpose(2, 0, 1)
    np.testing.assert_allclose(view.pixels(image).numpy(), expected, atol=1e-3)
    whole = image.transpose(2, 0, 1).astype(np.float32)
    np.testing.assert_array_equal(view.targets(whole).numpy(), expected)


def test_flips_and_transposition_are_exact_rearrangements() -> None:
    image = frame(32, 32)
    seen = set()
    config = AugmentConfig(flip=0.5, transpose=0.5, rotate=0)
    arrangements = [np.rot90(base, k) for base in (image, image.transpose(1, 0, 2)) for k in range(4)]
    for seed in range(60):
        pixels = draw_view(np.random.default_rng(seed), (32, 32), 32, config).pixels(image).numpy()
        matches = [
            number
            for number, arranged in enumerate(arrangements)
            if np.allclose(pixels, arranged.transpose(2, 0, 1), atol=1e-2)
        ]
        assert len(matches) == 1
        seen.update(matches)
    assert seen == set(range(8)), "all eight symmetries of the square come up"


@given(st.integers(0, 10_000))
def test_pixels_and_targets_move_together(seed: int) -> None:
    """A smooth blob warped as pixels, then thresholded, is the blob's mask warped, but for its rim."""
    y, x = np.mgrid[:64, :96]
    blob = 255 * np.exp(-(((x - 40) / 20.0) ** 2) - ((y - 30) / 12.0) ** 2)
    image = np.repeat(blob.astype(np.uint8)[:, :, None], 3, axis=2)
    view = draw_view(
        np.random.default_rng(seed), (64, 96), 64, AugmentConfig(zoom=0.4, crop="random", rotate=1.0)
    )
    warped = view.pixels(image)[0].numpy() > 128
    targets = view.targets((image[None, :, :, 0] > 128).astype(np.float32))[0].numpy() > 0.5
    assert (warped != targets).mean() < 0.03


def test_targets_keep_their_values_under_every_view() -> None:
    targets = np.random.default_rng(1).integers(-1, 2, (2, 50, 70)).astype(np.float32)
    for seed in range(20):
        view = draw_view(np.random.default_rng(seed), (50, 70), 48, AugmentConfig(zoom=0.4))
        assert set(np.unique(view.targets(targets).numpy())) <= {-1.0, 0.0, 1.0}


def test_switching_one_change_off_leaves_the_others_as_they_were() -> None:
    with_colour = draw_view(np.random.default_rng(5), (40, 40), 32, AugmentConfig(colour=0.2, brightness=0.1))
    without = draw_view(np.random.default_rng(5), (40, 40), 32, AugmentConfig(brightness=0.1))
    np.testing.assert_array_equal(with_colour.matrix, without.matrix)
    assert not np.array_equal(with_colour.offset, without.offset)


def test_photometric_changes_stay_in_range() -> None:
    view = View(np.eye(2, 3), 16, np.full(3, 1.9, np.float32), np.full(3, 200, np.float32))
    pixels = view.pixels(frame(16, 16))
    assert float(pixels.min()) >= 0
    assert float(pixels.max()) <= 255


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1)])
def test_a_degenerate_frame_gives_a_view(size: tuple[int, int]) -> None:
    view = draw_view(np.random.default_rng(0), size, 32, AugmentConfig(crop="random", zoom=0.2))
    assert view.pixels(frame(*size)).isfinite().all()
