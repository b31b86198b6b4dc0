"""`samdistill teacher`: what it prints, and how it ends."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

pytest.importorskip("torch", reason="the teacher needs the extra train")

from samdistill.cli.teacher import app
from samdistill.errors import InputRejected, UsageError
from samdistill.io.dataset import Case
from samdistill.io.files import sha256_file
from samdistill.teacher import load_teacher
from samdistill.teacher.tiny import WEIGHTS


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_list_tells_what_is_here_and_how_the_rest_gets_here() -> None:
    output = run("list")
    assert "comes with the package" in output
    assert "samdistill teacher fetch sam_vit_b" in output
    assert "medsam" in output


def test_check_says_what_a_teacher_is() -> None:
    output = run("check", "tiny")
    assert "sound" in output
    assert "preprocessing: SAM's" in output
    assert "takes: points, boxes, masks" in output
    assert "sha256" in output


def test_check_of_a_missing_teacher_says_where_its_file_belongs() -> None:
    result = CliRunner().invoke(app, ["check", "medsam"])
    assert isinstance(result.exception, UsageError)
    assert "medsam_vit_b.pth" in str(result.exception)


def test_fetch_of_the_embedded_teacher_has_nothing_to_do() -> None:
    assert "nothing to fetch" in run("fetch", "tiny")


def test_embed_fills_a_cache_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    images = tmp_path / "data" / "images"
    images.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).save(images / f"{i}.png")
    arguments = ("embed", str(tmp_path / "data"), "--cache", str(tmp_path / "store"))
    assert "3 of 3 images embedded, 0 were there" in run(*arguments)
    Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).save(images / "3.png")
    assert "1 of 4 images embedded, 3 were there" in run(*arguments)


def test_embed_takes_and_tells_the_intensity_rule_of_a_run(tmp_path: Path) -> None:
    """Embeddings by another rule are of no use to it."""
    images, file = tmp_path / "data" / "images", tmp_path / "run.toml"
    images.mkdir(parents=True)
    Image.fromarray(np.arange(1200, dtype=np.uint8).reshape(30, 40) // 2).save(images / "0.png")
    file.write_text('[intensity]\nkind = "window"\nlow = 10.0\nhigh = 90.5\n')
    arguments = ("embed", str(tmp_path / "data"), "--cache", str(tmp_path / "store"))
    assert "intensity identity:" in run(*arguments)
    output = run(*arguments, "--config", str(file))
    assert "1 of 1 images embedded" in output
    assert "intensity window 10 to 90.5:" in output


def test_embed_takes_the_teacher_of_a_run_and_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, file = tmp_path / "data" / "images", tmp_path / "run.toml"
    images.mkdir(parents=True)
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(images / "0.png")
    copy = Path(shutil.copy(WEIGHTS, tmp_path / "mine.safetensors"))
    file.write_text(f'teacher = "tiny:{copy}"\n')
    asked: list[str] = []
    monkeypatch.setattr(
        "samdistill.cli.teacher._load", lambda name, device: asked.append(name) or load_teacher(name, device)
    )
    arguments = ("embed", str(tmp_path / "data"), "--cache", str(tmp_path / "store"))
    sha256 = sha256_file(WEIGHTS)
    for more in ((), ("--config", str(file)), ("--config", str(file), "--teacher", "tiny")):
        assert f"teacher tiny, sha256 {sha256}" in run(*arguments, *more)
    assert asked == ["tiny", f"tiny:{copy}", "tiny"]


def test_embed_names_an_image_without_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, file = tmp_path / "data" / "images", tmp_path / "run.toml"
    images.mkdir(parents=True)
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(images / "dark.png")
    file.write_text('[intensity]\nkind = "percentiles"\nlow = 1.0\nhigh = 99.0\n')
    monkeypatch.setattr(Case, "read_image", lambda self: np.full((20, 20), np.nan, np.float32))
    arguments = ["embed", str(tmp_path / "data"), "--cache", str(tmp_path / "store"), "--config", str(file)]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, InputRejected)
    assert "dark.png: pixels must be finite" in str(result.exception)


@pytest.mark.parametrize("size", ["nan", "inf", "-1", "0", "1e-12"])
def test_a_cache_of_no_size_is_refused(tmp_path: Path, size: str) -> None:
    arguments = ["embed", str(tmp_path), "--cache", str(tmp_path / "store"), "--max-gb", size]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, UsageError)
    assert str(result.exception).startswith("--max-gb must be above 0")


def test_embed_says_when_the_cache_is_too_small_for_the_images(tmp_path: Path) -> None:
    images = tmp_path / "data" / "images"
    images.mkdir(parents=True)
    for i in range(3):
        Image.fromarray(np.full((20, 20, 3), i, np.uint8)).save(images / f"{i}.png")
    arguments = ("embed", str(tmp_path / "data"), "--cache", str(tmp_path / "store"), "--max-gb", "0.0013")
    output = run(*arguments)
    assert "3 of 3 images embedded, 0 were there" in output
    assert "1 embeddings, those longest unused, went again to stay below 0.0013 GB" in output


def test_embed_of_a_folder_that_is_no_data_set_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["embed", str(tmp_path), "--cache", str(tmp_path / "store")])
    assert isinstance(result.exception, InputRejected)
