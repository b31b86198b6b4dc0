"""tune as a user calls it and its prompts as others take them, with a student whose answers are known."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

pytest.importorskip("torch", reason="mining needs the extra train")

from mining_run import call, done, refused
from mining_run import run as run
from mining_run import single as single
from mining_run import student as student

from samdistill.errors import DeviceUnavailable, InputRejected, UsageError
from samdistill.prompts import PromptConfig
from samdistill.refine import BURDEN, MINE, RefineConfig, load_prompts
from samdistill.teacher import Teacher
from samdistill.train.config import TrainConfig, load_config
from samdistill.train.run import Run, alone_in
from samdistill.train.tune_spaces import TeacherSpace


def test_the_tuned_prompts_are_no_worse_than_the_untuned_and_load_again(run: Path) -> None:
    output = done("tune", run, "--trials", 12)
    record = json.loads((run / "tune" / "prompts.json").read_text())
    dice = {row["name"]: row["dice"]["mean"] for row in record["rows"]}
    assert list(dice) == ["student alone", "student, cleaned", "mine, untuned", "burden, untuned", "tuned"]
    assert dice["tuned"] >= dice["burden, untuned"]
    for name in (*dice, "radius", "second pass"):
        assert name in output
    found = load_prompts(str(run / "tune" / "prompts.toml"))
    assert (found.first_pass, found.second_pass) == (
        record["params"]["first_pass"],
        record["params"]["second_pass"],
    )
    assert found.prompts.points == "centre"  # what is not searched is the paper's


def test_each_component_is_tried_and_the_file_asks_about_each(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On these pictures as good as another at best; so the others are made to find nothing."""
    seen: list[RefineConfig] = []
    original = TeacherSpace.refine_by

    def watched(self: TeacherSpace, config: RefineConfig, indices: Any, maps: Any) -> Any:
        seen.append(config)
        if config.prompts.per_component:
            return original(self, config, indices, maps)
        nothing = original(self, config, indices, maps)
        return [replace(one, masks=np.zeros_like(one.masks)) for one in nothing]

    monkeypatch.setattr(TeacherSpace, "refine_by", watched)
    done("tune", run, "--trials", 4)
    assert seen[0].prompts.keep == "likeliest"
    found = load_prompts(str(run / "tune" / "prompts.toml"))
    assert found.prompts.per_component
    assert found.prompts.min_area_px == 16
    assert found in seen


def only_good(monkeypatch: pytest.MonkeyPatch, *good: RefineConfig) -> None:
    """All others' masks come out empty."""
    original = TeacherSpace.refine_by

    def watched(self: TeacherSpace, config: RefineConfig, indices: Any, maps: Any) -> Any:
        answers = original(self, config, indices, maps)
        return (
            answers if config in good else [replace(one, masks=np.zeros_like(one.masks)) for one in answers]
        )

    monkeypatch.setattr(TeacherSpace, "refine_by", watched)


@pytest.mark.parametrize("name", ["mine", "file"])
def test_prompts_that_no_trial_beats_are_kept_as_they_are(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The trials have the start's points, and morphology of their own."""
    file = tmp_path / "own.toml"
    file.write_text('[prompts.morphology]\noperation = "dilation"\nwidth = 2\n')
    wanted = MINE if name == "mine" else load_prompts(str(file))
    only_good(monkeypatch, wanted)
    words = () if name == "mine" else ("--prompts", file)
    row = "mine, untuned" if name == "mine" else "start, untuned"
    assert f"No trial was better than {row!r}" in done("tune", run, "--trials", 2, *words)
    assert load_prompts(str(run / "tune" / "prompts.toml")) == wanted


def test_prompts_of_a_better_search_are_not_replaced_without_a_word(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "another search" not in done("tune", run, "--trials", 2)
    before = (run / "tune" / "prompts.toml").read_bytes()
    with monkeypatch.context() as patched:
        only_good(patched)
        assert "held the result of another search" in done("tune", run, "--trials", 2, "--seed", 1)
    assert (run / "tune" / "prompts.toml").read_bytes() != before
    done("tune", run, "--trials", 2)
    assert (run / "tune" / "prompts.toml").read_bytes() == before


def test_a_teacher_that_takes_boxes_alone_is_tuned_from_any_prompts(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    medsam = property(lambda self: "medsam", lambda self, value: None)
    monkeypatch.setattr(Teacher, "preprocessing", medsam, raising=False)
    file = tmp_path / "points.toml"
    file.write_text("[prompts]\nbox = false\n")
    done("tune", run, "--trials", 2, "--prompts", file)
    assert load_prompts(str(run / "tune" / "prompts.toml")).first_pass == "box"


def test_an_unfinished_run_is_told_of(run: Path, single: Path, tmp_path: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "result": {}}))
    data = single.parent / "data"
    for words in (
        ("tune", run, "--trials", 1, "--refiner", "random-walker"),
        ("pseudo-label", run, data, "--out", tmp_path / "labels", "--refiner", "random-walker"),
        ("teacher", "assess", data, "--run", run, "--out", tmp_path / "out", "--points-per-side", 0),
    ):
        assert f"{run} is not finished: its best student so far is taken" in done(*words), words


def test_the_gain_is_over_the_same_student_whatever_the_trial_erodes(run: Path) -> None:
    done("tune", run, "--trials", 6)
    rows = {row["name"]: row for row in json.loads((run / "tune" / "prompts.json").read_text())["rows"]}
    base = rows["student, cleaned"]["dice"]["mean"]
    for row in rows.values():
        assert row["gain"]["mean"] == pytest.approx(row["dice"]["mean"] - base)


def test_an_interrupted_search_goes_on_as_if_nothing_had_been(
    run: Path, single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done("tune", run, "--trials", 14)
    other = Path(shutil.copytree(single, tmp_path / "other"))
    original, calls = TeacherSpace.refine, 0

    def interrupted(self: TeacherSpace, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 12:
            raise KeyboardInterrupt
        return original(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(TeacherSpace, "refine", interrupted)
        assert call("tune", other, "--trials", 14).exit_code == 130
    embedded: list[int] = []
    monkeypatch.setattr(Teacher, "embed", lambda self, images: embedded.append(len(images)))
    done("tune", other, "--trials", 14)
    assert not embedded  # all from the cache
    for name in ("prompts.toml", "prompts.json"):
        assert (other / "tune" / name).read_bytes() == (run / "tune" / name).read_bytes()


def test_a_trial_that_a_kill_left_waiting_is_not_made_in_place_of_another(
    run: Path, single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done("tune", run, "--trials", 6)
    other = Path(shutil.copytree(single, tmp_path / "other"))

    def killed(self: optuna.Study, *arguments: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(optuna.Study, "ask", killed)
        assert call("tune", other, "--trials", 6).exit_code == 130
    done("tune", other, "--trials", 6)
    for name in ("prompts.toml", "prompts.json"):
        assert (other / "tune" / name).read_bytes() == (run / "tune" / name).read_bytes()


def test_half_a_line_at_the_end_of_the_journal_loses_no_trial(
    run: Path, single: Path, tmp_path: Path
) -> None:
    """As a full disk or a kill leaves it."""
    done("tune", run, "--trials", 8)
    other = Path(shutil.copytree(single, tmp_path / "other"))
    done("tune", other, "--trials", 6)
    journal = other / "tune" / "journal.log"
    journal.write_bytes(journal.read_bytes()[:-20])
    for _ in range(2):
        assert "8 trials" in done("tune", other, "--trials", 8)
    assert (other / "tune" / "prompts.json").read_bytes() == (run / "tune" / "prompts.json").read_bytes()


def test_two_searches_do_not_share_a_journal(run: Path) -> None:
    """Each would take the other's trials under way for cut short."""
    (run / "tune").mkdir(exist_ok=True)
    with alone_in(run / "tune", print):
        assert "by another process" in refused(UsageError, "tune", run, "--trials", 3)


@pytest.mark.parametrize(
    "words",
    [
        ("--strategy", "burden", "--points", 3),
        ("--strategy", "mine", "--prompts", "box", "--points", 3),
        ("--strategy", "burden", "--spread", 4.0),
        ("--strategy", "mine", "--points", 0, "--spread", 4.0),
    ],
)
def test_points_that_these_prompts_do_not_have_are_refused(tmp_path: Path, words: tuple[object, ...]) -> None:
    told = refused(UsageError, "train", tmp_path / "none", "--out", tmp_path / "run", *words)
    assert "--points and --spread must go with the likeliest points" in told


def test_training_takes_the_tuned_prompts(run: Path, single: Path, tmp_path: Path) -> None:
    done("tune", run, "--trials", 3)
    file = run / "tune" / "prompts.toml"
    words = ("--config", single.parent / "tiny.toml", "--strategy", "burden", "--max-steps", 2)
    done("train", single.parent / "data", "--out", tmp_path / "next", *words, "--prompts", file)
    assert Run.load(tmp_path / "next").config.refine == load_prompts(str(file))


def test_asked_about_each_component_a_class_keeps_them_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of burden's one, the likeliest, a set for each would be a set for one."""
    seen: list[PromptConfig] = []

    def launched(data: Path, out: Path, config: TrainConfig, *arguments: Any, **options: Any) -> None:
        seen.append(config.refine_or_default.prompts)
        raise UsageError("enough")

    monkeypatch.setattr("samdistill.train.launch.train", launched)
    words = ("train", tmp_path, "--out", tmp_path / "run", "--strategy", "burden", "--per-component")
    refused(UsageError, *words)
    refused(UsageError, *words, "--components", "largest")
    assert [(one.per_component, one.keep) for one in seen] == [(True, "all"), (True, "largest")]


def test_the_random_walker_is_tuned_the_same_way(run: Path) -> None:
    output = done("tune", run, "--refiner", "random-walker", "--trials", 2)
    assert "random walker, untuned" in output
    config = load_config(run / "tune" / "random-walker.toml")
    assert config.pseudo.refiner == "random-walker"
    assert config.refine is not None
    assert config.refine.first_pass == BURDEN.first_pass


@pytest.mark.parametrize(
    "words",
    [
        ("--trials", 0),
        ("--refiner", "crf"),
        ("--prompts", "nowhere.toml"),
        ("--seed", -1),
        ("--teacher", "sam9"),
    ],
)
def test_tuning_refuses_what_it_cannot_do(run: Path, words: tuple[object, ...]) -> None:
    refused(UsageError, "tune", run, *words)


@pytest.mark.parametrize("device", ["cuda:9", "tpu"])
def test_a_device_that_cannot_be_had_is_told_without_a_teacher_too(
    run: Path, single: Path, tmp_path: Path, device: str
) -> None:
    out = tmp_path / "labels"
    words = ("--refiner", "random-walker", "--device", device)
    refused(DeviceUnavailable, "tune", run, *words)
    refused(DeviceUnavailable, "pseudo-label", run, single.parent / "data", "--out", out, *words)
    assert not out.exists()


def test_any_seed_tunes(run: Path) -> None:
    assert "1 trials" in done("tune", run, "--trials", 1, "--seed", 2**40, "--refiner", "random-walker")


def test_tuning_names_what_is_damaged_or_missing(run: Path, tmp_path: Path) -> None:
    assert "is no run" in refused(InputRejected, "tune", tmp_path)
    assert "not at" in refused(InputRejected, "tune", run, tmp_path / "away")
    (run / "tune").mkdir()
    (run / "tune" / "journal.log").write_text("no journal\nat all\n")
    assert "Delete it" in refused(InputRejected, "tune", run, "--trials", 1)
    (run / "student.safetensors").unlink()
    assert "student.safetensors" in refused(InputRejected, "tune", run)


def test_prompts_with_thresholds_of_other_classes_are_refused_before_the_work(
    run: Path, single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out, prompts = single.parent / "data", tmp_path / "out", tmp_path / "prompts.toml"
    prompts.write_text("[prompts]\nthreshold = [0.1, 0.2]\n")
    monkeypatch.setattr("samdistill.train.launch.build_student", lambda *_: pytest.fail("too late"))
    for words in (
        ("train", data, "--config", single.parent / "tiny.toml", "--out", out),
        ("tune", run),
        ("pseudo-label", run, data, "--out", out),
        ("teacher", "assess", data, "--run", run, "--out", out),
    ):
        told = refused(UsageError, *words, "--prompts", prompts)
        assert "must be one number or 1, one a class, not 2" in told
        assert not out.exists()
