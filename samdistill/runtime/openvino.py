"""OpenVINO: the only module that imports it. CPU alone, in the precision that was asked for or not at all."""

from __future__ import annotations

import io
import os
import queue
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from samdistill.errors import BundleError, DeviceUnavailable
from samdistill.runtime import Arrays, Device, Network, TensorType

MOST_STREAMS = 8  # calls side by side; each stream holds a network's activations
HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}


def _library() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise DeviceUnavailable(
            f"openvino must be installed for this engine ({error}). Run: pip install 'samdistill[openvino]'."
        ) from error
    return openvino


class OpenVinoEngine:
    """A network in OpenVINO; an `Engine`.

    Parameters
    ----------
    network
        An ONNX file, perhaps with external data; `precision` is one of HINTS.
    device
        The CPU.
    threads
        CPU threads within one call; None lets OpenVINO choose.

    Raises
    ------
    DeviceUnavailable
        When OpenVINO is not installed, the device is no CPU, or the CPU does not compute in the precision.
    BundleError
        When the bytes are no network that this OpenVINO can open.
    """

    runtime = "openvino"

    def __init__(self, network: Network, device: Device, *, threads: int | None = None) -> None:
        library = _library()
        if device.kind != "cpu":
            raise DeviceUnavailable(f"device must be cpu for openvino, not {device}. Use --device cpu.")
        if network.precision not in HINTS:
            raise DeviceUnavailable(
                f"precision must be one of {', '.join(HINTS)} in openvino, not {network.precision}."
            )
        hint = HINTS[network.precision]
        options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            # Calls in one stream wait for each other, and the threads named here are those of all streams.
            streams = max(1, min(MOST_STREAMS, len(os.sched_getaffinity(0)) // threads))
            options |= {"NUM_STREAMS": streams, "INFERENCE_NUM_THREADS": threads * streams}
        try:
            core = library.Core()
            self._compiled = core.compile_model(_read(core, network), "CPU", options)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise BundleError(f"openvino {library.__version__} cannot open the network: {reason}.") from error
        # OpenVINO takes another precision where the processor does not have the one asked for.
        used = self._compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        if used != hint:
            raise DeviceUnavailable(
                f"precision {network.precision} cannot be had on this processor: openvino would compute in "
                f"{used}. Use an engine of another precision."
            )
        self.provider = f"CPU {used}" if network.precision != "int8" else "CPU int8"
        self.inputs: Mapping[str, TensorType] = _types(self._compiled.inputs)
        self.outputs: Mapping[str, TensorType] = _types(self._compiled.outputs)
        self._shapes = {port.any_name: _shape(port) for port in self._compiled.inputs}
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def run(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Compute every output from every input; each thread that comes gets a request of its own.

        Raises
        ------
        BundleError
            When the network fails on these inputs.
        MemoryError
            When the memory does not do.
        """
        for name, shape in self._shapes.items():  # OpenVINO takes what only looks like it
            found = inputs[name].shape
            if len(found) != len(shape) or any(
                side not in (None, own) for own, side in zip(found, shape, strict=True)
            ):
                raise BundleError(f"the network failed in openvino: {name} must be {shape}, not {found}.")
        try:
            request = self._idle.get_nowait()
        except queue.Empty:
            request = self._compiled.create_infer_request()
        try:
            answers = request.infer({name: np.ascontiguousarray(inputs[name]) for name in self.inputs})
            return {name: np.array(answers[name]) for name in self.outputs}
        except (RuntimeError, KeyError) as error:
            if "alloc" in str(error):
                raise MemoryError("openvino has not enough memory for this input.") from error
            raise BundleError(
                f"the network failed in openvino: {' '.join(str(error).split())[:300]}."
            ) from error
        finally:
            self._idle.put(request)


def _read(core: Any, network: Network) -> Any:
    """Parse a graph; weights beside it have to lie in files, in a folder that only we can write."""
    if not network.data:
        return core.read_model(io.BytesIO(network.content))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "network.onnx")
        file.write_bytes(network.content)
        for name, content in network.data.items():
            Path(folder, Path(name).name).write_bytes(content)
        return core.read_model(str(file))


def _shape(port: Any) -> tuple[int | None, ...]:
    """Of an input, None where it is free."""
    return tuple(side.get_length() if side.is_static else None for side in port.partial_shape)


def _types(ports: Any) -> dict[str, TensorType]:
    types = {}
    for port in ports:
        dtype = np.dtype(port.element_type.to_dtype())
        types[port.any_name] = TensorType(dtype, port.partial_shape.rank.get_length())
    return types
