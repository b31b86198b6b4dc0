"""Videos: a stream of frames in bounded memory, numbered masks, whole or not there, and no name told."""

from __future__ import annotations

import csv
import json
import os
import struct
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from bundles import colours, rewrite
from test_inference import hide, run, run_offline, save, segment, segment_all, tree

from samdistill.errors import InputRejected, UsageError
from samdistill.inference import gather
from samdistill.io import read_mask
from samdistill.io.video import Frame, _check_container, frames
from samdistill.predictor import Predictor


def clip(path: Path, pictures: list[Any], codec: str = "FFV1", rate: float = 25.0) -> Path:
    """Write a video; FFV1 loses nothing but what RGB loses on its way to YUV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = pictures[0].shape[:2]
    file = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*codec), rate, (width, height))
    assert file.isOpened()
    for picture in pictures:
        file.write(np.ascontiguousarray(picture[:, :, ::-1]))
    file.release()
    return path


def moving(count: int, height: int = 64, width: int = 96) -> list[Any]:
    return [np.roll(colours(height, width), 3 * number, axis=1) for number in range(count)]


def test_frames_come_in_order_upright_and_red_stays_red(tmp_path: Path) -> None:
    for name, codec in (("a.avi", "FFV1"), ("b.mp4", "mp4v"), ("c.mkv", "FFV1"), ("d.avi", "MJPG")):
        pictures = moving(7)
        found = list(frames(clip(tmp_path / name, pictures, codec)))
        assert [frame.index for frame in found] == list(range(7))
        assert [round(frame.time_ms) for frame in found] == [40 * number for number in range(7)]
        for frame, picture in zip(found, pictures, strict=True):
            difference = np.abs(frame.image.astype(int) - picture).mean()
            assert difference < 12, (name, frame.index, difference)


def test_names_that_ffmpeg_would_read_otherwise_and_names_that_are_no_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = clip(tmp_path / "a.mp4", moving(3), "mp4v")
    made.rename("12:30:05.mp4")
    assert len(list(frames(Path("12:30:05.mp4")))) == 3
    Path("12:30:05.mp4").rename(os.fsdecode(b"M\xfcller.mp4"))
    with pytest.raises(InputRejected, match="must have a name in UTF-8"):
        list(frames(Path(os.fsdecode(b"M\xfcller.mp4"))))


def test_masks_are_numbered_frames_that_the_predictor_gives(tiny_bundle: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    path = clip(folder / "site" / "a.avi", moving(11))
    save(folder / "b.png")
    picture, video = segment(tiny_bundle, folder, out, overlay=True, measurements=True)
    assert (picture.input, video.input) == ("b.png", "site/a.avi")
    assert (video.status, video.images, video.image_size) == ("ok", 11, (64, 96))
    assert video.masks == {"labels": "site/a.avi"}
    names = [f"site/a.avi/{number:06}.png" for number in range(11)]
    written = [one for one in tree(out) if "a.avi" in one]
    assert written == ["overlays/site/a.avi.png", *names, "site/a.avi/frames.csv"]
    assert sorted(video.files or {}) == written
    predictor = Predictor.load(tiny_bundle)
    areas = 0
    for frame, name in zip(frames(path), names, strict=True):
        wanted = predictor.predict(frame.image).labels()
        np.testing.assert_array_equal(read_mask(out / name), wanted)
        areas += int((wanted == 1).sum())
    assert video.classes is not None and video.classes["red"]["area_px"] == areas > 0
    with (out / "site/a.avi/frames.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 22
    assert sum(int(row["area_px"]) for row in rows if row["class"] == "red") == areas
    assert [row["time_ms"] for row in rows[::2]] == [f"{40 * number}.0" for number in range(11)]
    with (out / "measurements.csv").open() as file:
        assert sum(row["input"] == "site/a.avi" for row in csv.DictReader(file)) == 22


def test_overlapping_classes_get_a_folder_each(tiny_bundle: Path, tmp_path: Path) -> None:
    rewrite(tiny_bundle, lambda values: values.update(multi_label=True))
    clip(tmp_path / "in" / "a.avi", moving(2))
    segment(tiny_bundle, tmp_path / "in", tmp_path / "out")
    folders = {name.split("/a.avi/")[0] for name in tree(tmp_path / "out") if "a.avi" in name}
    assert folders == {"red", "bright"}


def test_what_is_there_is_kept_and_what_changed_is_done_again(tiny_bundle: Path, tmp_path: Path) -> None:
    path, out = clip(tmp_path / "in" / "a.avi", moving(3)), tmp_path / "out"
    predictor = Predictor.load(tiny_bundle)

    def kept() -> int:
        return segment_all(predictor, gather([str(tmp_path / "in")], out), out, resume=True)[0].kept

    assert (kept(), kept()) == (0, 1)
    (out / "a.avi" / "000001.png").unlink()
    assert (kept(), kept()) == (0, 1)
    clip(path, moving(2))
    assert (kept(), kept()) == (0, 1)
    assert len(list((out / "a.avi").iterdir())) == 3
    path.write_bytes(path.read_bytes()[:700])
    assert kept() == 0
    assert not (out / "a.avi").exists()


def test_a_killed_runs_half_folder_goes_and_a_folder_of_ones_own_stays(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    path, out = clip(tmp_path / "in" / "a.avi", moving(2)), tmp_path / "out"
    half = out / ".a.avi.01234567.tmp"
    half.mkdir(parents=True)
    (half / "000000.png").write_bytes(b"half")
    segment(tiny_bundle, path, out)
    assert not half.exists()
    mine = tmp_path / "mine" / "a.avi"
    save(mine / "000000.png")
    with pytest.raises(UsageError, match=r"--out must not hold a\.avi, which no run wrote"):
        segment(tiny_bundle, path, tmp_path / "mine")
    assert tree(mine) == ["000000.png"]


def test_a_video_that_changes_while_it_is_read_fails(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = clip(tmp_path / "in" / "a.avi", moving(6)), tmp_path / "out"

    def written_to(path: Path) -> Iterator[Frame]:
        for frame in frames(path):
            yield frame
            path.write_bytes(path.read_bytes())  # as long as before

    monkeypatch.setattr("samdistill.inference.videos.frames", written_to)
    (record,) = segment(tiny_bundle, path, out)
    assert "a.avi changed while it was read" in str(record.error)
    assert not (out / "a.avi").exists()


def test_memory_does_not_grow_with_the_number_of_frames(tiny_bundle: Path, tmp_path: Path) -> None:
    predictor = Predictor.load(tiny_bundle)
    peaks = []
    for count in (30, 120):
        path = clip(tmp_path / f"{count}.avi", moving(count, 96, 128), "MJPG")
        tracemalloc.start()
        segment(predictor, path, tmp_path / f"out{count}")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_damage_is_one_failed_input_without_a_name(tiny_bundle: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    good = clip(folder / "Doering_good.mp4", moving(40), "mp4v").read_bytes()
    (folder / "Doering_empty.mp4").write_bytes(b"")
    (folder / "Doering_head.mp4").write_bytes(good[: len(good) // 2])
    (folder / "Doering_text.mkv").write_text("Janina")
    (folder / "Doering_list.mp4").write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/Janina.ts\n")
    cut = clip(folder / "Doering_cut.avi", moving(40), "MJPG")
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    done = run_offline(tiny_bundle, folder, "--out", out)
    assert done.returncode == 3, done.stderr
    assert "5 of 6 inputs failed" in done.stderr
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert {one["input"] for one in lines if one["status"] == "ok"} == {"Doering_good.mp4"}
    errors = {one["input"]: one["error"] for one in lines if one["status"] == "failed"}
    assert "cut short" in errors["Doering_cut.avi"]
    assert [one.name for one in out.iterdir() if one.is_dir()] == ["Doering_good.mp4"]
    for text in (done.stderr, done.stdout, (out / "audit.jsonl").read_text()):
        for name in ("Doering", "Janina", str(folder)):
            assert name not in text, text


def test_large_frames_are_refused_from_the_header(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.avi", moving(1))
    with pytest.raises(InputRejected, match="must have at most 100 pixels"):
        next(frames(path, max_pixels=100))


@pytest.mark.parametrize(("name", "codec"), [("a.wmv", "WMV2"), ("a.mpg", "PIM1")])
def test_what_was_cut_short_is_refused_or_told(
    tiny_bundle: Path, tmp_path: Path, name: str, codec: str
) -> None:
    """FFmpeg knows no number of frames of these; an MPEG stream itself does not tell."""
    path = clip(tmp_path / name, moving(30), codec)
    predictor = Predictor.load(tiny_bundle)
    told = None if name.endswith("wmv") else ["length_unknown"]
    (record,) = segment(predictor, path, tmp_path / "out")
    assert (record.status, record.images, record.warnings) == ("ok", 30, told)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (record,) = segment(predictor, path, tmp_path / "out")
    if told is None:
        assert "cut short" in str(record.error)
    else:
        assert (record.status, record.warnings) == ("ok", told)


@pytest.mark.parametrize(("name", "codec"), [("a.webm", "VP90"), ("a.mkv", "FFV1")])
def test_a_recording_that_does_not_tell_its_length_is_told(
    tiny_bundle: Path, tmp_path: Path, name: str, codec: str
) -> None:
    """What a browser records has no duration: half of it looks like a shorter one."""
    path = clip(tmp_path / name, moving(30), codec)
    predictor, content = Predictor.load(tiny_bundle), path.read_bytes()
    (record,) = segment(predictor, path, tmp_path / "out")
    assert (record.images, record.warnings) == (30, None)
    place = content.index(b"\x44\x89\x88")  # Duration, 8 bytes; what takes its place is passed over
    live = content[:place] + b"\xec\x89" + bytes(9) + content[place + 11 :]
    for part in (live, live[: len(live) // 2]):
        path.write_bytes(part)
        (record,) = segment(predictor, path, tmp_path / "out")
        assert (record.status, record.warnings) == ("ok", ["length_unknown"])
    assert (record.images or 0) < 30


def test_a_recording_with_a_pause_is_read_and_one_cut_short_in_it_refused(tmp_path: Path) -> None:
    """Of Matroska OpenCV takes the duration times the rate for the number of frames."""
    path = clip(tmp_path / "a.mkv", moving(40))
    content = bytearray(path.read_bytes())
    place, last = content.index(b"\x44\x89\x88") + 3, content.rindex(b"\x1f\x43\xb6\x75")
    (duration,) = struct.unpack_from(">d", content, place)
    struct.pack_into(">d", content, place, duration + 30_000)
    after = content.index(b"\xe7\x82", last) + 2  # when the last cluster begins
    struct.pack_into(">H", content, after, 30_000 + struct.unpack_from(">H", content, after)[0])
    path.write_bytes(content)
    assert [round(frame.time_ms) for frame in frames(path)][34:38] == [1360, 1400, 31440, 31480]
    for part in (content[: len(content) // 2], content[:last], content[:last] + bytes(len(content) - last)):
        path.write_bytes(part)
        with pytest.raises(InputRejected, match="it was cut short"):
            list(frames(path))


def test_a_trimmed_film_is_read_and_one_cut_short_refused_wherever_its_index_is(tmp_path: Path) -> None:
    """Phones trim by a list of edits: the index still counts every frame."""
    path = clip(tmp_path / "a.mp4", moving(40), "mp4v")
    content = path.read_bytes()
    place = content.index(b"elst") + 12  # version, flags, count; then the duration
    (duration,) = struct.unpack_from(">I", content, place)
    path.write_bytes(content[:place] + struct.pack(">I", duration // 2) + content[place + 4 :])
    assert len(list(frames(path))) == 20
    for end in (len(content) // 2, len(content) - 9):
        path.write_bytes(content[:end])
        with pytest.raises(InputRejected, match="as long as its parts say: it was cut short"):
            list(frames(path))
    for rubbish in (b"free", bytes(40), b"\xff\xfe" * 20):  # as some cameras leave behind it
        path.write_bytes(content + rubbish)
        assert len(list(frames(path))) == 40


@pytest.mark.parametrize("shown", [40, 20])
def test_a_film_of_which_the_rest_is_nothing_is_refused_trimmed_or_not(tmp_path: Path, shown: int) -> None:
    """A download that took its room first and then stopped: all parts are there, as long as they say."""
    path = clip(tmp_path / "a.mp4", moving(40), "mp4v")
    content = bytearray(path.read_bytes())
    place = content.index(b"elst") + 12
    (duration,) = struct.unpack_from(">I", content, place)
    struct.pack_into(">I", content, place, duration * shown // 40)
    media, end = content.index(b"mdat"), content.index(b"moov") - 4
    lost = media + (end - media) * shown // 80
    content[lost:end] = bytes(end - lost)
    path.write_bytes(content)
    with pytest.raises(InputRejected, match=f"must have {shown} frames, and only .* it was cut short"):
        list(frames(path))


@pytest.mark.parametrize("version", [0, 1])
def test_of_a_film_with_a_hole_cut_out_the_rest_is_counted(tmp_path: Path, version: int) -> None:
    """Frames of 40 ms and, from the thirtieth on, of 80 ms: their number is no share of the time."""

    def part(kind: bytes, *contents: bytes) -> bytes:
        content = b"".join(contents)
        return struct.pack(">I", 8 + len(content)) + kind + content

    def clock(kind: bytes, per_second: int) -> bytes:
        return part(
            kind,
            bytes([version, 0, 0, 0]),
            bytes(16 if version else 8),
            struct.pack(">IQQ", per_second, 0, 0),
        )

    edits = [(200, -1), (400, 0), (800, 1200)]  # nothing, then 10 of 40 ms, then 10 of 80 ms
    listed = (struct.pack(">qqI" if version else ">iiI", length, begin, 1 << 16) for length, begin in edits)
    times = struct.pack(">IIIII", 2, 30, 40, 10, 80)
    film = [
        clock(b"mdhd", 1000),
        part(b"hdlr", bytes(8), b"vide", bytes(12)),
        part(b"minf", part(b"stbl", part(b"stts", bytes(4), times))),
    ]
    sound = part(b"trak", part(b"mdia", part(b"hdlr", bytes(8), b"soun", bytes(12))))
    list_of_edits = part(b"elst", bytes([version, 0, 0, 0]), struct.pack(">I", len(edits)), *listed)
    track = part(b"trak", part(b"edts", list_of_edits), part(b"mdia", *film))
    content = part(b"ftyp", bytes(8)) + part(b"moov", clock(b"mvhd", 1000), sound, track)
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    assert _check_container(path) == 20
    for end in range(24, len(content)):  # damage breaks nothing
        path.write_bytes(content[:end] + bytes(len(content) - end))
        assert _check_container(path) > 0


def test_a_small_file_that_unfolds_without_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a still picture each further frame is 40 bytes, whatever its size; a film is read to its end."""
    still = clip(tmp_path / "still.webm", moving(1, 512, 512) * 60, "VP90")
    film = clip(
        tmp_path / "film.webm", [np.roll(one, k % 7, 0) for k, one in enumerate(moving(60, 512, 512))], "VP90"
    )
    monkeypatch.setattr("samdistill.io.video.MAX_STACK_PIXELS", 4 * 512 * 512)
    monkeypatch.setattr("samdistill.io.video.MOST_PIXELS_A_BYTE", 512 * 512 * 60 // film.stat().st_size + 1)
    assert sum(1 for _ in frames(film)) == 60
    with pytest.raises(InputRejected, match="must not unfold to so many frames of 512 x 512"):
        list(frames(still))


def test_what_a_video_cannot_have_is_said(tiny_bundle: Path, tmp_path: Path) -> None:
    path = clip(tmp_path / "a.avi", moving(1))
    (record,) = segment(tiny_bundle, path, tmp_path / "out", contours=True)
    assert "without --contours" in str(record.error)


def test_without_opencv_the_extra_is_named_before_anything_is_written(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip(tmp_path / "in" / "a.avi", moving(1))
    hide("cv2", tmp_path, monkeypatch)
    done = run(tiny_bundle, tmp_path / "in", "--out", tmp_path / "out")
    assert (done.returncode, "samdistill[video]" in done.stderr) == (6, True)
    assert not (tmp_path / "out").exists()
