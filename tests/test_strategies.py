"""Strategies with pseudo labels, end to end on phantoms: what they read, what they keep, how they resume."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage
from watching import Interrupted, Watcher

from samdistill.errors import InputRejected, UsageError
from samdistill.io.dataset import open_dataset
from samdistill.io.splits import make_split
from samdistill.phantoms import folder as phantoms
from samdistill.prompts import Prompts
from samdistill.refine import BURDEN, Refinement, refine
from samdistill.teacher import load_teacher
from samdistill.train.config import STRATEGIES, AugmentConfig, PseudoConfig, TrainConfig, load_config
from samdistill.train.data import Batches, FrameStore
from samdistill.train.launch import train
from samdistill.train.losses import IGNORE, SegmentationLoss, WeightedBCE
from samdistill.train.mixed import Mixed
from samdistill.train.pseudo import LiteralRefiner, predict_logits, targets_of
from samdistill.train.random_walker import RandomWalkerRefiner
from samdistill.train.run import Run
from samdistill.train.sources import Continuous, ContinuousViews, Stored, own_targets
from samdistill.train.store import PseudoLabel, PseudoStore
from samdistill.train.strategies import RUNNERS
from samdistill.train.strategies.simclr import nt_xent
from samdistill.train.student import build_student
from samdistill.train.views import View

STILL = AugmentConfig(flip=0, transpose=0, rotate=0)
VARIANTS: dict[str, dict[str, Any]] = {
    "mine": {"strategy": "mine"},
    "mine once": {"strategy": "mine", "pseudo.schedule": "once"},
    "mine literally": {"strategy": "mine", "pseudo.literal_views": True},
    "mine after SimCLR": {"strategy": "mine", "pretrain": "simclr", "pretrain_steps": 3},
    "pseudo-label": {"strategy": "pseudo-label", "pseudo.min_confidence": 0.6},
    "pseudo-label soft": {"strategy": "pseudo-label", "pseudo.soft": True},
    "burden": {"strategy": "burden"},
    "burden with labels": {"strategy": "burden", "pseudo.labelled_share": 0.5, "pseudo.loss": "dice-bce"},
    "burden by random walker": {"strategy": "burden", "pseudo.refiner": "random-walker"},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms") / "data"
    phantoms.write(folder, kind="xray", count=30, seed=4, size=(64, 64))
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("embeddings")


def configuration(**changes: Any) -> TrainConfig:
    base = {
        "precision": "fp32", "min_epoch_steps": 3, "max_steps": 12, "batch": 4, "labels": 10,
        "student.encoder": "tu-mobilenetv3_small_050", "student.decoder_channels": [16, 16, 8, 8, 8],
        "student.size": 64, "refine.prompts.threshold": 0.3, "optimiser.learning_rate": 0.01,
    }  # fmt: skip
    return load_config(preset="light", overrides={**base, **changes})


def run(data: Path, out: Path, cache: Path, watcher: Watcher | None = None, **changes: Any) -> Run:
    options = {"audit": changes.pop("audit", False), "resume": changes.pop("resume", False)}
    return train(
        data, out, configuration(**changes), watcher or Watcher(), device="cpu", cache=cache, **options
    )


def test_every_strategy_has_a_runner() -> None:
    assert set(RUNNERS) == set(STRATEGIES)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_strategy_takes_exactly_its_steps_and_tells_of_its_pseudo_labels(
    data: Path, cache: Path, tmp_path: Path, name: str
) -> None:
    watcher = Watcher()
    trained = run(data, tmp_path / "run", cache, watcher, audit=True, **VARIANTS[name])
    pretraining = 3 * ("pretrain" in VARIANTS[name])
    assert trained.record.result["steps"] == 12 + pretraining
    assert [one["step"] for one in watcher.records][-1] == 12 + pretraining
    second = [one for one in watcher.records if one["phase"] not in ("supervised", "simclr")]
    assert sum(one["phase"] == "supervised" for one in watcher.records) > 0
    assert second
    assert all(0 <= one["pseudo_skipped"] <= 1 for one in second)
    trained.load_student()


@pytest.mark.parametrize("name", ["mine", "mine once", "burden", "pseudo-label"])
def test_labels_of_the_unlabelled_part_change_nothing_audited_or_not(
    data: Path, cache: Path, tmp_path: Path, name: str
) -> None:
    clean = run(data, tmp_path / "clean", cache, **VARIANTS[name])
    corrupt = shutil.copytree(data, tmp_path / "corrupt")
    for case_id in clean.record.split["train_unlabelled"]:
        files = list((corrupt / "masks").rglob(f"{case_id}.png"))
        assert files
        for file in files:
            file.write_bytes(b"not a mask")
    again = run(corrupt, tmp_path / "again", cache, **VARIANTS[name])
    audited = run(data, tmp_path / "audited", cache, audit=True, **VARIANTS[name])
    expected = (clean.path / "student.safetensors").read_bytes()
    assert (again.path / "student.safetensors").read_bytes() == expected
    assert (audited.path / "student.safetensors").read_bytes() == expected
    last = json.loads((audited.path / "log.jsonl").read_text().splitlines()[-1])
    assert last["pseudo_skipped"] < 1, "something was learned from pseudo labels"
    assert 0 <= last["pseudo_dice"] <= 1


@pytest.mark.parametrize(
    ("name", "stop"),
    [
        ("mine", ("mine", 2)),
        ("mine", ("mine", 5)),
        ("burden", ("pseudo labels", 2)),
        ("burden", ("burden", 5)),
        ("mine once", ("pseudo labels", 3)),
        ("mine after SimCLR", ("supervised", 2)),
    ],
)
def test_interrupted_in_the_middle_of_a_round_and_resumed_is_the_uninterrupted_run(
    data: Path, cache: Path, tmp_path: Path, name: str, stop: tuple[str, int]
) -> None:
    whole = run(data, tmp_path / "whole", cache, **VARIANTS[name])
    with pytest.raises(Interrupted):
        run(data, tmp_path / "cut", cache, Watcher(stop), **VARIANTS[name])
    cut = run(data, tmp_path / "cut", cache, resume=True, **VARIANTS[name])
    files = [path.relative_to(whole.path) for path in sorted(whole.path.rglob("*.safetensors"))]
    assert (Path("pseudo") in [file.parts[:1] and Path(file.parts[0]) for file in files]) == (
        name in ("burden", "mine once")
    )
    for file in files:
        if file.name == "last.safetensors":  # its header tells seconds
            one, other = (each.load_tensors("last")[0] for each in (whole, cut))
            assert all(torch.equal(one[key], other[key]) for key in one)
        else:
            assert (whole.path / file).read_bytes() == (cut.path / file).read_bytes(), file


def test_the_random_walker_looks_at_views_too_and_asks_no_teacher(
    data: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("samdistill.train.training.load_teacher", None)
    changes = {"pseudo.refiner": "random-walker", "pseudo.literal_views": True}
    watcher = Watcher()
    run(data, tmp_path / "run", cache, watcher, strategy="mine", max_steps=4, **changes)
    assert watcher.records[-1]["pseudo_skipped"] < 1


def test_burdens_second_student_starts_anew(data: Path, cache: Path, tmp_path: Path) -> None:
    trained = run(data, tmp_path / "run", cache, **VARIANTS["burden"])
    best = trained.record.result["best"]
    assert best["phase"] == "burden", "the first student's scores do not count"


def test_without_unlabelled_images_it_says_so(data: Path, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(InputRejected, match="must have unlabelled images"):
        run(data, tmp_path / "run", cache, strategy="mine", labels=1.0)


@pytest.mark.parametrize("strategy", ["mine", "burden", "pseudo-label", "samdsk", "ups", "bcp"])
def test_what_the_second_phase_needs_is_looked_for_before_the_first(
    data: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    monkeypatch.setattr("samdistill.train.training.fit", lambda *_: pytest.fail("too late"))
    with pytest.raises(InputRejected, match="must have unlabelled images"):
        run(data, tmp_path / "none", cache, strategy=strategy, labels=1.0)
    copy = Path(shutil.copytree(data, tmp_path / "data"))
    picture = make_split(open_dataset(copy), seed=0, labels=10).train_unlabelled[0].image_path
    picture.write_bytes(b"no picture")
    with pytest.raises(InputRejected, match=picture.name):
        run(copy, tmp_path / "unreadable", cache, strategy=strategy)
    if strategy in ("mine", "burden", "samdsk"):
        with pytest.raises(UsageError, match="teacher must be"):
            run(data, tmp_path / "teacher", cache, strategy=strategy, teacher="professor")
    if strategy == "bcp":
        with pytest.raises(UsageError, match="labelled_share must be above 0"):
            run(data, tmp_path / "share", cache, strategy=strategy, **{"pseudo.labelled_share": 0.0})


def test_burden_does_not_train_where_every_pseudo_label_is_held_back(
    data: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("samdistill.train.sources.targets_of", lambda *_: None)
    changes = {"pseudo.loss": "dice-bce", "pseudo.min_iou": 0.9}
    with pytest.raises(
        InputRejected, match=r"something in \d+ of .* by --min-iou 0\.9 or --min-agreement 0,"
    ):
        run(data, tmp_path / "run", cache, strategy="burden", max_steps=2, **changes)


def test_a_class_that_is_held_back_in_every_pseudo_label_is_told_of(
    data: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Stored.pixels_by_class

    def without_the_second(self: Stored) -> tuple[list[int], list[int]]:
        (one, _, *rest), (other, _, *others) = original(self)
        return [one, 0, *rest], [other, 0, *others]

    monkeypatch.setattr(Stored, "pixels_by_class", without_the_second)
    watcher = Watcher()
    trained = run(data, tmp_path / "run", cache, watcher, **VARIANTS["burden with labels"])
    assert any(
        f"warning: no pseudo label shows {trained.class_names[1]!r}: the filters" in text
        for text in watcher.messages
    )


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


def test_a_teacher_that_does_not_exist_is_named(data: Path, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="teacher must be"):
        run(data, tmp_path / "run", cache, strategy="mine", teacher="professor")


def _identity() -> Any:
    from samdistill.intensity import IntensityRule

    return IntensityRule()


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


@pytest.fixture(scope="module")
def seventeen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of 17 classes that overlap; each image shows some of them, the last one a single one."""
    folder = tmp_path_factory.mktemp("seventeen")
    names = [f"bone{number:02d}" for number in range(17)]
    rows, columns = np.mgrid[:64, :64]
    for index in range(14):
        generator = np.random.default_rng(index)
        shown = [4] if index == 13 else [number for number in range(17) if (number + index) % 3]
        image = np.full((64, 64, 3), 40, np.uint8)
        for number, name in enumerate(names):
            y, x = (
                8 + 12 * (number // 4) + generator.integers(3),
                8 + 14 * (number % 4) + generator.integers(3),
            )
            mask = (rows - y) ** 2 + (columns - x) ** 2 < 81
            mask &= number in shown
            image[mask] = 120 + 8 * number
            (folder / "masks" / name).mkdir(parents=True, exist_ok=True)
            PillowImage.fromarray(mask).save(folder / "masks" / name / f"{index:02d}.png")
        (folder / "images").mkdir(exist_ok=True)
        PillowImage.fromarray(image).save(folder / "images" / f"{index:02d}.png")
    (folder / "dataset.toml").write_text(f"classes = {names}\n")
    return folder


@pytest.mark.parametrize("name", ["mine", "burden"])
def test_seventeen_classes_that_overlap(seventeen: Path, cache: Path, tmp_path: Path, name: str) -> None:
    watcher = Watcher()
    trained = run(seventeen, tmp_path / "run", cache, watcher, audit=True, **VARIANTS[name])
    assert len(trained.class_names) == 17
    told = [one["pseudo_dice"] for one in watcher.records if "pseudo_dice" in one]
    assert told
    if name == "burden":
        labels = list(PseudoStore(trained.path / "pseudo" / "1"))
        assert labels
        for one in labels:
            assert one.refinement.masks.shape == (17, 64, 64)
            assert len(one.refinement.prompts) == len(one.refinement.predicted_iou) == 17


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
