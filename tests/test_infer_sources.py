"""What `samdistill infer` finds: folders, patterns, data folders, and what it cannot read or take."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from bundles import colours
from PIL import Image as PillowImage
from test_inference import save, segment

from samdistill.errors import UsageError
from samdistill.inference import Source, gather


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


def test_a_pattern_of_folders_alone_says_what_to_name(tmp_path: Path) -> None:
    save(tmp_path / "in" / "site_a" / "a.png")
    (found,) = gather([f"{tmp_path}/in/site_*"], tmp_path / "out")
    assert found.problem is not None
    assert "matches no picture. A folder must be named itself" in found.problem
    assert names(gather([f"{tmp_path}/in/site_*/**/*"], tmp_path / "out")) == ["site_a/a.png"]
    (found,) = gather([f"{tmp_path}/in/none_*"], tmp_path / "out")
    assert found.problem == f"{tmp_path}/in/none_* does not exist."
