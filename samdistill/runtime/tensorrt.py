"""TensorRT and TensorRT-RTX: the only module that imports either, since one is to be called like the other.

A plan is what they make of a graph: TensorRT's for the GPU it was built on, TensorRT-RTX's for the
generations of GPUs it was told, without one. Either opens in the very version that built it. Precision is in
the graph (strong typing), and fp32 is fp32, not TF32. Knows no bundle and no cache.
"""

from __future__ import annotations

import queue
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from samdistill.errors import BundleError, DeviceUnavailable, UsageError
from samdistill.runtime import Arrays, Device, Network, TensorType
from samdistill.runtime.cuda import Stream, find_gpu, use

VERSIONS = {"tensorrt": ((10, 13), (12, 0)), "tensorrt-rtx": ((1, 7), (2, 0))}
"""From the first up to before the second."""
GENERATIONS = {"turing": (75,), "ampere": (80, 86), "ada": (89,), "blackwell": (120, 121)}
"""Of GPUs that TensorRT-RTX builds for, with their compute capabilities."""
_WORKSPACE = "(workspace)"

Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]  # least, usual, largest


@dataclass(frozen=True)
class Profile:
    """Between which shapes of its inputs an engine works, and for which it is made fast."""

    inputs: Mapping[str, Shapes]


def library_version(runtime: str) -> str:
    """The installed library's version.

    Raises
    ------
    DeviceUnavailable
        When it is not installed, or another version than ours.
    """
    return str(_library(runtime).__version__)


def _library(runtime: str) -> Any:
    cure = f"Run: pip install 'samdistill[{runtime}]'."
    try:
        if runtime == "tensorrt":
            import tensorrt as library
        else:
            import tensorrt_rtx as library
    except (ImportError, OSError) as error:
        more = "" if runtime == "tensorrt-rtx" else " It comes from NVIDIA's own package index."
        raise DeviceUnavailable(
            f"{runtime} must be installed for its engines ({error}). {cure}{more}"
        ) from error
    low, high = VERSIONS[runtime]
    found = tuple(int(part) for part in library.__version__.split(".")[:2])
    if not low <= found < high:
        wanted = f">={'.'.join(map(str, low))},<{'.'.join(map(str, high))}"
        raise DeviceUnavailable(f"{runtime} must be {wanted}, not {library.__version__}. {cure}")
    return library


def _log(library: Any) -> Any:
    """A logger that keeps what went wrong."""

    class Log(library.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (library.ILogger.Severity.ERROR, library.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

        def __str__(self) -> str:
            return " ".join("; ".join(self.errors).split())[:400] or "it does not say why"

    return Log()


def build(
    runtime: str,
    network: Network,
    profiles: Sequence[Profile],
    *,
    generations: Sequence[str] = (),
    timings: bytes = b"",
) -> tuple[bytes, bytes]:
    """Make a plan of a graph.

    Parameters
    ----------
    runtime
        "tensorrt" builds on and for the current GPU (`cuda.use`); "tensorrt-rtx" needs none.
    network
        An ONNX file, perhaps with external data.
    profiles
        At least one, each of all inputs.
    generations
        Keys of GENERATIONS, for TensorRT-RTX.
    timings
        What an earlier call gave back, for TensorRT: kernels that were timed are not timed again.

    Returns
    -------
    tuple
        The plan, and the timings.

    Raises
    ------
    DeviceUnavailable
        When the library is not installed, there is no GPU where one is needed, or the library cannot build
        this graph for it.
    BundleError
        When the library cannot read the graph, or its weights lie in other files than its data.
    """
    library = _library(runtime)
    network.check_weights()
    log = _log(library)
    builder = library.Builder(log)
    typed = 1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    definition = builder.create_network(typed)
    parser = library.OnnxParser(definition, log)
    with _file(network) as file:
        read = parser.parse_from_file(str(file)) if network.data else parser.parse(network.content)
    if not read:
        raise BundleError(f"{runtime} {library.__version__} cannot read the network: {log}.")
    config = builder.create_builder_config()
    config.clear_flag(library.BuilderFlag.TF32)
    for one in profiles:
        profile = builder.create_optimization_profile()
        for name, shapes in one.inputs.items():
            profile.set_shape(name, *shapes)
        config.add_optimization_profile(profile)
    cache = None
    if runtime == "tensorrt-rtx":
        capabilities = [f"SM{number}" for name in generations for number in GENERATIONS[name]]
        config.num_compute_capabilities = len(capabilities)
        for place, capability in enumerate(capabilities):
            config.set_compute_capability(getattr(library.ComputeCapability, capability), place)
    else:
        cache = config.create_timing_cache(timings)
        config.set_timing_cache(cache, ignore_mismatch=False)
    plan = builder.build_serialized_network(definition, config)
    if plan is None:
        raise DeviceUnavailable(f"{runtime} {library.__version__} cannot build the network: {log}.")
    return bytes(plan), b"" if cache is None else bytes(cache.serialize())


@contextmanager
def _file(network: Network) -> Iterator[Path | None]:
    """Weights beside a graph have to lie in files, in a folder that only we can write."""
    if not network.data:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, content in {"network.onnx": network.content, **network.data}.items():
            Path(folder, Path(name).name).write_bytes(content)
        yield Path(folder, "network.onnx")


class TensorRtEngine:
    """A plan that runs; an `Engine`.

    Parameters
    ----------
    runtime
        "tensorrt" or "tensorrt-rtx".
    network
        Its content is a plan whose hash somebody has checked: opening one runs what is in it.
    device
        A GPU.

    Raises
    ------
    DeviceUnavailable
        When the library, the driver or the GPU is not there, or the plan is not for them.
    """

    def __init__(self, runtime: str, network: Network, device: Device) -> None:
        library = _library(runtime)
        if device.kind != "cuda":
            raise DeviceUnavailable(f"device must be cuda or cuda:N for {runtime}, not {device}.")
        gpu = find_gpu(device.index)
        use(gpu.index)
        self.runtime = runtime
        self.provider = f"{gpu.name}, {runtime} {library.__version__}"
        self._library, self._gpu, self._log = library, gpu, _log(library)
        self._loader = library.Runtime(self._log)
        self._plan = self._loader.deserialize_cuda_engine(network.content)
        if self._plan is None:
            raise DeviceUnavailable(f"{runtime} {library.__version__} cannot open the plan: {self._log}.")
        names = [self._plan.get_tensor_name(i) for i in range(self._plan.num_io_tensors)]
        is_input = {n: self._plan.get_tensor_mode(n) == library.TensorIOMode.INPUT for n in names}
        self.inputs: Mapping[str, TensorType] = {n: self._type(n) for n in names if is_input[n]}
        self.outputs: Mapping[str, TensorType] = {n: self._type(n) for n in names if not is_input[n]}
        self._profiles = [
            {name: self._bounds(name, number) for name in self.inputs}
            for number in range(self._plan.num_optimization_profiles)
        ]
        self._idle: queue.SimpleQueue[tuple[Any, Stream]] = queue.SimpleQueue()

    def _type(self, name: str) -> TensorType:
        dtype = np.dtype(self._library.nptype(self._plan.get_tensor_dtype(name)))
        return TensorType(dtype, len(self._plan.get_tensor_shape(name)))

    def _bounds(self, name: str, profile: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        least, _, largest = self._plan.get_tensor_profile_shape(name, profile)
        return tuple(least), tuple(largest)

    def run(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Compute every output from every input; each thread that comes gets a context of its own.

        Raises
        ------
        UsageError
            When a shape is outside what the plan was built for.
        BundleError
            When the network fails on these inputs.
        MemoryError
            When the GPU's memory does not do.
        """
        use(self._gpu.index)
        arrays = {n: np.ascontiguousarray(inputs[n], dtype=type_.dtype) for n, type_ in self.inputs.items()}
        profile = self._profile_for(arrays)
        try:
            context, stream = self._idle.get_nowait()
        except queue.Empty:
            strategy = self._library.ExecutionContextAllocationStrategy.USER_MANAGED
            context, stream = self._plan.create_execution_context(strategy), Stream()
            if context is None:
                raise MemoryError(f"{self.runtime} has no memory for another thread: {self._log}.") from None
        try:
            return self._compute(context, stream, profile, arrays)
        finally:
            self._idle.put((context, stream))

    def _compute(
        self, context: Any, stream: Stream, profile: int, arrays: Mapping[str, npt.NDArray[Any]]
    ) -> dict[str, npt.NDArray[Any]]:
        if context.active_optimization_profile != profile:
            self._require(context.set_optimization_profile_async(profile, stream.handle))
        for name, array in arrays.items():
            self._require(context.set_input_shape(name, array.shape))
            self._require(context.set_tensor_address(name, stream.send(name, array)))
        size = context.update_device_memory_size_for_shapes()
        context.set_device_memory(stream.memory(_WORKSPACE, max(1, size)), size)
        answers = {}
        for name, type_ in self.outputs.items():
            answers[name] = answer = np.empty(tuple(context.get_tensor_shape(name)), type_.dtype)
            self._require(context.set_tensor_address(name, stream.memory(name, max(1, answer.nbytes))))
        self._require(context.execute_async_v3(stream.handle))
        for name, answer in answers.items():
            stream.fetch(name, answer)
        stream.wait()
        return answers

    def _require(self, done: bool) -> None:
        if not done:
            raise BundleError(f"the network failed in {self.runtime}: {self._log}.")

    def _profile_for(self, arrays: Mapping[str, npt.NDArray[Any]]) -> int:
        for number, bounds in enumerate(self._profiles):
            if all(_within(array.shape, *bounds[name]) for name, array in arrays.items()):
                return number
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        wanted = " or ".join(
            ", ".join(f"{name} {low}..{high}" for name, (low, high) in bounds.items())
            for bounds in self._profiles
        )
        raise UsageError(
            f"inputs in {self.runtime} must be {wanted}, not {shapes}. Use a smaller batch, or fewer points."
        )


def _within(shape: tuple[int, ...], least: tuple[int, ...], largest: tuple[int, ...]) -> bool:
    return len(shape) == len(least) and all(
        low <= side <= high for low, side, high in zip(least, shape, largest, strict=True)
    )
