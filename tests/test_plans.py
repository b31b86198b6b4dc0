"""TensorRT's plans: memory and shapes, the cache and its key, and nothing in use that was not proved here."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_gpu
import numpy as np
import pytest
from bundles import colours, rewrite
from fake_gpu import FakeContext, FakeCuda, FakeEngine, FakeTensorRt

from samdistill import engines
from samdistill.bundle import Bundle
from samdistill.engines import candidates, open_part
from samdistill.errors import BundleError, DeviceUnavailable, UsageError
from samdistill.plans import Plan, generation, is_kept, plan_for, plans_folder
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


# --- the cache


def test_a_plan_is_built_proved_kept_and_found_again(
    tiny_bundle: Path, machine: Machine, cache: Path
) -> None:
    _, library = machine
    bundle = with_engine(tiny_bundle)
    image = colours(90, 120)
    wanted = Predictor.load(bundle).predict(image)
    first = Predictor.load(bundle, "cuda")  # proved when it was exported: auto takes it
    assert first.engine == "tensorrt fp32 (NVIDIA Fake, tensorrt 10.13.3.9)"
    np.testing.assert_array_equal(first.predict(image).masks, wanted.masks)
    assert library.built == ["tensorrt"]
    assert sorted(file.suffix for file in cache.iterdir()) == [".bin", ".json", ".plan"]
    assert (cache.stat().st_mode & 0o77) == 0
    Predictor.load(bundle, "cuda", runtime="tensorrt")
    assert library.built == ["tensorrt"]


@pytest.mark.parametrize("what", ["driver", "version", "gpu", "network"])
def test_what_the_key_holds_changes_it_and_the_new_plan_takes_the_old_ones_place(
    tiny_bundle: Path, machine: Machine, cache: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, library = machine
    bundle = with_engine(tiny_bundle)
    Predictor.load(bundle, "cuda")
    (old,) = cache.glob("*.json")
    if what == "driver":
        monkeypatch.setattr(cuda, "nvidia_driver", lambda: "NVIDIA Fake, 590.2")
    elif what == "version":
        library.__version__ = "10.14.0"
    elif what == "gpu":
        gpu.capability = (12, 0)
    else:
        file = bundle / "student.onnx"
        file.write_bytes(file.read_bytes() + b"\x72\x00")  # a field that ONNX passes over: another hash
        rewrite(bundle)
    find_gpu.cache_clear()
    Predictor.load(bundle, "cuda")
    assert library.built == ["tensorrt"] * 2
    records = list(cache.glob("*.json"))
    assert old not in records or what == "network"
    assert len(records) == (2 if what == "network" else 1)


def test_a_plan_that_fails_its_golden_cases_is_neither_used_nor_kept(
    tiny_bundle: Path, machine: Machine, cache: Path
) -> None:
    _, library = machine
    library.wrong = 0.5
    bundle = with_engine(tiny_bundle)
    with pytest.raises(BundleError, match="golden cases come out otherwise on student: tensorrt fp32"):
        Predictor.load(bundle, "cuda")
    assert list(cache.glob("*.plan")) == list(cache.glob("*.json")) == []


def test_a_plan_that_no_golden_case_proves_is_neither_used_nor_kept(
    tiny_bundle: Path, machine: Machine, cache: Path
) -> None:
    bundle = with_engine(tiny_bundle)

    def edit(values: dict[str, Any]) -> None:
        for case in values["golden"]:
            case["part"] = "teacher"

    rewrite(bundle, edit)
    with pytest.raises(BundleError, match="must hold a case for the student, or nothing proves it"):
        Predictor.load(bundle, "cuda")
    assert list(cache.glob("*.plan")) == list(cache.glob("*.json")) == []


def test_a_plan_changed_in_the_cache_is_refused(tiny_bundle: Path, machine: Machine, cache: Path) -> None:
    bundle = with_engine(tiny_bundle)
    Predictor.load(bundle, "cuda")
    (plan,) = cache.glob("*.plan")
    content = plan.read_bytes()
    plan.write_bytes(content[:-1])
    with pytest.raises(BundleError, match=r"must have the SHA-256 .* Delete it; it is built again"):
        Predictor.load(bundle, "cuda")
    plan.unlink()
    Predictor.load(bundle, "cuda")
    (record,) = cache.glob("*.json")
    for text in ("{}", '{"key": {}, "sha256": "../../elsewhere"}'):
        record.write_text(text)
        with pytest.raises(BundleError, match="is no record of a plan"):
            Predictor.load(bundle, "cuda")


def test_two_that_keep_the_same_plan_at_once_do_not_mix(
    tiny_bundle: Path, machine: Machine, cache: Path
) -> None:
    """A plan's file is named by its own hash, so that a record never speaks of another's."""
    bundle = Bundle.open(with_engine(tiny_bundle))
    made = plan_for(bundle, bundle.manifest.engines[1], "cuda")
    for content in (made.content, made.content + b"."):
        Plan(content, False, made.blueprint).keep(bundle.sha256)
    (record,) = cache.glob("*.json")
    kept = json.loads(record.read_text())["sha256"]
    assert plan_for(bundle, bundle.manifest.engines[1], "cuda").content == made.content + b"."
    assert (cache / f"{kept}.plan").is_file()


def test_a_plan_that_is_built_anew_takes_the_old_ones_place(
    tiny_bundle: Path, machine: Machine, cache: Path
) -> None:
    bundle = Bundle.open(with_engine(tiny_bundle))
    made = plan_for(bundle, bundle.manifest.engines[1], "cuda")
    for number in range(3):
        Plan(made.content + bytes([number]), False, made.blueprint).keep()
    (plan,) = cache.glob("*.plan")
    assert plan.read_bytes() == made.content + bytes([2])


def test_a_gpu_without_memory_for_another_thread_says_so(
    tiny_bundle: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor.load(with_engine(tiny_bundle), "cuda")
    monkeypatch.setattr(fake_gpu.FakeContext, "execute_async_v3", lambda self, stream: False)
    with pytest.raises(BundleError, match="the network failed in tensorrt"):
        predictor.predict(np.zeros((40, 60, 3), np.uint8))
    monkeypatch.setattr(fake_gpu.FakeEngine, "create_execution_context", lambda self, strategy: None)
    with pytest.raises(MemoryError, match="tensorrt has no memory for another thread"):
        Predictor.load(with_engine(tiny_bundle), "cuda").predict(np.zeros((40, 60, 3), np.uint8))


def test_a_cache_that_cannot_be_written_is_said_with_a_cure(
    tiny_bundle: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tiny_bundle / "student.onnx"))  # a file
    with pytest.raises(UsageError, match=r"plans are kept: Not a directory\. .*set XDG_CACHE_HOME"):
        Predictor.load(with_engine(tiny_bundle), "cuda")


def test_a_record_that_another_process_replaces_meanwhile_is_passed_over(
    tiny_bundle: Path, machine: Machine, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(with_engine(tiny_bundle))
    made = plan_for(bundle, bundle.manifest.engines[1], "cuda")
    made.keep()
    gone = cache / "gone.json"
    own = Path.glob
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [*own(self, pattern), gone])
    made.keep(bundle.sha256)
    assert is_kept(bundle, bundle.manifest.engines[1], "cuda")


def test_a_plan_that_another_bundle_proved_is_proved_again_but_not_built_again(
    tiny_bundle: Path, machine: Machine, tmp_path: Path
) -> None:
    """The network is the same; the golden cases, and what they may differ by, are each bundle's own."""
    _, library = machine
    strict = with_engine(tiny_bundle)
    lax = Path(shutil.copytree(strict, tmp_path / "lax"))
    anything = {"max_probability_difference": 1.0, "max_changed_pixels": 1.0}
    rewrite(lax, lambda values: values["engines"][1].update(anything))
    library.wrong = 0.5
    Predictor.load(lax, "cuda")
    opened = [Bundle.open(bundle) for bundle in (lax, strict)]

    def kept() -> list[bool]:
        return [is_kept(bundle, bundle.manifest.engines[1], "cuda") for bundle in opened]

    assert kept() == [True, False]
    with pytest.raises(BundleError, match="golden cases come out otherwise on student: tensorrt fp32"):
        Predictor.load(strict, "cuda")
    assert kept() == [True, False]
    library.wrong = 0.0
    Predictor.load(strict, "cuda")
    assert kept() == [True, True]
    assert library.built == ["tensorrt"]


@pytest.mark.parametrize("whose", ["anybody writes", "another's", "behind another's link"])
def test_a_cache_that_is_not_this_users_alone_is_not_used(
    tiny_bundle: Path, machine: Machine, cache: Path, whose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = with_engine(tiny_bundle, verified=False)
    opened = Bundle.open(bundle)
    made = plan_for(opened, opened.manifest.engines[1], "cuda")
    made.keep(opened.sha256)
    if whose == "anybody writes":
        cache.chmod(0o777)
    elif whose == "another's":
        monkeypatch.setattr(os, "getuid", lambda: cache.stat().st_uid + 1)
    elif os.getuid() != 0:
        pytest.skip("root alone can give a link away")
    else:
        cache.rename(cache.with_name("elsewhere"))
        cache.symlink_to(cache.with_name("elsewhere"))
        os.chown(cache, 12345, -1, follow_symlinks=False)
    for use in (
        lambda: Predictor.load(bundle, "cuda"),
        lambda: Predictor.load(bundle, "cuda", runtime="tensorrt"),
        lambda: verify(bundle, device="cuda"),
        lambda: made.keep(opened.sha256),
        lambda: made.blueprint.build(Network(b"", {}, "fp32")),
    ):
        with pytest.raises(BundleError, match=r"plans must be your own folder, .* Delete it"):
            use()


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
