"""`samdistill infer`: what is found, what is written where, and what a bad file does to the others."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import dicoms
import numpy as np
import pytest
from bundles import colours, expected, rewrite
from PIL import Image as PillowImage

from samdistill.errors import InputRejected, SomeInputsFailed, UsageError
from samdistill.inference import (
    Options,
    Record,
    Shard,
    Source,
    Summary,
    gather,
    raise_for_failures,
    segment_files,
)
from samdistill.inference.records import Journal
from samdistill.io.images import read_mask, write_png
from samdistill.predictor import Predictor


def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "samdistill", "infer", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def run_offline(*arguments: object) -> subprocess.CompletedProcess[str]:
    """`infer` in a process that any use of a socket ends."""
    code = (
        "import sys; from samdistill.cli import app\n"
        "def no_sockets(event, arguments):\n"
        "    if event.startswith('socket.'): raise SystemExit('a socket was used: ' + event)\n"
        "sys.addaudithook(no_sockets)\n"
        "app.main()"
    )
    words = ["infer", *map(str, arguments)]
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)


def hide(library: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let processes started from now on not find a library."""
    blocker = folder / "site" / "sitecustomize.py"
    blocker.parent.mkdir()
    blocker.write_text(
        "import importlib.util as u; find = u.find_spec\n"
        f"u.find_spec = lambda name, *rest: None if name == {library!r} else find(name, *rest)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(blocker.parent))


def save(path: Path, pixels: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    PillowImage.fromarray(colours() if pixels is None else pixels).save(path)
    return path


def segment(bundle: Path | Predictor, inputs: object, out: Path, **options: Any) -> list[Record]:
    """Segment in this process; the records in order."""
    predictor = bundle if isinstance(bundle, Predictor) else Predictor.load(bundle)
    texts = list(map(str, inputs if isinstance(inputs, list) else [inputs]))
    return segment_all(predictor, gather(texts, out), out, **options)[1]


def segment_all(
    predictor: Predictor, sources: list[Source], out: Path, **options: Any
) -> tuple[Summary, list[Record]]:
    records: list[Record] = []
    run = {key: options.pop(key) for key in ("resume", "shard", "workers", "batch") if key in options}
    summary = segment_files(
        predictor,
        sources,
        out,
        options=Options(**options),
        tell=lambda one: records.append(one.record),
        **run,
    )
    return summary, records


def forbid(ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no folder be listed whose path ends so."""
    real = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith(ending):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)


def names(sources: list[Source]) -> list[str]:
    return [str(source.relative) for source in sources]


def tree(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def bomb(path: Path) -> Path:
    """A PNG of 30,000 x 30,000 px that is 1 MB on disk."""
    rows = zlib.compress(b"\0" * (30_001 * 1000), 9)
    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    path.write_bytes(content)
    return path


# --- what is found


def test_folders_files_and_patterns_are_found_once_each_and_sorted(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/1.JPG", "a.tif", "note.txt", ".hidden/x.png", "b/.x.png"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    folder = tmp_path / "in"
    out = tmp_path / "out"
    assert names(gather([str(folder)], out)) == ["a.tif", "b/1.JPG", "b/2.png"]
    assert names(gather([str(folder), str(folder)], out)) == ["a.tif", "b/1.JPG", "b/2.png"]
    assert names(gather([str(folder / "b" / "2.png")], out)) == ["2.png"]
    assert names(gather([f"{folder}/**/*.png"], out)) == ["b/2.png"]
    assert names(gather([f"{folder}/b/[12].*"], out)) == ["1.JPG", "2.png"]


def test_a_folder_that_cannot_be_listed_is_a_failed_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its patients would be missing, and nobody would know."""
    for name in ("a/1.png", "b/2.png"):
        save(tmp_path / "in" / name)
    forbid("a", monkeypatch)
    found = gather([str(tmp_path / "in")], tmp_path / "out")
    assert names(found) == ["b/2.png", "a"]
    assert [bool(source.problem) for source in found] == [False, True]
    assert "Permission denied" in str(found[1].problem)
    (alone,) = gather([str(tmp_path / "in" / "a")], tmp_path / "out")
    assert "Permission denied" in str(alone.problem)


@pytest.mark.parametrize("at", ["", "/images", "/masks"])
def test_an_input_in_a_folder_that_may_not_be_entered_is_a_failed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Whether the folder itself or what is looked for in it is asked about; the others go on."""
    closed, good = tmp_path / "closed", save(tmp_path / "good.png")
    save(closed / "images" / "a.png")
    stat = os.stat

    def denied(path: Any, *words: Any, **options: Any) -> os.stat_result:
        if str(path) == f"{closed}{at}":
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, *words, **options)

    forbid("closed", monkeypatch)
    monkeypatch.setattr(os, "stat", denied)
    found = gather([str(closed), str(good)], tmp_path / "out")
    assert [(one.path, bool(one.problem)) for one in found] == [(closed, True), (good, False)]
    assert "cannot be read: Permission denied" in str(found[0].problem)


def test_a_pattern_tells_of_what_it_cannot_list_and_of_links_that_it_does_not_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("in/a/1.png", "in/b/2.png", "other/3.png"):
        save(tmp_path / name)
    (tmp_path / "in" / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "in" / "site").symlink_to(tmp_path / "other")
    forbid("/a", monkeypatch)
    found = gather([f"{tmp_path}/in/**/*.png"], tmp_path / "out")
    assert names(found) == ["b/2.png", "gone.png", "site", "a"]
    assert [bool(source.problem) for source in found] == [False, False, True, True]


def test_a_file_without_a_suffix_that_may_not_be_read_is_an_input_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it is DICOM its content would tell; names that say what they are stay out."""
    for name in ("IM0001", "IM0002", "1.2.840.4711", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    monkeypatch.setattr(os, "access", lambda path, mode: str(path).endswith("1"))
    assert names(gather([str(tmp_path)], tmp_path / "out")) == ["IM0002"]


def test_pictures_of_other_formats_fail_rather_than_be_left_out(tiny_bundle: Path, tmp_path: Path) -> None:
    for name, form in (("a.png", "PNG"), ("b.jfif", "JPEG"), ("c.gif", "GIF"), ("d.webp", "WEBP")):
        (tmp_path / "in").mkdir(exist_ok=True)
        PillowImage.fromarray(colours()).save(tmp_path / "in" / name, form)
    others = (
        "e.ppm",
        "f.TGA",
        "g.heif",
        "h.jpx",
        "i.img",
        "j.mgz",
        "k.svs",
        "l.m2ts",
        "m.flv",
        "n.3gp",
        "o.TS",
    )
    for name in others:
        (tmp_path / "in" / name).write_bytes(b"G" + bytes(187) + b"G")
    for name in ("notes.txt", "app.ts", "cases.csv"):
        (tmp_path / "in" / name).write_text("read me" * 99)
    records = segment(tiny_bundle, tmp_path / "in", tmp_path / "out")
    assert [(one.input, one.status) for one in records] == [
        ("a.png", "ok"), ("b.jfif", "ok"), *((name, "failed") for name in ("c.gif", "d.webp", *others))
    ]  # fmt: skip
    assert all("Convert it" in str(one.error) for one in records[2:])


def test_a_folder_that_is_called_images_by_chance_hides_nothing(tmp_path: Path) -> None:
    for name in ("study/scan.png", "study/images/thumb.png"):
        save(tmp_path / name)
    assert names(gather([str(tmp_path / "study")], tmp_path / "out")) == ["scan.png", "images/thumb.png"]
    (tmp_path / "study" / "dataset.toml").write_text("")
    assert names(gather([str(tmp_path / "study")], tmp_path / "out")) == ["thumb.png"]


def test_pictures_in_folders_beside_one_called_images_are_not_lost(tmp_path: Path) -> None:
    """But what lies in the output folder, or in that of an earlier run, makes no data folder another."""
    study, out = tmp_path / "study", tmp_path / "study" / "out"
    for name in ("images/x.png", "out/x.png", "fast/x.png", "notes/deep/read.txt"):
        save(study / name) if name.endswith(".png") else (study / name).parent.mkdir(parents=True)
    (study / "fast" / "audit.jsonl").touch()
    assert names(gather([str(study)], out)) == ["x.png"]
    (study / "fast" / "audit.jsonl").unlink()
    assert names(gather([str(study)], out)) == ["fast/x.png", "images/x.png"]
    (study / "fast").rename(study / "images" / "more")
    save(study / "series2" / "deep" / "y.png")
    assert names(gather([str(study)], out)) == ["images/x.png", "images/more/x.png", "series2/deep/y.png"]


def test_an_empty_word_is_not_the_current_folder_and_brackets_may_be_a_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="must have a name"):
        gather([""], tmp_path / "out")
    save(tmp_path / "pat[1]" / "a.png")
    assert names(gather([f"{tmp_path}/pat[1]/*.png"], tmp_path / "out")) == ["a.png"]


def test_an_input_that_an_old_record_calls_its_output_stays(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the two are named: the folder from here, the file from the root."""
    monkeypatch.chdir(tmp_path)
    mine = save(tmp_path / "out" / "tumour" / "a.png")
    segment(tiny_bundle, mine, Path("elsewhere"))
    record = json.loads(Path("elsewhere", "results.jsonl").read_text())
    record["files"] = {"tumour/a.png": hashlib.sha256(mine.read_bytes()).hexdigest()}
    Path("out", "results.jsonl").write_text(json.dumps(record) + "\n")
    (found,) = segment(tiny_bundle, mine, Path("out"))
    assert found.status == "ok"
    assert mine.is_file()


def test_of_a_data_folder_the_images_are_taken_and_not_the_masks(tmp_path: Path) -> None:
    for name in ("images/1.png", "masks/1.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"")
    assert names(gather([str(tmp_path)], tmp_path / "out")) == ["1.png"]


def test_outputs_of_an_earlier_run_are_no_inputs(tmp_path: Path) -> None:
    save(tmp_path / "1.png")
    save(tmp_path / "out" / "1.png")
    assert names(gather([str(tmp_path)], tmp_path / "out")) == ["1.png"]
    for text in (str(tmp_path), f"{tmp_path}/*.png"):
        (found,) = gather([text], tmp_path)
        assert str(found.problem).endswith("lies in the output folder. Name another --out.")


def test_what_is_not_there_is_a_failed_input(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    found = gather([str(tmp_path / "x.png"), str(tmp_path / "empty"), f"{tmp_path}/*.png"], tmp_path / "out")
    assert [source.problem is not None for source in found] == [True, True, True]
    assert "does not exist" in str(found[0].problem)
    assert "holds no picture" in str(found[1].problem)


# --- what is written


def test_masks_have_the_inputs_size_and_hold_class_numbers(tiny_bundle: Path, tmp_path: Path) -> None:
    picture = colours(70, 90)
    save(tmp_path / "in" / "site" / "1.png", picture)
    predictor = Predictor.load(tiny_bundle)
    out = tmp_path / "out"
    records = segment(predictor, tmp_path / "in", out, overlay=True)
    assert tree(out) == ["audit.jsonl", "overlays/site/1.png", "results.jsonl", "site/1.png"]
    labels = read_mask(out / "site" / "1.png")
    np.testing.assert_array_equal(labels, predictor.predict(picture).labels())
    assert set(np.unique(labels)) == {0, 1, 2}
    (record,) = records
    assert record.image_size == (70, 90)
    assert record.masks == {"labels": "site/1.png"}
    assert record.classes is not None
    assert record.classes["red"]["area_px"] == (labels == 1).sum()
    lines = (out / "results.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["bundle_sha256"] == predictor.bundle_sha256
    overlay = np.asarray(PillowImage.open(out / "overlays" / "site" / "1.png"))
    assert overlay.shape == picture.shape
    assert (overlay != picture).any()


def test_classes_that_may_overlap_get_a_file_each_as_a_data_folder_has_them(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    rewrite(tiny_bundle, lambda values: values.update(multi_label=True))
    picture = colours()
    save(tmp_path / "in" / "1.png", picture)
    out = tmp_path / "out"
    segment(tiny_bundle, tmp_path / "in", out)
    assert tree(out) == ["audit.jsonl", "bright/1.png", "red/1.png", "results.jsonl"]
    for name, mask in zip(("red", "bright"), expected(picture, multi_label=True), strict=True):
        np.testing.assert_array_equal(read_mask(out / name / "1.png"), mask.astype(np.uint8) * 255)


def test_two_pictures_of_one_output_are_refused_before_anything_is_written(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    save(tmp_path / "in" / "a.png")
    save(tmp_path / "in" / "a.jpg")
    out = tmp_path / "out"
    with pytest.raises(UsageError, match=r"a\.jpg and .*a\.png must not have one output"):
        segment(tiny_bundle, tmp_path / "in", out)
    assert not out.exists()


def test_an_output_that_would_be_a_folder_of_others_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    """As a video's masks beside pictures in a folder that is called like it."""
    save(tmp_path / "in" / "a.png")
    save(tmp_path / "in" / "site" / "a.png" / "b" / "c.png")
    with pytest.raises(
        UsageError, match=r"a\.png and .*c\.png must not have one output: .*out/a\.png would be"
    ):
        segment(tiny_bundle, [tmp_path / "in" / "a.png", tmp_path / "in" / "site"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_names_that_differ_in_case_alone_are_refused_where_the_disk_takes_them_for_one(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    """A second audit in capitals is what such a disk shows; here the two are two files."""
    folder, out = tmp_path / "in", tmp_path / "out"
    save(folder / "a.png", colours())
    save(folder / "A.png", colours(40, 40))
    segment(tiny_bundle, folder, out)
    assert read_mask(out / "a.png").shape != read_mask(out / "A.png").shape
    (out / "AUDIT.JSONL").touch()
    before = tree(out)
    with pytest.raises(UsageError, match=r"A\.png and .*a\.png must not have one output"):
        segment(tiny_bundle, folder, out)
    assert tree(out) == before
    for name in (folder, out):
        (name / "A.png").unlink()
    assert [one.status for one in segment(tiny_bundle, folder, out)] == ["ok"]


def test_an_input_is_never_written_over(tiny_bundle: Path, tmp_path: Path) -> None:
    picture = save(tmp_path / "a.png")
    before = picture.read_bytes()
    with pytest.raises(UsageError, match="would be written over"):
        segment(tiny_bundle, picture, tmp_path)
    assert picture.read_bytes() == before


def test_a_link_that_is_an_input_is_never_written_over(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    link = tmp_path / "out" / "a.png"
    link.symlink_to(save(tmp_path / "in" / "a.png"))
    with pytest.raises(UsageError, match="would be written over"):
        segment(tiny_bundle, link, tmp_path / "out")
    assert link.is_symlink()


@pytest.mark.parametrize("damaged", [False, True])
def test_masks_that_no_run_wrote_are_not_written_over(
    tiny_bundle: Path, tmp_path: Path, damaged: bool
) -> None:
    """A data folder's masks lie where a run into its masks/ would write, and are somebody's work."""
    picture = save(tmp_path / "images" / "a.png")
    if damaged:
        picture.write_bytes(picture.read_bytes()[:50])
    drawn = save(tmp_path / "masks" / "a.png")
    before = drawn.read_bytes()
    with pytest.raises(UsageError, match=r"--out must not hold a\.png, which no run wrote"):
        segment(tiny_bundle, tmp_path, tmp_path / "masks")
    assert drawn.read_bytes() == before
    assert tree(tmp_path / "masks") == ["a.png"], "nothing was written"


def test_masks_that_somebody_drew_stay_whatever_else_lies_beside_them(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    """A run over other images, a shard's lists, a stranger's list: none of them made the mask."""
    folder, out = tmp_path / "in", tmp_path / "out"
    for name in ("x.png", "y.png"):
        save(folder / name)
    predictor = Predictor.load(tiny_bundle)
    segment(predictor, folder / "x.png", out)
    drawn = save(out / "y.png").read_bytes()
    (out / "results_baseline.jsonl").write_text(
        Record("y.png", "ok", "0" * 64, "fast", files={"y.png": "0" * 64}).to_json()
    )
    for options in ({}, {"resume": True}, {"shard": Shard(2, 2)}):
        with pytest.raises(UsageError, match=r"--out must not hold y\.png, which no run wrote"):
            segment(predictor, folder, out, **options)
    segment(predictor, folder, out, shard=Shard(1, 2))
    with pytest.raises(UsageError, match=r"--out must not hold y\.png, which no run wrote"):
        segment(predictor, folder, out, shard=Shard(2, 2))
    assert (out / "y.png").read_bytes() == drawn


def test_inputs_of_an_earlier_run_are_not_forgotten_while_their_masks_stay(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    """What their lines say, "reject" for instance, would be lost; more inputs, or other parts, are fine."""
    folder, out = tmp_path / "in", tmp_path / "out"
    for name in ("x.png", "y.png"):
        save(folder / name)
    predictor = Predictor.load(tiny_bundle)
    segment(predictor, folder, out)
    before = {name: (out / name).read_bytes() for name in tree(out)}
    for options in ({}, {"resume": True}, {"shard": Shard(1, 1)}):
        with pytest.raises(
            UsageError, match=r"--out must not hold y\.png, which an earlier run made of y\.png"
        ):
            segment(predictor, folder / "x.png", out, **options)
        assert {name: (out / name).read_bytes() for name in tree(out)} == before
    save(folder / "z.png")
    for index in (1, 2):
        segment(predictor, folder, out, shard=Shard(index, 2), resume=True)
    assert [one.status for one in segment(predictor, folder, out, resume=True)] == ["ok"] * 3
    for name in ("y.png", "z.png"):
        (out / name).unlink()
    assert [one.input for one in segment(predictor, folder / "x.png", out)] == ["x.png"]


def test_a_mask_that_a_killed_run_had_not_listed_yet_is_known_for_its_own(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    for name in ("x.png", "y.png"):
        save(folder / name)
    predictor = Predictor.load(tiny_bundle)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", killed)
        with pytest.raises(KeyboardInterrupt):
            segment(predictor, folder, out)
    assert (out / "x.png").exists()
    with pytest.raises(UsageError, match="which an earlier run made of x"):
        segment(predictor, folder / "y.png", out)
    assert [one.status for one in segment(predictor, folder, out, resume=True)] == ["ok", "ok"]


@pytest.mark.parametrize("shards", [(None,), (Shard(1, 2), Shard(2, 2))])
def test_a_missing_input_takes_no_mask_of_another_of_its_name(
    tiny_bundle: Path, tmp_path: Path, shards: tuple[Shard | None, ...]
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    for name in ("x.png", "y.png"):
        save(folder / name)
    predictor = Predictor.load(tiny_bundle)
    inputs = [folder, tmp_path / "gone" / "x.png"]
    for shard in (*shards, *shards):
        segment(predictor, inputs, out, shard=shard, resume=True)
    assert (out / "x.png").exists()
    assert (out / "y.png").exists()


def test_a_link_to_nothing_that_is_called_like_a_list_is_passed_over(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    save(tmp_path / "in" / "a.png")
    out = tmp_path / "out"
    out.mkdir()
    for name in ("results-old.jsonl", "results-1-of-2.jsonl"):
        (out / name).symlink_to(tmp_path / "nowhere")
    assert run(tiny_bundle, tmp_path / "in", "--out", out, timeout=60).returncode == 0


def test_an_old_output_that_cannot_be_removed_ends_the_run_without_its_name(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = save(tmp_path / "Doering.png")
    segment(tiny_bundle, picture, tmp_path / "out")

    def unlink(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "unlink", unlink)
    with pytest.raises(UsageError, match="be removed, and does not: Permission denied") as found:
        segment(tiny_bundle, picture, tmp_path / "out")
    assert "Doering" not in str(found.value)


def test_a_short_name_does_not_garble_what_went_wrong(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files on a patient's disc are called 8, and messages tell of 8 bits."""
    monkeypatch.chdir(tmp_path)
    dicoms.write(Path("8"), np.full((9, 9), 300, np.uint16), bits=16)
    (record,) = segment(tiny_bundle, Path("8"), Path("out"))
    assert record.error is not None and record.error.startswith("8: image: pixels must be uint8 under")


def test_a_mode_the_bundle_cannot_do_leaves_the_output_folder_alone(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    save(tmp_path / "out" / "a.png")
    picture = save(tmp_path / "a.png")
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="no teacher"):
        segment(tiny_bundle, picture, out, mode="refine")
    assert tree(out) == ["a.png"]


def test_what_an_earlier_run_left_goes_when_a_case_fails_or_loses_its_overlay(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    save(folder / "1.png")
    save(folder / "2.png")
    predictor = Predictor.load(tiny_bundle)
    segment(predictor, folder, out, overlay=True, probabilities=True, contours=True, measurements=True)
    assert len(tree(out)) == 14
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:200])
    segment(predictor, folder, out)
    assert tree(out) == ["1.png", "audit.jsonl", "results.jsonl"]


def test_a_failure_while_writing_leaves_no_output_of_that_case(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from samdistill.io.files import write_bytes

    def full(path: Path, content: bytes, **options: bool) -> None:
        if path.parent.name == "overlays":
            raise OSError(5, "Input/output error")
        write_bytes(path, content, **options)

    monkeypatch.setattr("samdistill.inference.cases.write_bytes", full)
    picture, out = save(tmp_path / "1.png"), tmp_path / "out"
    (record,) = segment(tiny_bundle, picture, out, overlay=True)
    assert record.status == "failed"
    assert "Input/output error" in str(record.error)
    assert tree(out) == ["audit.jsonl", "results.jsonl"]


@pytest.mark.parametrize(
    ("statuses", "error"),
    [
        (["ok", "failed"], SomeInputsFailed),
        (["failed", "failed"], InputRejected),
        (["failed"], InputRejected),
    ],
)
def test_failures_end_with_the_error_of_their_number(
    tiny_bundle: Path, tmp_path: Path, statuses: list[str], error: type[Exception]
) -> None:
    inputs = []
    for number, status in enumerate(statuses):
        path = tmp_path / f"{number}.png"
        save(path) if status == "ok" else path.write_bytes(b"")
        inputs.append(str(path))
    out = tmp_path / "out"
    summary, records = segment_all(Predictor.load(tiny_bundle), gather(inputs, out), out)
    assert [record.status for record in records] == statuses
    with pytest.raises(error):
        raise_for_failures(summary)


# --- the command


def test_bad_files_are_reported_and_the_others_go_on(tiny_bundle: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    good = save(folder / "good.png")
    (folder / "empty.png").write_bytes(b"")
    (folder / "cut.png").write_bytes(good.read_bytes()[:300])
    (folder / "text.jpg").write_text("this is no picture")
    bomb(folder / "bomb.png")
    save(folder / "deep.png", np.full((64, 64), 60_000, np.uint16))
    done = run(tiny_bundle, folder, tmp_path / "missing.png", "--out", out, "--json")
    assert done.returncode == 3, done.stderr
    assert tree(out) == ["audit.jsonl", "good.png", "results.jsonl"]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.stdout == (out / "results.jsonl").read_text()
    bad = {line["input"].split("/")[-1]: line["error"] for line in lines if line["status"] == "failed"}
    assert sorted(bad) == ["bomb.png", "cut.png", "deep.png", "empty.png", "missing.png", "text.jpg"]
    assert "must have at most" in bad["bomb.png"]
    assert "0 bytes" in bad["empty.png"]
    assert "must be uint8 under the intensity rule" in bad["deep.png"]
    assert not any("masks" in line for line in lines if line["status"] == "failed")
    for name in bad:
        assert name not in done.stderr
    assert "failed: input 1 must have at most" in done.stderr
    assert "6 of 7 inputs failed" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"GIF89a"])
def test_the_only_input_failing_ends_with_4_and_its_reason_alone(
    tiny_bundle: Path, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(content)
    done = run(tiny_bundle, path, "--out", tmp_path / "out")
    assert done.returncode == 4
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("samdistill: input 1 ")
    assert "x.png" not in done.stderr
    assert done.stdout == ""


def test_a_pattern_of_folders_alone_says_what_to_name(tmp_path: Path) -> None:
    save(tmp_path / "in" / "site_a" / "a.png")
    (found,) = gather([f"{tmp_path}/in/site_*"], tmp_path / "out")
    assert found.problem is not None
    assert "matches no picture. A folder must be named itself" in found.problem
    assert names(gather([f"{tmp_path}/in/site_*/**/*"], tmp_path / "out")) == ["site_a/a.png"]
    (found,) = gather([f"{tmp_path}/in/none_*"], tmp_path / "out")
    assert found.problem == f"{tmp_path}/in/none_* does not exist."


def test_an_empty_folder_ends_with_4(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    done = run(tiny_bundle, tmp_path / "in", "--out", tmp_path / "out")
    assert (done.returncode, "holds no picture" in done.stderr) == (4, True)


def test_a_corrupted_bundle_ends_with_5_and_writes_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    with (tiny_bundle / "student.onnx").open("ab") as file:
        file.write(b"x")
    done = run(tiny_bundle, save(tmp_path / "1.png"), "--out", tmp_path / "out")
    assert done.returncode == 5
    assert not (tmp_path / "out").exists()


def test_an_unknown_mode_and_an_unknown_device_end_with_2(tiny_bundle: Path, tmp_path: Path) -> None:
    picture = save(tmp_path / "1.png")
    for option in (("--mode", "refine"), ("--mode", "best"), ("--device", "tpu"), ("--runtime", "torch")):
        done = run(tiny_bundle, picture, "--out", tmp_path / "out", *option)
        assert done.returncode == 2, done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_no_file_of_a_killed_run_is_partial_or_stale(tiny_bundle: Path, tmp_path: Path) -> None:
    """Killed amid 300 pictures: every mask that is there is whole, and there is no results.jsonl."""
    folder, out = tmp_path / "in", tmp_path / "out"
    picture = colours(200, 200)
    save(folder / "000.png", picture)
    for number in range(1, 300):
        os.link(folder / "000.png", folder / f"{number:03}.png")
    right = Predictor.load(tiny_bundle).predict(picture).labels()
    out.mkdir()
    old = Record("299.png", "ok", "0" * 64, "fast", files={"299.png": "0" * 64})
    (out / "results.jsonl").write_text(f"an earlier run's\n{old.to_json()}\n")
    save(out / "299.png", np.zeros((200, 200), np.uint8))
    command = [sys.executable, "-m", "samdistill", "infer", str(tiny_bundle), str(folder), "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not all((out / f"{number:03}.png").exists() for number in range(5)):  # written in any order
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    written = [file for file in out.glob("*.png") if not file.name.startswith(".")]
    assert 5 <= len(written) < 299
    for file in written:
        np.testing.assert_array_equal(read_mask(file), right)
    assert not (out / "results.jsonl").exists()
    assert not (out / "299.png").exists()


def test_the_engines_tell_nobody_of_their_sessions(tiny_bundle: Path, tmp_path: Path) -> None:
    """Their wheels would, over sockets that Python does not see, and keep a number in the home folder."""
    program = (
        "import sys; from samdistill.predictor import Predictor; Predictor.load(sys.argv[1])\n"
        "import onnxruntime, openvino"
    )
    alone = {key: value for key, value in os.environ.items() if not key.startswith(("ORT_", "XDG_"))}
    subprocess.run(
        [sys.executable, "-c", program, str(tiny_bundle)], env={**alone, "HOME": str(tmp_path)}, check=True
    )
    assert [path for path in tree(tmp_path) if "tiny_bundle" not in path] == []


def test_no_torch_in_a_process_that_infers(tiny_bundle: Path, tmp_path: Path) -> None:
    picture = save(tmp_path / "1.png")
    code = (
        "import sys; from samdistill.cli.app import app; "
        "app(['infer', *sys.argv[1:], '--overlay'], standalone_mode=False); "
        "print(sorted({'torch', 'numba', 'scipy', 'matplotlib', 'onnx'} & set(sys.modules)), file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, str(tiny_bundle), str(picture), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_the_smoke_test_of_the_wheels_passes_here() -> None:
    script = Path(__file__).with_name("wheel_smoke.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_missing_picture_keeps_no_mask_of_an_earlier_run(tiny_bundle: Path, tmp_path: Path) -> None:
    """And nothing but its own outputs goes: neither other masks nor a picture of the same stem."""
    predictor = Predictor.load(tiny_bundle)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in ("a.png", "b.png"):
        write_png(pictures / name, np.zeros((32, 40, 3), np.uint8))
    out = tmp_path / "out"
    segment(predictor, pictures, out)
    (pictures / "a.png").unlink()
    drawn = save(out / "c.png")
    missing = [pictures / name for name in ("a.png", "c.png")]
    assert [one.status for one in segment(predictor, [pictures, *missing], out)] == ["ok", "failed", "failed"]
    assert sorted(path.name for path in out.rglob("*.png")) == ["b.png", drawn.name]
