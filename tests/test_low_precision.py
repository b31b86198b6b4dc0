"""Low precisions: what is cast and what is not, what the gate does with them, what a bundle says."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from bundles import colours, rewrite
from colour_student import CLASS_NAMES, ColourStudent
from onnx import TensorProto
from torch import nn

import samdistill.export.quantize as quantizing
from samdistill.bundle import Bundle
from samdistill.engines import candidates, open_part
from samdistill.errors import BundleError, DeviceUnavailable, InputRejected, UsageError
from samdistill.export import ladder, parity
from samdistill.export.bundle import publish
from samdistill.export.low_precision import lower
from samdistill.export.onnx import export_onnx
from samdistill.export.parity import ParityError, StudentReference
from samdistill.export.pieces import Engines, Silent, Source
from samdistill.export.quantize import quantize
from samdistill.intensity import IntensityRule
from samdistill.io.dataset import Case, open_dataset
from samdistill.phantoms.folder import write
from samdistill.predictor import Predictor
from samdistill.runtime import is_installed, open_engine
from samdistill.verify import verify

openvino = pytest.mark.skipif(not is_installed("openvino"), reason="needs the extra openvino")


class Mixture(nn.Module):
    """A little of what networks are made of: convolutions, layer norm, softmax, a branch and a sum."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 120.0))
        self.register_buffer("std", torch.full((1, 3, 1, 1), 60.0))
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.third, self.fourth = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.mix, self.last = nn.LayerNorm(8), nn.Linear(8, 8), nn.Conv2d(8, 2, 1)
        self.eval()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first((pixels.float() - self.mean) / self.std))
        y = torch.relu(self.fourth(torch.relu(self.third(torch.relu(self.second(x)))))) + x
        tokens = self.norm(y.permute(0, 2, 3, 1))
        weights = (self.mix(tokens) * 3).softmax(dim=-1)
        logits: torch.Tensor = self.last((weights * tokens).permute(0, 3, 1, 2))
        return logits


@pytest.fixture(scope="module")
def mixture() -> bytes:
    return export_onnx(Mixture())


def kinds(content: bytes) -> dict[str, set[int]]:
    """Element types of the first floating input of each operation."""
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(content))
    types = {v.name: v.type.tensor_type.elem_type for v in (*model.graph.value_info, *model.graph.input)}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    found: dict[str, set[int]] = {}
    for node in model.graph.node:
        found.setdefault(node.op_type, set()).add(types.get(node.input[0], 0))
    return found


def test_what_multiplies_runs_in_fp16_and_norms_and_softmax_do_not(mixture: bytes) -> None:
    low = kinds(lower(mixture))
    for operation in ("Conv", "MatMul"):
        assert low[operation] == {TensorProto.FLOAT16}, operation
    for operation in ("LayerNormalization", "Softmax"):
        assert low[operation] == {TensorProto.FLOAT}, operation
    # Relu and the sum between two convolutions stay low: nothing is cast back and forth.
    assert low["Relu"] == low["Add"] == {TensorProto.FLOAT16}


def test_mixed_leaves_the_ends_in_fp32(mixture: bytes) -> None:
    assert kinds(lower(mixture, keep_ends=True))["Conv"] == {TensorProto.FLOAT, TensorProto.FLOAT16}


@pytest.mark.parametrize("keep_ends", [False, True])
def test_a_lowered_graph_keeps_its_inputs_outputs_and_nearly_its_values(
    mixture: bytes, keep_ends: bool
) -> None:
    low = lower(mixture, keep_ends=keep_ends)
    one, other = open_engine(mixture), open_engine(low)
    assert (one.inputs, one.outputs) == (other.inputs, other.outputs)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 32), np.uint8)
    exact, rough = one.run({"pixels": pixels})["logits"], other.run({"pixels": pixels})["logits"]
    assert 0 < np.abs(exact - rough).max() < 0.02 * np.abs(exact).max()
    assert len(low) < len(mixture) + 4000


def test_a_constant_beyond_fp16_keeps_its_operation_in_fp32() -> None:
    class Large(nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            weight = torch.full((1, 3, 1, 1), 1e5)
            logits: torch.Tensor = nn.functional.conv2d(pixels.float(), weight)
            return logits

    assert kinds(lower(export_onnx(Large())))["Conv"] == {TensorProto.FLOAT}


def test_int8_is_per_channel_and_its_ranges_come_from_the_images(mixture: bytes) -> None:
    dark = [np.full((40, 50, 3), 100, np.uint8)] * 2
    bright = [np.random.default_rng(i).integers(0, 256, (40, 50, 3), np.uint8) for i in range(2)]
    ranges = []
    for images in (dark, bright):
        model = onnx.load_from_string(quantize(mixture, images, size=32))
        scales = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
        assert any(scale.shape == (8,) for name, scale in scales.items() if "scale" in name)
        ranges.append({name: float(s) for name, s in scales.items() if "scale" in name and s.ndim == 0})
    assert any(ranges[0][name] < 0.5 * ranges[1][name] for name in ranges[0])


class Stubborn(nn.Module):
    """A network that does not fit into a graph."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.float() if pixels.float().mean() > 0 else -pixels.float()


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda student: lower(b"nonsense"), "a network in fp16 cannot be written as ONNX: DecodeError: "),
        (lambda student: quantize(student, [], size=32), "the student in int8 cannot be written as ONNX: "),
        (lambda student: export_onnx(Stubborn()), "the student cannot be written as ONNX: "),
    ],
)
def test_what_a_library_cannot_write_is_told_in_one_line(
    tiny_bundle: Path, write: Callable[[bytes], bytes], words: str
) -> None:
    with pytest.raises(BundleError, match=words) as caught:
        write((tiny_bundle / "student.onnx").read_bytes())
    assert "\n" not in str(caught.value)
    assert "constraints.txt" in str(caught.value)
    assert caught.value.__cause__ is not None


def test_an_image_that_cannot_be_read_is_not_taken_for_a_library_that_fails(tiny_bundle: Path) -> None:
    def images() -> Iterator[Any]:
        raise InputRejected("a.png is damaged")
        yield

    with pytest.raises(InputRejected, match=r"a\.png is damaged"):
        quantize((tiny_bundle / "student.onnx").read_bytes(), images(), size=32)


# --- the ladder


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    folder = tmp_path_factory.mktemp("cases")
    write(folder, "endoscopy", 3, seed=5, size=(70, 96))
    return [case.without_labels() for case in open_dataset(folder).cases]


class Told(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def on_message(self, text: str) -> None:
        self.lines.append(text)


def source() -> Source:
    return Source(ColourStudent(), CLASS_NAMES, False, IntensityRule(), 64, {})


def spoil(*precisions: str) -> Callable[..., Any]:
    """StudentReference.measure that finds these precisions wanting."""
    measure = StudentReference.measure

    def measured(self: StudentReference, engine: Any, *, precision: str = "fp32") -> Any:
        report = measure(self, engine, precision=precision)
        if precision in precisions:
            object.__setattr__(report, "mean_dice", 0.9)
        return report

    return measured


class Clocked:
    """An engine of a known speed on a machine that is five times slower for a while."""

    now = 0.0

    def __init__(self, seconds: float, load: range) -> None:
        self.seconds, self.load, self.calls = seconds, load, 0

    def run(self, inputs: Any) -> dict[str, Any]:
        Clocked.now += self.seconds * (5 if int(Clocked.now) in self.load else 1)
        self.calls += 1
        return {}


def test_what_else_the_machine_does_ranks_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder.time, "perf_counter", lambda: Clocked.now)
    monkeypatch.setattr(ladder, "LONGEST_S", 60.0)
    # Busy for the 25 seconds in which the faster one, alone, would have all its calls.
    fast, slow = (Clocked(seconds, range(25)) for seconds in (0.5, 1.0))
    assert ladder.latencies_ms([fast, slow], {}) == [500, 1000]  # type: ignore[list-item]
    assert fast.calls == slow.calls < 3 * (1 + ladder.ROUNDS)  # it ends in time


def test_what_fails_steps_up_until_something_passes_and_says_so(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StudentReference, "measure", spoil("int8", "fp16"))
    told = Told()
    made = publish(
        source(), cases, tmp_path / "b", engines=Engines(("int8", "fp16")), calibration=cases, progress=told
    )
    assert [one.precision for one in made.parity] == ["fp32", "int8", "fp16", "mixed"]  # none tried twice
    said = "\n".join(told.lines)
    for words in (
        "student int8 in onnxruntime fails the gate and stays out: the mean mask Dice is 0.9000",
        "stepping up from int8",
        "stepping up from fp16",
        "student bf16 cannot run here",
    ):
        assert words in said
    manifest = Bundle.open(made.path).manifest
    assert {engine.precision for engine in manifest.engines} == {"fp32", "mixed"}
    assert sorted(file.path for file in manifest.files if file.path.endswith(".onnx")) == [
        "student.mixed.onnx",
        "student.onnx",
    ]


def test_what_passes_the_gate_and_fails_the_golden_cases_stays_out_of_a_bundle_that_is_published(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ladder, "MOST", (1e-9, 1e-9))
    told = Told()
    made = publish(source(), cases, tmp_path / "b", engines=Engines(("fp16",)), progress=told)
    said = [line for line in told.lines if "student fp16 in onnxruntime stays out: in golden cases" in line]
    assert len(said) == 1
    assert [one.precision for one in made.parity] == ["fp32"]
    assert [one.precision for one in Bundle.open(made.path).manifest.engines] == ["fp32"]


def test_a_quantiser_that_fails_steps_up_and_says_so(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def quantize_static(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("no such\noperator")

    monkeypatch.setattr(quantizing, "quantize_static", quantize_static)
    told = Told()
    publish(source(), cases, tmp_path / "b", engines=Engines(("int8",)), calibration=cases, progress=told)
    assert any("int8 cannot run here: the student in int8 cannot be" in line for line in told.lines)
    assert any("RuntimeError: no such operator" in line for line in told.lines)
    assert {one.precision for one in Bundle.open(tmp_path / "b").manifest.engines} == {"fp32", "fp16"}


def test_where_nothing_low_passes_fp32_is_what_there_is(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StudentReference, "measure", spoil("fp16", "mixed"))
    publish(source(), cases, tmp_path / "b", engines=Engines(("fp16",)))
    assert [e.precision for e in Bundle.open(tmp_path / "b").manifest.engines] == ["fp32"]
    monkeypatch.setattr(StudentReference, "measure", spoil("fp32"))
    with pytest.raises(ParityError, match="exported in fp32"):
        publish(source(), cases, tmp_path / "c")


def test_int8_needs_images_for_its_ranges(cases: list[Case], tmp_path: Path) -> None:
    with pytest.raises(InputRejected, match="images of the run's training part"):
        publish(source(), cases, tmp_path / "b", engines=Engines(("int8",)))


# --- in a bundle


@pytest.fixture(scope="module")
def bundle(cases: list[Case], tmp_path_factory: pytest.TempPathFactory) -> Path:
    engines = Engines(("int8", "fp16", "bf16"), openvino=True)
    out = tmp_path_factory.mktemp("out") / "bundle"
    with pytest.MonkeyPatch.context() as patch:  # three pictures of noise and a network of eight weights
        lenient = parity.Tolerances(0.5, 9.0, min_low_dice=0.1, max_flips=1.0)
        patch.setitem(parity.TOLERANCES, "int8", lenient)
        return publish(source(), cases, out, engines=engines, calibration=cases).path


@openvino
def test_every_engine_gives_nearly_the_same_masks_and_says_what_computes(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    kinds = {(engine.runtime, engine.precision) for engine in manifest.engines}
    assert {("onnxruntime", p) for p in ("fp32", "int8", "fp16")} <= kinds
    assert {("openvino", p) for p in ("fp32", "int8")} <= kinds
    image = colours(90, 120)
    wanted = Predictor.load(bundle, runtime="onnxruntime", precision="fp32").predict(image)
    for runtime, precision in sorted(kinds):
        predictor = Predictor.load(bundle, runtime=runtime, precision=precision)
        assert predictor.engine.startswith(f"{runtime} {precision} (")
        assert (predictor.predict(image).masks != wanted.masks).mean() < 0.05


@openvino
def test_people_are_told_which_engines_are_unverified(bundle: Path) -> None:
    card, page = ((bundle / name).read_text() for name in ("MODEL_CARD.md", "parity.html"))
    assert "onnxruntime fp16, unverified |" in card
    assert "onnxruntime fp32 |" in card
    assert "yes, unverified" in page


@openvino
def test_auto_takes_the_fastest_that_was_proved(bundle: Path, tmp_path: Path) -> None:
    """Low precisions of a student that nothing is known of are not proved, however fast they are."""
    opened = Bundle.open(bundle)
    assert open_part(opened, "student").record.precision == "fp32"

    def edit(values: dict[str, Any]) -> None:
        for engine in values["engines"]:
            engine["verified"] = True
        values["engines"].sort(key=lambda engine: engine["precision"] != "int8")

    import shutil

    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    rewrite(copy, edit)
    assert open_part(Bundle.open(copy), "student").record.precision == "int8"
    assert Predictor.load(copy, runtime="openvino").runtime == "openvino"


def test_int8_is_held_against_the_golden_cases_whenever_it_is_opened(bundle: Path, tmp_path: Path) -> None:
    """As on a processor that saturates: the graph is right, its answers are not what they were at export."""
    import shutil

    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    model = onnx.load(copy / "student.int8.onnx")
    bias = next(t for t in model.graph.initializer if t.name.endswith("bias_quantized"))
    values = onnx.numpy_helper.to_array(bias)
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full_like(values, 2**30), bias.name))
    onnx.save(model, copy / "student.int8.onnx")
    rewrite(copy)
    with pytest.raises(
        BundleError, match=r"otherwise on student: onnxruntime int8.*name another with --precision"
    ):
        Predictor.load(copy, runtime="onnxruntime", precision="int8")
    assert Predictor.load(copy, runtime="onnxruntime", precision="fp32").predict(colours(64, 64)).masks.any()


@openvino
def test_verify_computes_the_golden_cases_on_every_engine_and_finds_a_forged_one(
    bundle: Path, tmp_path: Path
) -> None:
    import shutil

    found = verify(bundle)
    assert {result.engine.split()[2] for result in found.golden} >= {"fp32", "int8", "fp16"}
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    model = onnx.load(copy / "student.fp16.onnx")
    bias = next(t for t in model.graph.initializer if list(t.dims) == [2])
    values = onnx.numpy_helper.to_array(bias) + np.float16(1.5)
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    onnx.save(model, copy / "student.fp16.onnx")
    rewrite(copy)
    with pytest.raises(BundleError, match="come out otherwise on student: onnxruntime fp16"):
        verify(copy)


def test_an_engine_the_bundle_does_not_have_is_refused_by_name(tiny_bundle: Path) -> None:
    with pytest.raises(UsageError, match=r"for its student on cpu: onnxruntime fp32, not openvino"):
        candidates(Bundle.open(tiny_bundle), "student", device="cpu", runtime="openvino")
    with pytest.raises(UsageError, match="not int8"):
        Predictor.load(tiny_bundle, precision="int8")
    with pytest.raises(UsageError, match="runtime must be auto or one of"):
        Predictor.load(tiny_bundle, "cpu", "caffe")


@openvino
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_calls_from_several_threads_do_not_wait_for_each_other_in_openvino(mixture: bytes) -> None:
    one, all_cores = (open_engine(mixture, runtime="openvino", threads=threads) for threads in (1, None))
    cores = len(os.sched_getaffinity(0))
    assert one._compiled.get_property("NUM_STREAMS") == min(8, cores)  # type: ignore[attr-defined]
    assert one._compiled.get_property("INFERENCE_NUM_THREADS") == min(8, cores)  # type: ignore[attr-defined]
    assert all_cores._compiled.get_property("NUM_STREAMS") == 1  # type: ignore[attr-defined]


def test_threads_of_onnxruntime_leave_the_cores_when_a_call_ends(mixture: bytes) -> None:
    session = open_engine(mixture, threads=2)._session  # type: ignore[attr-defined]
    assert session.get_session_options().get_session_config_entry("session.force_spinning_stop") == "1"


@openvino
def test_openvino_opens_on_a_cpu_alone_and_only_in_what_the_processor_has(mixture: bytes) -> None:
    with pytest.raises(DeviceUnavailable, match="device must be cpu for openvino, not cuda:0"):
        open_engine(mixture, runtime="openvino", device="cuda")
    with pytest.raises(DeviceUnavailable, match="precision must be one of fp32, bf16, int8 in openvino"):
        open_engine(mixture, runtime="openvino", precision="fp16")
    with pytest.raises(BundleError, match="cannot open the network"):
        open_engine(b"no network", runtime="openvino")
    engine = open_engine(mixture, runtime="openvino", threads=1)
    with pytest.raises(BundleError, match="failed in openvino"):
        engine.run({"pixels": np.zeros((1, 4, 32, 32), np.uint8)})


@openvino
def test_want_of_memory_in_openvino_is_no_fault_of_the_bundles() -> None:
    """In a process of its own, of which the memory is limited."""
    script = """
import resource, sys, numpy as np
from pathlib import Path
from samdistill.runtime import open_engine
engine = open_engine(Path(sys.argv[1]).read_bytes(), runtime="openvino", threads=1)
engine.run({"pixels": np.zeros((1, 3, 64, 64), np.uint8)})
large = np.zeros((1, 3, 4096, 4096), np.uint8)
held = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1])
resource.setrlimit(resource.RLIMIT_AS, (held * 1024 + 60_000_000,) * 2)
try:
    engine.run({"pixels": large})
except MemoryError as error:
    print(error)
"""
    student = Path(__file__).parent / "golden" / "tiny_bundle" / "student.onnx"
    line = [sys.executable, "-c", script, str(student)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.stdout == "openvino has not enough memory for this input.\n", done.stderr


@openvino
def test_openvino_answers_several_threads_at_once(mixture: bytes) -> None:
    from concurrent.futures import ThreadPoolExecutor

    engine = open_engine(mixture, runtime="openvino", threads=1)
    batches = [np.random.default_rng(i).integers(0, 256, (1, 3, 32, 64), np.uint8) for i in range(12)]
    alone = [engine.run({"pixels": batch})["logits"] for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda batch: engine.run({"pixels": batch})["logits"], batches))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_openvino_that_is_not_installed_is_asked_for_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    import samdistill.export.pieces as pieces

    monkeypatch.setattr(pieces, "is_installed", lambda runtime: False)
    with pytest.raises(DeviceUnavailable, match=r"pip install 'samdistill\[openvino\]'"):
        Engines(openvino=True)
