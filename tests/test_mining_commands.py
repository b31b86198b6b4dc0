"""tune, pseudo-label and report as a user calls them, with a student whose answers are known."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

pytest.importorskip("torch", reason="mining needs the extra train")

from mining_run import CONFIG, SeesLight, picture, write_data
from test_train import Silent

from samdistill.cli.app import app
from samdistill.errors import InputRejected, SamdistillError, UsageError
from samdistill.io.dataset import Case, open_dataset
from samdistill.prompts import PromptConfig
from samdistill.refine import BURDEN, MINE, RefineConfig, Refinement, load_prompts, refine
from samdistill.statistics import Estimate
from samdistill.teacher import Teacher
from samdistill.train.config import PseudoConfig, TrainConfig, load_config
from samdistill.train.launch import train
from samdistill.train.pseudo_folder import why_unlabelled
from samdistill.train.run import Run, alone_in
from samdistill.train.store import PseudoLabel, PseudoStore
from samdistill.train.tune_spaces import TeacherSpace


def trained(folder: Path, classes: int) -> Path:
    """A real run of one step; what its student answers is replaced in `student`."""
    data = write_data(folder / "data", classes=classes)
    (folder / "tiny.toml").write_text(CONFIG)
    return train(data, folder / "run", load_config(folder / "tiny.toml"), Silent(), device="cpu").path


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("single"), 1)


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("double"), 2)


@pytest.fixture(autouse=True)
def student(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Run, "load_student", lambda self: SeesLight(len(self.class_names)).eval())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def run(single: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(single, tmp_path / "run"))


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def done(*words: object) -> str:
    result = call(*words)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def refused(error: type[SamdistillError], *words: object) -> str:
    result = call(*words)
    assert type(result.exception) is error, (result.output, result.exception)
    return str(result.exception)


# tune


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


# pseudo-label


def test_pseudo_labels_are_a_data_folder_that_training_takes(run: Path, single: Path, tmp_path: Path) -> None:
    out = tmp_path / "labels"
    output = done("pseudo-label", run, single.parent / "data", "--out", out)
    assert "3 of 4 images labelled" in output  # those without masks
    assert "1 left without a mask, not with an empty one: the student found nothing" in output
    dataset = open_dataset(out)
    assert dataset.class_names == ("class0",)
    assert [case.id for case in dataset.unlabelled] == ["13"]
    assert all(case.read_masks().any() for case in dataset.labelled)
    record = json.loads((out / "pseudo" / "10.json").read_text())
    told = record["classes"]["class0"]
    assert record["status"] == "labelled"
    assert told["estimated_dice"] == pytest.approx(
        2 * told["predicted_iou"] / (1 + told["predicted_iou"]), abs=1e-5
    )
    assert 0 <= told["agreement"] <= 1
    assert len(told["prompts"][0]["box"]) == 4
    assert record["teacher_sha256"] == json.loads((out / "pseudo.json").read_text())["teacher_sha256"]
    empty = json.loads((out / "pseudo" / "13.json").read_text())
    assert (empty["status"], empty["reason"]) == ("unlabelled", "the student found nothing")
    assert empty["teacher_sha256"] == ""

    extra = [f"{index}" for index in range(20, 24)]  # three masks are too few to split
    for index in extra:
        Image.fromarray(picture(int(index), 1)).save(out / "images" / f"{index}.png")
        shutil.copy(out / "masks" / "10.png", out / "masks" / f"{index}.png")
    done("train", out, "--out", tmp_path / "again", "--config", single.parent / "tiny.toml")


def test_correcting_survives_and_an_interrupted_folder_is_finished(
    run: Path, single: Path, tmp_path: Path
) -> None:
    out, words = (
        tmp_path / "labels",
        ("pseudo-label", run, single.parent / "data", "--out", tmp_path / "labels"),
    )
    done(*words)
    finished = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    corrected = np.zeros((40, 56), np.uint8)
    corrected[5:9] = 255
    Image.fromarray(corrected).save(out / "masks" / "10.png")
    (out / "pseudo" / "11.json").unlink()  # as a kill in the middle of an image leaves it
    (out / "masks" / "11.png").unlink()
    done(*words)
    assert np.array_equal(np.asarray(Image.open(out / "masks" / "10.png")), corrected)
    del finished[out / "masks" / "10.png"]
    assert {path: path.read_bytes() for path in finished} == finished


def test_what_the_prompts_leave_out_is_not_called_nothing(run: Path, single: Path, tmp_path: Path) -> None:
    out, prompts = tmp_path / "labels", tmp_path / "prompts.toml"
    prompts.write_text("[prompts]\nmin_area_px = 2000\n")
    output = done("pseudo-label", run, single.parent / "data", "--out", out, "--prompts", prompts)
    assert "0 of 4 images labelled" in output
    assert "3 left without a mask, not with an empty one: the prompts leave out all" in output
    assert "1 left without a mask, not with an empty one: the student found nothing" in output


def test_a_class_that_others_would_cover_holds_back_its_image() -> None:
    inner, outer = np.zeros((2, 8, 8), np.bool_)
    inner[3:5, 3:5], outer[2:6, 2:6] = True, True
    masks, sure = np.stack([inner, outer]), np.array([0.5, 0.9], np.float32)
    for iou, overlap, wanted in (
        (sure, False, "first: other classes cover it"),
        (sure, True, None),
        (sure[::-1], False, None),  # the first lies on top
    ):
        one = Refinement(masks, masks, [[], []], iou, np.ones(2, np.float32))
        reason = why_unlabelled(one, ("first", "second"), PseudoConfig(), found=True, multi_label=overlap)
        assert reason == wanted


def test_a_folder_that_is_continued_with_new_images_has_their_groups(
    run: Path, single: Path, tmp_path: Path
) -> None:
    data, out = Path(shutil.copytree(single.parent / "data", tmp_path / "data")), tmp_path / "labels"
    words = ("pseudo-label", run, data, "--out", out, "--refiner", "random-walker")
    (data / "dataset.toml").write_text('classes = ["class0"]\ngroup_pattern = "^."\n')
    done(*words)
    table = out / "cases.csv"
    table.write_text("case,site,group\n" + "".join(f"1{number},x,me\n" for number in range(4)))
    for index in (20, 21):
        Image.fromarray(picture(index, 1)).save(data / "images" / f"{index}.png")
    done(*words)
    assert {case.id: case.group for case in open_dataset(out).cases} == {
        **{f"1{number}": "me" for number in range(4)},
        "20": "2",
        "21": "2",
    }
    table.write_text("image\n10\n")
    assert "columns case and group" in refused(InputRejected, *words)
    table.unlink()  # as in a folder that was begun with images without groups
    assert "was begun without groups" in refused(UsageError, *words)


def test_groups_of_names_that_are_not_utf8_are_kept(run: Path, single: Path, tmp_path: Path) -> None:
    data, out = Path(shutil.copytree(single.parent / "data", tmp_path / "data")), tmp_path / "labels"
    (data / "dataset.toml").write_text('classes = ["class0"]\ngroup_pattern = "^."\n')
    (data / "images" / "10.png").rename(data / "images" / "1\udce4.png")
    for _ in range(2):
        done("pseudo-label", run, data, "--out", out, "--refiner", "random-walker")
        assert (out / "cases.csv").read_bytes() == b"case,group\n11,1\n12,1\n13,1\n1\xe4,1\n"


def test_a_filter_leaves_images_unlabelled_and_says_why(run: Path, single: Path, tmp_path: Path) -> None:
    out = tmp_path / "labels"
    output = done("pseudo-label", run, single.parent / "data", "--out", out, "--min-iou", 1.0)
    assert "0 of 4 images labelled" in output
    assert "3 left without a mask, not with an empty one: class0: predicted IoU below 1" in output
    assert not open_dataset(out).labelled
    assert "another min_iou" in refused(
        UsageError, "pseudo-label", run, single.parent / "data", "--out", out, "--min-iou", 0.5
    )


def test_overlapping_classes_get_a_file_each(double: Path, tmp_path: Path) -> None:
    out = tmp_path / "labels"
    done("pseudo-label", double, double.parent / "data", "--out", out, "--refiner", "random-walker")
    dataset = open_dataset(out)
    assert dataset.multi_label
    assert dataset.class_names == ("class0", "class1")
    masks = dataset.labelled[0].read_masks()
    assert masks.any(axis=(1, 2)).all()
    assert (masks[0] & masks[1]).any()


def test_a_picture_that_cannot_be_read_fails_alone(run: Path, tmp_path: Path) -> None:
    from samdistill.errors import SomeInputsFailed

    pictures = tmp_path / "pictures"
    (pictures / "site").mkdir(parents=True)
    Image.fromarray(picture(1, 1)).save(pictures / "site" / "a.png")
    (pictures / "b.png").write_bytes(b"no picture")
    words = ("pseudo-label", run, pictures, "--out", tmp_path / "labels")
    assert "1 of 2 images failed" in refused(SomeInputsFailed, *words)
    assert (tmp_path / "labels" / "masks" / "site" / "a.png").is_file()
    assert not (tmp_path / "labels" / "images" / "b.png").exists()
    Image.fromarray(picture(2, 1)).save(pictures / "b.png")
    assert "2 of 2 images labelled" in done(*words)


def test_an_image_that_the_intensity_rule_cannot_take_is_named(
    run: Path, single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Case, "read_image", lambda self: np.full((40, 56), np.nan, np.float32))
    data, out = single.parent / "data", tmp_path / "out"
    for words in (
        ("tune", run),
        ("pseudo-label", run, data, "--out", out),
        ("teacher", "assess", data, "--run", run, "--out", out),
    ):
        assert re.search(r"\d\d\.png: pixels must be", refused(InputRejected, *words)), words


def test_another_picture_of_the_same_name_is_not_taken_for_it(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "labels"
    for index, site in ((1, "a"), (2, "b")):
        (tmp_path / site).mkdir()
        Image.fromarray(picture(index, 1)).save(tmp_path / site / "0001.png")
    done("pseudo-label", run, tmp_path / "a", "--out", out)
    for half_done in (False, True):
        if half_done:  # killed between the copy of the picture and its JSON
            (out / "pseudo" / "0001.json").unlink()
        before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        words = ("pseudo-label", run, tmp_path / "b", "--out", out)
        assert "holds another picture of this name" in refused(InputRejected, *words)
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_pseudo_labelling_refuses_what_it_cannot_do(run: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    base = ("pseudo-label", run, pictures, "--out", tmp_path / "labels")
    assert "holds none" in refused(InputRejected, *base)
    assert "no folder" in refused(InputRejected, "pseudo-label", run, tmp_path / "x", "--out", tmp_path / "y")
    Image.fromarray(picture(1, 1)).save(pictures / "a.png")
    refused(UsageError, *base, "--min-iou", 2)
    refused(UsageError, *base, "--min-agreement", -1)
    refused(UsageError, *base, "--refiner", "crf")
    assert "predicts no IoU" in refused(UsageError, *base, "--refiner", "random-walker", "--min-iou", 0.5)
    refused(UsageError, *base, "--prompts", "nowhere.toml")
    assert "new or empty" in refused(UsageError, "pseudo-label", run, pictures, "--out", run)
    Image.fromarray(picture(1, 1)).save(pictures / "a.jpg")
    assert "name of its own" in refused(InputRejected, *base)
    shutil.rmtree(pictures)
    data = write_data(tmp_path / "full", labelled=2, unlabelled=0)
    assert "all 2 have one" in refused(InputRejected, "pseudo-label", run, data, "--out", tmp_path / "z")


# report


def layers(page: str) -> set[str]:
    return set(re.findall(r'<svg class="layer" data-layer="([^"]+)"', page))


def test_the_report_of_a_folder_shows_three_panels_and_the_reasons(
    run: Path, single: Path, tmp_path: Path
) -> None:
    out = tmp_path / "labels"
    done("pseudo-label", run, single.parent / "data", "--out", out, "--prompts", "burden", "--min-iou", 1.0)
    done("report", out)
    page = (out / "report.html").read_text()
    assert layers(page) == {"student", "prompts", "teacher"}
    assert page.count('<figure class="case"') == 3  # of the empty one there is nothing to show
    assert page.count('class="dot"') == 3
    assert re.search(r"nothing to ask about</dt><dd>1<", page)
    assert "predicted\N{NO-BREAK SPACE}IoU\N{NO-BREAK SPACE}below" in page


def test_the_report_of_a_run_shows_the_labels_of_its_last_round(run: Path, single: Path) -> None:
    done("report", run)
    assert "kept no pseudo labels" in (run / "report.html").read_text()
    image = picture(11, 1)
    maps = (image.transpose(2, 0, 1)[:1] / 255).astype(np.float32)
    from samdistill.teacher import load_teacher

    teacher = load_teacher()
    (refinement,) = refine(teacher, teacher.embed([image]), [maps])
    for number in (1, 2):
        PseudoStore(run / "pseudo" / str(number)).write(PseudoLabel(f"1{number}", refinement, "00", number))
    done("report", run, "--images", single.parent / "data")
    page = (run / "report.html").read_text()
    assert layers(page) == {"student", "prompts", "teacher"}
    assert 'title="12"' in page
    assert 'title="11"' not in page
    assert "Learning curves" in page


def test_a_damaged_record_is_named(run: Path, single: Path, tmp_path: Path) -> None:
    out = tmp_path / "labels"
    done("pseudo-label", run, single.parent / "data", "--out", out)
    (out / "pseudo" / "10.json").write_text("{")
    assert "10.json is damaged" in refused(InputRejected, "report", out)
    words = ("pseudo-label", run, single.parent / "data", "--out", out)
    assert "10.json is damaged" in refused(InputRejected, *words)


def test_an_estimate_without_interval_is_no_number_in_json(run: Path) -> None:
    from samdistill.train.tune import Row, Tuning, _plain

    nan = float("nan")
    row = Row("one", Estimate(0.5, nan, nan, 1), Estimate(0.0, nan, nan, 1))
    text = json.dumps(_plain(Tuning((row,), {}, {}, 1, run)), allow_nan=False)
    assert json.loads(text)["rows"][0]["dice"]["low"] is None
