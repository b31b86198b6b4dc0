"""The refining recipe: what the segmenter is asked, in which frame, and how its answers are united."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from samdistill.prompts import PromptConfig, Prompts
from samdistill.refine import BURDEN, MINE, RefineConfig, refine, select


@dataclass
class Embedded:
    image_size: tuple[int, int]


@dataclass
class Answer:
    masks: list[Any]
    low_res_logits: Any
    predicted_iou: Any


@dataclass
class Boxes:
    """A segmenter that fills each set's box (the whole image without one) and remembers what it was asked."""

    calls: list[dict[str, Any]] = field(default_factory=list)
    empty: bool = False

    def segment(self, embeddings: Any, prompts: Any, *, previous: Any = None, sizes: Any = None) -> Answer:
        self.calls.append({"prompts": prompts, "previous": previous, "sizes": sizes})
        masks = []
        for embedding, size, sets in zip(embeddings, sizes, prompts, strict=True):
            for one in sets:
                mask = np.zeros(size, np.bool_)
                if not self.empty:
                    if one.box is None:
                        mask[:] = True
                    else:
                        scale = np.array(
                            [size[1] / embedding.image_size[1], size[0] / embedding.image_size[0]]
                        )
                        x0, y0, x1, y1 = (one.box.reshape(2, 2) * scale).reshape(-1).round().astype(int)
                        mask[y0:y1, x0:x1] = True
                masks.append(mask)
        n = len(masks)
        return Answer(
            masks, np.arange(n, dtype=np.float32)[:, None, None], np.linspace(0.5, 1, n, dtype=np.float32)
        )


def maps(*boxes: tuple[int, int, int, int] | None, size: tuple[int, int] = (20, 30)) -> Any:
    """One class a box; p = 0.9 inside, 0.1 outside."""
    out = np.full((len(boxes), *size), 0.1, np.float32)
    for channel, box in zip(out, boxes, strict=True):
        if box is not None:
            x0, y0, x1, y1 = box
            channel[y0:y1, x0:x1] = 0.9
    return out


def test_all_sets_of_all_images_are_answered_by_one_call_a_pass() -> None:
    segmenter = Boxes()
    embedded = [Embedded((20, 30))] * 3
    three = [maps((2, 3, 8, 9), (10, 3, 16, 9)), maps(None, (1, 1, 4, 4)), maps(None, None)]
    refine(segmenter, embedded, three, BURDEN)
    assert len(segmenter.calls) == 2
    assert [len(sets) for sets in segmenter.calls[0]["prompts"]] == [2, 1], "not about the last"
    assert all(one.points is None for sets in segmenter.calls[0]["prompts"] for one in sets), "the box alone"
    assert all(one.box is None for sets in segmenter.calls[1]["prompts"] for one in sets), "not repeated"
    np.testing.assert_array_equal(segmenter.calls[1]["previous"].ravel(), [0, 1, 2])


@pytest.mark.parametrize(("most", "together"), [(1, 1), (1200, 2), (1799, 2), (3000, 5)])
def test_masks_that_memory_would_not_hold_are_asked_for_in_parts(
    most: int, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks of 20 x 30 pixels, of seven components of three images; the second image has none."""
    spots = [(3 * i, 2, 3 * i + 2, 5) for i in range(5)]
    several = maps((0, 10, 4, 14), None)
    for x0, y0, x1, y1 in spots:
        several[0, y0:y1, x0:x1] = 0.8
    three = [several, maps(None, None), maps(None, (1, 1, 4, 4))]
    prompts = PromptConfig(per_component=True, points="centre")
    config = RefineConfig(prompts, first_pass="box", second_pass="points")
    embedded = [Embedded((20, 30))] * 3
    whole, parted = Boxes(), Boxes()
    wanted = refine(whole, embedded, three, config)
    assert len(whole.calls) == 2
    monkeypatch.setattr("samdistill.refine.MOST_MASK_PIXELS", most)
    found = refine(parted, embedded, three, config)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one.masks, other.masks)
        np.testing.assert_array_equal(np.isnan(one.predicted_iou), np.isnan(other.predicted_iou))
    counts = [sum(map(len, call["prompts"])) for call in parted.calls]
    assert max(counts) == together
    assert sum(counts) == 2 * 7
    assert [len(call["previous"]) for call in parted.calls[1::2]] == counts[::2] == counts[1::2]


def test_the_masks_come_in_the_maps_frame_and_the_prompts_go_in_the_images() -> None:
    segmenter = Boxes()
    (one,) = refine(segmenter, [Embedded((40, 90))], [maps((3, 2, 9, 8))], MINE)
    (asked,) = segmenter.calls[0]["prompts"][0]
    np.testing.assert_allclose(asked.box, [9, 4, 27, 16])
    # A pixel centre stays a pixel centre: 3 -> (3 + 0.5) * 3 - 0.5 along x, * 2 along y.
    first = one.prompts[0][0].points
    assert first is not None
    np.testing.assert_allclose(asked.points, (first + 0.5) * [3, 2] - 0.5)
    assert one.masks.shape == (1, 20, 30)
    np.testing.assert_array_equal(one.masks, one.student_masks)
    assert one.agreement[0] == 1


def test_the_sets_of_a_class_are_united() -> None:
    both = maps((2, 3, 8, 9))
    both[0, 12:18, 20:26] = 0.8
    config = RefineConfig(PromptConfig(per_component=True))
    (one,) = refine(Boxes(), [Embedded((20, 30))], [both], config)
    np.testing.assert_array_equal(one.masks[0], both[0] > 0.5)
    assert one.predicted_iou[0] == pytest.approx(0.75), "the mean of 0.5 and 1"
    (literal,) = refine(Boxes(), [Embedded((20, 30))], [both], MINE)
    assert literal.masks[0].sum() == 24 * 15, "one outer box for all"


def test_an_empty_class_stays_empty_and_is_not_asked_about() -> None:
    segmenter = Boxes()
    (one,) = refine(segmenter, [Embedded((20, 30))], [maps(None, (1, 1, 4, 4))], BURDEN)
    assert not one.masks[0].any()
    assert np.isnan(one.predicted_iou[0])
    assert np.isnan(one.agreement[0])
    assert not one.empty
    (nothing,) = refine(segmenter, [Embedded((20, 30))], [maps(None, None)], BURDEN)
    assert nothing.empty


def test_a_class_without_pixels_of_its_own_keeps_the_students_mask() -> None:
    segmenter = Boxes()
    # The first class lies inside the second.
    (one,) = refine(segmenter, [Embedded((20, 30))], [maps((4, 4, 8, 8), (2, 2, 12, 12))], BURDEN)
    assert len(segmenter.calls[0]["prompts"][0]) == 1
    np.testing.assert_array_equal(one.masks[0], one.student_masks[0])
    assert one.masks[0].any()


def test_a_component_without_pixels_of_its_own_stays_where_others_are_refined() -> None:
    """One part of the first class lies inside the second; the other is alone, and is what is asked about."""
    inner = maps((4, 4, 8, 8), (2, 2, 12, 12))
    inner[0, 14:18, 20:26] = 0.9
    config = RefineConfig(PromptConfig(per_component=True, points="centre"), first_pass="box")
    (one,) = refine(Boxes(), [Embedded((20, 30))], [inner], config)
    assert len(one.prompts[0]) == 1
    np.testing.assert_array_equal(one.masks[0], inner[0] > 0.5)
    assert one.agreement[0] == 1
    (nothing,) = refine(Boxes(empty=True), [Embedded((20, 30))], [inner], config)
    assert not nothing.masks[0].any(), "taken at its word"


def test_one_present_class_has_no_negative_points() -> None:
    segmenter = Boxes()
    refine(segmenter, [Embedded((20, 30))], [maps(None, (1, 1, 4, 4), None)], BURDEN)
    (asked,) = segmenter.calls[1]["prompts"][0]
    assert asked.point_labels.tolist() == [1]


def test_seventeen_overlapping_classes() -> None:
    boxes = [(i, i % 5, i + 9, i % 5 + 9) for i in range(17)]
    (one,) = refine(Boxes(), [Embedded((20, 30))], [maps(*boxes)], RefineConfig(PromptConfig(points="none")))
    np.testing.assert_array_equal(one.masks, maps(*boxes) > 0.5)


def test_a_segmenter_that_finds_nothing_is_taken_at_its_word() -> None:
    (one,) = refine(Boxes(empty=True), [Embedded((20, 30))], [maps((1, 1, 4, 4))], MINE)
    assert not one.masks.any()
    assert not one.empty
    assert one.agreement[0] == 0


def test_estimated_dice_follows_predicted_iou() -> None:
    (one,) = refine(Boxes(), [Embedded((20, 30))], [maps((1, 1, 4, 4))], MINE)
    assert one.estimated_dice[0] == pytest.approx(2 * 0.5 / 1.5)


def test_parts_of_a_prompt_set() -> None:
    points = np.array([[1, 2], [3, 4]], np.float32)
    whole = Prompts(points, np.array([1, 0], np.int32), np.array([0, 0, 5, 5], np.float32))
    assert select(whole, "all") is whole
    assert select(whole, "box").points is None
    assert select(whole, "points").box is None
    only = select(whole, "positive-points")
    assert only.points is not None
    np.testing.assert_array_equal(only.points, points[:1])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"prompts": PromptConfig(box=False), "first_pass": "box"}, "first_pass must not be 'box'"),
        (
            {"prompts": PromptConfig(points="none"), "second_pass": "points"},
            "second_pass must not be 'points'",
        ),
    ],
)
def test_passes_that_the_prompts_cannot_serve_are_refused(config: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RefineConfig(**config)
