"""`bench` times every engine in a process of its own, and its figures follow the engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import fake_gpu
import pytest
from bundles import rewrite

from samdistill.bench import _timed, bench
from samdistill.bundle import Bundle
from samdistill.errors import BundleError
from samdistill.runtime.cuda import find_gpu


def test_every_engine_is_timed_and_held_against_the_published_masks(tiny_bundle: Path) -> None:
    (one,) = bench(tiny_bundle, threads=1, runs=3)
    assert (one.model, one.runtime, one.precision, one.verified) == ("student", "onnxruntime", "fp32", True)
    assert one.error is None
    assert one.provider == "CPUExecutionProvider"
    assert 0 < one.latency_ms <= one.p95_ms
    assert one.per_second > 0
    assert one.dice == 1.0


def test_a_changed_network_shows_in_its_masks(tiny_bundle: Path) -> None:
    def edit(values: dict[str, list[dict[str, float]]]) -> None:
        values["classes"][0]["threshold"] = 0.99

    rewrite(tiny_bundle, edit)
    (one,) = bench(tiny_bundle, runs=1)
    assert one.dice < 0.999


def test_a_damaged_bundle_is_not_timed(tiny_bundle: Path) -> None:
    content = (tiny_bundle / "student.onnx").read_bytes()
    (tiny_bundle / "student.onnx").write_bytes(content[:-1])
    (one,) = bench(tiny_bundle, runs=1)
    assert one.error is not None
    assert "was cut short" in one.error
    with pytest.raises(BundleError, match="must have the SHA-256"):
        bench(tiny_bundle, expect_sha256="0" * 64)
    with pytest.raises(ValueError, match="runs must be at least 1"):
        bench(tiny_bundle, runs=0)


def die(*job: object) -> None:
    """What a process does for which there is no memory."""
    os._exit(137)


def test_an_engine_whose_process_dies_is_told_and_not_waited_for(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("samdistill.bench._timed", die)
    (one,) = bench(tiny_bundle, runs=1)
    assert "its process died" in str(one.error)


def test_an_engine_of_tensorrt_is_proved_before_it_is_timed_and_its_memory_is_the_gpus(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    _, library = fake_gpu.install(monkeypatch)
    rewrite(
        tiny_bundle,
        lambda values: values["engines"].append(
            {**values["engines"][0], "runtime": "tensorrt", "device": "cuda"}
        ),
    )
    opened = Bundle.open(tiny_bundle)
    job = (str(tiny_bundle), opened.sha256, opened.manifest.engines[1], "cuda", None, 2)
    one = _timed(*job)
    assert one.error is None
    assert (one.runtime, one.provider, one.dice) == ("tensorrt", "NVIDIA Fake, tensorrt 10.13.3.9", 1.0)
    assert 0 < one.memory_mb < 1000
    assert len(list((tmp_path / "cache" / "samdistill" / "plans").glob("*.plan"))) == 1
    library.__version__, library.wrong = "10.14", 0.5
    assert "golden cases come out otherwise" in str(_timed(*job).error)
    find_gpu.cache_clear()


def test_the_command_prints_a_table_or_json(tiny_bundle: Path) -> None:
    line = [sys.executable, "-m", "samdistill", "bench", str(tiny_bundle), "--runs", "2"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for word in ("student", "onnxruntime fp32", "median", "p95", "MB"):
        assert word in done.stdout
    found = subprocess.run([*line, "--json"], capture_output=True, text=True, check=False)
    assert json.loads(found.stdout)["engines"][0]["model"] == "student"
