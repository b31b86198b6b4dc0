"""pseudo-label and report as a user calls them, with a student whose answers are known."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch", reason="mining needs the extra train")

from mining_run import done, picture, refused, trained, write_data
from mining_run import run as run
from mining_run import single as single
from mining_run import student as student

from samdistill.errors import InputRejected, UsageError
from samdistill.io.dataset import Case, open_dataset
from samdistill.refine import Refinement, refine
from samdistill.statistics import Estimate
from samdistill.train.config import PseudoConfig
from samdistill.train.pseudo_folder import why_unlabelled
from samdistill.train.store import PseudoLabel, PseudoStore


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("double"), 2)


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


def test_the_random_walker_needs_no_cache_of_embeddings(run: Path, single: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    words = ("pseudo-label", run, single.parent / "data", "--out", tmp_path / "labels")
    cache = ("--cache", tmp_path / "file" / "cache")
    assert "cannot be made" in refused(UsageError, *words, *cache)
    assert "of 4 images labelled" in done(*words, *cache, "--refiner", "random-walker")


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
