"""What is installed, what is missing, and the cure. Changes nothing but makes the cache folder."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from samdistill._version import __version__
from samdistill.errors import BundleError, DeviceUnavailable, UsageError
from samdistill.plans import cache_folder, plans_folder
from samdistill.runtime import PACKAGES, PLANNED, RUNTIMES, is_installed, load_error
from samdistill.runtime.cuda import find_gpu, nvidia_driver
from samdistill.runtime.onnxruntime import cuda_built_for, installed_wheels, preload_cuda
from samdistill.runtime.tensorrt import library_version

Status = Literal["ok", "note", "wrong"]
LIBRARIES = (
    *("numpy", "pillow", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx"),
    "cuda-bindings",
    *("torch", "torchvision", "segment-anything", "segmentation-models-pytorch", "onnx", "onnxslim"),
)
EXTRAS = ("train", "export", "evaluate", "nifti", "dicom", "video")  # those of engines are told as runtimes
REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(\[(?P<part>.+?)\])?[^;]*(;.*extra == ['\"](?P<extra>.+?)['\"])?")
CUDA_FILES = ("libcudart.so.{major}", "libcublas.so.{major}", "libcudnn.so.9")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes
    ----------
    what, status, detail
        `note` is worth knowing, `wrong` needs a cure.
    cure
        What to run; empty where nothing is wrong.
    """

    what: str
    status: Status
    detail: str
    cure: str = ""


def examine() -> list[Finding]:
    """Look at everything."""
    return [*_versions(), *_packages(), _wheels(), *_gpu(), *_runtimes(), _cache()]


def _versions() -> list[Finding]:
    found = [
        Finding("samdistill", "ok", __version__),
        Finding("Python", "ok", f"{platform.python_version()} at {sys.prefix}"),
        Finding("machine", "ok", f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors"),
    ]
    for name in LIBRARIES:
        version = _version(name)
        if version is not None:
            found.append(Finding(name, "ok", version))
    return found


def _packages() -> list[Finding]:
    """What samdistill cannot do without, where it is missing, and whether each extra is whole."""
    needs: dict[str, list[str]] = {}
    for text in (metadata.requires("samdistill") or []) if _version("samdistill") else []:
        told = REQUIREMENT.match(text)
        assert told is not None
        names = needs.setdefault(told["extra"] or "", [])
        names += needs.get(told["part"], []) if told["part"] else [told["name"]]  # export brings train
    found = [
        Finding(name, "wrong", "not installed", f"pip install {name}")
        for name in needs.get("", [])
        if not _is_here(name)
    ]
    for extra in (one for one in EXTRAS if one in needs):
        missing = [name for name in needs[extra] if not _is_here(name)]
        if not missing:
            found.append(Finding(f"extra {extra}", "ok", "installed"))
            continue
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        detail = "not installed" if missing == needs[extra] else f"lacks {', '.join(missing[:3])}{more}"
        found.append(Finding(f"extra {extra}", "note", detail, f"pip install 'samdistill[{extra}]'"))
    return found


def _wheels() -> Finding:
    wheels = installed_wheels()
    if len(wheels) == 1:
        return Finding("ONNX Runtime's wheels", "ok", f"{wheels[0]} alone")
    if wheels:
        return Finding(
            "ONNX Runtime's wheels",
            "wrong",
            f"{' and '.join(wheels)}: each overwrites files of the other",
            f"pip uninstall -y {' '.join(wheels)}, then pip install 'samdistill[cpu]' or 'samdistill[gpu]'",
        )
    return Finding(
        "ONNX Runtime's wheels",
        "wrong",
        "none: no bundle opens without an engine",
        "pip install 'samdistill[cpu]', or 'samdistill[gpu]' beside an NVIDIA GPU",
    )


def _runtimes() -> list[Finding]:
    found = []
    for runtime in RUNTIMES:
        if is_installed(runtime) and runtime in PLANNED:
            found.append(_planned(runtime))
        elif is_installed(runtime) and (error := load_error(runtime)):
            cure = "install it again, or bring what it does not find"
            found.append(Finding(f"runtime {runtime}", "wrong", f"does not load: {error}", cure))
        elif is_installed(runtime):
            found.append(Finding(f"runtime {runtime}", "ok", f"{PACKAGES[runtime]} loads"))
        else:
            extra = "cpu" if runtime == "onnxruntime" else runtime
            found.append(
                Finding(f"runtime {runtime}", "note", "not installed", f"pip install 'samdistill[{extra}]'")
            )
    return found


def _planned(runtime: str) -> Finding:
    """TensorRT or TensorRT-RTX: the right version, and a GPU that CUDA can reach for its engines."""
    what = f"runtime {runtime}"
    try:
        version = library_version(runtime)
    except DeviceUnavailable as error:
        return Finding(what, "wrong", str(error), f"pip install 'samdistill[{runtime}]'")
    try:
        gpu = find_gpu()
    except DeviceUnavailable as error:
        works = "it builds engines, and none runs here" if runtime == "tensorrt-rtx" else "no use without one"
        cure = f"pip install 'samdistill[{runtime}]'" if "cuda-bindings" in str(error) else ""
        return Finding(what, "note", f"{version}; no GPU ({str(error).split('. ')[0]}): {works}", cure)
    return Finding(what, "ok", f"{version} on {gpu.name}, compute capability {gpu.capability / 10}")


def _gpu() -> list[Finding]:
    """The NVIDIA driver, and whether ONNX Runtime's CUDA goes with what is installed."""
    driver, wheels = nvidia_driver(), installed_wheels()
    gpu_wheel = "onnxruntime-gpu" in wheels
    if driver is None:
        if gpu_wheel:
            cure = (
                "install NVIDIA's driver, or pip uninstall -y onnxruntime-gpu; pip install 'samdistill[cpu]'"
            )
            return [Finding("NVIDIA driver", "wrong", "none, and onnxruntime-gpu is installed", cure)]
        return [Finding("NVIDIA driver", "note", "none: engines run on the CPU")]
    found = [Finding("NVIDIA driver", "ok", driver)]
    if not gpu_wheel:
        if "onnxruntime" in wheels:  # without any, `_wheels` says so
            found.append(
                Finding(
                    "CUDA in ONNX Runtime",
                    "note",
                    "the wheel for CPUs is installed beside a GPU",
                    "pip uninstall -y onnxruntime; pip install 'samdistill[gpu]'",
                )
            )
        return found
    try:
        major = cuda_built_for().split(".")[0]
        preload_cuda()  # as an engine does, before it asks for what is missing
    except DeviceUnavailable as error:
        return [*found, Finding("CUDA in ONNX Runtime", "wrong", str(error), "see above")]
    torch_cuda = _torch_cuda()
    if torch_cuda is not None and torch_cuda != major:
        found.append(
            Finding(
                "CUDA major version",
                "note",
                f"onnxruntime-gpu wants CUDA {major}, torch brings CUDA {torch_cuda}",
                f"pip install nvidia-cuda-runtime-cu{major} nvidia-cublas-cu{major} nvidia-cudnn-cu{major}",
            )
        )
    missing = [name for name in (f.format(major=major) for f in CUDA_FILES) if not _loads(name)]
    if missing:
        found.append(
            Finding(
                "CUDA libraries",
                "wrong",
                f"{', '.join(missing)} cannot be loaded",
                f"pip install 'onnxruntime-gpu[cuda,cudnn]', or put CUDA {major}'s lib64 on LD_LIBRARY_PATH",
            )
        )
    else:
        found.append(Finding("CUDA libraries", "ok", f"CUDA {major} and cuDNN load"))
    return found


def _cache() -> Finding:
    try:
        folder = cache_folder()
    except UsageError as error:
        detail, cure = str(error).rstrip(".").split(". ")
        return Finding("cache", "wrong", detail, cure)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        cure = f"make {folder} writable, or set XDG_CACHE_HOME to a folder that is"
        return Finding("cache", "wrong", f"{folder}: {error.strerror}", cure)
    try:
        plans = list(plans_folder().glob("*.plan"))
    except BundleError as error:
        detail, _, cure = str(error).rpartition(". ")
        return Finding("cache", "wrong", detail, cure)
    free = shutil.disk_usage(folder).free / 1e9
    held = f", {len(plans)} plans of {sum(f.stat().st_size for f in plans) / 1e6:.0f} MB" if plans else ""
    return Finding("cache", "ok", f"{folder}, {free:.0f} GB free{held}")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _is_here(name: str) -> bool:
    # Any of OpenCV's wheels will do: two of them would overwrite each other's files.
    of_opencv = name == "opencv-python-headless" and importlib.util.find_spec("cv2") is not None
    return of_opencv or _version(name) is not None


def _torch_cuda() -> str | None:
    """The major version of the CUDA that torch was built for, without importing it.

    In its own words, since the version of its usual wheel does not tell.
    """
    spec = importlib.util.find_spec("torch")
    file = Path(spec.origin).with_name("version.py") if spec is not None and spec.origin else None
    if file is None or not file.is_file():
        return None
    told = re.search(r"^cuda\b.*=\s*['\"](\d+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    return None if told is None else told[1]


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
