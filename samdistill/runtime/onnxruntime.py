"""ONNX Runtime: the only module that imports it. CPU and CUDA, never one in place of the other."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import numpy as np
import numpy.typing as npt

from samdistill.errors import BundleError, DeviceUnavailable
from samdistill.runtime import Arrays, Device, Network, TensorType

# Distributions that all install the one package `onnxruntime` and overwrite each other's files.
WHEELS = ("onnxruntime", "onnxruntime-gpu")
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
DTYPES = {
    "tensor(uint8)": np.uint8,
    "tensor(float)": np.float32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}
_ERRORS_ONLY = 3
_LOST = re.compile(r"CUDA (failure|error) [^;\n]*")  # what the driver says before each further call, too


def installed_wheels() -> list[str]:
    """Which of WHEELS are installed."""
    found = []
    for name in WHEELS:
        try:
            metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        found.append(name)
    return found


def _library() -> Any:
    """Import onnxruntime, when exactly one of its wheels is there."""
    wheels = installed_wheels()
    if len(wheels) > 1:
        raise DeviceUnavailable(
            f"{' and '.join(wheels)} must not be installed together: each overwrites files of the other. "
            f"Run: pip uninstall -y {' '.join(wheels)}, then pip install 'samdistill[cpu]' or "
            "'samdistill[gpu]'."
        )
    try:
        import onnxruntime

        onnxruntime.InferenceSession  # noqa: B018  # gone where one of two wheels was uninstalled over the other
    except (ImportError, AttributeError) as error:
        raise DeviceUnavailable(
            f"onnxruntime must be installed, and whole, to open a bundle ({error}). Run: "
            f"pip uninstall -y {' '.join(WHEELS)}, then pip install 'samdistill[cpu]', or 'samdistill[gpu]' "
            "beside an NVIDIA GPU."
        ) from error
    return onnxruntime


def cuda_built_for() -> str:
    """The CUDA version that the installed wheel was built for, "" for the CPU's.

    Raises
    ------
    DeviceUnavailable
        When none or both of the wheels are installed.
    """
    return str(getattr(_library(), "cuda_version", ""))


def preload_cuda() -> None:
    """Load CUDA's libraries from NVIDIA's wheels, where these are installed, and print nothing.

    Raises
    ------
    DeviceUnavailable
        When none or both of the wheels are installed.
    """
    library = _library()
    if hasattr(library, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):  # standard output is the command's
            library.preload_dlls()


class OnnxRuntimeEngine:
    """A network in ONNX Runtime; an `Engine`.

    Parameters
    ----------
    network
        An ONNX file, perhaps with external data.
    device
        Where to run; asserted after opening.
    threads
        CPU threads within one call; None: as many as the machine has cores.

    Raises
    ------
    DeviceUnavailable
        When none or both of the wheels are installed, or the device's provider does not open.
    BundleError
        When the bytes are no network that this ONNX Runtime can open.
    """

    runtime = "onnxruntime"

    def __init__(self, network: Network, device: Device, *, threads: int | None = None) -> None:
        library = _library()
        self.provider = PROVIDERS[device.kind]
        if self.provider not in library.get_available_providers():
            raise DeviceUnavailable(
                f"device {device} needs {self.provider}, which the installed {' '.join(installed_wheels())} "
                f"{library.__version__} does not have. Run: pip uninstall -y onnxruntime, "
                "then pip install 'samdistill[gpu]', or use --device cpu."
            )
        options = library.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        options.inter_op_num_threads = 1
        options.intra_op_num_threads = threads or 0
        # Its threads would otherwise spin for 25 ms after a call, on the cores that the next engine needs.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if network.data:
            options.add_external_initializers_from_files_in_memory(
                list(network.data), list(network.data.values()), [len(one) for one in network.data.values()]
            )
        if device.kind == "cuda":
            preload_cuda()
        # Without TF32, which ONNX Runtime would take for fp32 on a GPU.
        on_gpu = {"device_id": device.index, "use_tf32": 0}
        chosen = (self.provider, on_gpu) if device.kind == "cuda" else self.provider
        self._failures = _failures(library)
        try:
            self._session = library.InferenceSession(
                network.content, options, providers=[chosen], enable_fallback=0
            )
        except self._failures as error:
            # On a GPU only a complaint about the file itself is the bundle's fault.
            if device.kind == "cpu" or type(error).__name__ in ("InvalidProtobuf", "InvalidGraph", "NoModel"):
                version = library.__version__
                raise BundleError(f"onnxruntime {version} cannot open the network: {error}.") from error
            raise DeviceUnavailable(f"device {device} does not open: {error}.") from error
        # ONNX Runtime goes on with the CPU when a provider's libraries do not load.
        used = self._session.get_providers()
        if not used or used[0] != self.provider:
            raise DeviceUnavailable(
                f"device {device} does not open: onnxruntime fell back to {used}. Install the CUDA and cuDNN "
                f"versions that onnxruntime-gpu {library.__version__} was built for, or use --device cpu."
            )
        self.inputs: Mapping[str, TensorType] = _types(self._session.get_inputs())
        self.outputs: Mapping[str, TensorType] = _types(self._session.get_outputs())

    def run(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Compute every output from every input; ONNX Runtime's own call is safe from several threads.

        Raises
        ------
        BundleError
            When the network fails on these inputs.
        MemoryError
            When the memory does not do.
        DeviceUnavailable
            When the GPU is gone, whatever the inputs.
        """
        try:
            values = self._session.run(None, dict(inputs))
        except self._failures as error:
            if "allocate" in str(error) or "out of memory" in str(error).lower():
                raise MemoryError(f"{self.provider} has not enough memory for this input.") from error
            lost = _LOST.search(str(error))
            if lost is not None:
                raise DeviceUnavailable(
                    f"{self.provider} has lost its GPU ({lost[0].strip()}). See what `samdistill doctor` and "
                    "nvidia-smi find, or use --device cpu."
                ) from error
            raise BundleError(f"the network failed in {self.provider}: {error}.") from error
        return dict(zip(self.outputs, values, strict=True))


def _failures(library: Any) -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises: a dozen classes of its own, without a base in common."""
    state = vars(library.capi.onnxruntime_pybind11_state)
    own = [kind for kind in state.values() if isinstance(kind, type) and issubclass(kind, Exception)]
    return (*own, RuntimeError, ValueError)


def _types(arguments: list[Any]) -> dict[str, TensorType]:
    types = {}
    for argument in arguments:
        if argument.type not in DTYPES:
            raise BundleError(
                f"tensor {argument.name} must be one of {', '.join(DTYPES)}, not {argument.type}."
            )
        types[argument.name] = TensorType(np.dtype(DTYPES[argument.type]), len(argument.shape))
    return types
