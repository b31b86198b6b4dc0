"""`samdistill teacher assess`: its numbers, its rule, its picture, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

pytest.importorskip("torch", reason="mining needs the extra train")

from mining_run import CONFIG, SIZE, SeesLight, disc, write_data
from test_train import Silent

from samdistill.cli.app import app
from samdistill.components import label
from samdistill.errors import InputRejected, SamdistillError, UsageError
from samdistill.metrics import iou
from samdistill.statistics import Estimate
from samdistill.train.assess import JITTER, advise, best_of, ellipse, jittered
from samdistill.train.config import load_config
from samdistill.train.launch import train
from samdistill.train.run import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("assess")
    data = write_data(folder / "data")
    (folder / "tiny.toml").write_text(CONFIG)
    return train(data, folder / "run", load_config(folder / "tiny.toml"), Silent(), device="cpu").path


@pytest.fixture(autouse=True)
def student(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Run, "load_student", lambda self: SeesLight(len(self.class_names)).eval())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")


def call(*words: object) -> Result:
    return CliRunner().invoke(app, ["teacher", "assess", *(str(word) for word in words)])


def refused(error: type[SamdistillError], *words: object) -> str:
    result = call(*words)
    assert type(result.exception) is error, (result.output, result.exception)
    return str(result.exception)


def test_without_a_run_the_teacher_stands_beside_an_ellipse(run: Path, tmp_path: Path) -> None:
    result = call(run.parent / "data", "--out", tmp_path / "out", "--limit", 4, "--points-per-side", 4)
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "out" / "assess.json").read_text())
    ways = ["box", "box_points", "points", "rough_box", "proposals", "ellipse"]
    assert list(record["dice"]) == ways
    assert record["images"] == len(record["cases"]) == 4
    for way in ways:
        values = [case[way] for case in record["cases"].values()]
        assert record["dice"][way]["mean"] == pytest.approx(np.mean(values))
    assert record["dice"]["box"]["mean"] > 0.8  # bright discs are easy
    assert "4 of 10 labelled images" in result.output
    assert record["advice"] in result.output
    with Image.open(tmp_path / "out" / "assess.png") as drawn:
        assert drawn.width > 1000


def test_names_that_are_not_utf8_are_assessed_too(run: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", labelled=1, unlabelled=1)
    for folder in ("images", "masks"):
        (data / folder / "00.png").rename(data / folder / "B\udce4r.png")
    assert call(data, "--out", tmp_path / "out", "--points-per-side", 0).exit_code == 0
    assert list(json.loads((tmp_path / "out" / "assess.json").read_text())["cases"]) == ["B\udce4r"]


def test_images_of_which_no_object_was_asked_about_are_left_out(run: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", classes=2, labelled=4, unlabelled=1)
    speck = np.zeros(SIZE, np.uint8)
    speck[5:8, 5:10] = 255  # 15 px
    for number in (1, 2):
        Image.fromarray(speck).save(data / "masks" / "class0" / f"0{number}.png")
    Image.fromarray(speck).save(data / "masks" / "class1" / "01.png")
    for folder in ("class0", "class1"):
        Image.fromarray(0 * speck).save(data / "masks" / folder / "03.png")
    result = call(data, "--out", tmp_path / "out", "--points-per-side", 0)
    assert result.exit_code == 0, result.output
    told = "2 of 4 labelled images, 1 without an object left out, 1 without one of at least 16 px left out"
    assert told in result.output
    record = json.loads((tmp_path / "out" / "assess.json").read_text())
    assert (record["images_without_object"], record["images_with_small_objects_alone"]) == (1, 1)
    assert list(record["cases"]) == ["00", "02"]
    assert record["cases"]["02"]["box"] > 0.7  # of its large class alone


def test_the_same_seed_gives_the_same_numbers_and_another_others(run: Path, tmp_path: Path) -> None:
    records = []
    for number, seed in enumerate((3, 3, 4)):
        words = ("--limit", 3, "--points-per-side", 0, "--seed", seed)
        assert call(run.parent / "data", "--out", tmp_path / str(number), *words).exit_code == 0
        records.append((tmp_path / str(number) / "assess.json").read_bytes())
    assert records[0] == records[1] != records[2]
    assert "proposals" not in json.loads(records[0])["dice"]


def test_with_a_run_its_student_is_measured_on_validation_images(run: Path, tmp_path: Path) -> None:
    result = call(run.parent / "data", "--run", run, "--out", tmp_path, "--points-per-side", 0)
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "assess.json").read_text())
    assert sorted(record["cases"]) == sorted(Run.load(run).record.split["validation"])
    assert set(record["differences"]) == {"rough_box - ellipse", "rough_box - student", "refined - student"}
    assert 0.7 < record["dice"]["student"]["mean"] < 0.95  # it sees a fringe too much


def test_on_other_data_only_what_the_run_has_not_seen_counts(run: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run.parent / "data", tmp_path / "data"))
    split = Run.load(run).record.split
    result = call(other, "--run", run, "--out", tmp_path / "out", "--points-per-side", 0)
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "out" / "assess.json").read_text())
    assert not set(record["cases"]) & {*split["train_labelled"], *split["validation"]}


def test_what_it_cannot_do_is_refused(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = run.parent / "data"
    refused(UsageError, data, "--out", tmp_path, "--limit", 0)
    refused(UsageError, data, "--out", tmp_path, "--points-per-side", -1)
    refused(UsageError, data, "--out", tmp_path, "--seed", -1)
    refused(UsageError, data, "--out", tmp_path, "--teacher", "sam9")
    assert "--run" in refused(UsageError, data, "--out", tmp_path, "--prompts", "mine")
    refused(InputRejected, data, "--out", tmp_path, "--run", data)
    (tmp_path / "file").touch()
    with monkeypatch.context() as patched:
        patched.setattr("samdistill.train.assess.assess", lambda *_, **__: pytest.fail("too late"))
        assert isinstance(call(data, "--out", tmp_path / "file").exception, FileExistsError)
    bare = write_data(tmp_path / "bare", labelled=0, unlabelled=2)
    assert "must have masks" in refused(InputRejected, bare, "--out", tmp_path)
    empty = write_data(tmp_path / "empty", labelled=1, unlabelled=1)
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(empty / "masks" / "00.png")
    assert "1 none at all" in refused(InputRejected, empty, "--out", tmp_path)
    speck = np.pad(np.full((3, 5), 255, np.uint8), ((0, SIZE[0] - 3), (0, SIZE[1] - 5)))
    Image.fromarray(speck).save(empty / "masks" / "00.png")
    told = refused(InputRejected, empty, "--out", tmp_path)
    assert "of at least 16 px, and there is none: 1 show smaller ones alone" in told


UP, DOWN, OPEN = Estimate(0.1, 0.05, 0.2, 9), Estimate(-0.1, -0.2, -0.05, 9), Estimate(0.0, -0.1, 0.1, 9)
UNKNOWN = Estimate(0.1, float("nan"), float("nan"), 1)


@pytest.mark.parametrize(
    ("refined", "rough", "beginning"),
    [
        (UP, UP, "This teacher helps: prompted by this student it adds 10.0 Dice points (5.0 to 20.0)"),
        (UP, DOWN, "This teacher helps"),
        (DOWN, UP, "This teacher could help, these prompts do not"),
        (OPEN, UP, "This teacher could help, these prompts do not"),
        (DOWN, DOWN, "This teacher does not help here"),
        (DOWN, OPEN, "This teacher does not help here"),
        (OPEN, DOWN, "This teacher does not help here"),
        (OPEN, OPEN, "Undecided"),
        (UNKNOWN, UNKNOWN, "Undecided"),
    ],
)
def test_the_advice_follows_the_rule_with_a_student(
    refined: Estimate, rough: Estimate, beginning: str
) -> None:
    differences = {"rough_box - ellipse": UP, "refined - student": refined, "rough_box - student": rough}
    assert advise(differences).startswith(beginning)
    assert "nan" not in advise(differences)


@pytest.mark.parametrize(
    ("seen", "beginning"),
    [
        (UP, "Worth trying"),
        (DOWN, "This teacher does not see these objects: an ellipse in the box is 10.0 Dice points (5.0 to"),
        (OPEN, "No use shown"),
        (UNKNOWN, "No use shown"),
    ],
)
def test_the_advice_follows_the_rule_without(seen: Estimate, beginning: str) -> None:
    assert advise({"rough_box - ellipse": seen}).startswith(beginning)
    assert "nan" not in advise({"rough_box - ellipse": seen})


def test_rough_boxes_move_each_side_a_little_and_stay_inside() -> None:
    random = np.random.default_rng(0)
    box = np.array([10, 5, 30, 15], np.float32)
    moved = np.array([jittered(box, (40, 56), random) for _ in range(500)])
    assert np.abs((moved - box) / [20, 10, 20, 10]).max() <= JITTER + 1e-6
    assert (np.ptp(moved, axis=0) > 0.25 * np.array([20, 10, 20, 10])).all()
    corner = jittered(np.array([0, 0, 56, 40], np.float32), (40, 56), random)
    assert corner.min() >= 0
    assert (corner <= [56, 40, 56, 40]).all()


def test_the_ellipse_fills_its_box_as_an_ellipse_does() -> None:
    mask = ellipse(np.array([4, 6, 44, 26], np.float32), (40, 56))
    assert label(mask).boxes.tolist() == [[4, 6, 44, 26]]
    assert mask.sum() == pytest.approx(np.pi * 20 * 10, rel=0.02)


def test_the_best_proposals_are_those_a_search_over_all_pairs_finds() -> None:
    random = np.random.default_rng(1)
    truth = np.stack([disc(0, 0), disc(3, 1)])
    truth[0, 33:39, 45:54] = True  # a second object of the first class
    proposals = random.random((30, 5, 7)).repeat(8, axis=1).repeat(8, axis=2) > 0.6
    proposals[4] = disc(1, 0)
    expected = np.zeros_like(truth)
    for number, mask in enumerate(truth):
        parts = label(mask)
        for part in range(1, len(parts) + 1):
            scores = [iou(one, parts.labels == part) for one in proposals]
            expected[number] |= proposals[int(np.argmax(scores))]
    assert np.array_equal(best_of(proposals, [label(mask) for mask in truth], truth), expected)
    assert not best_of(proposals[:0], [label(mask) for mask in truth], truth).any()
