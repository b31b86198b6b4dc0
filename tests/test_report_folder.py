"""The report of `infer`'s outputs in every format: pictures, volumes, DICOM and videos, in a real browser."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import dicoms
import nibabel
import numpy as np
import pytest
from bundles import colours
from PIL import Image as PillowImage
from test_inference import save, segment
from test_report import Elements, browser, dump
from test_video import clip, moving

from samdistill.errors import InputRejected
from samdistill.inference import Shard
from samdistill.io.dicom_seg import read_masks
from samdistill.report.document import write_report
from samdistill.report.folder import folder_sections

GREY = np.where(np.arange(48)[:, None] < 20, 220, 60).astype(np.uint8) + np.zeros((48, 64), np.uint8)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # highdicom's, of persons' names


def inputs(folder: Path) -> Path:
    """One of each: the second slice and frame hold most."""
    most = np.roll(GREY, 9, axis=0)
    most[:30] = 220
    save(folder / "picture.png", colours())
    volume = np.stack([GREY, most, GREY]).transpose(2, 1, 0)
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([0.5, 0.5, 2, 1])), folder / "volume.nii.gz")
    deep = GREY.astype(np.uint16) * 257
    dicoms.write(folder / "single.dcm", deep, WindowCenter=32768, WindowWidth=65536)
    dicoms.write(folder / "clip.dcm", np.stack([GREY, most]))
    clip(folder / "video.avi", moving(3))
    return folder


def report(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "samdistill", "report", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def shown(page: str) -> dict[str, Any]:
    """The pixels of each case."""
    cases = re.findall(r'src="data:image/jpeg;base64,([^"]+)" alt="([^"]+)"', page)
    return {
        name: np.asarray(PillowImage.open(io.BytesIO(base64.b64decode(data)))).astype(int)
        for data, name in cases
    }


def test_every_format_is_shown_from_its_overlay_or_its_image(tiny_bundle: Path, tmp_path: Path) -> None:
    folder, out = inputs(tmp_path / "in"), tmp_path / "out"
    records = segment(tiny_bundle, folder, out, overlay=True)
    assert [record.status for record in records] == ["ok"] * 5, [record.error for record in records]
    done = report(out)
    assert (done.returncode, done.stderr) == (0, "")
    overlays = shown((out / "report.html").read_text())
    assert set(overlays) == {"picture.png", "volume.nii.gz", "single.dcm", "clip.dcm", "video.avi"}
    assert report(out, "--images", folder).returncode == 0
    page = (out / "report.html").read_text()
    images = shown(page)
    assert set(images) == set(overlays)
    assert page.count('<svg class="layer" data-layer="prediction"') == 4, "of a video there is its overlay"
    for name in ("volume.nii.gz", "clip.dcm"):
        assert images[name][25].mean() > 200, f"{name}: the image where most was found"
        assert images[name][45].mean() < 80
    assert np.abs(images["single.dcm"] - GREY[:, :, None]).mean() < 6, "as its window shows it"
    text = Elements(page).text
    for part in ("volume.nii.gz", "3 images", "2 images", "Table"):
        assert part.replace(" ", "\N{NO-BREAK SPACE}") in text or part in text


def test_outlines_are_not_drawn_over_another_image(tiny_bundle: Path, tmp_path: Path) -> None:
    """Of the same name and size: another folder's, or one that was exported again since."""
    picture = save(tmp_path / "in" / "a.png", colours())
    segment(tiny_bundle, picture.parent, tmp_path / "out")
    assert folder_sections(tmp_path / "out", picture.parent)
    save(picture, colours(seed=5))
    with pytest.raises(InputRejected, match="must be the file that was segmented"):
        folder_sections(tmp_path / "out", picture.parent)


def test_a_report_of_an_earlier_run_does_not_stay_beside_new_masks(tiny_bundle: Path, tmp_path: Path) -> None:
    picture, page = save(tmp_path / "in" / "a.png", colours()), tmp_path / "out" / "report.html"
    segment(tiny_bundle, picture, page.parent)
    assert report(page.parent, "--images", picture.parent).returncode == 0
    assert page.is_file()
    made = page.read_text()
    segment(tiny_bundle, picture, page.parent, resume=True)  # all is kept
    assert page.is_file()
    segment(tiny_bundle, picture, page.parent)
    assert not page.exists()
    for other in ("<html>somebody's own</html>", made.replace("<title>Segmentation of ", "<title>Run ")):
        page.write_text(other)
        segment(tiny_bundle, picture, page.parent)
        assert page.is_file()
    elsewhere = tmp_path / "elsewhere" / "report.html"
    elsewhere.parent.mkdir()
    elsewhere.write_text(made)
    segment(tiny_bundle, picture, elsewhere.parent)  # nothing lay there that it could be of
    assert elsewhere.is_file()


def test_images_may_be_links_or_lie_in_a_data_folder(tiny_bundle: Path, tmp_path: Path) -> None:
    picture = save(tmp_path / "pool" / "a.png", colours())
    link = tmp_path / "data" / "images" / "a.png"
    link.parent.mkdir(parents=True)
    link.symlink_to(picture)
    segment(tiny_bundle, tmp_path / "data", tmp_path / "out")
    for given in (tmp_path / "data", link.parent):
        done = report(tmp_path / "out", "--images", given)
        assert (done.returncode, done.stderr) == (0, "")
        assert set(shown((tmp_path / "out" / "report.html").read_text())) == {"a.png"}
    lines = (tmp_path / "out" / "results.jsonl").read_text().replace('"a.png"', '"../../pool/a.png"', 1)
    (tmp_path / "out" / "results.jsonl").write_text(lines)
    with pytest.raises(InputRejected, match="must name files inside"):
        folder_sections(tmp_path / "out", link.parent)


@pytest.mark.parametrize("with_images", [True, False])
@pytest.mark.parametrize("changed", ["a.png", "overlays/a.png"])
def test_a_mask_or_overlay_changed_since_is_not_shown_beside_the_figures_of_the_old(
    tiny_bundle: Path, tmp_path: Path, changed: str, with_images: bool
) -> None:
    picture, out = save(tmp_path / "in" / "a.png", colours()), tmp_path / "out"
    segment(tiny_bundle, picture.parent, out, overlay=True)
    images = picture.parent if with_images else None
    assert folder_sections(out, images)
    with PillowImage.open(out / changed) as was:
        PillowImage.new(was.mode, was.size).save(out / changed)
    with pytest.raises(InputRejected, match="must be what infer wrote, and was changed since"):
        folder_sections(out, images)


def test_images_are_compared_also_where_overlays_are_shown(tiny_bundle: Path, tmp_path: Path) -> None:
    """As they are wherever the teacher was asked."""
    picture, out = save(tmp_path / "in" / "a.png", colours()), tmp_path / "out"
    segment(tiny_bundle, picture.parent, out, overlay=True)
    edit(out, {"refined": {"red": {"teacher": 1}}})
    assert folder_sections(out, picture.parent)
    save(picture, colours(seed=5))
    with pytest.raises(InputRejected, match="is another by now"):
        folder_sections(out, picture.parent)
    picture.unlink()
    with pytest.raises(InputRejected, match="is missing"):
        folder_sections(out, picture.parent)
    with pytest.raises(InputRejected, match="is no folder"):
        folder_sections(out, tmp_path / "nowhere")


def edit(out: Path, values: dict[str, Any]) -> None:
    """Change the last record of a run."""
    *others, last = (out / "results.jsonl").read_text().splitlines()
    (out / "results.jsonl").write_text("\n".join([*others, json.dumps({**json.loads(last), **values})]))


@pytest.mark.parametrize(
    "values",
    [
        {"status": "fine"},
        {"input": ["a.png"]},
        {"latency_ms": "x"},
        {"latency_ms": float("nan")},
        {"latency_ms": 10**400},
        {"quality": 5},
        {"quality": {"flag": "review", "score": "low"}},
        {"quality": {"flag": "review", "score": None, "reasons": "score"}},
        {"classes": {"red": {"max_probability": 0.5}, "bright": {"max_probability": 0.5}}},
        {"classes": {"red": {"area_px": 1, "max_probability": 0.5}}},
        {"masks": {"green": "a.png"}},
        {"routed": 3},
        {"routed": {"refined": 1, "why": ["gain"]}},
        {"files": ["a.png"]},
        {"images": -1},
    ],
    ids=lambda values: str(values)[:60],
)
def test_a_record_that_infer_did_not_write_is_refused_by_its_line(
    tiny_bundle: Path, tmp_path: Path, values: dict[str, Any]
) -> None:
    out = tmp_path / "out"
    for name in ("a.png", "b.png"):
        save(tmp_path / "in" / name, colours())
    segment(tiny_bundle, tmp_path / "in", out, overlay=True)
    edit(out, values)
    with pytest.raises(InputRejected, match="in line 2"):
        folder_sections(out)


def test_results_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(InputRejected, match="is damaged"):
        folder_sections(tmp_path)


def test_of_several_images_a_case_says_which_is_shown_and_which_was_judged(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    folder, out = inputs(tmp_path / "in"), tmp_path / "out"
    segment(tiny_bundle, folder / "volume.nii.gz", out, overlay=True)
    flags = {"reject": 2, "review": 1}
    edit(out, {"quality": {"flag": "reject", "score": 0.2, "reasons": [], "image": 0, "flags": flags}})
    for images, shown_ in ((folder, "image 1"), (None, "where most was found")):
        cases = {section.title: section.body for section in folder_sections(out, images)}["Cases"]
        told = f"3 images · shown: {shown_} · worst: image 0, reject · 2 reject, 1 review"
        assert told in cases.replace("\N{NO-BREAK SPACE}", " ")


def test_of_a_run_that_was_shared_out_the_report_says_how_to_get_its_list(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    save(tmp_path / "in" / "a.png", colours())
    out = tmp_path / "out"
    segment(tiny_bundle, tmp_path / "in", out, overlay=True, shard=Shard(1, 1))
    with pytest.raises(InputRejected, match=r"shared out or interrupted: finish it by infer --resume"):
        folder_sections(out)
    segment(tiny_bundle, tmp_path / "in", out, overlay=True, resume=True)
    assert folder_sections(out)


def test_masks_are_read_back_from_segmentations(tiny_bundle: Path, tmp_path: Path) -> None:
    folder, out = inputs(tmp_path / "in"), tmp_path / "out"
    segment(tiny_bundle, [folder / "single.dcm", folder / "clip.dcm"], out)
    single, clipped = read_masks(out / "single.dcm"), read_masks(out / "clip.dcm")
    assert (single.shape, clipped.shape) == ((1, 2, 48, 64), (2, 2, 48, 64))
    np.testing.assert_array_equal(single[0, 1], GREY == 220)
    np.testing.assert_array_equal(clipped[0], single[0])
    assert clipped[1, 1].sum() > clipped[0, 1].sum()
    with pytest.raises(InputRejected):
        read_masks(folder / "single.dcm")


def test_files_without_a_picture_are_in_the_table_alone(tiny_bundle: Path, tmp_path: Path) -> None:
    folder, out = inputs(tmp_path / "in"), tmp_path / "out"
    segment(tiny_bundle, folder, out)
    sections = folder_sections(out, folder)
    by_title = {section.title: section.body for section in sections}
    assert 'alt="video.avi"' not in by_title["Cases"]
    assert "The 4 of 5 files" in by_title["Cases"]
    assert "video.avi" in by_title["Table"]
    with pytest.raises(InputRejected, match="no overlays to show"):
        folder_sections(out)


def test_cases_are_sorted_by_score_and_else_by_peak(tiny_bundle: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    for number in range(3):
        save(folder / f"{number}.png", colours(seed=number))
    segment(tiny_bundle, folder, out, overlay=True)
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]

    def order() -> tuple[list[str], str]:
        (out / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        body = {section.title: section.body for section in folder_sections(out)}
        return re.findall(r'<b title="([^"]+)"', body["Cases"]), body["Table"]

    for line, peak in zip(lines, (0.9, 0.5, 0.7), strict=True):
        line["classes"] = {name: {"area_px": 5, "max_probability": peak} for name in line["classes"]}
    assert order()[0] == ["1.png", "2.png", "0.png"]
    for line, score in zip(lines, (0.3, 0.8, 0.1), strict=True):
        line["quality"] = {"score": score, "flag": "review", "reasons": ["score"]}
    names, table = order()
    assert names == ["2.png", "0.png", "1.png"]
    assert re.findall(r'<th scope="row">([^<]+)', table) == names
    assert "review" in table


@browser
def test_a_browser_shows_all_formats_and_enlarges_them(tiny_bundle: Path, tmp_path: Path) -> None:
    folder, out = inputs(tmp_path / "in"), tmp_path / "out"
    segment(tiny_bundle, folder, out, overlay=True)
    write_report(tmp_path / "report.html", "Segmentation", folder_sections(out, folder))
    script = """
      const told = [];
      for (const button of document.querySelectorAll(".case button")) {
        button.click();
        const image = document.querySelector("#zoom-stage img");
        told.push([document.getElementById("zoom-title").textContent, image.naturalWidth > 0]);
      }
      told.push(document.querySelectorAll("table tbody tr").length);
      document.title = JSON.stringify(told);
    """
    elements, console = dump(tmp_path / "report.html", script, tmp_path)
    assert console == ""
    title = elements.text.split("\n")[0] if "[[" in elements.text.split("\n")[0] else elements.text
    told = json.loads(re.search(r"\[\[.*?\],\d+\]", title.replace("\n", " "))[0])  # type: ignore[index]
    assert {name for name, _ in told[:-1]} == {
        "picture.png", "volume.nii.gz", "single.dcm", "clip.dcm", "video.avi",
    }  # fmt: skip
    assert all(there for _, there in told[:-1])
    assert told[-1] == 5
