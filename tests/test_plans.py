"""TensorRT's plans: memory and shapes, those that travel, and nothing in use that was not proved here."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_gpu
import numpy as np
import pytest
from bundles import rewrite
from fake_gpu import FakeContext, FakeCuda, FakeEngine, FakeTensorRt

from samdistill import engines
from samdistill.bundle import Bundle
from samdistill.engines import candidates, open_part
from samdistill.errors import BundleError, DeviceUnavailable, UsageError
from samdistill.plans import cache_folder, generation, plans_folder
from samdistill.predictor import Predictor
from samdistill.profiles import profiles
from samdistill.runtime import Device, Network, cuda, open_engine, tensorrt
from samdistill.runtime.cuda import Gpu, find_gpu
from samdistill.verify import verify

Machine = tuple[FakeCuda, FakeTensorRt]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    find_gpu.cache_clear()
    yield tmp_path / "cache" / "samdistill" / "plans"
    find_gpu.cache_clear()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return fake_gpu.install(monkeypatch)


def test_a_relative_cache_folder_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the XDG specification has it; it would lie in every folder one works in."""
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    for value in ("cache", "./cache", ""):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache_folder() == tmp_path / ".cache" / "samdistill"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own" / "samdistill"


def with_engine(
    bundle: Path, runtime: str = "tensorrt", *, verified: bool = True, plan: bytes | None = None
) -> Path:
    """Give a bundle an engine of TensorRT's for its student."""

    def edit(values: dict[str, Any]) -> None:
        engine = {**values["engines"][0], "runtime": runtime, "device": "cuda", "verified": verified}
        if plan is not None:
            path = "student.fp32.tensorrt-rtx.plan"
            (bundle / path).write_bytes(plan)
            values["files"].append({"path": path, "sha256": "0" * 64, "bytes": 0})
            engine |= {"plan": path, "plan_gpus": ["ada"], "plan_version": "10.13.3.9"}
        values["engines"].append(engine)

    rewrite(bundle, edit)
    return bundle


def a_plan(bundle: Path, library: FakeTensorRt) -> bytes:
    shapes = profiles("student", size=64, teacher=None)
    return library.build("tensorrt-rtx", Network((bundle / "student.onnx").read_bytes(), {}, "fp32"), shapes)[
        0
    ]


# --- the doors


def test_what_the_fakes_replace_is_there_under_the_same_names() -> None:
    import tensorrt_rtx
    from cuda.bindings import runtime

    assert [name for name in vars(FakeCuda) if name.startswith("cuda") and not hasattr(runtime, name)] == []
    for fake, real in ((FakeContext, "IExecutionContext"), (FakeEngine, "ICudaEngine")):
        own = [name for name in vars(fake) if not name.startswith("_")]
        assert [name for name in own if not hasattr(getattr(tensorrt_rtx, real), name)] == []
    for name in ("active_optimization_profile",):
        assert hasattr(tensorrt_rtx.IExecutionContext, name)
    for name in ("num_io_tensors", "num_optimization_profiles"):
        assert hasattr(tensorrt_rtx.ICudaEngine, name)


@pytest.mark.skipif(cuda.nvidia_driver() is not None, reason="is about machines without a GPU")
def test_without_a_driver_every_call_says_what_is_missing_and_none_stumbles_over_its_arguments() -> None:
    """The real library takes our arguments and answers that there is no driver."""
    from cuda.bindings import runtime

    stream = runtime.cudaStream_t(0)
    kind = runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
    for name, arguments in {
        "cudaGetDeviceProperties": (0,),
        "cudaMemGetInfo": (),
        "cudaSetDevice": (0,),
        "cudaStreamCreate": (),
        "cudaMalloc": (8,),
        "cudaMemcpyAsync": (1 << 20, np.zeros(1).ctypes.data, 8, kind, stream),
        "cudaStreamSynchronize": (stream,),
        "cudaFree": (1 << 20,),
    }.items():
        with pytest.raises(DeviceUnavailable, match=f"{name} failed: .*Install NVIDIA's driver"):
            cuda._call(name, *arguments)
    with pytest.raises(DeviceUnavailable, match="cudaGetDeviceCount failed"):
        open_engine(b"plan", runtime="tensorrt-rtx", device="cuda")


def test_a_missing_or_wrong_library_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceUnavailable, match=r"pip install 'samdistill\[tensorrt\]'.*NVIDIA's own"):
        tensorrt.library_version("tensorrt")
    import tensorrt_rtx

    monkeypatch.setattr(tensorrt_rtx, "__version__", "2.0.1")
    with pytest.raises(DeviceUnavailable, match=r"tensorrt-rtx must be >=1\.7,<2\.0, not 2\.0\.1"):
        tensorrt.library_version("tensorrt-rtx")
    with pytest.raises(DeviceUnavailable, match="device must be cuda or cuda:N"):
        monkeypatch.undo()
        open_engine(b"plan", runtime="tensorrt-rtx", device="cpu")


@pytest.mark.usefixtures("machine")
def test_a_container_without_nvidia_smi_is_told_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "nvidia_driver", lambda: None)
    with pytest.raises(DeviceUnavailable, match="NVIDIA_DRIVER_CAPABILITIES hold utility"):
        find_gpu()


@pytest.mark.usefixtures("machine")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(DeviceUnavailable, match="one of the 1 GPUs here, not cuda:1"):
        find_gpu(1)
    assert find_gpu() == Gpu(0, "NVIDIA Fake", 89, "580.1")
    assert generation(find_gpu()) == "ada"
    with pytest.raises(DeviceUnavailable, match="for tensorrt-rtx, not NVIDIA H200"):
        generation(Gpu(0, "NVIDIA H200", 90, "580.1"))


# --- an opened plan


def test_a_plan_computes_in_every_shape_of_its_profiles_and_refuses_others(
    tiny_bundle: Path, machine: Machine
) -> None:
    gpu, library = machine
    engine = open_engine(a_plan(tiny_bundle, library), runtime="tensorrt", device="cuda")
    assert engine.provider == "NVIDIA Fake, tensorrt 10.13.3.9"
    reference = open_engine((tiny_bundle / "student.onnx").read_bytes())
    assert (engine.inputs, engine.outputs) == (reference.inputs, reference.outputs)
    random = np.random.default_rng(0)
    for shape in ((1, 3, 64, 64), (8, 3, 64, 256), (2, 3, 256, 32), (1, 3, 32, 32)):
        pixels = random.integers(0, 256, shape, np.uint8)
        inputs = {"pixels": pixels[:, :, ::1]}
        np.testing.assert_array_equal(engine.run(inputs)["logits"], reference.run(inputs)["logits"])
    for shape in ((9, 3, 64, 64), (1, 3, 96, 96), (1, 3, 64, 288)):
        with pytest.raises(UsageError, match=r"must be pixels \(1, 3, 32, 32\)\.\.\(8, 3, 64, 256\) or"):
            engine.run({"pixels": np.zeros(shape, np.uint8)})
    before = len(gpu.memory)
    engine.run({"pixels": np.zeros((1, 3, 64, 64), np.uint8)})
    assert len(gpu.memory) == before == 3  # pixels, logits, workspace: they grow and stay


def test_threads_have_contexts_of_their_own_and_memory_that_ends_says_so(
    tiny_bundle: Path, machine: Machine
) -> None:
    gpu, library = machine
    engine = open_engine(a_plan(tiny_bundle, library), runtime="tensorrt", device="cuda")
    batches = [np.random.default_rng(i).integers(0, 256, (2, 3, 64, 64), np.uint8) for i in range(8)]
    alone = [engine.run({"pixels": batch})["logits"] for batch in batches]
    found: dict[int, Any] = {}

    def work(index: int) -> None:
        found[index] = engine.run({"pixels": batches[index]})["logits"]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, logits in enumerate(alone):
        np.testing.assert_array_equal(found[index], logits)
    gpu.limit = 100
    with pytest.raises(MemoryError, match="the GPU has not enough memory"):
        engine.run({"pixels": np.zeros((8, 3, 64, 256), np.uint8)})
    assert cuda.used_mb(0) >= 0


@pytest.mark.usefixtures("machine")
def test_what_is_no_plan_does_not_open() -> None:
    with pytest.raises(DeviceUnavailable, match="cannot open the plan: magic tag does not match"):
        open_engine(b"nonsense", runtime="tensorrt", device="cuda")


# --- a plan that travels


def test_an_engine_built_without_a_gpu_is_taken_by_auto_only_after_it_was_proved_here(
    tiny_bundle: Path, machine: Machine
) -> None:
    _, library = machine
    bundle = with_engine(tiny_bundle, "tensorrt-rtx", verified=False, plan=a_plan(tiny_bundle, library))
    library.built.clear()
    opened = Bundle.open(bundle)
    assert [e.runtime for e in candidates(opened, "student", device="cuda")] == [
        "onnxruntime",
        "tensorrt-rtx",
    ]
    # ONNX Runtime, whose wheel here is the CPU's.
    with pytest.raises(DeviceUnavailable, match=r"CUDAExecutionProvider.* once: run .* --device cuda"):
        Predictor.load(bundle, "cuda")
    assert Predictor.load(bundle, "cuda", runtime="tensorrt-rtx").runtime == "tensorrt-rtx"
    assert library.built == []  # the bundle's own plan
    assert Predictor.load(bundle, "cuda").runtime == "tensorrt-rtx"


def test_where_auto_has_plans_alone_it_says_that_one_is_to_be_named_or_that_no_gpu_is_here(
    tiny_bundle: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(with_engine(tiny_bundle, verified=False))
    monkeypatch.setattr(engines, "candidates", lambda *_, **__: [bundle.manifest.engines[1]])
    with pytest.raises(DeviceUnavailable, match=r"student in tensorrt must be proved.*--runtime tensorrt\."):
        open_part(bundle, "student", device="cuda")
    with pytest.raises(DeviceUnavailable, match="device must be one of the 1 GPUs here, not cuda:3"):
        open_part(bundle, "student", device="cuda:3")


@pytest.mark.parametrize(
    ("runtime", "device", "extra"),
    [("openvino", "cpu", "openvino"), ("onnxruntime", "cpu", "cpu"), ("onnxruntime", "cuda", "gpu")],
)
def test_a_runtime_that_is_not_installed_is_named_with_its_own_extra(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, runtime: str, device: str, extra: str
) -> None:
    rewrite(
        tiny_bundle,
        lambda values: values["engines"].append({**values["engines"][0], "runtime": "openvino"}),
    )
    monkeypatch.setattr(engines, "is_installed", lambda name: name != runtime)
    wanted = rf"^{runtime} must be installed .* on {device}\. Run: pip install 'samdistill\[{extra}\]';"
    with pytest.raises(DeviceUnavailable, match=wanted):
        Predictor.load(tiny_bundle, device, runtime)


def test_verify_proves_what_was_built_elsewhere(tiny_bundle: Path, machine: Machine, cache: Path) -> None:
    _, library = machine
    bundle = with_engine(tiny_bundle, "tensorrt-rtx", verified=False, plan=a_plan(tiny_bundle, library))
    found = verify(bundle, device="cuda")
    assert found.runtime == "tensorrt-rtx"
    assert len(found.golden) == 3
    assert len(list(cache.glob("*.plan"))) == 1
    (other,) = found.unavailable
    assert other.startswith("student: onnxruntime fp32: device cuda:0 needs CUDAExecutionProvider")


def test_where_nothing_can_be_had_on_the_device_verify_says_so(tiny_bundle: Path) -> None:
    with pytest.raises(DeviceUnavailable, match="CUDAExecutionProvider"):
        verify(tiny_bundle, device="cuda")


def test_an_engine_that_cannot_be_had_gives_way_to_the_next_on_the_same_device(
    tiny_bundle: Path, machine: Machine
) -> None:
    """TensorRT-RTX does not know this GPU; TensorRT does."""
    gpu, _ = machine
    with_engine(with_engine(tiny_bundle, "tensorrt-rtx"), "tensorrt")
    gpu.capability = (9, 0)
    assert Predictor.load(tiny_bundle, "cuda").runtime == "tensorrt"
    with pytest.raises(DeviceUnavailable, match="must be one of turing"):
        Predictor.load(tiny_bundle, "cuda", runtime="tensorrt-rtx")


def test_low_precision_of_untrained_weights_is_not_taken_by_auto_even_when_it_runs(
    tiny_bundle: Path, machine: Machine
) -> None:
    bundle = with_engine(tiny_bundle, verified=False)
    rewrite(bundle, lambda values: values["engines"][0].update(verified=False))
    opened = Bundle.open(bundle)
    part = open_part(opened, "student", device="cuda", runtime="tensorrt")
    part.plan.keep(opened.sha256)  # type: ignore[union-attr]
    with pytest.raises(DeviceUnavailable, match=r"CUDAExecutionProvider.*--device cpu\.$"):  # no such cure
        open_part(opened, "student", device="cuda")


@pytest.mark.parametrize("change", ["generation", "version"])
def test_a_travelling_plan_for_another_gpu_or_version_is_built_anew(
    tiny_bundle: Path, machine: Machine, change: str
) -> None:
    gpu, library = machine
    bundle = with_engine(tiny_bundle, "tensorrt-rtx", verified=False, plan=a_plan(tiny_bundle, library))
    library.built.clear()
    if change == "generation":
        gpu.capability = (8, 6)
    else:
        library.__version__ = "10.15"
    Predictor.load(bundle, "cuda", runtime="tensorrt-rtx")
    assert library.built == ["tensorrt-rtx"]


def test_a_travelling_plan_that_was_swapped_is_refused(tiny_bundle: Path, machine: Machine) -> None:
    _, library = machine
    bundle = with_engine(tiny_bundle, "tensorrt-rtx", verified=False, plan=a_plan(tiny_bundle, library))
    (bundle / "student.fp32.tensorrt-rtx.plan").write_bytes(a_plan(tiny_bundle, library) + b" ")
    for check in (lambda: verify(bundle), lambda: Predictor.load(bundle, "cuda", runtime="tensorrt-rtx")):
        with pytest.raises(BundleError, match=r"plan must have"):
            check()


@pytest.mark.parametrize(
    "engine",
    [
        {"plan": "a.plan"},
        {"plan_gpus": ["ada"], "plan_version": "1"},
        {"plan": "student.onnx", "plan_gpus": ["ada"], "plan_version": "1"},
        {"plan": "../a.plan", "plan_gpus": ["ada"], "plan_version": "1", "runtime": "tensorrt-rtx"},
        {"plan": "a.plan", "plan_gpus": ["hopper"], "plan_version": "1", "runtime": "tensorrt-rtx"},
        {"plan": "none.plan", "plan_gpus": ["ada"], "plan_version": "1", "runtime": "tensorrt-rtx"},
    ],
)
def test_half_a_plan_in_a_manifest_is_refused(tiny_bundle: Path, engine: dict[str, Any]) -> None:
    rewrite(tiny_bundle, lambda values: values["engines"][0].update(engine))
    with pytest.raises(BundleError):
        Bundle.open(tiny_bundle)


def test_a_plan_for_no_gpu_is_no_candidate_on_the_cpu(tiny_bundle: Path) -> None:
    opened = Bundle.open(with_engine(tiny_bundle))
    assert [engine.runtime for engine in candidates(opened, "student", device="cpu")] == ["onnxruntime"]
    assert plans_folder().exists() is False
    assert Device.parse("cuda:1").index == 1
