"""Proposals against segment_anything's automatic mask generator at equal settings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the teacher needs the extra train")

from small_sam import small_teacher  # noqa: E402

from samdistill.proposals import mask_iou  # noqa: E402
from samdistill.teacher import ProposeConfig, Teacher, load_teacher  # noqa: E402
from samdistill.teacher.propose import clean_regions, crop_boxes, point_grid  # noqa: E402


def picture(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Discs of all sizes and colours on a grey ground."""
    rng = np.random.default_rng(seed)
    image = np.full((*size, 3), 90, np.uint8)
    y, x = np.mgrid[: size[0], : size[1]]
    for _ in range(14):
        cy, cx, radius = rng.uniform(0, size[0]), rng.uniform(0, size[1]), rng.uniform(4, min(size) / 4)
        image[np.hypot(y - cy, x - cx) < radius] = rng.integers(0, 256, 3)
    return image


def official(teacher: Teacher, image: np.ndarray, **settings: Any) -> tuple[np.ndarray, np.ndarray]:
    """The generator's masks and predicted IoU, in its order."""
    from segment_anything import SamAutomaticMaskGenerator

    records = SamAutomaticMaskGenerator(teacher.model, **settings).generate(image)
    return np.stack([r["segmentation"] for r in records]), np.array([r["predicted_iou"] for r in records])


def assert_same_set(masks: np.ndarray, expected: np.ndarray) -> None:
    """One to one, each pair overlapping by at least 0.99."""
    assert len(masks) == len(expected)
    overlap = mask_iou(masks, expected)
    partner = overlap.argmax(axis=1)
    assert len(set(partner.tolist())) == len(masks)
    assert overlap.max(axis=1).min() >= 0.99


@pytest.mark.parametrize("size", [(96, 128), (150, 90)])
@pytest.mark.parametrize("min_region_px", [0, 60])
def test_a_small_random_sam_proposes_what_the_generator_does(
    size: tuple[int, int], min_region_px: int
) -> None:
    """Its masks fill the image, so boxes are not suppressed; hundreds of masks stay to be compared."""
    teacher, image = small_teacher(), picture(size)
    expected, scores = official(
        teacher, image, points_per_side=10, pred_iou_thresh=1.1, stability_score_thresh=0.8,
        box_nms_thresh=1.0, crop_nms_thresh=1.0, min_mask_region_area=min_region_px,
    )  # fmt: skip
    config = ProposeConfig(
        points_per_side=10, predicted_iou=1.1, stability=0.8, box_iou=1.0, crop_box_iou=1.0,
        min_region_px=min_region_px,
    )  # fmt: skip
    (embedding,) = teacher.embed([image])
    proposals = teacher.propose(embedding, config)
    assert len(proposals) > 50
    assert_same_set(proposals.masks, expected)
    np.testing.assert_allclose(np.sort(proposals.iou_predictions), np.sort(scores), atol=1e-4)


@pytest.mark.parametrize("size", [(1, 100), (100, 1)])
def test_masks_one_pixel_wide_or_high_are_proposed_as_the_generator_does(size: tuple[int, int]) -> None:
    """Their boxes have no area in the generator's frame, where they overlap nothing."""
    teacher, image = small_teacher(), np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    expected, _ = official(
        teacher, image, points_per_side=10, pred_iou_thresh=1.1, stability_score_thresh=0.8,
        box_nms_thresh=0.5,
    )  # fmt: skip
    (embedding,) = teacher.embed([image])
    config = ProposeConfig(points_per_side=10, predicted_iou=1.1, stability=0.8, box_iou=0.5)
    masks = teacher.propose(embedding, config).masks
    assert len(masks) > 10
    assert sorted(mask.tobytes() for mask in masks) == sorted(mask.tobytes() for mask in expected)


@pytest.mark.parametrize("layers", [0, 1])
def test_the_embedded_teacher_proposes_what_the_generator_does(layers: int) -> None:
    """Real objects: thresholds, box suppression, crops and their edges all have something to do."""
    teacher, image = load_teacher("tiny"), picture((120, 160))
    expected, scores = official(
        teacher, image, points_per_side=12, pred_iou_thresh=0.3, stability_score_thresh=0.3,
        box_nms_thresh=0.8, crop_nms_thresh=0.8, crop_n_layers=layers, crop_n_points_downscale_factor=2,
    )  # fmt: skip
    config = ProposeConfig(
        points_per_side=12, predicted_iou=0.3, stability=0.3, box_iou=0.8, crop_box_iou=0.8,
        crop_layers=layers, crop_grid_divisor=2,
    )  # fmt: skip
    (embedding,) = teacher.embed([image])
    proposals = teacher.propose(embedding, config, image=image)
    assert len(proposals) > 3
    assert_same_set(proposals.masks, expected)
    np.testing.assert_allclose(np.sort(proposals.iou_predictions), np.sort(scores), atol=1e-4)


def test_batches_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, image = small_teacher(), picture((96, 128))
    (embedding,) = teacher.embed([image])
    settings: dict[str, Any] = {"points_per_side": 6, "predicted_iou": 1.1, "box_iou": 1.0}
    one = teacher.propose(embedding, ProposeConfig(**settings, points_per_batch=7))
    other = teacher.propose(embedding, ProposeConfig(**settings, points_per_batch=36))
    assert_same_set(one.masks, other.masks)
    monkeypatch.setattr("samdistill.teacher_frame.MOST_UPSCALED", 6 * teacher.input_side**2)
    drawn, upscale = [], teacher.upscale
    monkeypatch.setattr(teacher, "upscale", lambda maps, at: drawn.append(len(maps)) or upscale(maps, at))
    assert_same_set(teacher.propose(embedding, ProposeConfig(**settings)).masks, other.masks)
    assert max(drawn) <= 6  # two points, three masks each, however many points a batch may have


def test_mask_suppression_thins_near_duplicates_out() -> None:
    teacher, image = small_teacher(), picture((96, 128))
    (embedding,) = teacher.embed([image])
    settings: dict[str, Any] = {"points_per_side": 6, "predicted_iou": 1.1, "box_iou": 1.0}
    everything = teacher.propose(embedding, ProposeConfig(**settings))
    thinned = teacher.propose(embedding, ProposeConfig(**settings, mask_iou=0.9))
    assert 0 < len(thinned) < len(everything)
    overlap = mask_iou(thinned.masks, thinned.masks) - np.eye(len(thinned))
    assert overlap.max() <= 0.9


def test_thresholds_nothing_passes_leave_no_proposal() -> None:
    teacher = small_teacher()
    (embedding,) = teacher.embed([picture((40, 50))])
    proposals = teacher.propose(
        embedding, ProposeConfig(points_per_side=4, predicted_iou=9.0, min_region_px=5)
    )
    assert len(proposals) == 0
    assert proposals.masks.shape == (0, 40, 50)


@pytest.mark.parametrize(("layers", "size"), [(0, (50, 70)), (1, (50, 70)), (2, (333, 200))])
def test_crops_and_grids_are_the_generators(layers: int, size: tuple[int, int]) -> None:
    from segment_anything.utils.amg import build_point_grid, generate_crop_boxes

    boxes, indices = generate_crop_boxes(size, layers, 512 / 1500)
    assert crop_boxes(size, layers, 512 / 1500) == [
        (layer, tuple(box)) for layer, box in zip(indices, boxes, strict=True)
    ]
    np.testing.assert_allclose(point_grid(7), build_point_grid(7))


@pytest.mark.parametrize("size", [(3, 3), (1, 40), (200, 3)])
def test_a_small_or_narrow_image_has_no_empty_crops(size: tuple[int, int]) -> None:
    crops = crop_boxes(size, 3, 512 / 1500)
    assert crops[0] == (0, (0, 0, size[1], size[0]))
    for _, (x0, y0, x1, y1) in crops:
        assert 0 <= x0 < x1 <= size[1]
        assert 0 <= y0 < y1 <= size[0]


@pytest.mark.parametrize("min_px", [1, 4, 30, 5000])
def test_regions_are_cleaned_as_the_generator_cleans_them(min_px: int) -> None:
    pytest.importorskip("cv2", reason="segment_anything's own version needs opencv")
    from segment_anything.utils.amg import remove_small_regions

    rng = np.random.default_rng(0)
    for density in (0.2, 0.45, 0.7):
        mask = rng.random((40, 30)) < density
        holes, first = remove_small_regions(mask, min_px, "holes")
        expected, second = remove_small_regions(holes, min_px, "islands")
        cleaned, changed = clean_regions(mask, min_px)
        assert np.array_equal(cleaned, expected)
        assert changed == (first or second)


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match="points_per_side must be at least 1, not 0"):
        ProposeConfig(points_per_side=0)
    with pytest.raises(ValueError, match=r"box_iou must be in \[0, 1\], not 1.5"):
        ProposeConfig(box_iou=1.5)
    with pytest.raises(ValueError, match="crop_layers must be 0 or more"):
        ProposeConfig(crop_layers=-1)
    teacher = small_teacher()
    (embedding,) = teacher.embed([picture((40, 50))])
    with pytest.raises(ValueError, match="image must be given"):
        teacher.propose(embedding, ProposeConfig(crop_layers=1))
