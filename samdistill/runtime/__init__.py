"""Runtimes behind one small interface: a network's bytes in, named arrays through it.

Each library has a module of its own, which is the only place that imports it. An engine runs on the device
it was asked for or does not open. Knows no bundle and no image.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from samdistill.errors import BundleError, UsageError
from samdistill.runtime.onnx_file import external_files

Arrays = Mapping[str, npt.NDArray[Any]]


class Engine(Protocol):
    """An opened network; safe to use from several threads at once.

    Attributes
    ----------
    runtime
        Key of RUNTIMES.
    provider
        What really computes, as the library names it.
    inputs, outputs
        Dtype and rank of each named tensor.
    """

    @property
    def runtime(self) -> str: ...

    @property
    def provider(self) -> str: ...

    @property
    def inputs(self) -> Mapping[str, TensorType]: ...

    @property
    def outputs(self) -> Mapping[str, TensorType]: ...

    def run(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Compute every output from every input."""
        ...


@dataclass(frozen=True)
class TensorType:
    """Dtype and number of dimensions of a network's input or output."""

    dtype: np.dtype[Any]
    ndim: int


@dataclass(frozen=True)
class Device:
    """Where a network runs.

    Attributes
    ----------
    kind
        "cpu" or "cuda".
    index
        Number of the GPU; 0 for the CPU.
    """

    kind: str
    index: int = 0

    @classmethod
    def parse(cls, text: str) -> Device:
        """Read "cpu", "cuda" or "cuda:N".

        Raises
        ------
        UsageError
            For anything else.
        """
        match = re.fullmatch(r"(cpu)|cuda(?::(\d{1,3}))?", text)
        if match is None:
            raise UsageError(f"device must be cpu, cuda or cuda:N, not {text!r}.")
        return cls("cpu") if match[1] else cls("cuda", int(match[2] or 0))

    def __str__(self) -> str:
        return "cpu" if self.kind == "cpu" else f"cuda:{self.index}"


@dataclass(frozen=True)
class Network:
    """What a runtime opens.

    Attributes
    ----------
    content
        The graph file's bytes; of TensorRT's engines the plan's.
    data
        Weights that lie beside it: file name -> bytes.
    precision
        To compute in, where the graph leaves that to the library.
    """

    content: bytes
    data: Mapping[str, bytes]
    precision: str

    def check_weights(self) -> None:
        """Make sure that a graph has all its weights in itself and in `data`: libraries look on the disk too.

        Raises
        ------
        BundleError
            When it names another file.
        """
        strange = sorted(external_files(self.content) - self.data.keys())
        if strange:
            known = f" or in {', '.join(self.data)}" if self.data else ""
            raise BundleError(
                f"the network must have its weights in itself{known}, not in {strange[0]!r}, a file that the "
                "manifest does not give it. Do not use this bundle; export it again."
            )


def _onnxruntime(network: Network, device: Device, threads: int | None) -> Engine:
    from samdistill.runtime.onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(network, device, threads=threads)


def _openvino(network: Network, device: Device, threads: int | None) -> Engine:
    from samdistill.runtime.openvino import OpenVinoEngine

    return OpenVinoEngine(network, device, threads=threads)


def _tensorrt(network: Network, device: Device, threads: int | None) -> Engine:
    from samdistill.runtime.tensorrt import TensorRtEngine

    return TensorRtEngine("tensorrt", network, device)


def _tensorrt_rtx(network: Network, device: Device, threads: int | None) -> Engine:
    from samdistill.runtime.tensorrt import TensorRtEngine

    return TensorRtEngine("tensorrt-rtx", network, device)


RUNTIMES: dict[str, Callable[[Network, Device, int | None], Engine]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "tensorrt": _tensorrt,
    "tensorrt-rtx": _tensorrt_rtx,
}
PACKAGES = {
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt_rtx",
}
"""What each runtime imports."""
PLANNED = ("tensorrt", "tensorrt-rtx")
"""Those that open plans made for a GPU, not graphs; see `samdistill.plans`."""


def is_installed(runtime: str) -> bool:
    """Whether a runtime's library is there; that it loads is seen when it is used."""
    return importlib.util.find_spec(PACKAGES[runtime]) is not None


def load_error(runtime: str) -> str | None:
    """Why a runtime's library does not load, for want of a file of the system's say; None where it does."""
    try:
        found = importlib.import_module(PACKAGES[runtime])
    except (ImportError, OSError) as error:
        return str(error)
    if found.__file__ is None:  # a folder with what an uninstalled wheel left
        return f"{PACKAGES[runtime]} has lost its files to another wheel's uninstallation; install it anew"
    return None


def open_engine(
    model: bytes,
    *,
    device: str = "cpu",
    runtime: str = "onnxruntime",
    threads: int | None = None,
    precision: str = "fp32",
    data: Mapping[str, bytes] | None = None,
) -> Engine:
    """Open a network.

    Parameters
    ----------
    model
        The graph file's bytes; of TensorRT's engines the plan's.
    device
        "cpu", "cuda" or "cuda:N".
    runtime
        Key of RUNTIMES.
    threads
        CPU threads within one call; None lets the library choose.
    precision
        To compute in, where the graph leaves that to the library.
    data
        Weights that lie beside the graph: file name -> bytes.

    Raises
    ------
    UsageError
        For an unknown device, runtime or number of threads.
    DeviceUnavailable
        When the library or the device cannot be had.
    BundleError
        When the library cannot open the network, or its weights lie in other files than `data`.
    """
    if runtime not in RUNTIMES:
        raise UsageError(f"runtime must be one of {', '.join(RUNTIMES)}, not {runtime!r}.")
    if threads is not None and threads < 1:
        raise UsageError(f"threads must be at least 1, not {threads}.")
    network = Network(model, data or {}, precision)
    if runtime not in PLANNED:
        network.check_weights()
    return RUNTIMES[runtime](network, Device.parse(device), threads)
