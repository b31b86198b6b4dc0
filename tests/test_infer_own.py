"""What `samdistill infer` takes for its own: nothing else is written over, forgotten or removed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from bundles import colours
from test_inference import run, save, segment, tree

from samdistill.errors import UsageError
from samdistill.inference import Record, Shard
from samdistill.inference.records import Journal
from samdistill.io.images import read_mask, write_png
from samdistill.predictor import Predictor


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
