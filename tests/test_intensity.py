"""The rule from raw pixels to uint8: exact where it is identity, and never a blank picture of a full one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from samdistill.intensity import IntensityRule


def test_identity_repeats_grey_and_leaves_colour() -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    np.testing.assert_array_equal(IntensityRule().apply(grey), np.stack([grey] * 3, axis=2))
    colour = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)
    assert IntensityRule().apply(colour) is colour


def test_a_window_maps_its_ends_to_0_and_255_and_clips() -> None:
    raw = np.array([[-500, -160, 41, 240, 900]], np.int16)
    seen = IntensityRule("window", -160, 240).apply(raw)[0, :, 0]
    assert seen.tolist() == [0, 0, 128, 255, 255]


@given(hnp.arrays(np.uint16, (9, 11), elements=st.integers(0, 65535)))
def test_percentiles_blank_no_picture_that_has_something_in_it(raw: np.ndarray) -> None:
    seen = IntensityRule("percentiles", 0.5, 99.5).apply(raw)
    assert seen.shape == (9, 11, 3)
    assert (seen.max() > seen.min()) == (raw.max() > raw.min())


@pytest.mark.parametrize(
    "rule", [IntensityRule("percentiles", 0, 100), IntensityRule("window", 1e9, 1e9 + 49)]
)
def test_deep_values_keep_their_differences(rule: IntensityRule) -> None:
    """In single precision these fifty values are two."""
    raw = (1_000_000_000 + np.arange(64) % 50).astype(np.int32).reshape(8, 8)
    assert len(np.unique(rule.apply(raw))) == 50


def test_a_few_bright_pixels_on_black_stay_visible() -> None:
    raw = np.zeros((500, 500), np.uint16)
    raw[100:130, 200:235] = 50_000
    seen = IntensityRule("percentiles", 0.5, 99.5).apply(raw)
    np.testing.assert_array_equal(seen[:, :, 0] == 255, raw > 0)


@pytest.mark.parametrize(
    ("rule", "raw", "named"),
    [
        (IntensityRule(), np.zeros((3, 3), np.uint16), "uint8"),
        (IntensityRule("window", 0, 1), np.full((3, 3), np.nan), "finite"),
        (IntensityRule(), np.zeros((3, 3, 4), np.uint8), r"\(H, W\)"),
        (IntensityRule(), np.zeros((0, 3), np.uint8), r"\(H, W\)"),
    ],
)
def test_pixels_the_rule_cannot_take_are_refused(rule: IntensityRule, raw: np.ndarray, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        rule.apply(raw)


@pytest.mark.parametrize(("kind", "low", "high"), [("auto", 0, 1), ("window", 2, 1), ("percentiles", -1, 50)])
def test_a_rule_that_makes_no_sense_is_refused(kind: str, low: float, high: float) -> None:
    with pytest.raises(ValueError, match=r"intensity|percentiles"):
        IntensityRule(kind, low, high)
