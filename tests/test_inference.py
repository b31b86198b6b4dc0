"""`samdistill infer`: what is written where, and what a bad file does to the others."""

from __future__ import annotations

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

from samdistill.errors import InputRejected, SomeInputsFailed
from samdistill.inference import (
    Options,
    Record,
    Source,
    Summary,
    gather,
    raise_for_failures,
    segment_files,
)
from samdistill.io.images import read_mask
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


def test_a_short_name_does_not_garble_what_went_wrong(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files on a patient's disc are called 8, and messages tell of 8 bits."""
    monkeypatch.chdir(tmp_path)
    dicoms.write(Path("8"), np.full((9, 9), 300, np.uint16), bits=16)
    (record,) = segment(tiny_bundle, Path("8"), Path("out"))
    assert record.error is not None and record.error.startswith("8: image: pixels must be uint8 under")


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
