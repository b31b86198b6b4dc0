"""A GPU for tests on machines without one: host memory behind CUDA's calls, ONNX Runtime behind a plan.

What is ours runs as it is: engine, memory, cache, gate. Only the two libraries' own functions are replaced,
under their real names; test_plans.py checks that the real ones have them. A fake plan is a pickle of the
graph and its profiles, and its arithmetic is ONNX Runtime's.
"""

from __future__ import annotations

import ctypes
import pickle
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from samdistill.runtime import Network, cuda, open_engine, tensorrt

MAGIC = b"plan"


class FakeCuda:
    """`cuda.bindings.runtime` with host memory for a GPU's."""

    def __init__(self) -> None:
        from cuda.bindings import runtime

        self.real = runtime
        self.cudaError_t, self.cudaMemcpyKind = runtime.cudaError_t, runtime.cudaMemcpyKind
        self.cudaGetErrorString = runtime.cudaGetErrorString
        self.ok = (runtime.cudaError_t.cudaSuccess,)
        self.memory: dict[int, Any] = {}
        self.limit = 1 << 30
        self.capability = (8, 9)

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:
        return (*self.ok, 1)

    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, ...]:
        major, minor = self.capability
        return (*self.ok, SimpleNamespace(name=b"NVIDIA Fake", major=major, minor=minor))

    def cudaMemGetInfo(self) -> tuple[Any, ...]:
        used = sum(map(len, self.memory.values()))
        return (*self.ok, self.limit - used, self.limit)

    def cudaSetDevice(self, device: int) -> tuple[Any, ...]:
        assert device == 0
        return self.ok

    def cudaStreamCreate(self) -> tuple[Any, ...]:
        return (*self.ok, self.real.cudaStream_t(7))

    def cudaStreamSynchronize(self, stream: Any) -> tuple[Any, ...]:
        assert int(stream) == 7
        return self.ok

    def cudaStreamDestroy(self, stream: Any) -> tuple[Any, ...]:
        return self.ok

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        if size > self.limit:
            return self.cudaError_t.cudaErrorMemoryAllocation, None
        buffer = ctypes.create_string_buffer(size)
        self.memory[ctypes.addressof(buffer)] = buffer
        return (*self.ok, ctypes.addressof(buffer))

    def cudaFree(self, address: int) -> tuple[Any, ...]:
        del self.memory[address]
        return self.ok

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: Any, stream: Any) -> tuple[Any, ...]:
        on_gpu = to if kind == self.cudaMemcpyKind.cudaMemcpyHostToDevice else source
        assert size <= len(self.memory[on_gpu])
        ctypes.memmove(to, source, size)
        return self.ok


class FakeContext:
    """`IExecutionContext`."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.active_optimization_profile = 0
        self.addresses: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.workspace = 0

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.active_optimization_profile = profile
        return True

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        least, _, largest = self.engine.profiles[self.active_optimization_profile][name]
        assert all(a <= b <= c for a, b, c in zip(least, shape, largest, strict=True))
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def update_device_memory_size_for_shapes(self) -> int:
        return 64

    def set_device_memory(self, address: int, size: int) -> None:
        self.workspace = size

    def _answers(self) -> dict[str, Any]:
        inputs = {}
        for name, shape in self.shapes.items():
            dtype = self.engine.inner.inputs[name].dtype
            count = int(np.prod(shape))
            held = (ctypes.c_char * (count * dtype.itemsize)).from_address(self.addresses[name])
            inputs[name] = np.frombuffer(held, dtype, count).reshape(shape).copy()
        return self.engine.inner.run(inputs)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._answers()[name].shape)

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 7
        assert self.workspace == 64
        for name, answer in self._answers().items():
            moved = np.ascontiguousarray(answer + self.engine.library.wrong, dtype=answer.dtype)
            assert moved.nbytes <= len(self.engine.library.gpu.memory[self.addresses[name]])
            ctypes.memmove(self.addresses[name], moved.ctypes.data, moved.nbytes)
        return True


class FakeEngine:
    """`ICudaEngine`."""

    def __init__(self, library: FakeTensorRt, plan: bytes) -> None:
        self.library = library
        content, data, self.profiles = pickle.loads(plan[len(MAGIC) :])
        self.inner = open_engine(content, data=data)
        self.types = {**self.inner.inputs, **self.inner.outputs}
        self.num_io_tensors = len(self.types)
        self.num_optimization_profiles = len(self.profiles)

    def get_tensor_name(self, index: int) -> str:
        return list(self.types)[index]

    def get_tensor_mode(self, name: str) -> Any:
        modes = self.library.TensorIOMode
        return modes.INPUT if name in self.inner.inputs else modes.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return self.types[name].dtype.type

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1,) * self.types[name].ndim

    def get_tensor_profile_shape(self, name: str, profile: int) -> Any:
        return self.profiles[profile][name]

    def create_execution_context(self, strategy: Any) -> FakeContext:
        assert strategy == self.library.ExecutionContextAllocationStrategy.USER_MANAGED
        return FakeContext(self)


class FakeTensorRt:
    """The library: enums and logger are TensorRT-RTX's own, what needs a GPU is not."""

    def __init__(self, gpu: FakeCuda, version: str = "10.13.3.9") -> None:
        import tensorrt_rtx

        self.gpu = gpu

        for name in ("ILogger", "TensorIOMode", "ExecutionContextAllocationStrategy"):
            setattr(self, name, getattr(tensorrt_rtx, name))
        self.__version__ = version
        self.wrong = 0.0  # added to what an engine answers
        self.built: list[str] = []  # with which library
        self.nptype: Callable[[Any], Any] = np.dtype

    def Runtime(self, log: Any) -> Any:
        def deserialize_cuda_engine(plan: bytes) -> FakeEngine | None:
            if not plan.startswith(MAGIC):
                log.log(log.Severity.ERROR, "magic tag does not match")
                return None
            return FakeEngine(self, plan)

        return SimpleNamespace(deserialize_cuda_engine=deserialize_cuda_engine)

    def build(
        self,
        runtime: str,
        network: Network,
        profiles: Sequence[Any],
        *,
        generations: Sequence[str] = (),
        timings: bytes = b"",
    ) -> tuple[bytes, bytes]:
        self.built.append(runtime)
        shapes = [dict(one.inputs) for one in profiles]
        plan = MAGIC + pickle.dumps((network.content, dict(network.data), shapes))
        return plan, b"times" if runtime == "tensorrt" else b""


def install(
    patch: pytest.MonkeyPatch, *, driver: str = "NVIDIA Fake, 580.1"
) -> tuple[FakeCuda, FakeTensorRt]:
    """Put a GPU and both libraries into this process; both are also "installed" for `is_installed`."""
    import samdistill.engines as engines
    import samdistill.plans as plans
    import samdistill.verify as verifying

    gpu = FakeCuda()
    library = FakeTensorRt(gpu)
    patch.setattr(cuda, "_library", lambda: gpu)
    patch.setattr(cuda, "nvidia_driver", lambda: driver)
    patch.setattr(tensorrt, "_library", lambda runtime: library)
    patch.setattr(plans, "build", library.build)
    for module in (engines, verifying):
        patch.setattr(module, "is_installed", lambda runtime: runtime != "openvino")
    cuda.find_gpu.cache_clear()
    return gpu, library
