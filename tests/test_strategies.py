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
from samdistill.train.config import STRATEGIES, TrainConfig, load_config
from samdistill.train.launch import train
from samdistill.train.run import Run
from samdistill.train.sources import Stored
from samdistill.train.store import PseudoStore
from samdistill.train.strategies import RUNNERS

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


def test_a_teacher_that_does_not_exist_is_named(data: Path, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="teacher must be"):
        run(data, tmp_path / "run", cache, strategy="mine", teacher="professor")


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
