"""Phantoms: deterministic, varied, of their contracts, quick; the folders and sheets made of them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage
from typer.testing import CliRunner

from samdistill.errors import UsageError
from samdistill.io import open_dataset, read_image
from samdistill.phantoms import CLASS_NAMES, KINDS, make
from samdistill.phantoms.canvas import Canvas
from samdistill.phantoms.folder import write, write_contact_sheet

GOLDEN = Path(__file__).parent / "golden" / "phantoms.json"


def digest(kind: str, index: int, size: tuple[int, int] = (256, 256)) -> str:
    phantom = make(kind, seed=7, index=index, size=size)
    return hashlib.sha256(phantom.image.tobytes() + np.packbits(phantom.masks).tobytes()).hexdigest()


@pytest.mark.parametrize("kind", KINDS)
def test_phantoms_are_what_they_have_always_been(kind: str) -> None:
    """Golden hashes; the file says with what they were made. Bundles and benchmarks build on these pixels."""
    golden = json.loads(GOLDEN.read_text())["sha256"][kind]
    assert [digest(kind, 0), digest(kind, 1), digest(kind, 2, (96, 160))] == golden


@pytest.mark.parametrize("kind", KINDS)
def test_the_processor_does_not_matter(kind: str) -> None:
    """The same pixels with numpy's vector kernels switched off."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_phantoms as t; "
    code += f"print(t.digest({kind!r}, 0), t.digest({kind!r}, 3))"
    lines = []
    for switched_off in ("", "AVX2 FMA3 AVX512F AVX512_SKX"):
        environment = {**os.environ, "NPY_DISABLE_CPU_FEATURES": switched_off}
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        lines.append(done.stdout)
    assert lines[0] == lines[1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(256, 256), (64, 64), (100, 240), (240, 100), (33, 32)])
def test_images_and_masks_keep_their_contract(kind: str, size: tuple[int, int]) -> None:
    for index in range(3):
        phantom = make(kind, seed=1, index=index, size=size)
        assert phantom.image.dtype == np.uint8
        assert phantom.image.shape == (*size, 3)
        assert phantom.masks.dtype == np.bool_
        assert phantom.masks.shape == (len(CLASS_NAMES[kind]), *size)
        assert phantom.class_names == CLASS_NAMES[kind]
        if not phantom.multi_label:
            assert phantom.masks.sum(axis=0).max() <= 1
        if kind != "endoscopy":
            assert (phantom.image == phantom.image[:, :, :1]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_phantom_does_not_depend_on_those_made_before(kind: str) -> None:
    make(kind, seed=2, index=0)
    again = make(kind, seed=2, index=5)
    np.testing.assert_array_equal(again.image, make(kind, seed=2, index=5).image)
    assert not np.array_equal(again.image, make(kind, seed=2, index=6).image)
    assert not np.array_equal(again.image, make(kind, seed=3, index=5).image)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_scene_is_drawn_at_every_size(kind: str) -> None:
    """Twice the size shows the same structures in the same places."""
    small, large = make(kind, index=4, size=(128, 128)), make(kind, index=4, size=(256, 256))
    shrunk = large.masks[:, ::2, ::2]
    both = np.logical_and(small.masks, shrunk).sum() * 2
    assert both / (small.masks.sum() + shrunk.sum()) > 0.9


def test_the_texture_of_a_large_picture_has_a_deviation_of_one() -> None:
    """Its blurs have more passes than the powers of four that a float holds."""
    field = Canvas((96, 2000), np.random.default_rng(0)).texture(300.0, 0.0)
    assert float(field.std()) == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_series_is_varied(kind: str) -> None:
    """Brightness, place and size of what is to be found differ from phantom to phantom."""
    phantoms = [make(kind, index=index, size=(96, 96)) for index in range(40)]
    brightness = [float(phantom.image.mean()) for phantom in phantoms]
    assert np.std(brightness) > 8
    areas = [int(mask.sum()) for phantom in phantoms for mask in phantom.masks if mask.any()]
    assert np.percentile(areas, 90) > 1.8 * np.percentile(areas, 10)
    anywhere = np.mean([phantom.masks.any(axis=0) for phantom in phantoms], axis=0)
    assert np.mean(anywhere > 0) > 0.4


def test_endoscopy_has_one_to_three_lesions() -> None:
    label = pytest.importorskip("scipy.ndimage").label
    counts = {label(make("endoscopy", index=index, size=(128, 128)).masks[0])[1] for index in range(40)}
    assert counts == {1, 2, 3}


def test_ultrasound_lacks_a_class_now_and_then_and_xray_never() -> None:
    present = np.array([make("ultrasound", index=i, size=(96, 96)).masks.any(axis=(1, 2)) for i in range(40)])
    assert (present.mean(axis=0) > 0.5).all()
    assert (present.mean(axis=0) < 1.0).all()
    assert present.any(axis=1).mean() > 0.9
    bones = np.array([make("xray", index=i, size=(96, 96)).masks.any(axis=(1, 2)) for i in range(40)])
    assert bones.mean() > 0.95


def test_breast_has_one_lesion_whole_in_the_picture() -> None:
    label = pytest.importorskip("scipy.ndimage").label
    for index in range(60):
        (lesion,) = make("breast", index=index, size=(128, 128)).masks
        assert label(lesion)[1] == 1
        assert not (lesion[[0, -1]].any() or lesion[:, [0, -1]].any())


def test_xray_classes_overlap() -> None:
    overlapping = [make("xray", index=index, size=(96, 96)).masks.sum(axis=0).max() for index in range(20)]
    assert np.mean(np.array(overlapping) > 1) > 0.6


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("mri",), "kind must be one of endoscopy, ultrasound, xray, breast, not 'mri'"),
        (("xray", -1), "seed and index must be at least 0"),
        (("xray", 0, -1), "seed and index must be at least 0"),
        (("xray", 0, 0, (31, 64)), "at least 32 px"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: tuple[object, ...], message: str) -> None:
    kind, *rest = arguments
    names = dict(zip(("seed", "index", "size"), rest, strict=False))
    with pytest.raises(ValueError, match=message):
        make(kind, **names)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_a_written_folder_reads_back_as_the_phantoms(tmp_path: Path, kind: str) -> None:
    write(tmp_path / "data", kind, 4, seed=2, size=(64, 96), unlabelled=0.25)
    dataset = open_dataset(tmp_path / "data")
    assert dataset.class_names == CLASS_NAMES[kind]
    assert dataset.multi_label == (kind == "xray")
    assert [case.id for case in dataset.unlabelled] == ["0003"]
    for index, case in enumerate(dataset.labelled):
        phantom = make(kind, seed=2, index=index, size=(64, 96))
        pixels = case.read_image()
        assert pixels.ndim == (3 if kind == "endoscopy" else 2)
        rgb = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
        np.testing.assert_array_equal(rgb, phantom.image)
        np.testing.assert_array_equal(case.read_masks(), phantom.masks)


def test_a_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="new or empty"):
        write(tmp_path, "xray", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_interrupted_writing_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(done: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "data", "endoscopy", 5, size=(32, 32), progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_the_contact_sheet_shows_pictures_and_outlines(tmp_path: Path) -> None:
    write_contact_sheet(tmp_path / "sheet.jpg", "ultrasound", columns=4, rows=1)
    sheet = read_image(tmp_path / "sheet.jpg").astype(int)
    assert sheet.shape[2] == 3
    upper, lower = np.split(sheet, 2)
    colourful = [np.mean(np.ptp(half, axis=2) > 60) for half in (upper, lower)]
    assert colourful[0] < 0.001 < colourful[1]


def test_the_command_writes_a_folder_and_refuses_a_full_one(tmp_path: Path) -> None:
    import typer

    from samdistill.cli.phantoms import phantoms

    app = typer.Typer()
    app.command()(phantoms)
    arguments = [str(tmp_path / "out"), "--kind", "xray", "--count", "3", "--seed", "4", "--size", "64"]
    result = CliRunner().invoke(app, [*arguments, "--contact-sheet"])
    assert result.exit_code == 0, result.output
    assert "wrote 3 xray phantoms" in result.stdout
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "images",
        "masks",
        "dataset.toml",
        "contact_sheet.jpg",
    }
    with PillowImage.open(tmp_path / "out" / "images" / "0000.png") as image:
        assert (image.size, image.mode) == ((64, 64), "L")
    again = CliRunner().invoke(app, arguments)
    assert isinstance(again.exception, UsageError)
