"""`data check`: what a folder holds, every problem with its file and cure, exit codes."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage
from typer.testing import CliRunner

from samdistill.cli.data import app
from samdistill.errors import InputRejected
from samdistill.io import read_image, write_mask, write_png
from samdistill.io.check import check_data
from samdistill.io.duplicates import difference_hash, near_pairs
from samdistill.io.layout import Problem
from samdistill.phantoms import make
from samdistill.phantoms.folder import write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound folder of twelve small phantoms, the last three unlabelled."""
    root = tmp_path / "data"
    write(root, "ultrasound", 12, seed=3, size=(64, 80), unlabelled=0.25)
    return root


def only(problems: list[Problem], where: str) -> Problem:
    found = [problem for problem in problems if problem.where == where]
    assert len(found) == 1, [str(problem) for problem in problems]
    return found[0]


def test_a_sound_folder_is_described_and_usable(folder: Path) -> None:
    report = check_data(folder)
    assert report.usable
    assert report.problems == [] or all(p.severity == "warning" for p in report.problems)
    assert (report.images, report.labelled, report.unlabelled, report.readable) == (12, 9, 3, 12)
    assert report.groups == 12
    assert report.sizes == {(64, 80): 12}
    assert report.depths == {"8-bit grey": 12}
    masks = np.stack([make("ultrasound", seed=3, index=i, size=(64, 80)).masks for i in range(9)])
    for channel, facts in enumerate(report.classes):
        areas = masks[:, channel].sum(axis=(1, 2))
        assert facts.images == np.count_nonzero(areas)
        assert facts.prevalence == pytest.approx(masks[:, channel].mean())
        assert facts.prevalence_present == pytest.approx(masks[:, channel][areas > 0].mean())
        assert facts.smallest_px == areas[areas > 0].min()


def test_every_broken_file_is_named_with_its_cure(folder: Path) -> None:
    """One folder with many faults: each is found, and none hides another."""
    images, masks = folder / "images", folder / "masks"
    content = (images / "0000.png").read_bytes()
    (images / "0000.png").write_bytes(content[: len(content) // 2])
    (images / "0001.png").write_bytes(b"")
    bomb = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    (images / "0002.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b))
            for k, b in ((b"IHDR", bomb), (b"IDAT", zlib.compress(b"\0" * 99)), (b"IEND", b""))
        )
    )
    (images / "0003.png").write_text("no picture")
    write_mask(masks / "0004.png", np.zeros((80, 64), np.uint8))
    write_mask(masks / "0005.png", np.full((64, 80), 3, np.uint8))
    (masks / "0006.png").write_bytes(b"")
    write_mask(masks / "stray.png", np.zeros((64, 80), np.uint8))
    write_png(images / "0009.png", np.full((64, 80), 7, np.uint8))
    report = check_data(folder)
    assert not report.usable
    assert "cannot be read" in only(report.problems, "images/0000.png").what
    assert "0 bytes" in only(report.problems, "images/0001.png").what
    assert "at most 67108864 pixels" in only(report.problems, "images/0002.png").what
    assert "PNG, JPEG, TIFF or BMP" in only(report.problems, "images/0003.png").what
    assert "80 x 64, not 64 x 80" in only(report.problems, "masks/0004.png").what
    assert "not 3" in only(report.problems, "masks/0005.png").what
    assert "0 bytes" in only(report.problems, "masks/0006.png").what
    assert only(report.problems, "masks/stray.png").severity == "warning"
    assert "same value" in only(report.problems, "images/0009.png").what
    assert [p for p in report.problems if not p.cure.endswith(".")] == []
    severities = [problem.severity for problem in report.problems]
    assert severities == sorted(severities)
    assert report.readable == 8


def test_what_check_calls_an_error_training_would_refuse_too(folder: Path) -> None:
    for path in sorted((folder / "masks").iterdir())[2:]:
        path.unlink()
    report = check_data(folder)
    assert [problem.where for problem in report.errors] == ["."]
    assert "at least 3 groups" in report.errors[0].what


def test_a_folder_without_any_mask_is_not_usable(folder: Path) -> None:
    for path in (folder / "masks").iterdir():
        path.unlink()
    assert only(check_data(folder).problems, "masks").what == "no image has a mask."


def test_mixed_depths_and_a_missing_class_are_warned_of(folder: Path) -> None:
    PillowImage.fromarray(np.arange(5120, dtype=np.uint16).reshape(64, 80)).save(folder / "images/0011.png")
    (folder / "dataset.toml").write_text('classes = ["nerve", "vessel", "bone"]')
    report = check_data(folder)
    assert report.usable
    assert "16-bit grey" in only(report.problems, "images").what
    assert "'bone'" in only(report.problems, "masks").what


def test_a_folder_of_object_numbers_is_not_usable_and_says_so_once(folder: Path) -> None:
    (folder / "dataset.toml").unlink()
    numbers = np.arange(64 * 80).reshape(64, 80) // 160  # 0 to 31
    for path in (folder / "masks").iterdir():
        write_mask(path, numbers.astype(np.uint8))
    (told,) = check_data(folder).errors
    assert told.what == "it holds the value 31, which is no likely class number."
    assert told.cure.startswith("Object (instance) numbers? Masks must hold class numbers.")


def test_near_duplicates_across_groups_are_found_and_within_a_group_are_not(tmp_path: Path) -> None:
    """A darkened, rescaled JPEG of an image counts as the same picture."""
    folder = tmp_path / "data"
    write(folder, "endoscopy", 8)
    pixels = read_image(folder / "images" / "0004.png")
    small = PillowImage.fromarray((pixels * 0.8).astype(np.uint8)).resize((180, 180))
    small.save(folder / "images" / "0004_copy.jpg", quality=80)
    report = check_data(folder)
    assert report.near_duplicates == [("0004", "0004_copy")]
    assert "looks the same as '0004_copy'" in only(report.problems, "images/0004.png").what
    (folder / "dataset.toml").write_text("classes = ['lesion']\ngroup_pattern = '^[0-9]+'")
    assert check_data(folder).near_duplicates == []


def test_phantoms_are_not_near_duplicates_of_one_another() -> None:
    hashes = [
        difference_hash(make(kind, index=i, size=(128, 128)).image)
        for kind in ("endoscopy", "xray")
        for i in range(40)
    ]
    assert near_pairs(hashes) == []


def test_pairs_agree_with_counting_bits_one_by_one() -> None:
    rng = np.random.default_rng(0)
    hashes = [rng.integers(0, 256, 32, dtype=np.uint8) for _ in range(40)]
    for i in range(0, 40, 4):
        hashes[i + 1] = hashes[i].copy()
        hashes[i + 1][: i // 4] ^= 0b111  # 0, 3, 6, ... 27 bits apart
    slow = [
        (i, j)
        for i in range(40)
        for j in range(i + 1, 40)
        if sum(int(a ^ b).bit_count() for a, b in zip(hashes[i], hashes[j], strict=True)) <= 16
    ]
    assert near_pairs(hashes) == slow
    assert len(slow) == 6
    assert near_pairs(hashes[:1]) == []


def test_pictures_of_one_tone_are_no_duplicates() -> None:
    flat = [difference_hash(np.full((40, 40), value, np.uint8)) for value in (0, 90, 255)]
    assert near_pairs(flat) == []


def test_the_command_prints_tables_and_exits_0(folder: Path) -> None:
    result = CliRunner().invoke(app, ["check", str(folder)])
    assert result.exit_code == 0, result.output
    for text in ("9 labelled, 3 unlabelled", "80 x 64 (12)", "nerve", "usable"):
        assert text in result.stdout


def test_a_narrow_terminal_cuts_no_number(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "28")
    result = CliRunner().invoke(app, ["check", str(folder)])
    for each in check_data(folder).classes:
        for text in (each.name, f"{each.prevalence:.2%}", f"{each.smallest_px} px"):
            assert text in result.stdout


def test_with_json_standard_output_is_one_object(folder: Path) -> None:
    result = CliRunner().invoke(app, ["check", str(folder), "--json"])
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["schema"] == 1
    assert found["usable"] is True
    assert found["sizes"] == [{"height": 64, "width": 80, "images": 12}]
    assert [each["name"] for each in found["classes"]] == ["nerve", "vessel"]


def test_an_unusable_folder_prints_its_problems_and_ends_with_the_exit_code_4(folder: Path) -> None:
    (folder / "images" / "0001.png").write_bytes(b"")
    result = CliRunner().invoke(app, ["check", str(folder), "--json"])
    assert isinstance(result.exception, InputRejected)
    assert result.exception.exit_code == 4
    assert "1 error" in str(result.exception)
    assert json.loads(result.stdout)["problems"][0]["where"] == "images/0001.png"


def test_an_empty_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["check", str(tmp_path)])
    assert isinstance(result.exception, InputRejected)
    assert "images/" in str(result.exception)
    assert "\n" not in str(result.exception)


@pytest.mark.data
def test_pictures_of_one_patient_in_the_polyp_set_are_noticed(data_root: Path) -> None:
    """Two pairs of frames in the polyp set were taken one and three seconds apart; no others are paired."""
    report = check_data(data_root / "polyps")
    assert report.usable
    assert report.near_duplicates == [
        ("cju5fydrud94708507vo6oy21", "cju7avvi51iox0817ym55y6tt"),
        ("cju886ryxnsl50801r93jai7q", "cju8amfdtqi4x09871tygrgqe"),
    ]
