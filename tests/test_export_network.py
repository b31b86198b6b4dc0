"""The network that is exported, the gate that holds it against PyTorch, and the golden cases made of it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from bundles import colours
from colour_student import ColourStudent
from torch import nn

from samdistill import phantoms
from samdistill.errors import InputRejected
from samdistill.export.golden import image_golden, make_golden, unapply
from samdistill.export.onnx import export_onnx, with_fixed_padding
from samdistill.export.parity import Agreement, ParityError, StudentReference
from samdistill.golden import GoldenCase
from samdistill.intensity import IntensityRule, MeasuredPixels
from samdistill.runtime import Engine, open_engine


@pytest.fixture(scope="module")
def model() -> bytes:
    return export_onnx(ColourStudent())


class Changed:
    """An engine that spoils another's answer."""

    def __init__(self, engine: Engine, change: Any) -> None:
        self.engine, self.change = engine, change
        self.runtime, self.provider = engine.runtime, engine.provider
        self.inputs, self.outputs = engine.inputs, engine.outputs

    def run(self, inputs: Any) -> dict[str, Any]:
        return {"logits": self.change(self.engine.run(inputs)["logits"])}


def compare(model: bytes, change: Any, images: list[Any], truth: Any = None) -> Any:
    reference = StudentReference(
        ColourStudent(),
        [(image, truth) for image in images],
        size=64,
        thresholds=(0.5, 0.5),
        multi_label=False,
    )
    return reference.measure(Changed(open_engine(model), change))


# --- the gate


def test_a_faithful_network_passes_the_gate(model: bytes) -> None:
    report = compare(model, lambda logits: logits, [colours(), colours(50, 90)])
    assert report.failures() == []
    assert (report.images, report.masks, report.flips) == (2, 4, 0)
    assert report.mean_dice == 1
    assert report.max_difference < 1e-4
    assert report.truth_dice is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda logits: logits + 1.0, "outputs differ by"),
        (lambda logits: logits[:, ::-1], "mean mask Dice"),
        (lambda logits: np.roll(logits, 1, axis=3), "mean mask Dice"),
        (lambda logits: -np.abs(logits), "empty on one side only"),
        (lambda logits: logits * np.float32(1.01), "outputs differ by"),
        (lambda logits: np.where(logits > 8, np.float32("nan"), logits), "outputs differ by inf"),
    ],
)
def test_a_network_that_answers_otherwise_is_stopped_and_the_gate_says_by_what(
    model: bytes, change: Any, message: str
) -> None:
    report = compare(model, change, [colours(), colours(50, 90)])
    with pytest.raises(ParityError, match=rf"{message}.*Nothing was published"):
        report.require()


@pytest.mark.parametrize("got", [1.0, np.nan, np.inf])
@pytest.mark.parametrize("expected", [np.nan, np.inf])
def test_a_network_whose_original_answers_with_no_number_is_stopped(
    model: bytes, got: float, expected: float
) -> None:
    agreement = Agreement("student", "fp32", open_engine(model))
    agreement.add_masks(np.zeros((1, 9, 9), bool), np.zeros((1, 9, 9), bool))
    for one in (1.0, expected):  # the last image alone
        wanted = np.full((1, 1, 9, 9), one, np.float32)
        agreement.add_output(wanted if one == 1.0 else np.full_like(wanted, got), wanted)
    report = agreement.report()
    with pytest.raises(ParityError, match="outputs differ by inf"):
        report.require()
    told = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert told["max_difference"] is told["max_relative_difference"] is None


def test_agreeing_on_nothing_tells_nothing(model: bytes) -> None:
    agreement = Agreement("student", "int8", open_engine(model))
    nothing, ignored = np.zeros((3, 9, 9), bool), np.zeros((9, 9), bool)
    agreement.add_masks(nothing, nothing)
    agreement.add_truth(nothing, nothing, (nothing, ignored))
    assert not agreement.report().verified
    missed = nothing.copy()
    missed[0, :4] = True
    agreement.add_truth(nothing, nothing, (missed, ignored))
    report = agreement.report()
    assert report.pytorch_truth_dice == 0, "of the one class that there is"
    assert not report.verified


def test_the_gate_needs_an_image(model: bytes) -> None:
    with pytest.raises(InputRejected, match="at least one image"):
        compare(model, lambda logits: logits, [])


def test_a_graph_that_only_works_in_the_size_of_the_images_is_stopped(model: bytes) -> None:
    """Square images alone would not show it; the gate tries other batches and sides."""

    def square_only(logits: Any) -> Any:
        return logits if logits.shape[2] == logits.shape[3] else logits[..., ::-1]

    with pytest.raises(ParityError, match="outputs differ by"):
        compare(model, square_only, [colours(64, 64)]).require()


# --- the network


def test_any_batch_and_any_multiple_of_32_gives_what_pytorch_gives(model: bytes) -> None:
    engine, student = open_engine(model), ColourStudent()
    random = np.random.default_rng(0)
    for shape in ((1, 3, 32, 32), (2, 3, 64, 32), (5, 3, 96, 160)):
        pixels = random.integers(0, 256, shape, dtype=np.uint8)
        with torch.inference_mode():
            wanted = student(torch.from_numpy(pixels)).numpy()
        np.testing.assert_allclose(engine.run({"pixels": pixels})["logits"], wanted, atol=1e-4)


def test_the_network_names_no_path_and_no_line_of_code(model: bytes) -> None:
    graph = onnx.load_from_string(model)
    assert [entry.name for entry in graph.graph.input] == ["pixels"]
    assert [entry.name for entry in graph.graph.output] == ["logits"]
    for word in (b".py", b"site-packages", b"stack_trace", b"ColourStudent"):
        assert word not in model
    assert not graph.metadata_props
    assert not any(node.metadata_props or node.doc_string for node in graph.graph.node)


def test_exporting_leaves_the_student_as_it_was() -> None:
    student = ColourStudent().train()
    before = {key: value.clone() for key, value in student.state_dict().items()}
    export_onnx(student)
    assert student.training
    assert all(torch.equal(before[key], value) for key, value in student.state_dict().items())


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"), [(3, 2, 1), (5, 2, 1), (3, 1, 2), (1, 2, 1), (7, 4, 1)]
)
def test_same_padding_by_constants_is_same_padding(kernel: int, stride: int, dilation: int) -> None:
    class Conv2dSame(nn.Conv2d):
        """As timm's: pads to ceil(side / stride), more on the right."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            pads: list[int] = []
            for side in (x.shape[3], x.shape[2]):
                total = max((-(-side // stride) - 1) * stride + (kernel - 1) * dilation + 1 - side, 0)
                pads += [total // 2, total - total // 2]
            return nn.functional.conv2d(
                nn.functional.pad(x, pads), self.weight, self.bias, self.stride, 0, self.dilation, self.groups
            )

    student = nn.Sequential(Conv2dSame(3, 4, kernel, stride, dilation=dilation)).eval()
    pixels = torch.rand(2, 3, 64, 96)
    fixed = with_fixed_padding(student)
    assert type(fixed[0]) is nn.Sequential
    torch.testing.assert_close(fixed(pixels), student(pixels))


# --- golden cases


RULES = [
    IntensityRule(),
    IntensityRule("window", -1000.0, 3000.0),
    IntensityRule("percentiles", 1.0, 99.0),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.kind)
def test_golden_cases_are_phantoms_under_every_intensity_rule(rule: IntensityRule) -> None:
    made = make_golden(ColourStudent(), size=64, intensity=rule, thresholds=(0.5, 0.5), multi_label=False)
    assert list(made) == ["endoscopy", "ultrasound", "xray"]
    for kind, (origin, case) in made.items():
        index = int(origin.split("index ")[1].split(",")[0])
        picture = phantoms.make(kind, seed=20, index=index, size=case.masks.shape[1:]).image
        np.testing.assert_array_equal(case.pixels, unapply(picture, rule))
        assert rule.apply(case.pixels).shape[:2] == case.masks.shape[1:]


def test_under_a_window_a_phantom_keeps_its_greys() -> None:
    rule = IntensityRule("window", -1000.0, 3000.0)
    picture = phantoms.make("ultrasound", size=(40, 40)).image
    assert np.abs(rule.apply(unapply(picture, rule)).astype(int) - picture.astype(int)).max() <= 1


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.kind)
def test_a_scan_that_says_how_it_is_shown_becomes_a_case_that_can_be_computed_again(
    rule: IntensityRule,
) -> None:
    measured = np.arange(40 * 48, dtype=np.int16).reshape(40, 48) - 900
    scan = MeasuredPixels.of(measured, (measured % 251).astype(np.uint8))
    made = image_golden(
        ColourStudent(), [scan], size=64, intensity=rule, thresholds=(0.5, 0.5), multi_label=False
    )
    (_, case) = made["image-1"]
    stored = GoldenCase.from_npz(case.to_npz(), "image-1")
    np.testing.assert_array_equal(rule.apply(stored.pixels), rule.apply(scan))
