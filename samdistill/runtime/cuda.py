"""A GPU's memory, and what its driver says of it: the only module that imports cuda.bindings.

Knows no network. ONNX Runtime has memory of its own and asks nothing here.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import subprocess
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from samdistill.errors import DeviceUnavailable

DRIVER = "Install NVIDIA's driver for the GPU, or use --device cpu; `samdistill doctor` says what is there."


def _library() -> Any:
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise DeviceUnavailable(
            f"cuda-bindings must be installed to run TensorRT's engines ({error}). "
            "Run: pip install 'samdistill[tensorrt]' or 'samdistill[tensorrt-rtx]'."
        ) from error
    return runtime


def _call(name: str, *arguments: Any) -> Any:
    """Call a function of the CUDA runtime; its values without the error code in front.

    Raises
    ------
    MemoryError
        When the GPU has not enough memory.
    DeviceUnavailable
        For any other error.
    """
    library = _library()
    error, *values = getattr(library, name)(*arguments)
    if error == library.cudaError_t.cudaErrorMemoryAllocation:
        raise MemoryError("the GPU has not enough memory for this input.")
    if error != library.cudaError_t.cudaSuccess:
        _, text = library.cudaGetErrorString(error)
        raise DeviceUnavailable(f"{name} failed: {text.decode()}. {DRIVER}")
    return values[0] if len(values) == 1 else values


@dataclass(frozen=True)
class Gpu:
    """A GPU of this machine.

    Attributes
    ----------
    index
        As CUDA numbers it.
    name
        As NVIDIA sells it.
    capability
        Compute capability without the full stop: 89 for 8.9.
    driver
        Version of NVIDIA's driver.
    """

    index: int
    name: str
    capability: int
    driver: str


@functools.cache
def find_gpu(index: int = 0) -> Gpu:
    """Ask for a GPU.

    Raises
    ------
    DeviceUnavailable
        When there is none of this number, no driver, or no cuda-bindings.
    """
    count = _call("cudaGetDeviceCount")
    if index >= count:
        raise DeviceUnavailable(f"device must be one of the {count} GPUs here, not cuda:{index}. {DRIVER}")
    found = _call("cudaGetDeviceProperties", index)
    smi = nvidia_driver()
    if smi is None:
        raise DeviceUnavailable(
            "nvidia-smi must tell the driver's version, and does not. In a container let "
            f"NVIDIA_DRIVER_CAPABILITIES hold utility beside compute. {DRIVER}"
        )
    return Gpu(
        index,
        found.name.decode().rstrip("\0"),
        10 * found.major + found.minor,
        smi.split("; ")[0].split(", ")[-1],
    )


def nvidia_driver() -> str | None:
    """Names and driver versions of the GPUs, as nvidia-smi tells them; None where there is none."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):  # a driver that hangs is none
        return None
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    return "; ".join(lines) if done.returncode == 0 and lines else None


def used_mb(index: int) -> float:
    """Memory that is taken on a GPU, by everybody."""
    use(index)
    free, total = _call("cudaMemGetInfo")
    return float(total - free) / 2**20


def use(index: int) -> None:
    """Let the calling thread's next calls go to a GPU."""
    _call("cudaSetDevice", index)


class Stream:
    """Work that a GPU does one after another, and named pieces of its memory that only grow."""

    def __init__(self) -> None:
        self._memory: dict[str, tuple[int, int]] = {}
        self._stream: Any = _call("cudaStreamCreate")

    @property
    def handle(self) -> int:
        """What libraries take for it."""
        return int(self._stream)

    def memory(self, name: str, size: int) -> int:
        """Address of at least `size` bytes that keep this name; what was in them is lost when they grow."""
        address, have = self._memory.get(name, (0, 0))
        if have < size:
            self.wait()
            if address:
                del self._memory[name]
                _call("cudaFree", address)
            address = int(_call("cudaMalloc", size))
            self._memory[name] = (address, size)
        return address

    def send(self, name: str, array: npt.NDArray[Any]) -> int:
        """Copy a contiguous array to memory of this name."""
        address = self.memory(name, max(1, array.nbytes))
        kind = _library().cudaMemcpyKind.cudaMemcpyHostToDevice
        _call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, self._stream)
        return address

    def fetch(self, name: str, array: npt.NDArray[Any]) -> None:
        """Copy memory of this name into a contiguous array, which is filled once `wait` returns."""
        address = self.memory(name, max(1, array.nbytes))
        kind = _library().cudaMemcpyKind.cudaMemcpyDeviceToHost
        _call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, self._stream)

    def wait(self) -> None:
        """Return when all of it is done."""
        _call("cudaStreamSynchronize", self._stream)

    def __del__(self) -> None:
        """Give the memory back; when Python ends the driver does."""
        with contextlib.suppress(Exception):
            for address, _ in self._memory.values():
                _call("cudaFree", address)
            _call("cudaStreamDestroy", self._stream)
