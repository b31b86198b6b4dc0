"""What strategies are made of: filters, targets, losses, random walker, store, views, configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt
from skimage.segmentation import random_walker
from test_strategies import configuration
from test_strategies import data as data

from samdistill.errors import InputRejected, UsageError
from samdistill.io.dataset import open_dataset
from samdistill.prompts import Prompts
from samdistill.refine import BURDEN, MINE, Refinement, refine
from samdistill.teacher import load_teacher
from samdistill.train.config import AugmentConfig, PseudoConfig
from samdistill.train.data import Batches, FrameStore
from samdistill.train.losses import IGNORE, SegmentationLoss, WeightedBCE
from samdistill.train.mixed import Mixed
from samdistill.train.pseudo import LiteralRefiner, audit, predict_logits, targets_of
from samdistill.train.random_walker import RandomWalkerRefiner
from samdistill.train.sources import Continuous, ContinuousViews, Stored, own_targets
from samdistill.train.store import PseudoLabel, PseudoStore
from samdistill.train.strategies.simclr import nt_xent
from samdistill.train.student import build_student
from samdistill.train.views import View

STILL = AugmentConfig(flip=0, transpose=0, rotate=0)


def _identity() -> Any:
    from samdistill.intensity import IntensityRule

    return IntensityRule()


def test_the_literal_reading_is_the_cached_one_where_views_show_the_whole_frame(data: Path) -> None:
    cases = [case.without_labels() for case in open_dataset(data).cases[:3]]
    store = FrameStore(cases, 64, _identity())
    teacher = load_teacher("tiny")
    student = build_student(configuration().student, len(open_dataset(data).class_names))[0]
    with torch.no_grad():  # a student that finds something
        student.net.segmentation_head[0].bias.fill_(0.0)
    batches = Batches(store, 64, 3, STILL, seed=0, stream=0)
    drawn = batches.draw(0)
    pixels = [view.pixels(store[index].image) for index, view in drawn]
    embedded = teacher.embed([_identity().apply(case.read_image()) for case in cases])

    def cached(indices: Any, images: Any, maps: Any) -> list[Refinement]:
        from samdistill.refine import refine

        return refine(teacher, [embedded[index] for index in indices], maps, BURDEN)

    one, numbers = Continuous(store, cached, PseudoConfig())(student, drawn, pixels)
    other, _ = ContinuousViews(LiteralRefiner(teacher, BURDEN), PseudoConfig())(student, drawn, pixels)
    assert numbers["pseudo_skipped"] < 1
    for a, b in zip(one, other, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert torch.equal(a, b)


def test_an_image_without_pseudo_label_contributes_nothing_or_gives_its_place_away(data: Path) -> None:
    dataset = open_dataset(data)
    store = FrameStore(dataset.cases[:4], 64, _identity())
    batches = Batches(store, 64, 4, STILL, seed=0, stream=0)
    student = build_student(configuration().student, len(dataset.class_names))[0].eval()
    loss = SegmentationLoss(1.0)

    def nothing(student: Any, drawn: Any, pixels: Any) -> Any:
        return [None] * len(drawn), {}

    def something(student: Any, drawn: Any, pixels: Any) -> Any:
        return [torch.ones(len(dataset.class_names), 64, 64)] * len(drawn), {}

    alone = loss(student(batches(0).pixels), batches(0).targets)
    assert torch.equal(Mixed(batches, batches, nothing, loss, 0.5).loss(student, 0)[0], alone)
    with_pseudo = Mixed(batches, batches, something, loss, 0.5).loss(student, 0)[0]
    pseudo = loss(student(batches(0).pixels), torch.ones_like(batches(0).targets))
    torch.testing.assert_close(with_pseudo, alone + 0.5 * pseudo)

    def one_alone(student: Any, drawn: Any, pixels: Any) -> Any:
        return [torch.ones(len(dataset.class_names), 64, 64), *[None] * (len(drawn) - 1)], {}

    spare = Batches(store, 64, 4, STILL, seed=0, stream=4)
    filled = Mixed(batches, batches, one_alone, loss, 0.5, spare=spare).loss(student, 0)[0]
    pixels = torch.cat([batches(0).pixels, spare(0).pixels[:3]])
    labelled = loss(student(pixels), torch.cat([batches(0).targets, spare(0).targets[:3]]))
    one = loss(student(batches(0).pixels[:1]), torch.ones_like(batches(0).targets[:1]))
    torch.testing.assert_close(filled, labelled + 0.5 * one, msg="labelled views take the empty places")
    zero = Mixed(None, batches, nothing, loss, 0.5).loss(student, 0)[0]
    assert zero == 0
    zero.backward()  # type: ignore[no-untyped-call]
    before = {name: value.clone() for name, value in student.train().named_buffers()}
    Mixed(None, batches, nothing, loss, 0.5).loss(student, 0)
    assert student.training
    assert all(torch.equal(value, before[name]) for name, value in student.named_buffers())


def refinement(masks: Any, student: Any, iou: Any, agreement: Any) -> Refinement:
    boxes = [
        [Prompts(box=np.array([0, 0, 2, 2], np.float32))] if one.any() else [] for one in np.asarray(student)
    ]
    return Refinement(
        np.asarray(masks, np.bool_),
        np.asarray(student, np.bool_),
        boxes,
        np.asarray(iou, np.float32),
        np.asarray(agreement, np.float32),
    )


def test_filters_hold_back_a_class_and_not_the_others() -> None:
    ones, none = np.ones((2, 2)), np.zeros((2, 2))
    one = refinement([ones, ones, none], [ones, ones, none], [0.9, 0.4, np.nan], [0.9, 0.9, np.nan])
    targets = targets_of(one, PseudoConfig(min_iou=0.5))
    assert targets is not None
    assert targets[:, 0, 0].tolist() == [1, IGNORE, 0], "a class that nobody asked about is background"
    assert targets_of(one, PseudoConfig(min_iou=0.95)) is None
    assert targets_of(one, PseudoConfig(min_agreement=0.95)) is None


def test_a_teacher_that_answers_with_nothing_makes_no_pseudo_label() -> None:
    ones, none = np.ones((2, 2)), np.zeros((2, 2))
    assert targets_of(refinement([none], [ones], [0.9], [0.0]), PseudoConfig()) is None
    assert targets_of(refinement([none], [none], [np.nan], [np.nan]), PseudoConfig()) is None


def test_own_targets_leave_out_what_is_not_confident() -> None:
    logits = np.log(
        np.array([[[0.9, 0.6, 0.2]]], np.float32) / (1 - np.array([[[0.9, 0.6, 0.2]]], np.float32))
    )
    hard = own_targets(logits, PseudoConfig(min_confidence=0.7))
    assert hard is not None
    assert hard.ravel().tolist() == [1, IGNORE, 0]
    soft = own_targets(logits, PseudoConfig(soft=True))
    assert soft is not None
    np.testing.assert_allclose(soft.ravel(), [0.9, 0.6, 0.2], atol=1e-6)
    assert own_targets(np.full((1, 2, 2), -1, np.float32), PseudoConfig()) is None


def test_a_soft_target_is_audited_as_the_mask_it_stands_for() -> None:
    truth = np.array([[[1, 1, 0, IGNORE]], [[IGNORE] * 4]], np.int8)
    soft = np.array([[[0.98, 0.6, 0.4, 0.9]], [[0.9, 0.9, 0.1, 0.1]]], np.float32)
    assert audit(soft, truth) == 1  # the second class has no pixel to count
    assert audit(soft[:, :, ::-1], truth[:, :, ::-1]) == 1
    assert np.isnan(audit(soft[1:], truth[1:]))


def test_the_random_walker_follows_the_edge_that_the_student_missed() -> None:
    image = np.full((40, 40, 3), 60, np.uint8)
    image[10:30, 10:30] = 200
    maps = np.zeros((1, 40, 40), np.float32)
    maps[0, 12:32, 12:32] = 0.9  # two pixels off
    (one,) = RandomWalkerRefiner(BURDEN, margin=0.2)([0], [image], [maps])
    truth = image[..., 0] == 200
    assert (one.masks[0] ^ truth).sum() < 20 < (one.student_masks[0] ^ truth).sum()
    (nothing,) = RandomWalkerRefiner(BURDEN)([0], [image], [np.zeros_like(maps)])
    assert not nothing.masks.any()


def test_the_random_walker_keeps_small_objects_beside_a_large_one() -> None:
    y, x = np.mgrid[:96, :96]
    large, small = (y - 35) ** 2 + (x - 35) ** 2 < 24**2, (y - 80) ** 2 + (x - 80) ** 2 < 3.6**2
    noise = np.random.default_rng(0).normal(0, 4, (96, 96, 3))
    image = (np.where(large | small, 200, 60)[..., None] + noise).astype(np.uint8)
    (one,) = RandomWalkerRefiner(MINE)([0], [image], [0.95 * (large | small)[None].astype(np.float32)])
    np.testing.assert_array_equal(one.masks[0], large | small)


def test_the_random_walker_is_solved_to_the_end_where_edges_hinder_most() -> None:
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:96, :96]
    disc = (y - 48) ** 2 + (x - 48) ** 2 < 17**2
    image = np.clip(np.where(disc, 140, 100)[..., None] + rng.normal(0, 25, (96, 96, 3)), 0, 255)
    (one,) = RandomWalkerRefiner(BURDEN, margin=0.3, beta=1e4)(
        [0], [image.astype(np.uint8)], [0.9 * disc[None].astype(np.float32)]
    )
    seeds = np.where(distance_transform_edt(disc) > 0.3 * np.sqrt(disc.sum()), 1, 0)
    seeds[distance_transform_edt(~disc) > 0.3 * np.sqrt(disc.sum())] = 2
    exact = random_walker(image.astype(np.uint8) / 255, seeds, beta=1e4, mode="bf", channel_axis=-1) == 1
    np.testing.assert_array_equal(one.masks[0], exact)


def test_where_there_is_no_edge_the_random_walker_keeps_the_students_mask() -> None:
    maps = np.zeros((1, 40, 40), np.float32)
    maps[0, 12:32, 12:32] = 0.9
    (one,) = RandomWalkerRefiner(BURDEN)([0], [np.full((40, 40, 3), 60, np.uint8)], [maps])
    np.testing.assert_array_equal(one.masks, one.student_masks)
    assert one.agreement.tolist() == [1]


def test_weighted_bce_weighs_the_rare_class() -> None:
    loss = WeightedBCE([10, 0], [90, 5])
    assert loss.pos_weight.tolist() == [9, 1]
    logits, targets = torch.zeros(1, 2, 1, 2), torch.tensor([[[[1.0, 0.0]], [[0.0, IGNORE]]]])
    assert loss(logits, targets).item() == pytest.approx(np.log(2) * (9 + 1 + 1) / 3)


def test_nt_xent_by_hand() -> None:
    # Two images, both views alike and orthogonal to the other's: similarity 1 / 0.5 = 2 against 0 twice.
    projected = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1]])
    assert nt_xent(projected).item() == pytest.approx(-np.log(np.e**2 / (np.e**2 + 2)))


def test_a_pseudo_label_is_read_back_and_damage_is_named(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    masks, box = generator.random((3, 7, 11)) > 0.5, np.array([0, 0, 3, 4], np.float32)
    sets = [
        [Prompts(np.ones((2, 2), np.float32), np.array([1, 0], np.int32), box)],
        [],
        [Prompts(box=box), Prompts(np.zeros((1, 2), np.float32), np.ones(1, np.int32))],
    ]
    one = Refinement(
        masks, ~masks, sets, np.array([0.5, np.nan, 1], np.float32), np.array([0.1, np.nan, 0.2], np.float32)
    )
    store = PseudoStore(tmp_path / "pseudo")
    assert "site/a" not in store
    with pytest.raises(InputRejected, match="no pseudo label of site/a"):
        store.read("site/a")
    store.write(PseudoLabel("site/a", one, "abc", 2))
    (back,) = store
    assert (back.case_id, back.teacher_sha256, back.round) == ("site/a", "abc", 2)
    np.testing.assert_array_equal(back.refinement.masks, masks)
    np.testing.assert_array_equal(back.refinement.student_masks, ~masks)
    np.testing.assert_array_equal(back.refinement.predicted_iou, one.predicted_iou)
    assert [len(own) for own in back.refinement.prompts] == [1, 0, 2]
    assert back.refinement.prompts[2][1].box is None
    np.testing.assert_array_equal(back.refinement.prompts[0][0].points, sets[0][0].points)
    (file,) = (tmp_path / "pseudo").iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(InputRejected, match="is damaged"):
        store.read("site/a")
    store.write(PseudoLabel("B\udce4r", one, "abc", 1))  # as Python names a file whose name is not UTF-8
    assert store.read("B\udce4r").case_id == "B\udce4r"


def test_stored_pseudo_labels_are_held_a_byte_a_pixel_and_given_as_targets(
    data: Path, tmp_path: Path
) -> None:
    frames = FrameStore(open_dataset(data).cases[:2], 64, _identity())
    masks = np.zeros((2, 64, 64), np.bool_)
    masks[:, 8:30, 10:40] = True
    store, iou = PseudoStore(tmp_path), np.array([0.9, 0.1], np.float32)
    one = Refinement(
        masks, masks, [[Prompts(box=np.array([10, 8, 40, 30]))]] * 2, iou, np.ones(2, np.float32)
    )
    store.write(PseudoLabel(frames.cases[0].id, one, "abc", 1))
    source = Stored(frames, store, PseudoConfig(min_iou=0.5))
    drawn = Batches(frames, 64, 2, STILL, seed=0, stream=0).draw(0)
    for _ in range(2):
        targets = dict(zip([index for index, _ in drawn], source(None, drawn, [])[0], strict=True))  # type: ignore[arg-type]
        assert targets[1] is None
        assert targets[0] is not None
        assert targets[0].dtype == torch.float32
        np.testing.assert_array_equal(targets[0][0].numpy(), masks[0])
        assert (targets[0][1] == IGNORE).all()
    held, _ = source._held[0]
    assert held is not None
    assert held.nbytes == masks.size
    assert source.pixels_by_class() == ([660, 0], [64 * 64 - 660, 0])
    with pytest.raises(InputRejected, match=r"found something in 1 of 2 .* --min-iou 0\.95 or"):
        Stored(frames, store, PseudoConfig(min_iou=0.95)).pixels_by_class()
    with pytest.raises(InputRejected, match="found nothing in any"):
        Stored(frames, PseudoStore(tmp_path / "empty"), PseudoConfig()).pixels_by_class()


def test_predicting_leaves_the_students_mode_and_statistics(data: Path) -> None:
    student = build_student(configuration().student, 2)[0].train()
    before = {key: value.clone() for key, value in student.state_dict().items()}
    wide, tall = np.zeros((40, 70, 3), np.uint8), np.zeros((70, 40, 3), np.uint8)
    answers = predict_logits(student, [wide, tall, wide], 8)
    assert [one.shape for one in answers] == [(2, 40, 70), (2, 70, 40), (2, 40, 70)]
    assert student.training
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pseudo.schedule": "sometimes"}, "schedule must be once or continuous"),
        ({"pseudo.refiner": "crystal ball"}, "refiner must be"),
        (
            {"strategy": "semisam", "pseudo.refiner": "random-walker"},
            "refiner must be teacher with .* semisam",
        ),
        ({"strategy": "samdsk", "pseudo.refiner": "random-walker"}, "refiner must be teacher with .* samdsk"),
        (
            {"pseudo.schedule": "once", "pseudo.literal_views": True},
            "schedule must be continuous with literal",
        ),
        ({"pseudo.supervised_share": 1.0}, "supervised_share must be"),
        ({"pseudo.labelled_share": 1.0}, "labelled_share must be"),
        ({"pseudo.weight": -1.0}, "weight must be"),
        ({"pseudo.weight": float("inf")}, "weight must be"),
        ({"pseudo.refiner": "random-walker", "pseudo.min_iou": 0.5}, "min_iou must be 0 with the random"),
        ({"pseudo.min_confidence": 0.2}, "min_confidence must be"),
        ({"pseudo.nonsense": 1}, "nonsense"),
        ({"refine.prompts.count": 0}, "count must be"),
        ({"refine.first_pass": "guess"}, "first_pass"),
        ({"keep": "none"}, "keep must be"),
        ({"pretrain": "moco"}, "pretrain must be"),
        ({"strategy": "magic"}, "strategy must be one of"),
    ],
)
def test_wrong_configurations_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        configuration(**changes)


def test_what_the_refine_table_leaves_open_is_as_the_paper_has_it() -> None:
    changed = configuration(**{"strategy": "burden", "refine.prompts.min_area_px": 7}).refine_or_default
    assert changed.prompts.min_area_px == 7
    assert changed.prompts.keep == BURDEN.prompts.keep
    assert changed.second_pass == BURDEN.second_pass
    assert configuration(strategy="mine").refine_or_default.prompts.points == "likeliest"


def test_a_view_is_drawn_as_its_batch_says(data: Path) -> None:
    store = FrameStore(open_dataset(data).cases[:5], 64, _identity())
    batches = Batches(store, 64, 2, AugmentConfig(), seed=3, stream=1)
    same_order = Batches(store, 64, 2, AugmentConfig(), seed=3, stream=9, order=1)
    for step in range(4):
        drawn, other = batches.draw(step), same_order.draw(step)
        assert all(isinstance(view, View) for _, view in drawn)
        assert [index for index, _ in drawn] == [index for index, _ in other] == list(batches(step).indices)
        assert any(
            not np.array_equal(a.matrix, b.matrix) for (_, a), (_, b) in zip(drawn, other, strict=True)
        )


def test_one_present_class_of_seventeen_is_the_only_one_asked_about() -> None:
    maps = np.full((17, 64, 64), 0.01, np.float32)
    maps[4, 10:30, 20:44] = 0.9
    teacher = load_teacher("tiny")
    image = np.full((64, 64, 3), 40, np.uint8)
    image[10:30, 20:44] = 200
    (embedding,) = teacher.embed([image])
    (one,) = refine(teacher, [embedding], [maps], BURDEN)
    assert [len(sets) for sets in one.prompts] == [int(number == 4) for number in range(17)]
    assert not np.delete(one.masks, 4, axis=0).any()
    assert np.isnan(np.delete(one.predicted_iou, 4)).all()
    targets = targets_of(one, PseudoConfig())
    assert targets is not None
    np.testing.assert_array_equal(targets, one.masks)
    assert one.masks[4].any()
