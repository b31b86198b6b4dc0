"""How runs of `samdistill infer` end that cannot go on: a GPU that is lost, a full disk, an interruption."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import sys
from pathlib import Path
from threading import Event
from typing import Any

import nibabel
import numpy as np
import pytest
from bundles import colours
from test_infer_runs import fill
from test_inference import run, save, segment, segment_all, tree

import samdistill.inference.pipeline as pipeline
from samdistill.cli import app
from samdistill.errors import DeviceUnavailable, UsageError
from samdistill.inference import Shard, gather
from samdistill.inference.records import earlier_records, unfinished_of
from samdistill.io.files import write_bytes
from samdistill.predictor import Predictor
from samdistill.runtime import open_engine

LOST = (
    "[ONNXRuntimeError] : 1 : FAIL : CUDA failure 719: unspecified launch failure ; GPU=0 ; hostname=ward7 ; "
    "expr=cudaStreamSynchronize(stream)"
)


def test_a_gpu_that_is_lost_is_told_from_a_network_that_fails(tiny_bundle: Path) -> None:
    class Session:
        def run(self, *words: object) -> None:
            raise RuntimeError(LOST)

    engine: Any = open_engine((tiny_bundle / "student.onnx").read_bytes())
    engine._session, engine.provider = Session(), "CUDAExecutionProvider"
    with pytest.raises(
        DeviceUnavailable, match=r"lost its GPU \(CUDA failure 719: unspecified .*\)"
    ) as found:
        engine.run({"pixels": np.zeros((1, 3, 64, 64), np.uint8)})
    assert "ward7" not in str(found.value)


def test_a_gpu_lost_amid_a_folder_ends_the_run_with_6_and_what_is_done_is_resumed(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    fill(folder, 40)
    answer, calls = Predictor.predict_batch, iter(range(1000))

    def lost(self: Predictor, *words: Any, **options: Any) -> Any:
        if next(calls) >= 3:
            raise DeviceUnavailable("the GPU is gone.")
        return answer(self, *words, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "predict_batch", lost)
        words = ["infer", tiny_bundle, folder, "--out", out, "--threads", 1, "--batch", 2]
        patch.setattr(sys, "argv", ["samdistill", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            app.main()
    assert ended.value.code == DeviceUnavailable.exit_code
    assert capsys.readouterr().err.splitlines()[-1] == (
        "samdistill: the GPU is gone. With --resume what is done is kept."
    )
    exits = [json.loads(line)["exit"] for line in (out / "audit.jsonl").read_text().splitlines()]
    assert 0 < exits.count("ok") <= 6
    assert 0 < exits.count("DeviceUnavailable") <= 6  # not one for each of the others
    assert len([name for name in tree(out) if name.endswith(".png")]) == exits.count("ok")
    assert not (out / "results.jsonl").exists()
    summary, _ = segment_all(Predictor.load(tiny_bundle), gather([str(folder)], out), out, resume=True)
    assert (summary.kept, summary.done, summary.failed) == (exits.count("ok"), 40 - exits.count("ok"), 0)


def test_a_batch_that_a_plan_does_not_take_is_refused_before_anything_is_written(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each group would fail in it, and go one by one without a word."""
    fill(tmp_path / "in", 2)
    sources, out = gather([str(tmp_path / "in")], tmp_path / "out"), tmp_path / "out"
    predictor = Predictor.load(tiny_bundle)
    monkeypatch.setattr(Predictor, "runtime", "tensorrt")
    with pytest.raises(UsageError, match="batch must be at most 8 in tensorrt, not 9"):
        segment_all(predictor, sources, out, batch=9)
    assert not out.exists()
    assert segment_all(predictor, sources, out, batch=8)[0].done == 2


def test_a_full_disk_ends_with_2_in_a_line_and_leaves_nothing_half(tiny_bundle: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: masks go in, the list of results does not."""
    folder, out = tmp_path / "in", tmp_path / "out"
    save(folder / "anna.png")
    limit = (400, resource.RLIM_INFINITY)
    found = run(
        tiny_bundle, folder, "--out", out,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )  # fmt: skip
    assert (found.returncode, found.stderr) == (2, "samdistill: File too large.\n")
    assert not [name for name in tree(out) if name.endswith(".tmp")]
    assert run(tiny_bundle, folder, "--out", out, "--resume").returncode == 0


def test_a_disk_that_fills_amid_a_folder_ends_the_run_with_2_and_what_is_done_is_resumed(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    fill(folder, 40)
    calls = iter(range(1000))

    def full(path: Path, content: bytes, **options: bool) -> None:
        if next(calls) >= 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write_bytes(path, content, **options)

    with monkeypatch.context() as patch:
        patch.setattr("samdistill.inference.cases.write_bytes", full)
        words = ["infer", tiny_bundle, folder, "--out", out, "--threads", 1, "--batch", 2]
        patch.setattr(sys, "argv", ["samdistill", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            app.main()
    assert ended.value.code == UsageError.exit_code
    assert capsys.readouterr().err.splitlines()[-1] == (
        "samdistill: No space left on device. With --resume what is done is kept."
    )
    exits = [json.loads(line)["exit"] for line in (out / "audit.jsonl").read_text().splitlines()]
    assert exits.count("ok") == 5
    assert 0 < exits.count("OSError") <= 10  # not one for each of the others
    summary, _ = segment_all(Predictor.load(tiny_bundle), gather([str(folder)], out), out, resume=True)
    assert (summary.kept, summary.done, summary.failed) == (5, 35, 0)


def test_names_as_long_as_can_be_are_written_and_longer_ones_stop_nothing(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    """A name has at most 255 bytes; a temporary file's is longer than its own, a GeoJSON's than a PNG's."""
    folder, out = tmp_path / "in", tmp_path / "out"
    for name in ("a" * 247, "é" * 123 + "e", "b" * 251, "c"):
        save(folder / f"{name}.png")
    for _ in range(2):
        records = segment(tiny_bundle, folder, out, contours=True)
        assert {one.input[0]: one.status for one in records} == {
            "a": "ok", "é": "ok", "b": "failed", "c": "ok"
        }  # fmt: skip
        error = next(one.error for one in records if one.status == "failed")
        assert error is not None
        assert error.endswith("File name too long.")
        assert [name for name in tree(out) if name.startswith((".", "b"))] == []
    long = out / f"{'a' * 247}.png"
    left = long.with_name(f".{hashlib.sha256(long.name.encode()).hexdigest()}.0123abcd.tmp")
    left.touch()
    segment(tiny_bundle, folder, out)
    assert not left.exists()


def test_names_and_classes_that_the_terminal_cannot_show_end_no_run(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    save(tmp_path / "in" / "a.png")
    for out in (tmp_path / "Ärzte", tmp_path / os.fsdecode(b"caf\xe9")):
        done = run(
            tiny_bundle, tmp_path / "in", "--out", out, env={**os.environ, "PYTHONIOENCODING": "ascii"}
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "1 of 1 files segmented" in done.stdout


def test_a_name_that_is_too_long_ends_in_a_line(tiny_bundle: Path, tmp_path: Path) -> None:
    found = run(tiny_bundle, "n" * 300, "--out", tmp_path / "out")
    assert found.returncode == 2
    assert found.stderr.endswith("File name too long.\n")


def test_a_list_that_a_shard_renames_while_another_begins_is_found_again(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    fill(folder, 4)
    predictor, sources = Predictor.load(tiny_bundle), gather([str(folder)], out)
    for index in (1, 2):
        segment_all(predictor, sources, out, shard=Shard(index, 2))
    first, opened = out / "results-1-of-2.jsonl", Path.open

    def renamed(self: Path, *words: Any, **options: Any) -> Any:
        if self == first and first.exists():
            first.rename(unfinished_of(first))
        return opened(self, *words, **options)

    monkeypatch.setattr(Path, "open", renamed)
    summary, _ = segment_all(predictor, sources, out, shard=Shard(2, 2), resume=True)
    assert (summary.kept, summary.failed) == (2, 0)
    assert len(earlier_records(out)) == 4


def test_of_two_records_of_a_file_the_newer_counts(tiny_bundle: Path, tmp_path: Path) -> None:
    """The list of a whole run is set aside when shards begin; theirs is newer, whatever it is called."""
    folder, out = tmp_path / "in", tmp_path / "out"
    fill(folder, 2)
    predictor, sources = Predictor.load(tiny_bundle), gather([str(folder)], out)
    segment_all(predictor, sources, out)
    segment_all(predictor, sources, out, shard=Shard(1, 2), overlay=True)
    killed = out / "results-1-of-2.jsonl"
    killed.rename(unfinished_of(killed))
    summary, _ = segment_all(predictor, sources, out, shard=Shard(1, 2), overlay=True, resume=True)
    assert summary.kept == 1


def test_an_interruption_ends_amid_the_slices_of_a_volume(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = np.repeat(colours()[:, :, :1].transpose(1, 0, 2), 200, axis=2)
    (tmp_path / "in").mkdir()
    nibabel.save(nibabel.Nifti1Image(scan, np.eye(4)), tmp_path / "in" / "scan.nii")
    predict, calls, begun = pipeline.predict, [], Event()

    def counted(*words: Any) -> Any:
        calls.append(1)
        begun.set()
        return predict(*words)

    class Interrupted(pipeline.ThreadPoolExecutor):
        def submit(self, *words: Any, **options: Any) -> Any:
            super().submit(*words, **options)
            begun.wait(30)
            raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "predict", counted)
    monkeypatch.setattr(pipeline, "ThreadPoolExecutor", Interrupted)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        segment_all(Predictor.load(tiny_bundle), gather([str(tmp_path / "in")], out), out)
    assert len(calls) < 25  # of 50
    assert not [name for name in tree(out) if name.endswith(".nii")]
