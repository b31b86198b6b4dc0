"""`samdistill evaluate` and `samdistill report` on a bundle whose answers are known."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samdistill.cli import app
from samdistill.io.files import sha256_file

TINY = Path(__file__).parent / "golden" / "tiny_bundle"  # finds red and bright pixels, 64 px
SIDE = 64
RED, BRIGHT, DARK = (220, 40, 40), (230, 230, 230), (20, 20, 20)


def samdistill(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "samdistill", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def write_case(root: Path, name: str, *, found: int, labelled: int | None) -> None:
    """A red bar of `found` columns, and a mask of `labelled` columns as class 1."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    pixels = np.full((SIDE, SIDE, 3), DARK, np.uint8)
    pixels[:, :found] = RED
    pixels[-1, -1] = (len(list(root.glob("images/*"))), 0, 0)  # no two images alike
    Image.fromarray(pixels).save(root / "images" / f"{name}.png")
    if labelled is not None:
        mask = np.zeros((SIDE, SIDE), np.uint8)
        mask[:, :labelled] = 1
        Image.fromarray(mask).save(root / "masks" / f"{name}.png")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_case(tmp_path / "data", "right", found=20, labelled=20)
    write_case(tmp_path / "data", "half", found=10, labelled=20)
    write_case(tmp_path / "data", "missed", found=0, labelled=20)
    write_case(tmp_path / "data", "unlabelled", found=5, labelled=None)
    (tmp_path / "data" / "dataset.toml").write_text('classes = ["red", "bright"]\n')
    return tmp_path / "data"


def trained_on(bundle: Path, images: list[Path], out: Path) -> Path:
    """A copy of the bundle whose provenance names these images."""
    shutil.copytree(bundle, out)
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["provenance"]["trained_on"] = [sha256_file(image)[:16] for image in images]
    (out / "manifest.json").write_text(json.dumps(manifest))
    return out


def test_json_is_one_object_on_standard_output_with_the_figures_worked_by_hand(data: Path) -> None:
    """Red: 1, 2/3, 0. Bright is nowhere and nowhere found: 1. Means of the two: 1, 5/6, 1/2."""
    done = samdistill("evaluate", TINY, data, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    dice = {case["id"]: case["dice"] for case in told["cases"]}
    assert dice == pytest.approx({"half": 5 / 6, "missed": 1 / 2, "right": 1.0})
    assert told["dice"] == pytest.approx((1 + 5 / 6 + 1 / 2) / 3)
    assert told["dice_present"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert (told["missed"], told["false_alarms"]) == (1, 0)
    assert told["classes"]["bright"]["hd95_px"]["mean"] is None
    assert told["classes"]["red"]["hd95_px"]["missing"] == 1
    assert told["data"]["evaluated"] == 3
    assert told["bundle"]["sha256"] == sha256_file(TINY / "manifest.json")


def test_the_engine_that_gave_the_figures_is_told_and_can_be_named(data: Path, tmp_path: Path) -> None:
    """The fastest is one in fp16 here; two bundles may differ in it."""
    shutil.copytree(TINY, tmp_path / "low")
    values = json.loads((tmp_path / "low" / "manifest.json").read_text())
    values["engines"].insert(0, {**values["engines"][0], "precision": "fp16"})
    (tmp_path / "low" / "manifest.json").write_text(json.dumps(values))
    done = samdistill("evaluate", tmp_path / "low", data, "--against", TINY, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["device"]["engines"]["student"] == "onnxruntime fp16 (CPUExecutionProvider)"
    assert told["against"]["device"]["engines"]["student"] == "onnxruntime fp32 (CPUExecutionProvider)"
    report = tmp_path / "report.html"
    words = ("evaluate", tmp_path / "low", data, "--precision", "fp32", "--report", report, "--json")
    told = json.loads(samdistill(*words).stdout)
    assert told["device"]["engines"]["student"] == "onnxruntime fp32 (CPUExecutionProvider)"
    assert "3 images, mode fast, onnxruntime fp32 (CPUExecutionProvider)" in report.read_text()
    refused = samdistill("evaluate", TINY, data, "--precision", "fp16")
    assert refused.returncode == 2
    assert "for its student on cpu: onnxruntime fp32, not fp16" in refused.stderr


def test_the_table_names_every_class_and_the_interval(data: Path) -> None:
    done = samdistill("evaluate", TINY, data)
    assert done.returncode == 0, done.stderr
    assert "red" in done.stdout and "bright" in done.stdout and "mean of the classes" in done.stdout
    assert "0.556 (0.000–1.000)" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_images_that_were_trained_on_are_left_out_and_that_is_said(data: Path, tmp_path: Path) -> None:
    bundle = trained_on(TINY, [data / "images" / "half.png"], tmp_path / "bundle")
    done = samdistill("evaluate", bundle, data, "--json")
    told = json.loads(done.stdout)
    assert [case["id"] for case in told["cases"]] == ["missed", "right"]
    assert "Of 3 labelled images 1 are left out" in done.stderr
    done = samdistill("evaluate", bundle, data, "--json", "--include-trained")
    told = json.loads(done.stdout)
    assert len(told["cases"]) == 3 and told["data"]["trained_on_included"] is True
    assert "flatter" in done.stderr


def test_a_bundle_trained_on_all_of_it_is_not_evaluated(data: Path, tmp_path: Path) -> None:
    bundle = trained_on(TINY, sorted((data / "images").iterdir()), tmp_path / "bundle")
    done = samdistill("evaluate", bundle, data, "--json")
    assert (done.returncode, done.stdout) == (4, "")
    assert "all 3 were" in done.stderr and "--include-trained" in done.stderr


def test_a_bundle_that_does_not_say_what_it_was_trained_on_is_told_of(data: Path) -> None:
    assert "does not say which images it was trained on" in samdistill("evaluate", TINY, data).stderr


def test_classes_taken_by_number_are_told_and_so_is_one_that_no_image_shows(data: Path) -> None:
    read = "declares no classes: 1 is read as red, 2 is read as bright. If that is wrong, name them"
    shown = "no scored image shows 'bright': its figures tell of false alarms alone"
    declared = samdistill("evaluate", TINY, data, "--json")
    assert json.loads(declared.stdout)["data"]["classes_declared"] is True
    assert read not in declared.stderr and shown in declared.stderr
    (data / "dataset.toml").unlink()
    undeclared = samdistill("evaluate", TINY, data, "--json")
    assert json.loads(undeclared.stdout)["data"]["classes_declared"] is False
    assert read in undeclared.stderr and shown in undeclared.stderr


def test_wrong_words_and_broken_data_end_with_their_exit_codes(data: Path, tmp_path: Path) -> None:
    assert samdistill("evaluate", TINY, data, "--mode", "best").returncode == 2
    assert samdistill("evaluate", TINY, data, "--run", data).returncode == 2
    assert samdistill("evaluate", TINY, data, "--seed", -1).returncode == 2  # not after all are predicted
    assert samdistill("evaluate", tmp_path / "nothing", data).returncode == 5
    assert samdistill("evaluate", TINY, tmp_path / "nothing").returncode == 4
    (data / "images" / "half.png").write_bytes(b"")
    done = samdistill("evaluate", TINY, data, "--json")
    assert (done.returncode, done.stdout) == (4, "")
    assert "half.png" in done.stderr and len(done.stderr.splitlines()) <= 2


@pytest.fixture
def confused(tmp_path: Path) -> Path:
    """A copy of the bundle that takes each of its classes for the other."""
    shutil.copytree(TINY, tmp_path / "confused")
    manifest = json.loads((tmp_path / "confused" / "manifest.json").read_text())
    one, other = manifest["classes"]
    one["name"], other["name"] = other["name"], one["name"]
    (tmp_path / "confused" / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path / "confused"


def test_two_bundles_are_compared_image_by_image(data: Path, confused: Path, tmp_path: Path) -> None:
    """The means of 1, 5/6 and 1/2 become 0, 0 and 1/2."""
    report = tmp_path / "report.html"
    done = samdistill("evaluate", TINY, data, "--against", confused, "--report", report)
    assert done.returncode == 0, done.stderr
    assert "Dice, tiny_bundle less confused: +0.611" in done.stdout
    assert "red · tiny_bundle" in done.stdout and "red · confused" in done.stdout
    assert "red · confused" in report.read_text()
    told = json.loads(samdistill("evaluate", TINY, data, "--against", confused, "--json").stdout)
    assert told["against"]["difference"]["dice"]["mean"] == pytest.approx((1 + 5 / 6) / 3)
    assert told["against"]["dice"] == pytest.approx(1 / 6)
    same = samdistill("evaluate", TINY, data, "--against", TINY)
    assert "no difference can be told" in same.stdout


def test_one_group_alone_has_no_interval_and_no_nan(data: Path, tmp_path: Path) -> None:
    write_case(tmp_path / "one", "right", found=20, labelled=20)
    (tmp_path / "one" / "dataset.toml").write_text((data / "dataset.toml").read_text())
    done = samdistill("evaluate", TINY, tmp_path / "one", "--against", TINY)
    assert done.returncode == 0, done.stderr
    assert "(one group alone has no interval), paired over 1 images" in " ".join(done.stdout.split())
    assert "nan" not in done.stdout


def test_two_bundles_of_one_name_are_told_apart(data: Path, confused: Path, tmp_path: Path) -> None:
    """As those of two runs often are; the report must not give the other's figures alone."""
    other = shutil.copytree(confused, tmp_path / "other" / TINY.name)
    report = tmp_path / "report.html"
    done = samdistill("evaluate", TINY, data, "--against", other, "--report", report)
    assert done.returncode == 0, done.stderr
    assert "Dice, tiny_bundle less tiny_bundle of --against: +0.611" in done.stdout
    page = report.read_text()
    assert "red · tiny_bundle<" in page and "red · tiny_bundle of --against<" in page


def test_a_bundle_of_other_classes_is_not_compared_with(data: Path, confused: Path) -> None:
    manifest = json.loads((confused / "manifest.json").read_text())
    manifest["classes"][0]["name"] = "green"
    (confused / "manifest.json").write_text(json.dumps(manifest))
    done = samdistill("evaluate", TINY, data, "--against", confused)
    assert done.returncode == 2
    assert "--against must have the classes red, bright" in done.stderr


def test_the_report_of_an_evaluation_shows_the_training_too(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    record = {
        "data": {"path": "/home/dr_who", "fingerprint": "f00d"},
        "split": {"validation": ["a", "b"]},
        "config": {
            "seed": 7,
            "teacher": "medsam:/home/dr_who/medsam.pth",
            "samdsk": {"counts": "/home/dr_who/counts.csv"},
        },
        "encoder_weights": "none", "result": {}, "devices": {}, "versions": {},
    }  # fmt: skip
    (run / "run.json").write_text(json.dumps(record))
    (run / "log.jsonl").write_text('{"step": 5, "train_loss": 1.0, "val_loss": 0.9, "val_dice": 0.5}\n')
    report = tmp_path / "report.html"
    done = samdistill("evaluate", TINY, data, "--report", report, "--run", run)
    assert done.returncode == 0, done.stderr
    page = report.read_text(encoding="utf-8")
    assert page.count('class="case"') == 3
    assert "Learning curves" in page and "f00d" in page and "dr_who" not in page
    assert "medsam.pth" in page and "counts.csv" in page
    assert sha256_file(TINY / "manifest.json") in page
    (run / "log.jsonl").write_text("not json\n")
    assert samdistill("evaluate", TINY, data, "--report", report, "--run", run).returncode == 4


def test_a_mask_without_a_pixel_that_counts_has_a_report_all_the_same(tmp_path: Path) -> None:
    write_case(tmp_path / "data", "ignored", found=20, labelled=SIDE)
    (tmp_path / "data" / "dataset.toml").write_text(
        'classes = ["red", "bright"]\nclass_values = [2, 3]\nignore_index = 1\n'
    )
    page = tmp_path / "report.html"
    done = samdistill("evaluate", TINY, tmp_path / "data", "--report", page)
    assert (done.returncode, page.is_file()) == (0, True), done.stderr


def test_a_report_that_has_no_place_or_no_run_is_refused_before_the_work(data: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.html").write_text("mine")
    for path in (data, tmp_path / "thesis.html", tmp_path / "thesis.html" / "report.html"):
        for words in (("evaluate", TINY, data, "--json", "--report"), ("report", data, "--out")):
            done = samdistill(*words, path)
            assert (done.returncode, done.stdout) == (2, ""), done.stderr
            assert "must be" in done.stderr and done.stderr.count("\n") == 1
    assert (tmp_path / "thesis.html").read_text() == "mine"
    page = tmp_path / "report.html"
    done = samdistill("evaluate", TINY, data, "--json", "--report", page, "--run", data)
    assert (done.returncode, done.stdout) == (4, "") and "run.json" in done.stderr


def test_a_report_that_cannot_be_written_after_all_takes_no_figures_with_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr("samdistill.report.document.write_bytes", full)
    words = ["evaluate", TINY, data, "--json", "--report", tmp_path / "report.html"]
    monkeypatch.setattr(sys, "argv", ["samdistill", *map(str, words)])
    with pytest.raises(SystemExit, match="2"):
        app.main()
    out, err = capsys.readouterr()
    assert "No space left on device" in err
    assert json.loads(out)["data"]["evaluated"] == 3


def test_whoever_closes_standard_error_gets_the_results_alone(data: Path) -> None:
    command = [sys.executable, "-m", "samdistill", "evaluate", str(TINY), str(data), "--json"]
    done = subprocess.run(
        ["sh", "-c", '"$@" 2>&-', "sh", *command], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0
    assert json.loads(done.stdout)["data"]["evaluated"] == 3


@pytest.mark.parametrize("overlay", [True, False])
def test_a_folder_of_masks_becomes_a_report_with_its_failures(
    data: Path, tmp_path: Path, overlay: bool
) -> None:
    (data / "images" / "broken<b>.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    done = samdistill("infer", TINY, data / "images", "--out", out, *["--overlay"] * overlay)
    assert done.returncode == 3, done.stderr
    words = [] if overlay else ["--images", data / "images"]
    done = samdistill("report", out, *words)
    assert (done.returncode, done.stdout.strip()) == (0, str(out / "report.html")), done.stderr
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count('class="case"') == 4
    assert "broken&lt;b&gt;.png" in page and "broken<b>" not in page
    assert page.count('<svg class="layer"') == (0 if overlay else 4)
    assert f"red {20 * SIDE} px".replace(" ", "\N{NO-BREAK SPACE}") in page


def test_a_report_needs_pictures_and_a_results_file_that_is_whole(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert samdistill("infer", TINY, data / "images", "--out", out).returncode == 0
    done = samdistill("report", out)
    assert done.returncode == 4 and "--images" in done.stderr
    results = out / "results.jsonl"
    first, *others = results.read_text().splitlines()
    results.write_text("\n".join([first, others[0][:40]]))
    done = samdistill("report", out, "--images", data / "images")
    assert done.returncode == 4 and "line 2" in done.stderr
    away = json.loads(first)
    away["input"] = "../../secret.png"
    results.write_text(json.dumps(away))
    done = samdistill("report", out, "--images", data / "images")
    assert done.returncode == 4 and "inside" in done.stderr
    assert samdistill("report", data).returncode == 4
