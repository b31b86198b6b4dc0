"""`bench` times every engine in a process of its own, and its figures follow the engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import fake_gpu
import numpy as np
import pytest
from bundles import rewrite
from typer.testing import CliRunner

from samdistill.bench import EngineTiming, _timed, bench, raise_for_failures
from samdistill.bundle import Bundle
from samdistill.cli.app import app
from samdistill.errors import BundleError, DeviceUnavailable, SamdistillError, SomeInputsFailed
from samdistill.runtime.cuda import find_gpu


def test_every_engine_is_timed_and_held_against_the_published_masks(tiny_bundle: Path) -> None:
    (one,) = bench(tiny_bundle, threads=1, runs=3)
    assert (one.model, one.runtime, one.precision, one.verified) == ("student", "onnxruntime", "fp32", True)
    assert one.error is None
    assert one.provider == "CPUExecutionProvider"
    assert 0 < one.latency_ms <= one.p95_ms
    assert one.per_second > 0
    assert one.dice == 1.0


def test_the_memory_of_an_engine_is_told_from_a_large_process_too(tiny_bundle: Path) -> None:
    ballast = np.ones(600 << 20, np.uint8)  # more than a process with the engine takes
    (one,) = bench(tiny_bundle, threads=1, runs=1)
    assert one.memory_mb > 0
    del ballast


def test_the_memory_of_an_engine_is_not_that_of_the_networks_that_prove_it(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decoder is proved beside an encoder, which takes more than it does itself."""
    proved: list[float] = []

    def prove(*words: Any) -> None:
        proved.append(400.0)

    monkeypatch.setattr("samdistill.bench.engine_results", prove)
    monkeypatch.setattr("samdistill.bench._peak_mb", lambda: 100.0 + sum(proved))
    opened = Bundle.open(tiny_bundle)
    one = _timed(str(tiny_bundle), opened.sha256, opened.manifest.engines[0], "cpu", 1, 1)
    assert (one.error, one.memory_mb, proved) == (None, 0, [400])


def change_a_threshold(values: dict[str, list[dict[str, float]]]) -> None:
    values["classes"][0]["threshold"] = 0.99


def test_an_engine_whose_masks_are_not_the_published_ones_gets_no_figures(tiny_bundle: Path) -> None:
    rewrite(tiny_bundle, change_a_threshold)
    (one,) = bench(tiny_bundle, runs=1)
    assert one.error is not None
    assert "golden cases come out otherwise" in one.error
    assert (one.latency_ms, one.exit_code) == (0, 5)


@pytest.mark.parametrize("json_", [[], ["--json"]])
def test_the_command_ends_with_5_where_masks_are_not_the_published_ones(
    tiny_bundle: Path, json_: list[str]
) -> None:
    rewrite(tiny_bundle, change_a_threshold)
    found = CliRunner().invoke(app, ["bench", str(tiny_bundle), "--runs", "1", *json_])
    assert isinstance(found.exception, BundleError)
    assert "student onnxruntime fp32 must give the masks that were published" in str(found.exception)
    assert "golden cases come out otherwise" in found.stdout  # and the table is there all the same


def timing(model: str, exit_code: int = 0) -> EngineTiming:
    error = "what went wrong" if exit_code else None
    return EngineTiming(model, "onnxruntime", "fp32", True, error=error, exit_code=exit_code)


@pytest.mark.parametrize(
    ("found", "kind"),
    [
        ([timing("student"), timing("encoder"), timing("decoder")], None),
        ([timing("student"), timing("student", 6)], None),  # OpenVINO is not installed, say
        ([timing("student", 6)], DeviceUnavailable),
        ([timing("student"), timing("encoder", 6), timing("encoder", 3)], DeviceUnavailable),
        ([timing("student"), timing("student", 3)], SomeInputsFailed),
        ([timing("student"), timing("student", 5), timing("encoder", 6)], BundleError),
    ],
)
def test_what_failed_decides_how_the_command_ends(
    found: list[EngineTiming], kind: type[SamdistillError] | None
) -> None:
    with pytest.raises(kind) if kind else nullcontext():
        raise_for_failures(found)


def test_a_damaged_bundle_is_not_timed(tiny_bundle: Path) -> None:
    content = (tiny_bundle / "student.onnx").read_bytes()
    (tiny_bundle / "student.onnx").write_bytes(content[:-1])
    (one,) = bench(tiny_bundle, runs=1)
    assert one.error is not None
    assert "was cut short" in one.error
    assert one.exit_code == 5
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
    assert one.exit_code == 3


def test_an_engine_of_tensorrt_gets_figures_once_it_is_proved_and_its_memory_is_the_gpus(
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
