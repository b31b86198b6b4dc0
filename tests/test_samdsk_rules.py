"""SamDSK without training: what is known of images, how they are judged, what is kept; UPS and BCP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from samdistill.arrays import Masks
from samdistill.errors import InputRejected, UsageError
from samdistill.proposals import Proposals, boxes_of
from samdistill.teacher import load_teacher
from samdistill.teacher.proposal_cache import ProposalCache, decode_proposals, encode_proposals
from samdistill.teacher.propose import ProposeConfig
from samdistill.train.admission import KNOWN_EMPTY, as_pseudo, judge, read_records, write_records
from samdistill.train.config import load_config
from samdistill.train.knowledge import Knowledge, read_counts
from samdistill.train.losses import IGNORE
from samdistill.train.samdsk_config import ClassConfig, SamdskConfig, UpsConfig
from samdistill.train.store import PseudoLabel, PseudoStore
from samdistill.train.strategies.bcp import draw_box, largest
from samdistill.train.strategies.rounds import divide
from samdistill.train.strategies.samdsk import Annotations
from samdistill.train.strategies.ups import answer_to_views, select_pixels

CASES = {"0001", "site_b/0003", "0007"}
SIDE = 40


def box(x0: int, y0: int, x1: int, y1: int) -> Any:
    mask = np.zeros((SIDE, SIDE), np.bool_)
    mask[y0:y1, x0:x1] = True
    return mask


def proposed(*masks: Any, scores: Any = None) -> Proposals:
    stacked: Masks = np.stack(masks) if masks else np.zeros((0, SIDE, SIDE), np.bool_)
    values = np.linspace(0.9, 0.6, len(stacked)) if scores is None else np.array(scores)
    return Proposals(stacked, boxes_of(stacked), values.astype(np.float32), np.ones(len(stacked), np.float32))


def sure(*masks: Any, inside: float = 1.0, outside: float = 0.0) -> Any:
    return np.where(np.stack(masks), np.float32(inside), np.float32(outside))


LEFT, RIGHT, WHOLE = box(4, 4, 14, 14), box(24, 20, 36, 34), box(0, 0, SIDE, SIDE)


def test_a_perfect_proposal_is_admitted_and_becomes_the_annotation() -> None:
    record, annotation = judge(
        "a", sure(LEFT), proposed(WHOLE, LEFT, RIGHT), [(1, 1)], SamdskConfig(), number=2
    )
    assert (record.admitted, record.round, record.status) == (True, 2, "optimal")
    assert record.beta == record.ceiling == record.confidence == 1
    assert record.chosen == ((1,),)
    np.testing.assert_array_equal(annotation, LEFT[None])


def test_two_objects_are_admitted_only_once_two_proposals_may_be_chosen() -> None:
    maps = sure(LEFT | RIGHT)
    one, _ = judge("a", maps, proposed(LEFT, RIGHT), [(1, 1)], SamdskConfig())
    two, annotation = judge("a", maps, proposed(LEFT, RIGHT), [(1, 2)], SamdskConfig())
    assert not one.admitted
    assert two.admitted
    np.testing.assert_array_equal(annotation[0], LEFT | RIGHT)


def test_a_small_lesion_cannot_come_above_beta_when_soft_and_the_record_says_so() -> None:
    maps = sure(LEFT, inside=0.95, outside=0.01)
    soft, _ = judge("a", maps, proposed(LEFT), [(1, 1)], SamdskConfig())
    hard, _ = judge("a", maps, proposed(LEFT), [(1, 1)], SamdskConfig(iou="hard"))
    assert soft.ceiling == pytest.approx(soft.beta, abs=1e-5), "the proposal is perfect"
    assert soft.ceiling is not None
    assert soft.ceiling < 0.9
    assert (soft.admitted, soft.reason) == (False, "beta not above 0.9, and no annotation whatever could be")
    assert (hard.admitted, hard.beta) == (True, 1)


def test_beta_itself_is_not_above_beta() -> None:
    maps = sure(box(0, 0, 10, 10))
    config = SamdskConfig(beta=0.5)
    half, _ = judge("a", maps, proposed(box(0, 0, 10, 20)), [(1, 1)], config)
    more, _ = judge("a", maps, proposed(box(0, 0, 10, 19)), [(1, 1)], config)
    assert (half.beta, half.admitted, half.reason) == (0.5, False, "beta not above 0.5")
    assert more.admitted
    maps[0, 10:20, :10] = 2e-7  # beta is 0.5000001, and recorded as 0.5
    over, _ = judge("a", maps, proposed(box(0, 0, 10, 20)), [(1, 1)], config)
    assert (over.beta, over.admitted, over.reason) == (0.5, True, "beta above 0.5")


def test_without_proposals_nothing_is_matched() -> None:
    record, annotation = judge("a", sure(LEFT), proposed(), [(1, 1)], SamdskConfig())
    assert (record.admitted, record.status, record.beta) == (False, "not matched", None)
    assert record.reason == "0 proposals, at least 1 wanted"
    assert not annotation.any()
    record, _ = judge("a", sure(LEFT), proposed(), [(0, 1)], SamdskConfig(min_proposals=0))
    assert (record.admitted, record.beta) == (False, 0), "the student sees one and there is none to choose"


@pytest.mark.parametrize("iou", ["soft", "hard"])
def test_a_map_without_anything_is_admitted_only_where_nothing_is_known_to_be_there(iou: Any) -> None:
    maps, proposals = np.zeros((1, SIDE, SIDE), np.float32), proposed(LEFT, WHOLE)
    needed, _ = judge("a", maps, proposals, [(1, 1)], SamdskConfig(iou=iou))
    absent, _ = judge("a", maps, proposals, [(0, 1)], SamdskConfig(iou=iou))
    literal, _ = judge("a", maps, proposals, [(0, 1)], SamdskConfig(iou=iou, count_absent=True))
    known, annotation = judge("a", maps, proposals, [(0, 0)], SamdskConfig(iou=iou))
    assert (needed.admitted, needed.beta, needed.confidence) == (False, 0, None)
    assert (absent.admitted, absent.beta, absent.iou) == (False, None, (None,))
    assert absent.reason == "no class is present"
    assert (literal.admitted, literal.beta) == (False, 0)
    assert (known.admitted, known.reason) == (True, KNOWN_EMPTY)
    assert not annotation.any()


def test_a_class_that_may_be_missing_counts_only_when_read_literally() -> None:
    maps = np.concatenate([sure(LEFT), np.full((1, SIDE, SIDE), 0.1, np.float32)])
    bounds = [(1, 1), (0, 1)]
    usual, _ = judge("a", maps, proposed(LEFT, RIGHT), bounds, SamdskConfig())
    literal, _ = judge("a", maps, proposed(LEFT, RIGHT), bounds, SamdskConfig(count_absent=True))
    assert (usual.beta, usual.iou, usual.chosen) == (1, (1, None), ((0,), ()))
    assert literal.beta is not None
    assert literal.beta < 0.6


def test_a_class_known_to_be_missing_is_left_out_whatever_the_student_sees() -> None:
    record, annotation = judge(
        "a", sure(LEFT, RIGHT), proposed(LEFT, RIGHT), [(0, 0), (1, 1)], SamdskConfig()
    )
    assert (record.admitted, record.iou, record.chosen) == (True, (None, 1), ((), (1,)))
    assert not annotation[0].any()
    np.testing.assert_array_equal(annotation[1], RIGHT)


def test_bounds_that_the_proposals_cannot_meet() -> None:
    maps, proposals, bounds = sure(LEFT, RIGHT), proposed(LEFT), [(1, 1), (1, 1)]
    record, annotation = judge("a", maps, proposals, bounds, SamdskConfig())
    assert (record.admitted, record.status, record.beta) == (False, "infeasible", None)
    assert record.reason == "2 proposals are needed and there are 1"
    assert not annotation.any()
    relaxed, _ = judge("a", maps, proposals, bounds, SamdskConfig(on_infeasible="relax"))
    assert relaxed.status == "optimal"
    assert "lower was relaxed" in relaxed.reason
    with pytest.raises(InputRejected, match=r"^site/a: .*2 proposals are needed and there are 1"):
        judge("site/a", maps, proposals, bounds, SamdskConfig(on_infeasible="raise"))


def test_near_duplicates_do_not_count_twice_and_records_keep_the_teachers_numbers() -> None:
    nearly = LEFT.copy()
    nearly[4, 4] = False
    proposals = proposed(nearly, RIGHT, LEFT, scores=[0.7, 0.8, 0.9])
    record, _ = judge("a", sure(LEFT), proposals, [(2, 2)], SamdskConfig(beta=0.1))
    assert (record.proposals, record.matched, record.chosen) == (3, 2, ((1, 2),))
    both, _ = judge("a", sure(LEFT), proposals, [(2, 2)], SamdskConfig(beta=0.1, near_duplicate=1.0))
    assert both.chosen == ((0, 2),)


def test_records_are_read_back_and_damage_is_named(tmp_path: Path) -> None:
    maps, path = sure(LEFT, RIGHT), tmp_path / "rounds" / "1.jsonl"
    records = [
        judge(name, maps, one, [(1, 1), (0, 2)], SamdskConfig())[0]
        for name, one in (("a", proposed(LEFT, RIGHT)), ("b", proposed()), ("c", proposed(RIGHT)))
    ]
    write_records(path, records)
    assert read_records(path) == records
    path.write_text(path.read_text()[:-20])
    with pytest.raises(InputRejected, match=r"1\.jsonl is damaged"):
        read_records(path)
    path.write_text('{"case_id": 3}\n')
    with pytest.raises(InputRejected, match=r"is damaged: 1\.jsonl, line 1"):
        read_records(path)
    with pytest.raises(InputRejected, match="cannot be read"):
        read_records(tmp_path / "none.jsonl")


def test_an_annotation_is_kept_as_a_pseudo_label() -> None:
    maps, proposals = sure(LEFT, RIGHT, WHOLE), proposed(LEFT, RIGHT)
    record, annotation = judge("a", maps, proposals, [(1, 1), (1, 1), (0, 0)], SamdskConfig())
    one = as_pseudo(annotation, maps, proposals, record)
    np.testing.assert_array_equal(one.masks, annotation)
    np.testing.assert_allclose(one.predicted_iou, [0.9, 0.6, np.nan], atol=1e-6)
    np.testing.assert_allclose(one.agreement, [1, 1, np.nan])


def test_annotations_are_held_a_byte_a_pixel_and_given_as_targets(tmp_path: Path) -> None:
    maps, proposals = sure(LEFT), proposed(LEFT)
    record, annotation = judge("a", maps, proposals, [(1, 1)], SamdskConfig())
    store = PseudoStore(tmp_path)
    store.write(PseudoLabel("a", as_pseudo(annotation, maps, proposals, record), "", 1))
    source = Annotations([(SIDE, SIDE)], [(store, "a")])
    for _ in range(2):
        targets = source._targets(0)
        assert targets.dtype == np.float32
        np.testing.assert_array_equal(targets[0] == 1, LEFT)
    assert [one.nbytes for one in source._held.values()] == [SIDE * SIDE]


def test_counts_are_read_in_all_their_forms() -> None:
    text = "image,class,count\n0001,polyp,2\n\nsite_b/0003.png, polyp ,0-1\n0001,other, 1 - 3 \n"
    counts = read_counts(("\N{BYTE ORDER MARK}" + text).encode(), "c.csv", CASES, ("polyp", "other"))
    assert counts == {"0001": {0: (2, 2), 1: (1, 3)}, "site_b/0003": {0: (0, 1)}}
    assert read_counts(b"count,image\r\n0,0007\r\n", "c.csv", CASES, ("polyp",)) == {"0007": {0: (0, 0)}}
    assert read_counts(b"image,count\n", "c.csv", CASES, ("polyp",)) == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1: must have the columns image, class and count.* not nothing"),
        (
            b"image;count\n0001;2\n",
            "line 1: must have the columns image, class and count, separated by commas",
        ),
        (b"name,count\n0001,2\n", "line 1: must have the columns"),
        (b"image,class,count,why\n", "line 1: must have the columns"),
        (b"image,count\n0001,2\n", "line 1: must have a column class, since there are 2: polyp, other"),
        (b"image,class,count\n0001,polyp\n", "line 2: must have 3 cells, not 2"),
        (
            b"image,class,count\n0001,polyp,1\n0001,polyp,2\n",
            "line 3: 0001 already has a count of this class",
        ),
        (b"image,class,count\n0001,polyp,1\n0001.png,polyp,1\n", "line 3: 0001 already has a count"),
        (b"image,class,count\n\n9999,polyp,1\n", "line 3: image must be one of the data folder.* not '9999'"),
        (b"image,class,count\n0001,Polyp,1\n", "line 2: class must be one of polyp, other, not 'Polyp'"),
        (b"image,class,count\n0001,polyp,two\n", "line 2: count must be a whole number .* not 'two'"),
        (b"image,class,count\n0001,polyp,-1\n", "line 2: count must be a whole number"),
        (b"image,class,count\n0001,polyp,1.5\n", "line 2: count must be a whole number"),
        (b"image,class,count\n0001,polyp,\n", "line 2: count must be a whole number .* not ''"),
        (b"image,class,count\n0001,polyp,3-1\n", "line 2: count must not run from more to less"),
        (b"\xff\xfei\x00m\x00", "must be UTF-8 text"),
        (b'image,class,count\n"0001,polyp,1\n', "line 2: must have 3 cells"),
    ],
)
def test_a_wrong_file_of_counts_is_named_with_its_line(content: bytes, message: str) -> None:
    with pytest.raises(InputRejected, match=f"^c.csv.*{message}"):
        read_counts(content, "c.csv", CASES, ("polyp", "other"))


def test_what_is_known_of_an_image_goes_over_its_class_and_that_over_the_round() -> None:
    knowledge = Knowledge(
        ("polyp", "other"),
        SamdskConfig(rounds=3, lower=(0, 1), upper=(1, 2, 4)),
        {"other": ClassConfig(((0, 0), (5, 6)))},
        {"x": {0: (7, 8)}},
    )
    assert [knowledge.bounds("a", n) for n in (1, 2, 3, 4)] == [
        [(0, 1), (0, 0)],
        [(1, 2), (5, 6)],
        [(1, 4), (5, 6)],
        [(1, 4), (5, 6)],
    ]
    assert knowledge.bounds("x", 2) == [(7, 8), (5, 6)]
    assert ClassConfig((1, 3)).bounds(2) == (1, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samdsk.rounds": 0}, "rounds must be 1 to 1000"),
        ({"samdsk.rounds": 2**70}, "rounds must be 1 to 1000"),
        (
            {"samdsk.lower": 2, "samdsk.upper": [3, 1]},
            "lower must be at most upper, not 2 where it is 1, in round 2",
        ),
        ({"samdsk.lower": -1}, "lower must be 0 or more"),
        ({"samdsk.upper": []}, "upper must be 0 or more"),
        ({"samdsk.beta": 1.2}, "beta must be in"),
        ({"samdsk.iou": "firm"}, "iou must be"),
        ({"samdsk.near_duplicate": -0.1}, "near_duplicate must be in"),
        ({"samdsk.max_proposals": 3}, "max_proposals must be at least 1 and goes with counted"),
        ({"samdsk.min_proposals": -1}, "min_proposals must be"),
        ({"samdsk.weight": -1.0}, "weight must be"),
        ({"samdsk.weight": float("nan")}, "weight must be"),
        ({"samdsk.last_share": 1.0}, "last_share must be"),
        ({"samdsk.node_limit": -1}, "node_limit must be"),
        ({"samdsk.time_limit_s": 0.0}, "time_limit_s must be"),
        ({"samdsk.proposals.stability": 2.0}, "stability must be in"),
        ({"samdsk.proposals.points_per_side": 0}, "points_per_side must be"),
        ({"classes": {"polyp": {"count": [3, 1]}}}, "count must be .least, most."),
        ({"classes": {"polyp": {"count": [1, 2, 3]}}}, "count must be .least, most."),
        ({"classes": {"polyp": {"number": [1, 2]}}}, "unknown key 'number'"),
        ({"ups.max_negative": 0.8}, "max_negative must be below"),
        ({"bcp.box": 1.0}, "box must be between"),
    ],
)
def test_wrong_configurations_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_config(overrides=changes)


@given(st.integers(1, 8), st.integers(0, 3000), st.none() | st.floats(0.01, 0.99))
def test_the_trainings_share_all_steps(rounds: int, spare: int, last_share: float | None) -> None:
    total = rounds + 1 + spare
    steps = [one or 0 for one in divide(total, rounds, last_share)]
    assert len(steps) == rounds + 1
    assert sum(steps) == total
    assert min(steps) >= 1
    assert max(steps[:-1]) - min(steps[:-1]) <= 1
    if last_share is None:
        assert max(steps) - min(steps) <= 1


def test_steps_that_do_not_go_round_are_named() -> None:
    with pytest.raises(
        UsageError, match="max_steps must be at least 4, one for each training of 3 rounds, not 3"
    ):
        divide(3, 3, None)
    assert list(divide(None, 2, None)) == [None, None, None]


class Brightness(nn.Module):
    """A student that looks at single pixels: logits rise with red, and it knows its left from its right."""

    def __init__(self, *, slanted: bool) -> None:
        super().__init__()
        self.slanted = slanted
        self.register_parameter("any", nn.Parameter(torch.zeros(1)))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits = (pixels[:, :1].float() - 128) / 20
        return logits + torch.linspace(-3, 3, logits.shape[-1]) if self.slanted else logits


def test_a_student_that_turns_with_the_image_has_no_spread() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 70, 3)).astype(np.uint8)
    expected = 1 / (1 + np.exp(-(image[..., 0].astype(np.float64) - 128) / 20))
    mean, spread = answer_to_views(Brightness(slanted=False), image)
    np.testing.assert_allclose(mean[0], expected, atol=1e-5)
    np.testing.assert_allclose(spread, 0, atol=1e-6)
    _, spread = answer_to_views(Brightness(slanted=True), image)
    assert spread.max() > 0.1


def test_ups_selects_what_is_confident_and_steady() -> None:
    mean = np.array([[[0.9, 0.9, 0.5, 0.01, 0.01]]], np.float32)
    spread = np.array([[[0.01, 0.2, 0.0, 0.001, 0.02]]], np.float32)
    targets = select_pixels(mean, spread, UpsConfig())
    assert targets is not None
    assert targets.ravel().tolist() == [1, IGNORE, IGNORE, 0, IGNORE]
    assert select_pixels(mean[..., 2:], spread[..., 2:], UpsConfig()) is None


def test_bcps_box_has_its_size_and_moves() -> None:
    torch.manual_seed(0)
    boxes = draw_box(torch.zeros(16, 3, 30, 60), 2 / 3)
    assert boxes.shape == (16, 1, 30, 60)
    assert all(int(one.sum()) == 20 * 40 for one in boxes)
    assert len({tuple(one[0].nonzero()[0].tolist()) for one in boxes}) > 5


def test_bcp_keeps_the_largest_component_of_each_class() -> None:
    masks = torch.from_numpy(
        np.stack([LEFT | RIGHT, LEFT, np.zeros_like(LEFT), WHOLE]).reshape(2, 2, SIDE, SIDE)
    )
    kept = largest(masks)
    assert kept.dtype == torch.float32
    for one, expected in zip(kept.flatten(0, 1), (RIGHT, LEFT, np.zeros_like(LEFT), WHOLE), strict=True):
        np.testing.assert_array_equal(one.numpy() == 1, expected)


def test_proposals_are_made_once_and_damage_is_made_good(tmp_path: Path) -> None:
    teacher = load_teacher("tiny")
    image = np.random.default_rng(1).integers(0, 256, (48, 64, 3)).astype(np.uint8)
    image[10:30, 20:40] = (200, 80, 60)

    def embed() -> Any:
        return teacher.embed([image])[0]

    def never() -> Any:
        raise AssertionError("the teacher was asked again")

    config = ProposeConfig(points_per_side=3, predicted_iou=0.0, stability=0.0, box_iou=0.8)
    first = ProposalCache(tmp_path, teacher, config).propose(image, embed)
    assert len(first) > 0
    again = ProposalCache(tmp_path, teacher, config).propose(image, never)
    for name in ("masks", "boxes", "iou_predictions", "stability_scores"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    other = ProposalCache(tmp_path, teacher, ProposeConfig(points_per_side=2))
    other.propose(image, embed)
    assert other.made == 1, "proposals made otherwise are others"
    entries = {path: decode_proposals(path.read_bytes()) for path in tmp_path.rglob("*.bin")}
    (file,) = [path for path, one in entries.items() if one is not None and len(one) == len(first)]
    file.write_bytes(file.read_bytes()[:-3])
    assert len(ProposalCache(tmp_path, teacher, config).propose(image, embed)) == len(first)
    assert decode_proposals(file.read_bytes()) is not None


@pytest.mark.parametrize("count", [0, 1, 9])
def test_an_entry_holds_any_number_of_proposals(count: int) -> None:
    masks = np.random.default_rng(count).random((count, 7, 11)) > 0.5
    scores = np.linspace(0, 1, count).astype(np.float32)
    one = Proposals(masks, boxes_of(masks), scores, scores[::-1].copy())
    back = decode_proposals(encode_proposals(one))
    assert back is not None
    np.testing.assert_array_equal(back.masks, masks)
    np.testing.assert_array_equal(back.stability_scores, scores[::-1])
    assert decode_proposals(encode_proposals(one)[:-1]) is None
