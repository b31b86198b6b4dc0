"""`doctor` finds what is wrong with an installation and says the cure."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import fake_gpu
import pytest

import samdistill.doctor as doctor
from samdistill.doctor import Finding, examine
from samdistill.errors import DeviceUnavailable
from samdistill.plans import plans_folder
from samdistill.runtime import RUNTIMES, load_error
from samdistill.runtime.cuda import find_gpu, nvidia_driver
from samdistill.runtime.onnxruntime import cuda_built_for


def by_name() -> dict[str, Finding]:
    return {finding.what: finding for finding in examine()}


def test_it_tells_versions_engines_and_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = by_name()
    for name in ("samdistill", "Python", "numpy", "ONNX Runtime's wheels", "cache", "runtime onnxruntime"):
        assert found[name].status == "ok", name
    assert str(tmp_path / "samdistill") in found["cache"].detail
    assert list((tmp_path / "samdistill").iterdir()) == []


@pytest.mark.parametrize(
    ("wheels", "words"),
    [
        (["onnxruntime", "onnxruntime-gpu"], "pip uninstall -y onnxruntime onnxruntime-gpu"),
        ([], r"pip install 'samdistill[cpu]'"),
    ],
)
def test_both_wheels_or_none_are_wrong(
    wheels: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "installed_wheels", lambda: wheels)
    found = by_name()["ONNX Runtime's wheels"]
    assert found.status == "wrong"
    assert words in found.cure


def gpu_machine(monkeypatch: pytest.MonkeyPatch, *, torch: str | None, missing: tuple[str, ...] = ()) -> None:
    monkeypatch.setattr(doctor, "installed_wheels", lambda: ["onnxruntime-gpu"])
    monkeypatch.setattr(doctor, "nvidia_driver", lambda: "NVIDIA L4, 580.1")
    monkeypatch.setattr(doctor, "cuda_built_for", lambda: "13.0")
    monkeypatch.setattr(doctor, "_torch_cuda", lambda: torch)
    loaded: list[bool] = []
    monkeypatch.setattr(doctor, "preload_cuda", lambda: loaded.append(True))
    monkeypatch.setattr(doctor, "_loads", lambda library: bool(loaded) and library not in missing)


@pytest.mark.parametrize(("wheels", "told"), [(["onnxruntime"], True), ([], False)])
def test_the_wheel_for_cpus_is_told_of_beside_a_gpu_where_it_is_installed(
    wheels: list[str], told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu_machine(monkeypatch, torch=None)
    monkeypatch.setattr(doctor, "installed_wheels", lambda: wheels)
    assert ("CUDA in ONNX Runtime" in by_name()) == told


def test_a_cuda_major_mismatch_and_missing_libraries_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_machine(monkeypatch, torch="12", missing=("libcudnn.so.9",))
    found = by_name()
    assert found["CUDA major version"].detail == "onnxruntime-gpu wants CUDA 13, torch brings CUDA 12"
    assert found["CUDA libraries"].status == "wrong"
    assert "libcudnn.so.9 cannot be loaded" in found["CUDA libraries"].detail
    gpu_machine(monkeypatch, torch="13")
    found = by_name()
    assert "CUDA major version" not in found
    assert found["CUDA libraries"].status == "ok"


@pytest.mark.parametrize(
    ("line", "major"),
    [("cuda: Optional[str] = '12.8'", "12"), ("cuda = '13.0'", "13"), ("cuda = None", None)],
)
def test_torchs_cuda_is_read_where_its_version_does_not_tell(
    line: str, major: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "version.py").write_text(f"__version__ = '2.13.0'\n{line}\nhip = None\n")
    spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    assert doctor._torch_cuda() == major


def test_every_extra_that_a_cure_names_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "is_installed", lambda runtime: False)
    assert by_name()["runtime onnxruntime"].cure == "pip install 'samdistill[cpu]'"


def test_a_library_that_is_there_and_does_not_load_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)  # an import of it fails
    monkeypatch.setattr(doctor, "is_installed", lambda runtime: runtime == "openvino")
    found = by_name()["runtime openvino"]
    assert (found.status, found.cure) == ("wrong", "install it again, or bring what it does not find")
    assert "does not load: import of openvino halted" in found.detail


def test_each_extra_is_told_of_and_what_samdistill_cannot_do_without_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, gone = doctor._version, {"deflate", "pylibjpeg", "nibabel", "torch", "segment-anything"}
    monkeypatch.setattr(doctor, "_version", lambda name: None if name in gone else real(name))
    found = {name: (one.status, one.detail, one.cure) for name, one in by_name().items()}
    assert found["deflate"] == ("wrong", "not installed", "pip install deflate")
    assert found["extra dicom"] == ("note", "lacks pylibjpeg", "pip install 'samdistill[dicom]'")
    assert found["extra nifti"] == ("note", "not installed", "pip install 'samdistill[nifti]'")
    assert found["extra export"][1] == "lacks torch, segment-anything", "export brings train"
    assert found["extra evaluate"] == ("ok", "installed", "")
    assert "extra test" not in found and "pillow" in found


def test_every_extra_has_its_finding() -> None:
    """One of its own or, of an engine's, as runtime or wheel."""
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    extras = set(tomllib.loads(text)["project"]["optional-dependencies"])
    assert extras - {"test", "lint", "dev"} == {*doctor.EXTRAS, "cpu", "gpu", *RUNTIMES} - {"onnxruntime"}


def test_a_driver_that_hangs_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*arguments: object, **options: object) -> None:
        raise subprocess.TimeoutExpired("nvidia-smi", 30)

    monkeypatch.setattr(shutil, "which", lambda tool: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(subprocess, "run", hang)
    assert nvidia_driver() is None


def test_a_gpu_wheel_without_a_driver_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_machine(monkeypatch, torch=None)
    monkeypatch.setattr(doctor, "nvidia_driver", lambda: None)
    assert by_name()["NVIDIA driver"].status == "wrong"


def test_the_cpu_wheel_beside_a_gpu_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_machine(monkeypatch, torch=None)
    monkeypatch.setattr(doctor, "installed_wheels", lambda: ["onnxruntime"])
    assert "samdistill[gpu]" in by_name()["CUDA in ONNX Runtime"].cure


def test_tensorrt_is_examined_with_its_version_and_the_gpu_it_needs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = by_name()
    assert found["runtime tensorrt"].cure == "pip install 'samdistill[tensorrt]'"
    if nvidia_driver() is None:
        assert found["runtime tensorrt-rtx"].status == "note"
        assert "none runs here" in found["runtime tensorrt-rtx"].detail
    with monkeypatch.context() as patch:
        fake_gpu.install(patch)
        patch.setattr(doctor, "is_installed", lambda runtime: True)
        (tmp_path / "samdistill" / "plans").mkdir(mode=0o700, parents=True)
        (tmp_path / "samdistill" / "plans" / "a.plan").write_bytes(bytes(2_000_000))
        found = by_name()
        assert found["runtime tensorrt"].detail == "10.13.3.9 on NVIDIA Fake, compute capability 8.9"
        assert "1 plans of 2 MB" in found["cache"].detail
    find_gpu.cache_clear()
    monkeypatch.setattr(doctor, "library_version", lambda runtime: (_ for _ in ()).throw(OLD))
    assert by_name()["runtime tensorrt-rtx"].status == "wrong"


OLD = DeviceUnavailable("tensorrt-rtx must be >=1.7,<2.0, not 1.0.")


def test_a_cache_that_cannot_be_written_is_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    found = by_name()["cache"]
    assert found.status == "wrong"
    assert "XDG_CACHE_HOME" in found.cure


def test_without_a_home_folder_the_cache_is_wrong_and_all_else_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    found = by_name()
    assert (found["cache"].status, found["numpy"].status) == ("wrong", "ok")
    assert "Set XDG_CACHE_HOME" in found["cache"].cure


def test_a_cache_of_plans_that_others_may_write_is_wrong(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = plans_folder()
    folder.mkdir(parents=True)
    folder.chmod(0o770)
    found = by_name()["cache"]
    assert found.status == "wrong"
    assert "opening a plan runs what is in it" in found.detail
    assert found.cure.startswith("Delete it")


def test_the_command_prints_each_finding_and_ends_with_6_where_something_is_wrong(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "samdistill", "doctor"]

    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok     samdistill: " in done.stdout
    (tmp_path / "file").write_text("in the way")
    environment["XDG_CACHE_HOME"] = str(tmp_path / "file")
    done = subprocess.run([*line, "--json"], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 6
    assert [one["what"] for one in json.loads(done.stdout)["findings"] if one["status"] == "wrong"] == [
        "cache"
    ]


def test_what_an_uninstalled_wheel_left_is_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both wheels share a folder: without one of them the other's import finds an empty package."""
    monkeypatch.setitem(sys.modules, "onnxruntime", ModuleType("onnxruntime"))
    sys.modules["onnxruntime"].__file__ = None
    assert "install it anew" in str(load_error("onnxruntime"))
    with pytest.raises(DeviceUnavailable, match="onnxruntime must be installed, and whole"):
        cuda_built_for()
