"""`samdistill infer` on every format: twins, NIfTI, DICOM, what is measured, and no name in any message."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import dicoms
import nibabel
import numpy as np
import pydicom
import pytest
from bundles import colours, rewrite
from PIL import Image as PillowImage
from test_inference import hide, run, run_offline, save, segment, tree
from test_video import clip, moving

from samdistill.components import label
from samdistill.inference import Options
from samdistill.inference.tiles import OVERLAP, segment_in_tiles, tiles_of
from samdistill.io import read_mask
from samdistill.io.contours import filled
from samdistill.io.files import sha256_file
from samdistill.io.measurements import measure
from samdistill.predictor import Predictor

RNG = np.random.default_rng(11)
GREY = np.where(np.arange(64)[:, None] < 20, 220, 60).astype(np.uint8) + np.zeros((64, 64), np.uint8)


def segments(path: Path, count: int = 1) -> np.ndarray:
    """(N, C, H, W) of a DICOM segmentation of two classes."""
    pixels = pydicom.dcmread(path).pixel_array
    return pixels.reshape(2, count, *pixels.shape[1:]).transpose(1, 0, 2, 3)


def test_twins_give_the_same_mask_whatever_they_are_stored_as(tiny_bundle: Path, tmp_path: Path) -> None:
    """PNG, 8 bits, MONOCHROME1, 16 bits with a window, frames of a clip, a slice of a volume."""
    folder, out = tmp_path / "in", tmp_path / "out"
    save(folder / "png.png", GREY)
    dicoms.write(folder / "m2.dcm", GREY)
    dicoms.write(folder / "m1.dcm", 255 - GREY, photometric="MONOCHROME1")
    deep = GREY.astype(np.uint16) * 257
    dicoms.write(folder / "deep.dcm", deep, WindowCenter=32768, WindowWidth=65536)
    dicoms.write(folder / "clip.dcm", np.stack([GREY, GREY]))
    dicoms.write(folder / "rgb.dcm", np.repeat(GREY[:, :, None], 3, axis=2), kind="US")
    nibabel.save(nibabel.Nifti1Image(GREY.T[:, :, None], np.eye(4)), folder / "scan.nii.gz")
    records = segment(tiny_bundle, folder, out, workers=2)
    assert [record.status for record in records] == ["ok"] * 7, [record.error for record in records]
    wanted = read_mask(out / "png.png") == 2
    assert wanted.any()
    assert not wanted.all()
    for name, count in (("m2", 1), ("m1", 1), ("deep", 1), ("clip", 2), ("rgb", 1)):
        for frame in segments(out / f"{name}.dcm", count):
            np.testing.assert_array_equal(frame[1], wanted, err_msg=name)
            assert not frame[0].any()
    np.testing.assert_array_equal(read_mask(out / "scan.nii.gz") == 2, wanted)


def test_volumes_come_back_slice_by_slice_where_they_lay(tiny_bundle: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    values = np.stack([np.roll(GREY, shift, axis=0).T for shift in range(0, 60, 6)], axis=2)
    affine = np.array([[0, -0.5, 0, 3], [0.25, 0, 0.1, 4], [0, 0, 3, 5], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(values, affine), folder / "a.nii")
    (record,) = segment(tiny_bundle, folder, out, overlay=True, probabilities=True, measurements=True)
    assert (record.images, record.image_size) == (10, (64, 64))
    made, given = nibabel.load(out / "a.nii"), nibabel.load(folder / "a.nii")
    assert made.affine.tobytes() == given.affine.tobytes()
    predictor = Predictor.load(tiny_bundle)
    for index in range(10):
        answer = predictor.predict(values[:, :, index].T)
        np.testing.assert_array_equal(np.asarray(made.dataobj)[:, :, index].T, answer.labels())
        maps = nibabel.load(out / "probabilities" / "bright" / "a.nii")
        np.testing.assert_allclose(np.asarray(maps.dataobj)[:, :, index].T, answer.probability_maps[1])
    assert (out / "overlays" / "a.png").is_file()
    y, x = record.spacing_mm or (0, 0)
    assert (y, x) == (pytest.approx(0.5), pytest.approx(0.25))
    with (out / "measurements.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20
    assert float(rows[1]["area_mm2"]) == pytest.approx(int(rows[1]["area_px"]) * x * y)


def test_masks_of_dicom_can_be_png_where_there_is_one_image(tiny_bundle: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    dicoms.write(folder / "one.dcm", GREY)
    dicoms.write(folder / "two.dcm", np.stack([GREY, GREY]))
    one, two = segment(tiny_bundle, folder, out, png=True)
    assert (one.status, two.status) == ("ok", "failed")
    assert "must hold one image" in str(two.error)
    assert tree(out) == ["audit.jsonl", "one.png", "results.jsonl"]


def test_what_other_options_wrote_elsewhere_does_not_stay(tiny_bundle: Path, tmp_path: Path) -> None:
    """Of one input there are never masks of two runs; what somebody changed is not ours to remove."""
    folder, out = tmp_path / "in", tmp_path / "out"
    for name in ("a.dcm", "b.dcm"):
        dicoms.write(folder / name, GREY)
    clip(folder / "c.avi", moving(2))
    segment(tiny_bundle, folder, out)
    (out / "b.dcm").write_bytes(b"mine")
    outside = save(tmp_path / "outside.png")
    told = {"status": "ok", "bundle_sha256": "", "mode": "fast"}
    names = {"../outside.png": sha256_file(outside), "\0": "", "/": ""}
    with (out / "results.jsonl").open("a") as lines:  # a list may come from anywhere
        for files in (names, ["a.dcm"], 3):
            lines.write(json.dumps({**told, "input": "d.dcm", "files": files}) + "\n")
        lines.write("[]\n3\n")
    dicoms.write(folder / "d.dcm", GREY)
    rewrite(tiny_bundle, lambda values: values.update(multi_label=True))
    segment(tiny_bundle, folder, out, png=True)
    left = {name for name in tree(out) if not name.endswith(".jsonl") and "/" not in name}
    assert left == {"b.dcm"}
    assert not (out / "c.avi").exists()
    assert (out / "red" / "a.png").exists()
    assert outside.exists()


def test_probability_maps_of_pictures_and_dicom_are_the_predictors(tiny_bundle: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    picture = colours(48, 80)
    save(folder / "a.png", picture)
    dicoms.write(folder / "b.dcm", GREY)
    segment(tiny_bundle, folder, out, probabilities=True)
    predictor = Predictor.load(tiny_bundle)
    for name, probability_map in zip(
        ("red", "bright"), predictor.predict(picture).probability_maps, strict=True
    ):
        stored = read_mask(out / "probabilities" / name / "a.png")
        np.testing.assert_allclose(stored / 65535, probability_map, atol=1e-5)
    maps = predictor.predict(GREY).probability_maps
    np.testing.assert_allclose(segments(out / "probabilities" / "b.dcm")[0] / 255, maps, atol=0.003)


def test_outlines_and_annotations_are_the_masks(tiny_bundle: Path, tmp_path: Path) -> None:
    """Filled again, polygons and run lengths give every pixel of the mask; holes stay holes."""
    rewrite(tiny_bundle, lambda values: values.update(multi_label=True))
    folder, out = tmp_path / "in", tmp_path / "out"
    noise = np.where(RNG.random((40, 56)) < 0.6, 230, 30).astype(np.uint8)
    save(folder / "a.png", noise)
    save(folder / "b.png", GREY)
    segment(tiny_bundle, folder, out, contours=True)
    coco = json.loads((out / "coco.json").read_text())
    assert [one["file_name"] for one in coco["images"]] == ["a.png", "b.png"]
    assert {one["name"]: one["id"] for one in coco["categories"]} == {"red": 1, "bright": 2}
    holes = 0
    for image in coco["images"]:
        size = (image["height"], image["width"])
        mask = read_mask(out / "bright" / image["file_name"]) > 0
        from_geojson, from_coco = np.zeros(size, np.bool_), np.zeros(size, np.bool_)
        found = json.loads((out / "contours" / image["file_name"].replace("png", "geojson")).read_text())
        for feature in found["features"]:
            rings = feature["geometry"]["coordinates"]
            assert all(ring[0] == ring[-1] for ring in rings)
            filling = filled(rings, size)
            assert filling.sum() == feature["properties"]["area_px"]
            from_geojson |= filling
        for annotation in (one for one in coco["annotations"] if one["image_id"] == image["id"]):
            part = annotation["segmentation"]
            if isinstance(part, dict):
                holes += 1
                values = np.repeat(np.arange(len(part["counts"])) % 2, part["counts"])
                filling = values.reshape(size[::-1]).T.astype(np.bool_)
            else:
                points = np.array(part[0]).reshape(-1, 2).tolist()
                filling = filled([[*points, points[0]]], size)
            left, top, width, height = annotation["bbox"]
            assert (
                filling[top : top + height, left : left + width].sum() == annotation["area"] == filling.sum()
            )
            from_coco |= filling
        np.testing.assert_array_equal(from_geojson, mask)
        np.testing.assert_array_equal(from_coco, mask)
    assert holes


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 2.0)])
def test_measurements_are_the_brute_force_ones(spacing: tuple[float, float]) -> None:
    mask = RNG.random((17, 23)) < 0.45
    found = measure(mask, spacing)
    longest = 0.0
    components = label(mask)
    for number in range(1, len(components) + 1):
        y, x = np.nonzero(components.labels == number)
        corners = np.concatenate([np.stack([y + dy, x + dx], 1) for dy in (0, 1) for dx in (0, 1)]) * spacing
        longest = max(longest, np.sqrt(((corners[:, None] - corners[None]) ** 2).sum(2)).max())
    assert found.longest_diameter_mm == pytest.approx(longest)
    assert (found.area_px, found.components) == (mask.sum(), len(components))
    assert found.area_mm2 == pytest.approx(mask.sum() * spacing[0] * spacing[1])
    empty = measure(np.zeros((4, 4), np.bool_))
    assert (empty.area_px, empty.area_mm2, empty.components, empty.longest_diameter_px) == (0, None, 0, 0.0)


# --- tiles


def test_tiles_cover_every_pixel_and_overlap_enough() -> None:
    for size, side in (((64, 64), 64), ((65, 64), 64), ((1000, 333), 128), ((10, 5000), 256)):
        tiles = tiles_of(size, side)
        covered = np.zeros(size, np.int32)
        for tile in tiles:
            assert tile.y1 - tile.y0 == min(side, size[0])
            covered[tile.y0 : tile.y1, tile.x0 : tile.x1] += 1
        assert covered.min() >= 1
        rows = sorted({tile.y0 for tile in tiles})
        assert all(b - a <= side * (1 - OVERLAP) + 1 for a, b in pairwise(rows))


def test_an_image_that_fits_one_tile_gets_the_whole_images_answer(tiny_bundle: Path) -> None:
    predictor, picture = Predictor.load(tiny_bundle), colours(90, 70)
    whole, tiled = predictor.predict(picture), segment_in_tiles(predictor, picture, 96)
    np.testing.assert_array_equal(tiled.probability_maps, whole.probability_maps)
    np.testing.assert_array_equal(tiled.masks, whole.masks)


def test_tiles_at_the_students_own_scale_give_the_whole_images_answer(tiny_bundle: Path) -> None:
    """The student of colours sees one pixel at a time, so that blending is all that could differ: 1e-6."""
    predictor = Predictor.load(tiny_bundle)
    side = predictor.manifest.input.size
    picture = colours(side * 3, side * 2 + 5)
    below, right = -picture.shape[0] % 32, -picture.shape[1] % 32
    padded = np.pad(picture, ((0, below), (0, right), (0, 0)), mode="edge")
    logits = predictor.student_logits(np.ascontiguousarray(padded.transpose(2, 0, 1)[None]))[0]
    whole = 1 / (1 + np.exp(-logits[:, : picture.shape[0], : picture.shape[1]].astype(np.float64)))
    tiled = segment_in_tiles(predictor, picture, side)
    np.testing.assert_allclose(tiled.probability_maps, whole, atol=1e-6)


def test_large_images_are_cut_where_it_is_asked_for(tiny_bundle: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    save(folder / "large.png", colours(200, 300))
    (record,) = segment(tiny_bundle, folder, out, tile_px=128)
    assert record.image_size == (200, 300)
    wanted = segment_in_tiles(Predictor.load(tiny_bundle), colours(200, 300), 128).labels()
    np.testing.assert_array_equal(read_mask(out / "large.png"), wanted)
    with pytest.raises(Exception, match="tile must be at least"):
        Options(tile_px=10)


# --- what nobody may learn


def test_no_message_and_no_audit_names_a_patient_or_a_file(tiny_bundle: Path, tmp_path: Path) -> None:
    """Good, damaged and odd files of patients; offline: every use of a socket ends the process."""
    folder, out = tmp_path / "in", tmp_path / "out"
    dicoms.write(folder / "Doering_Janina.dcm", GREY, PatientName="an odd name, not as it should be")
    dicoms.write(folder / "Doering_wide.dcm", GREY, Rows=60000, Columns=60000)
    dicoms.write(folder / "Doering_deep.dcm", GREY.astype(np.uint16))
    (folder / "Doering_cut.dcm").write_bytes((folder / "Doering_Janina.dcm").read_bytes()[:-999])
    (folder / "Doering_text.png").write_bytes(b"Janina")
    nibabel.save(nibabel.Nifti1Image(GREY.T, np.eye(4)), folder / "Doering.nii")
    done = run_offline(tiny_bundle, folder, "--out", out, "--contours", "--measurements", "--overlay")
    assert done.returncode == 3, done.stderr
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    failed = {Path(one["input"]).stem for one in lines if one["status"] == "failed"}
    assert failed == {"Doering_wide", "Doering_deep", "Doering_cut", "Doering_text"}
    audit = (out / "audit.jsonl").read_text()
    for text in (done.stderr, done.stdout, audit):
        for name in ("Doering", "Janina", "odd name", "P-4711", str(folder)):
            assert name not in text
    entries = [json.loads(line) for line in audit.splitlines()]
    assert len(entries) == 6
    assert {one["exit"] for one in entries} == {"ok", "InputRejected"}
    assert {one["provider"] for one in entries} == {"CPUExecutionProvider"}
    assert all(len(one["bundle_sha256"]) == 64 for one in entries)


def test_a_missing_library_ends_with_6_before_anything_is_written(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dicoms.write(tmp_path / "in" / "a.dcm", GREY)
    hide("pydicom", tmp_path, monkeypatch)
    done = run(tiny_bundle, tmp_path / "in", "--out", tmp_path / "out")
    assert done.returncode == 6
    assert "samdistill[dicom]" in done.stderr
    assert not (tmp_path / "out").exists()


def test_reading_pictures_loads_no_medical_library(tiny_bundle: Path, tmp_path: Path) -> None:
    PillowImage.fromarray(colours()).save(tmp_path / "1.png")
    code = (
        "import sys; from samdistill.cli.app import app\n"
        "app(['infer', *sys.argv[1:]], standalone_mode=False)\n"
        "print(sorted({'pydicom', 'nibabel', 'highdicom', 'gdcm'} & set(sys.modules)), file=sys.stderr)"
    )
    words: list[Any] = [tiny_bundle, tmp_path / "1.png", "--out", tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=True
    )
    assert done.stderr.strip() == "[]"
