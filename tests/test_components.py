"""Components, against flood fill pixel by pixel and against OpenCV, scipy, cc3d and scikit-image."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cc3d
import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from reference import components as slow
from scipy import ndimage
from skimage import morphology as skimage_morphology

from samdistill.components import Components, Element, Keep, Morphology, Operation, clean, label, summarize

WIDTHS = [1, 2, 3, 7, 31, 62, 63, 64, 65, 127, 128, 129, 200]
ELEMENTS: list[Element] = ["square", "disk", "diamond", "star"]
OPERATIONS: list[Operation] = ["erosion", "dilation"]
# Multiples of 1/16 on both sides of one half and on it: ties, strictness, and sums that are exact.
LEVELS = np.array([0, 1 / 16, 7 / 16, 0.5, 9 / 16, 0.75, 1], np.float32)


@st.composite
def probability_maps(draw: st.DrawFn, most_classes: int = 1) -> npt.NDArray[np.float32]:
    """Maps of noise, or of noise smeared into runs and columns; small, narrow or wide."""
    shape = (
        draw(st.integers(0, most_classes)),
        draw(st.integers(0, 12)),
        draw(st.sampled_from([0, *WIDTHS])),
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weights = np.array(draw(st.lists(st.integers(1, 8), min_size=len(LEVELS), max_size=len(LEVELS))))
    maps = rng.choice(LEVELS, shape, p=weights / weights.sum())
    for axis, times in ((1, draw(st.integers(1, 3))), (2, draw(st.integers(1, 6)))):
        index = np.arange(shape[axis]) // times
        maps = np.take(maps, index, axis=axis)
    return maps.copy()


@st.composite
def morphologies(draw: st.DrawFn) -> Morphology | None:
    if draw(st.booleans()):
        return None
    operation, element = draw(st.sampled_from(OPERATIONS)), draw(st.sampled_from(ELEMENTS))
    if element == "square" and draw(st.booleans()):
        return Morphology(operation, width=draw(st.integers(1, 9)))
    return Morphology(operation, element, draw(st.integers(0, 4)))


def assert_same(found: Components, expected: slow.Table) -> None:
    assert len(found) == len(expected.area_px)
    np.testing.assert_array_equal(found.area_px, np.array(expected.area_px, np.int64))
    np.testing.assert_array_equal(found.boxes, np.array(expected.boxes, np.int64).reshape(-1, 4))
    np.testing.assert_array_equal(found.centroids, np.array(expected.centroids).reshape(-1, 2))
    np.testing.assert_array_equal(found.labels, expected.labels)
    dtypes = [a.dtype for a in (found.labels, found.area_px, found.boxes, found.centroids)]
    assert dtypes == [np.int32, np.int64, np.int64, np.float64]


@settings(deadline=None, max_examples=200)
@given(probability_maps(), st.sampled_from([4, 8]), st.booleans())
def test_labels_and_statistics_are_those_of_flood_fill(
    maps: npt.NDArray[np.float32], connectivity: int, as_bytes: bool
) -> None:
    for probability in maps:
        mask = probability > 0.5
        values = (mask * np.uint8(1 + mask.size % 255)) if as_bytes else mask
        assert_same(label(values, connectivity=connectivity), slow.label(mask, connectivity))


@settings(deadline=None, max_examples=200)
@given(probability_maps(), st.sampled_from([4, 8]), st.sampled_from([0.0, 0.5, 9 / 16, 0.6, 1.0]))
def test_a_summary_is_the_table_of_the_thresholded_map(
    maps: npt.NDArray[np.float32], connectivity: int, threshold: float
) -> None:
    for probability in maps:
        found = summarize(probability, threshold=threshold, connectivity=connectivity)
        expected = slow.label(probability > threshold, connectivity, probability)
        assert_same(found, expected)
        np.testing.assert_array_equal(found.mean_probability, np.array(expected.mean_probability))


@settings(deadline=None, max_examples=100)
@given(
    probability_maps(most_classes=3),
    st.sampled_from(["likeliest", "largest", "all"]),
    st.integers(0, 5),
    morphologies(),
)
def test_cleaning_is_binarising_keeping_and_then_morphology(
    maps: npt.NDArray[np.float32], keep: Keep, min_area_px: int, morphology: Morphology | None
) -> None:
    masks = clean(maps, keep=keep, min_area_px=min_area_px, morphology=morphology)
    assert masks.dtype == np.bool_
    np.testing.assert_array_equal(masks, slow.clean(maps, 0.5, keep, min_area_px, morphology))


@pytest.mark.parametrize("element", ELEMENTS)
def test_footprints_are_those_of_scikit_image(element: Element) -> None:
    for radius in range(17):
        theirs = {
            "square": lambda r: skimage_morphology.footprint_rectangle((2 * r + 1, 2 * r + 1)),
            "disk": skimage_morphology.disk,
            "diamond": skimage_morphology.diamond,
            "star": skimage_morphology.star,
        }[element](radius)
        np.testing.assert_array_equal(Morphology("erosion", element, radius).footprint(), theirs)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("element", [*ELEMENTS, "wide square"])
def test_morphology_is_that_of_scikit_image(operation: Operation, element: str) -> None:
    rng = np.random.default_rng(0)
    compute = {"erosion": skimage_morphology.erosion, "dilation": skimage_morphology.dilation}[operation]
    for shape in ((1, 90), (45, 3), (40, 64), (37, 100)):
        for share in (0.03, 0.5, 0.97):
            probability = rng.random((1, *shape), np.float32)
            for size in range(1, 17):
                morphology = (
                    Morphology(operation, width=2 * size)
                    if element == "wide square"
                    else Morphology(operation, element, size)  # type: ignore[arg-type]
                )
                found = clean(probability, threshold=1 - share, keep="all", morphology=morphology)[0]
                mask = probability[0] > np.float32(1 - share)
                np.testing.assert_array_equal(found, compute(mask, morphology.footprint(), mode="ignore"))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_pixel_grows_without_a_gap_however_near_the_end_of_a_row_of_words(operation: Operation) -> None:
    for width in range(1, 131):
        for x in {0, width // 2, width - 1}:
            pixel = np.arange(width) == x
            maps = (pixel == (operation == "dilation")).astype(np.float32)[None, None]
            for radius in (1, 3, 4, 8, 16):
                found = clean(maps, keep="all", morphology=Morphology(operation, "square", radius))[0, 0]
                near = np.abs(np.arange(width) - x) <= radius
                np.testing.assert_array_equal(found, near if operation == "dilation" else ~near)


def test_radius_0_and_width_1_change_nothing() -> None:
    maps = np.random.default_rng(0).random((2, 30, 70), np.float32)
    for morphology in (Morphology("erosion", "star", 0), Morphology("dilation", width=1)):
        np.testing.assert_array_equal(clean(maps, morphology=morphology), clean(maps))


@pytest.mark.parametrize("kind", ["blobs", "small objects", "noise", "rings"])
@pytest.mark.parametrize("connectivity", [4, 8])
def test_large_images_agree_with_opencv_cc3d_and_scipy(kind: str, connectivity: int) -> None:
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:333, :517]
    mask = {
        "blobs": ndimage.gaussian_filter(rng.standard_normal((333, 517)), 5) > 0,
        "small objects": ndimage.gaussian_filter(rng.standard_normal((333, 517)), 1) > 0.3,
        "noise": rng.random((333, 517)) < 0.5,
        "rings": np.hypot(y - 150, x - 250) % 9 < 5,
    }[kind]
    found = label(mask, connectivity=connectivity)
    structure = ndimage.generate_binary_structure(2, 2 if connectivity == 8 else 1)
    np.testing.assert_array_equal(found.labels, ndimage.label(mask, structure)[0])
    count, labels, stats, centroids = cv2.connectedComponentsWithStats(
        mask.astype(np.uint8), connectivity=connectivity
    )
    assert len(found) == count - 1
    theirs = labels[tuple(first_pixels(found.labels).T)]
    np.testing.assert_array_equal(found.area_px, stats[theirs, cv2.CC_STAT_AREA])
    np.testing.assert_array_equal(found.boxes[:, :2], stats[theirs, :2])
    np.testing.assert_array_equal(found.boxes[:, 2:] - found.boxes[:, :2], stats[theirs, 2:4])
    np.testing.assert_allclose(found.centroids, centroids[theirs], rtol=1e-12)
    partition = cc3d.connected_components(mask, connectivity=connectivity)
    assert len(np.unique(np.stack([found.labels, partition]).reshape(2, -1), axis=1).T) == count


def first_pixels(labels: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """(N, 2) row and column of each label's first pixel."""
    numbers, first = np.unique(labels, return_index=True)
    return np.stack(np.unravel_index(first[numbers > 0], labels.shape), axis=1)


def test_mean_probability_and_likeliest_agree_with_scipy_on_a_large_map() -> None:
    noise = np.random.default_rng(2).standard_normal((400, 300))
    probability = (1 / (1 + np.exp(-9 * ndimage.gaussian_filter(noise, 4)))).astype(np.float32)
    labels, count = ndimage.label(probability > 0.5, np.ones((3, 3)))
    expected = ndimage.mean(probability.astype(np.float64), labels, np.arange(1, count + 1))
    mean = summarize(probability).mean_probability
    assert mean is not None
    np.testing.assert_allclose(mean, expected, rtol=1e-13)
    np.testing.assert_array_equal(clean(probability[None])[0], labels == 1 + np.argmax(expected))


def test_of_equals_the_first_in_raster_order_stays() -> None:
    maps = np.zeros((1, 5, 9), np.float32)
    maps[0, 3:, :2] = maps[0, 1:3, 6:8] = 0.75
    for keep in ("likeliest", "largest"):
        rows, columns = np.nonzero(clean(maps, keep=keep)[0])
        assert (rows.min(), columns.min()) == (1, 6)


def test_small_components_go_before_one_is_chosen() -> None:
    maps = np.zeros((1, 6, 6), np.float32)
    maps[0, 0, 0] = 1
    maps[0, 3:, 3:] = 0.6
    assert clean(maps).sum() == 1
    np.testing.assert_array_equal(clean(maps, min_area_px=2)[0], maps[0] == np.float32(0.6))
    assert not clean(maps, min_area_px=10).any()
    assert clean(maps, keep="all", min_area_px=2).sum() == 9


def test_the_threshold_is_strict_and_one_a_class_if_wanted() -> None:
    maps = np.full((2, 2, 3), 0.3, np.float32)
    assert not clean(maps, threshold=0.3).any()
    np.testing.assert_array_equal(clean(maps, threshold=[0.3, 0.2]).any(axis=(1, 2)), [False, True])
    assert len(summarize(maps[0], threshold=0.3)) == 0
    with pytest.raises(ValueError, match=r"threshold must be one number or 2, one a class, not 3"):
        clean(maps, threshold=[0.1, 0.2, 0.3])


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0)])
def test_an_empty_array_has_no_component(shape: tuple[int, int]) -> None:
    for found in (label(np.zeros(shape, np.bool_)), summarize(np.zeros(shape, np.float32))):
        assert len(found) == 0
        assert found.labels.shape == shape
        assert found.boxes.shape == (0, 4)
        assert found.centroids.shape == (0, 2)
    assert clean(np.zeros((3, *shape), np.float32)).shape == (3, *shape)
    assert clean(np.zeros((0, 4, 4), np.float32)).shape == (0, 4, 4)


@pytest.mark.parametrize("shape", [(1, 1), (1, 100_000), (40_000, 3), (3, 40_000)])
def test_extreme_shapes_have_exact_statistics(shape: tuple[int, int]) -> None:
    height, width = shape
    full = label(np.ones(shape, np.bool_))
    assert full.area_px.tolist() == [height * width]
    assert full.boxes.tolist() == [[0, 0, width, height]]
    assert full.centroids.tolist() == [[(width - 1) / 2, (height - 1) / 2]]
    assert (full.labels == 1).all()
    noise = np.random.default_rng(0).random(shape) < 0.4
    np.testing.assert_array_equal(label(noise).labels, ndimage.label(noise, np.ones((3, 3)))[0])
    assert len(label(np.zeros(shape, np.bool_))) == 0


def test_read_only_and_strided_arrays_are_read_as_they_are() -> None:
    maps = np.random.default_rng(0).random((4, 50, 140), np.float32)
    maps.flags.writeable = False
    strided = maps[::2, ::-1, 1::3]
    np.testing.assert_array_equal(clean(strided), clean(strided.copy()))
    np.testing.assert_array_equal(summarize(strided[0]).labels, summarize(strided[0].copy()).labels)
    mask = np.asfortranarray(maps[0] > 0.5)
    mask.flags.writeable = False
    np.testing.assert_array_equal(label(mask).labels, ndimage.label(mask, np.ones((3, 3)))[0])


def test_nan_is_an_error_that_says_where() -> None:
    maps = np.full((3, 20, 90), 0.9, np.float32)
    maps[1, 7, 83] = np.nan
    with pytest.raises(ValueError, match=r"probability_maps must be .* not NaN at \(1, 7, 83\)"):
        clean(maps)
    with pytest.raises(ValueError, match=r"not NaN at \(1, 7, 83\)"):
        clean(maps, keep="all")
    with pytest.raises(ValueError, match=r"probability_map must be .* not NaN at \(7, 83\)"):
        summarize(maps[1])
    with pytest.raises(ValueError, match=r"not NaN at \(0, 0\)"):
        summarize(np.full((4, 4), np.nan, np.float32))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: label([[1]]), TypeError, r"mask must be a bool array \(H, W\), not list"),
        (lambda: label(np.zeros((2, 2), np.int64)), ValueError, r"mask must be bool or uint8 .*int64"),
        (lambda: label(np.zeros(2, np.bool_)), ValueError, r"mask must be .*shape \(2,\)"),
        (
            lambda: label(np.zeros((2, 2), np.bool_), connectivity=6),
            ValueError,
            "connectivity must be 4 or 8",
        ),
        (lambda: summarize(np.zeros((2, 2))), ValueError, r"must be float32 \(H, W\).*astype"),
        (lambda: summarize([0.5]), TypeError, "must be a float32 array"),
        (lambda: summarize(np.zeros((2, 2), np.float32), threshold=1.5), ValueError, r"number in \[0, 1\]"),
        (
            lambda: clean(np.zeros((2, 2), np.float32)),
            ValueError,
            r"float32 \(C, H, W\), not float32 of shape",
        ),
        (lambda: clean(np.zeros((1, 2, 2), np.float32), keep="best"), ValueError, "keep must be one of"),
        (lambda: clean(np.zeros((1, 2, 2), np.float32), min_area_px=-1), ValueError, "integer >= 0, not -1"),
        (lambda: clean(np.zeros((1, 2, 2), np.float32), threshold=[np.nan]), ValueError, r"threshold\[0\]"),
        (lambda: Morphology("opening", "disk", 1), ValueError, "operation must be one of"),  # type: ignore[arg-type]
        (lambda: Morphology("erosion", "cross", 1), ValueError, "element must be one of"),  # type: ignore[arg-type]
        (lambda: Morphology("erosion", "disk"), ValueError, "either radius or width"),
        (lambda: Morphology("erosion", "square", 1, 3), ValueError, "either radius or width"),
        (
            lambda: Morphology("erosion", "disk", 17),
            ValueError,
            r"radius must be an integer of 0\.\.16, not 17",
        ),
        (lambda: Morphology("erosion", "disk", width=3), ValueError, "width must be left out for a disk"),
        (lambda: Morphology("erosion", width=34), ValueError, r"width must be an integer of 1\.\.33"),
    ],
)
def test_errors_name_the_argument_its_contract_and_what_came(
    call: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()


def test_images_of_2_to_the_31_pixels_are_refused_before_anything_is_read() -> None:
    vast = np.broadcast_to(np.zeros((1, 1), np.float32), (2**16, 2**15))
    with pytest.raises(ValueError, match=r"fewer than 2\^31 pixels, not 65536 x 32768"):
        summarize(vast)
    with pytest.raises(ValueError, match=r"fewer than 2\^31 pixels"):
        clean(vast[None])
    with pytest.raises(ValueError, match=r"fewer than 2\^31 pixels"):
        label(np.broadcast_to(np.zeros((1, 1), np.bool_), (2**16, 2**15)))


def test_many_threads_at_once_get_the_same_answers() -> None:
    rng = np.random.default_rng(3)
    maps = rng.random((6, 120, 333), np.float32)
    morphology = Morphology("dilation", "disk", 3)

    def work(index: int) -> tuple[Any, ...]:
        probability = maps[index % len(maps)]
        found, summary = label(probability > 0.5), summarize(probability)
        masks = clean(maps, keep="largest", morphology=morphology)
        return found.labels, found.centroids, summary.labels, summary.mean_probability, masks

    alone = [work(i) for i in range(len(maps))]
    with ThreadPoolExecutor(8) as pool:
        for index, together in enumerate(pool.map(work, range(48))):
            for one, other in zip(alone[index % len(maps)], together, strict=True):
                np.testing.assert_array_equal(one, other)


def test_the_core_works_without_the_gil() -> None:
    """A thread that only counts gets on while another labels: it would stand still behind a held GIL."""
    mask = np.random.default_rng(0).random((2000, 2000)) < 0.5
    with ThreadPoolExecutor(1) as pool:
        labelling = pool.submit(label, mask)
        turns = 0
        while not labelling.done():
            turns += 1
        assert labelling.result().labels.shape == mask.shape
    assert turns > 100


@given(arrays(np.bool_, st.tuples(st.integers(1, 6), st.integers(1, 70))))
@settings(deadline=None, max_examples=100)
def test_flipping_a_mask_flips_its_statistics(mask: npt.NDArray[np.bool_]) -> None:
    found, flipped = label(mask), label(mask[::-1, ::-1])
    height, width = mask.shape
    turned = np.array([width, height, width, height]) - flipped.boxes[:, [2, 3, 0, 1]]
    np.testing.assert_array_equal(np.sort(found.area_px), np.sort(flipped.area_px))
    assert sorted(map(tuple, found.boxes)) == sorted(map(tuple, turned))
