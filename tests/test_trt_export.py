"""`export --trt`: TensorRT-RTX builds without a GPU, a GPU's engines pass the gate, what lacks is named."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_gpu
import onnx
import pytest
from colour_student import CLASS_NAMES, ColourStudent
from fake_gpu import FakeCuda, FakeTensorRt
from small_sam import small_teacher
from teacher_bundles import graphs_of

import samdistill.export.pieces as pieces
import samdistill.export.plans as plans
from samdistill.bundle import Bundle
from samdistill.errors import BundleError, DeviceUnavailable, UsageError
from samdistill.export import ladder
from samdistill.export.bundle import publish
from samdistill.export.low_precision import lower
from samdistill.export.onnx import export_onnx
from samdistill.export.pieces import Engines, Source, teacher_record
from samdistill.export.plans import Planned, wanted
from samdistill.export.teacher_onnx import Graph, export_encoder
from samdistill.intensity import IntensityRule
from samdistill.io.dataset import Case, open_dataset
from samdistill.phantoms.folder import write
from samdistill.plans import is_kept, plans_folder
from samdistill.predictor import Predictor
from samdistill.profiles import check_points, profiles
from samdistill.prompts import PromptConfig
from samdistill.runtime import Network, tensorrt
from samdistill.runtime.cuda import find_gpu, nvidia_driver
from samdistill.teacher import Teacher, load_teacher
from samdistill.verify import verify

no_gpu = pytest.mark.skipif(nvidia_driver() is not None, reason="is about machines without a GPU")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    find_gpu.cache_clear()
    yield
    find_gpu.cache_clear()


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    folder = tmp_path_factory.mktemp("cases")
    write(folder, "endoscopy", 3, seed=5, size=(70, 96))
    return [case.without_labels() for case in open_dataset(folder).cases]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> tuple[FakeCuda, FakeTensorRt]:
    gpu, library = fake_gpu.install(monkeypatch)
    monkeypatch.setattr(plans, "build", library.build)
    monkeypatch.setattr(plans, "is_installed", lambda runtime: True)
    return gpu, library


@pytest.fixture(scope="module")
def exported() -> tuple[Teacher, dict[str, Graph]]:
    """The encoder's weights lie beside its graph, as those of vit_h do, which are beyond 2 GB."""
    teacher = small_teacher()
    encoder, decoder = export_encoder(teacher, max_bytes=1000), graphs_of(teacher)["decoder"]
    return teacher, {"export_encoder": encoder, "export_decoder": decoder}


@pytest.fixture
def teacher(exported: tuple[Teacher, dict[str, Graph]], monkeypatch: pytest.MonkeyPatch) -> Iterator[Teacher]:
    """A small teacher whose graphs are exported once for all tests."""
    for name, graph in exported[1].items():
        monkeypatch.setattr(pieces, name, lambda teacher, graph=graph: graph)
    yield exported[0]


class Told:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def on_message(self, text: str) -> None:
        self.lines.append(text)

    def on_case(self, done: int, total: int) -> None: ...


def source() -> Source:
    return Source(ColourStudent(), CLASS_NAMES, False, IntensityRule(), 64, {})


# --- TensorRT-RTX itself, which needs no GPU to build


def test_rtx_builds_the_tiny_encoder_and_the_decoder_for_ada_in_fp16() -> None:
    teacher = load_teacher("tiny")
    record = teacher_record(teacher, "Apache-2.0")
    for part, graph in graphs_of(teacher).items():
        network = Network(lower(graph.content), {}, "fp16")
        shapes = profiles(part, size=224, teacher=record)
        plan, timings = tensorrt.build("tensorrt-rtx", network, shapes, generations=("ada",))
        assert len(plan) > 0.4 * len(graph.content)
        assert timings == b""


@no_gpu
def test_a_bundle_carries_rtx_engines_built_without_a_gpu_and_says_they_are_unverified(
    cases: list[Case], tmp_path: Path, teacher: Teacher
) -> None:
    told = Told()
    planned = wanted("rtx", "ampere,ada")
    made = publish(
        source(),
        cases,
        tmp_path / "bundle",
        teacher=teacher,
        engines=Engines(("fp16",), planned=planned),
        progress=told,
    )
    manifest = Bundle.open(made.path).manifest
    built = [engine for engine in manifest.engines if engine.runtime == "tensorrt-rtx"]
    assert {engine.model for engine in built} == {"student", "encoder", "decoder"}
    assert [engine.precision for engine in built if engine.model == "student"] == ["fp16", "fp32"]
    for engine in built:
        assert not engine.verified
        assert engine.parity == {}
        assert (engine.plan_gpus, engine.plan_version) == (("ampere", "ada"), planned.version)
        assert engine.plan in [file.path for file in manifest.files]
    assert [engine.precision for engine in built if engine.model == "encoder"] == ["fp32"]
    assert (made.path / "encoder.onnx.data").stat().st_size > 10_000
    assert made.unverified == tuple(built)
    said = "\n".join(told.lines)
    assert "encoder fp16 cannot run here: its weights lie beside the graph" in said
    assert f"with tensorrt-rtx {planned.version} for ampere, ada; unverified, since no such GPU" in said
    assert "not run: no GPU was there" in (made.path / "MODEL_CARD.md").read_text()
    assert Predictor.load(made.path).runtime == "onnxruntime"
    with pytest.raises(DeviceUnavailable, match="cudaGetDeviceCount failed"):
        Predictor.load(made.path, "cuda", runtime="tensorrt-rtx")
    plan = made.path / str(built[0].plan)
    plan.write_bytes(plan.read_bytes()[:-1])
    with pytest.raises(BundleError, match="was cut short"):
        verify(made.path)


def test_weights_beside_a_graph_are_read_and_a_broken_graph_is_told(
    exported: tuple[Teacher, dict[str, Graph]],
) -> None:
    teacher, graph = exported[0], exported[1]["export_encoder"]
    assert graph.data is not None
    shapes = profiles("encoder", size=64, teacher=teacher_record(teacher, "none"))
    network = Network(graph.content, {"encoder.onnx.data": graph.data}, "fp32")
    plan, _ = tensorrt.build("tensorrt-rtx", network, shapes, generations=("ada",))
    assert len(plan) > 0.9 * len(graph.data)
    ends = [onnx.helper.make_tensor_value_info(name, 1, [1]) for name in "xy"]
    node = onnx.helper.make_node("Nonsense", ["x"], ["y"])
    nonsense = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", ends[:1], ends[1:])
    ).SerializeToString()
    for content, data, words in (
        (b"no graph", {}, "cannot open the network: it is no ONNX file"),
        (nonsense, {}, "cannot read the network"),
        (graph.content, {}, "must have its weights in itself, not in 'encoder.onnx.data'"),
    ):
        with pytest.raises(BundleError, match=words):
            tensorrt.build("tensorrt-rtx", Network(content, data, "fp32"), shapes, generations=("ada",))
    wrong = profiles("student", size=64, teacher=None)
    with pytest.raises(DeviceUnavailable, match="cannot build the network: "):
        tensorrt.build("tensorrt-rtx", network, wrong, generations=("ada",))


@pytest.mark.filterwarnings("ignore:.*Deprecated in TensorRT-RTX:DeprecationWarning")
def test_the_way_through_tensorrt_is_the_same_but_for_its_timing_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """TensorRT-RTX still has the calls that only TensorRT needs, so that it can stand in for it here."""
    import tensorrt_rtx

    monkeypatch.setattr(tensorrt, "_library", lambda runtime: tensorrt_rtx)
    shapes = profiles("student", size=64, teacher=None)
    network = Network(export_onnx(ColourStudent()), {}, "fp32")
    plan, timings = tensorrt.build("tensorrt", network, shapes)
    assert plan
    assert timings


# --- a GPU (a fake one: host memory and ONNX Runtime)


def test_on_a_gpu_engines_pass_the_gate_and_auto_takes_them_there(
    cases: list[Case],
    tmp_path: Path,
    machine: tuple[FakeCuda, FakeTensorRt],
    teacher: Teacher,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, library = machine
    timed: list[set[str]] = []
    latencies_ms = ladder.latencies_ms

    def record(engines: Any, example: Any) -> list[float]:
        timed.append({engine.runtime for engine in engines})
        return latencies_ms(engines, example)

    monkeypatch.setattr(ladder, "latencies_ms", record)
    engines = Engines(("fp16",), planned=wanted())
    made = publish(source(), cases, tmp_path / "bundle", teacher=teacher, engines=engines)
    assert made.unverified == ()
    assert timed == [{"onnxruntime"}, {"tensorrt"}] * 2  # student, decoder: all of a device in the same turns
    bundle = Bundle.open(made.path)
    own = [e for e in bundle.manifest.engines if e.runtime == "tensorrt"]
    assert {(e.model, e.precision, e.device) for e in own} == {
        (part, precision, "cuda")
        for part in ("student", "encoder", "decoder")
        for precision in ("fp32", "fp16")
        if (part, precision) != ("encoder", "fp16")  # its weights lie beside the graph
    }
    for engine in own:
        assert engine.plan is None
        assert (engine.latency_ms is None) == (engine.model == "encoder")  # which has no other to rank with
        assert is_kept(bundle, engine, "cuda")  # proved for this very bundle
        assert engine.parity["mean_dice"] > 0.99
        assert engine.verified == (engine.precision == "fp32")  # weights that were never trained
    count = len(library.built)
    assert Predictor.load(made.path, "cuda").engine.startswith("tensorrt fp32 (NVIDIA Fake")
    Predictor.load(made.path, "cuda").require_mode("refine")
    assert len(library.built) == count  # the gate's plans were kept


def test_an_engine_that_computes_otherwise_on_the_gpu_is_not_published(
    cases: list[Case], tmp_path: Path, machine: tuple[FakeCuda, FakeTensorRt]
) -> None:
    _, library = machine
    library.wrong = 0.3
    told = Told()
    engines = Engines(planned=wanted("rtx", "ada"))
    made = publish(source(), cases, tmp_path / "bundle", engines=engines, progress=told)
    assert {e.runtime for e in Bundle.open(made.path).manifest.engines} == {"onnxruntime"}
    assert any("student fp32 in tensorrt-rtx fails the gate and stays out" in line for line in told.lines)
    assert not list(made.path.glob("*.plan"))


def test_generations_that_are_not_this_gpus_are_built_and_unverified(
    cases: list[Case], tmp_path: Path, machine: tuple[FakeCuda, FakeTensorRt]
) -> None:
    engines = Engines(planned=wanted("rtx", "blackwell"))
    made = publish(source(), cases, tmp_path / "bundle", engines=engines)
    assert [engine.plan_gpus for engine in made.unverified] == [("blackwell",)]


def test_a_graph_that_the_library_cannot_build_stays_out_and_the_rest_is_published(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As fp32 matrix products for Turing, which TensorRT-RTX does not know."""

    def build(*arguments: Any, **options: Any) -> Any:
        raise DeviceUnavailable("tensorrt-rtx 1.7 cannot build the network: FP32 GEMM is not supported.")

    monkeypatch.setattr(plans, "build", build)
    told = Told()
    engines = Engines(planned=wanted("rtx", "turing"))
    made = publish(source(), cases, tmp_path / "bundle", engines=engines, progress=told)
    assert [engine.runtime for engine in Bundle.open(made.path).manifest.engines] == ["onnxruntime"]
    assert any("student fp32 stays out: tensorrt-rtx 1.7 cannot build" in line for line in told.lines)


@pytest.mark.usefixtures("machine")
def test_an_engine_that_overflows_on_the_gpu_alone_stays_out_and_the_rest_is_published(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflowing(*arguments: Any, **options: Any) -> Any:
        raise BundleError("embeddings must be finite, and are not.")

    monkeypatch.setattr(plans, "open_engine", overflowing)
    told = Told()
    engines = Engines(planned=wanted("standard"))
    made = publish(source(), cases, tmp_path / "bundle", engines=engines, progress=told)
    assert [engine.runtime for engine in Bundle.open(made.path).manifest.engines] == ["onnxruntime"]
    assert any("student fp32 in tensorrt stays out: embeddings" in line for line in told.lines)


@pytest.mark.parametrize(
    ("prompts", "classes"),
    [(PromptConfig(count=65), 1), (PromptConfig(points="centre", negatives=True), 65)],
)
def test_prompts_of_more_points_than_plans_take_are_refused(prompts: PromptConfig, classes: int) -> None:
    check_points(replace(prompts, count=64), classes - 1)
    with pytest.raises(UsageError, match="at most 64 points a set for TensorRT, not 65"):
        check_points(prompts, classes)


# --- which library, and what is missing


def test_whichever_is_installed_builds_and_the_first_where_both_are(
    machine: tuple[FakeCuda, FakeTensorRt], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert str(wanted()) == "tensorrt 10.13.3.9 for NVIDIA Fake"
    monkeypatch.setattr(plans, "is_installed", lambda runtime: runtime == "tensorrt-rtx")
    assert str(wanted()) == "tensorrt-rtx 10.13.3.9 for ampere, ada, blackwell"
    assert str(wanted("standard")) == "tensorrt 10.13.3.9 for NVIDIA Fake"
    with pytest.raises(UsageError, match="gpu must not be given for tensorrt"):
        wanted("standard", "ada")


@no_gpu
def test_what_is_missing_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceUnavailable, match=r"tensorrt must be installed.*samdistill\[tensorrt\]"):
        wanted("standard")
    with pytest.raises(UsageError, match="trt-flavor must be one of standard, rtx, not 'fast'"):
        wanted("fast")
    with pytest.raises(UsageError, match=r"gpu must be some of turing, .*, not 'hopper'"):
        wanted("rtx", "ada, hopper")
    with pytest.raises(UsageError, match="turing must be named alone"):
        wanted("rtx", "turing,ada")
    assert wanted("rtx", " ada,ada").generations == ("ada",)
    monkeypatch.setattr(plans, "library_version", lambda runtime: "10.13")
    with pytest.raises(DeviceUnavailable, match=r"must have the GPU .*driver.*--trt-flavor rtx"):
        wanted("standard")
    monkeypatch.setattr(plans, "is_installed", lambda runtime: False)
    with pytest.raises(DeviceUnavailable, match=r"tensorrt or tensorrt-rtx must be installed for --trt"):
        wanted()
    assert DeviceUnavailable.exit_code == 6


@pytest.mark.usefixtures("machine")
def test_a_cache_that_others_may_write_is_refused_before_any_work() -> None:
    folder = plans_folder()
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    with pytest.raises(BundleError, match="must be your own folder"):
        wanted()


def test_the_commands_options_go_together(tmp_path: Path) -> None:
    from samdistill.cli.export import export

    with pytest.raises(UsageError, match="must be given with --trt"):
        export(tmp_path, tmp_path / "out", gpu="ada")
    with pytest.raises(DeviceUnavailable, match="tensorrt must be installed"):
        export(tmp_path, tmp_path / "out", trt=True, trt_flavor="standard")
    assert Planned("tensorrt-rtx", "1", ("ada",), None).runs_here is False
