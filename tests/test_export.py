"""Export publishes what agrees with PyTorch, and nothing else; whenever it dies, no half bundle is left."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from bundles import colours
from colour_student import CLASS_NAMES, ColourStudent
from torch import nn

import samdistill.export.bundle as publishing
import samdistill.export.pieces as pieces
from samdistill import phantoms
from samdistill.bundle import Bundle
from samdistill.cli.export import export as command
from samdistill.errors import BundleError, InputRejected, UsageError
from samdistill.export.bundle import Published, Source, export_run, licence_of, publish
from samdistill.export.golden import image_golden, make_golden, unapply
from samdistill.export.onnx import export_onnx, with_fixed_padding
from samdistill.export.parity import Agreement, ParityError, StudentReference
from samdistill.geometry import ModelFrame
from samdistill.golden import GoldenCase
from samdistill.intensity import IntensityRule, MeasuredPixels
from samdistill.io.dataset import Case, open_dataset
from samdistill.phantoms.folder import write
from samdistill.predictor import Predictor
from samdistill.runtime import Engine, open_engine
from samdistill.teacher.checkpoints import KNOWN
from samdistill.train.config import load_config
from samdistill.train.launch import train
from samdistill.train.run import Run
from samdistill.verify import verify

HERE = Path(__file__).resolve().parent


def source(student: nn.Module | None = None) -> Source:
    return Source(student or ColourStudent(), CLASS_NAMES, False, IntensityRule(), 64, {"seed": 1})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("secret_hospital") / "data"
    write(folder, "endoscopy", 20, seed=5, size=(48, 70))
    return folder


@pytest.fixture(scope="module")
def cases(data: Path) -> list[Case]:
    return [case.without_labels() for case in open_dataset(data).cases[:4]]  # of other classes


@pytest.fixture(scope="module")
def model() -> bytes:
    return export_onnx(ColourStudent())


@pytest.fixture
def exported(model: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network is exported once for all tests that are about what comes after it."""
    monkeypatch.setattr(pieces, "export_onnx", lambda student: model)


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


def test_the_gate_needs_an_image(model: bytes) -> None:
    with pytest.raises(InputRejected, match="at least one image"):
        compare(model, lambda logits: logits, [])


def test_a_graph_that_only_works_in_the_size_of_the_images_is_stopped(model: bytes) -> None:
    """Square images alone would not show it; the gate tries other batches and sides."""

    def square_only(logits: Any) -> Any:
        return logits if logits.shape[2] == logits.shape[3] else logits[..., ::-1]

    with pytest.raises(ParityError, match="outputs differ by"):
        compare(model, square_only, [colours(64, 64)]).require()


def test_a_graph_edited_to_give_wrong_masks_is_not_published(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(student: nn.Module) -> bytes:
        graph = onnx.load_from_string(export_onnx(student))
        bias = graph.graph.initializer[-1]
        moved = onnx.numpy_helper.to_array(bias) + np.float32(0.7)
        bias.CopyFrom(onnx.numpy_helper.from_array(moved, bias.name))
        return graph.SerializeToString()

    monkeypatch.setattr(pieces, "export_onnx", wrong)
    with pytest.raises(ParityError):
        publish(source(), cases, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("exported")
def test_a_bundle_that_does_not_verify_is_not_published(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*arguments: Any, **options: Any) -> dict[str, tuple[str, GoldenCase]]:
        made = make_golden(*arguments, **options)
        return {
            name: (origin, GoldenCase(case.pixels, ~case.masks, case.probability_maps))
            for name, (origin, case) in made.items()
        }

    monkeypatch.setattr(pieces, "make_golden", wrong)
    with pytest.raises(BundleError, match="golden cases come out otherwise"):
        publish(source(), cases, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


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


@pytest.mark.usefixtures("exported")
def test_real_images_enter_a_bundle_only_on_request_and_the_card_counts_them(
    cases: list[Case], tmp_path: Path
) -> None:
    without = publish(source(), cases, tmp_path / "without")
    assert "| real images inside | none |" in (without.path / "MODEL_CARD.md").read_text()
    made = publish(source(), cases[:2], tmp_path / "bundle", include_images=True)
    golden = {case.name: case for case in Bundle.open(made.path).manifest.golden}
    assert list(golden) == ["endoscopy", "ultrasound", "xray", "image-1", "image-2"]
    for case, name in zip(cases, ("image-1", "image-2"), strict=False):
        assert golden[name].origin.startswith("real image of the run's validation part")
        stored = GoldenCase.from_npz((made.path / golden[name].file).read_bytes(), name)
        np.testing.assert_array_equal(stored.pixels, case.read_image())
    assert "| real images inside | 2 |" in (made.path / "MODEL_CARD.md").read_text()
    assert {result.name for result in made.verification.golden} == set(golden)
    assert not list(without.path.glob("golden/image*"))


# --- publishing


@pytest.mark.usefixtures("exported")
def test_what_is_there_is_not_overwritten(cases: list[Case], tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    first = publish(source(), cases, out)
    with pytest.raises(UsageError, match="--force"):
        publish(source(), cases, out)
    second = publish(source(), cases, out, force=True, name="another")
    assert first.sha256 != second.sha256
    assert Predictor.load(out).bundle_sha256 == second.sha256
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.usefixtures("exported")
def test_what_is_no_bundle_is_never_touched(cases: list[Case], tmp_path: Path, force: bool) -> None:
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "thesis.tex").write_text("five years")
    for place in (out, out / "thesis.tex"):
        with pytest.raises(UsageError, match="is no bundle and stays"):
            publish(source(), cases, place, force=force)
    assert (out / "thesis.tex").read_text() == "five years"
    (out / "manifest.json").write_text('{"name": "a web page", "icons": []}')
    with pytest.raises(UsageError, match="is no bundle and stays"):
        publish(source(), cases, out, force=force)
    assert (out / "thesis.tex").read_text() == "five years"


def test_a_name_too_long_is_refused_before_any_work(cases: list[Case], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="name must have at most 200 characters, not 201"):
        publish(source(), cases, tmp_path / "bundle", name=201 * "n")


@pytest.mark.usefixtures("exported")
def test_an_empty_folder_may_become_a_bundle(cases: list[Case], tmp_path: Path) -> None:
    publish(source(), cases, tmp_path)
    verify(tmp_path)


def test_the_licence_of_weights_from_a_file_is_told_of_the_official_one_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "sam_vit_b.pth"
    file.write_bytes(b"weights of one's own")
    for words in (str(file), f"sam_vit_b:{file}"):
        assert licence_of(words) == "not stated"
    for words in ("tiny", "sam_vit_b"):
        assert licence_of(words) == "Apache-2.0"
    official = replace(KNOWN["sam_vit_b"], sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    monkeypatch.setitem(KNOWN, "sam_vit_b", official)
    assert licence_of(str(file)) == "Apache-2.0"


def test_a_run_without_validation_images_is_not_published(tmp_path: Path) -> None:
    with pytest.raises(InputRejected, match="must have validation images"):
        publish(source(), [], tmp_path / "bundle")


SLOW_EXPORT = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import samdistill.export.bundle as publishing
import samdistill.export.pieces as pieces
from test_export import source
from samdistill.io.dataset import open_dataset
from samdistill.teacher import load_teacher

def wait(name):
    original = getattr(publishing, name)
    def waiting(*arguments, **options):
        print(name, flush=True)
        time.sleep(60)
        return original(*arguments, **options)
    setattr(publishing, name, waiting)

wait({moment!r})
cases = [case.without_labels() for case in open_dataset(Path({data!r})).cases[:2]]
teacher = load_teacher("tiny") if {teacher} else None
publishing.publish(source(), cases, Path({out!r}), force=True, teacher=teacher)
"""


@pytest.mark.parametrize(
    ("moment", "before", "teacher"),
    [("verify", False, False), ("_replace", True, False), ("verify", True, True)],
)
@pytest.mark.usefixtures("exported")
def test_an_export_killed_at_any_moment_leaves_the_old_bundle_or_none(
    cases: list[Case], data: Path, tmp_path: Path, moment: str, before: bool, teacher: bool
) -> None:
    out = tmp_path / "bundle"
    old = publish(source(), cases, out).sha256 if before else None
    code = SLOW_EXPORT.format(tests=str(HERE), moment=moment, data=str(data), out=str(out), teacher=teacher)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline().strip() == moment
        process.send_signal(signal.SIGKILL)
        process.wait()
    if old is None:
        assert not out.exists()
    else:
        assert verify(out).bundle_sha256 == old
    assert verify(publish(source(), cases, out, force=True).path)


# --- from a run


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("config") / "tiny.toml"
    file.write_text(
        'preset = "light"\nprecision = "fp32"\nmin_epoch_steps = 2\nmax_steps = 2\nbatch = 2\nlabels = 10\n'
        '[student]\nencoder = "plain"\ndecoder_channels = [16, 16, 8, 8, 8]\nsize = 32\n'
    )
    out = tmp_path_factory.mktemp("secret_home") / "run"

    class Silent:
        def __getattr__(self, name: str) -> Any:
            return lambda *_: None

    train(data, out, load_config(file), Silent(), device="cpu")
    return out


@pytest.fixture(scope="module")
def published(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    yield export_run(run, tmp_path_factory.mktemp("out") / "bundle", teacher=None, licence="CC BY 4.0")


def test_a_trained_student_is_published_equal_to_itself(run: Path, published: Published) -> None:
    opened = Run.load(run)
    (parity,) = published.parity
    assert parity.images == len(opened.validation_cases())
    assert parity.mean_dice >= 0.999
    assert parity.truth_dice is not None
    predictor = Predictor.load(published.path)
    manifest = predictor.manifest
    assert manifest.class_names == opened.class_names
    assert manifest.input.size == 32
    assert manifest.licence == "CC BY 4.0"
    assert manifest.provenance["data_fingerprint"] == opened.record.data["fingerprint"]
    assert manifest.provenance["steps"] == 2
    image = opened.validation_cases()[0].read_image()
    frame = ModelFrame.of(image.shape[:2], 32)
    with torch.inference_mode():
        logits = opened.load_student()(torch.from_numpy(frame.pixels(image)[None])).numpy()[0]
    found = predictor.predict(image)
    np.testing.assert_allclose(found.probability_maps, frame.probability_maps(logits), atol=1e-4)


def test_a_published_student_knows_how_far_to_trust_itself(run: Path, published: Published) -> None:
    manifest = Predictor.load(published.path).manifest
    parts = Run.load(run).cases()
    assert manifest.calibration is not None
    assert manifest.calibration.images == len(parts["validation"])
    assert manifest.quality is not None
    assert manifest.quality.reference.images == len(parts["train_labelled"])
    assert manifest.quality.refined is None
    assert manifest.routing is None, "without a teacher there is nothing to route to"
    card = (published.path / "MODEL_CARD.md").read_text()
    assert f"Fitted on {len(parts['validation'])} validation images" in card


def test_a_bundle_tells_no_path_no_file_name_and_holds_no_real_image(
    run: Path, data: Path, published: Published
) -> None:
    words = {str(Path.home()), "secret_hospital", "secret_home", str(Path.cwd()), "site-packages"}
    for file in published.path.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert not [word for word in words if len(word) > 3 and word.encode() in content], file
    manifest = (published.path / "manifest.json").read_text()
    assert not [case.image_path.name for case in open_dataset(data).cases if case.image_path.name in manifest]


def test_of_a_run_that_is_not_finished_export_says_so(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    class Listening:
        def on_message(self, text: str) -> None:
            told.append(text)

        def on_case(self, done: int, total: int) -> None: ...

    monkeypatch.setattr("samdistill.export.bundle.publish", lambda *_, **__: None)
    export_run(run, tmp_path / "bundle", teacher=None, progress=Listening())
    assert not told
    cut = shutil.copytree(run, tmp_path / "cut")
    record = json.loads((cut / "run.json").read_text())
    (cut / "run.json").write_text(json.dumps({**record, "result": {}}))
    export_run(cut, tmp_path / "bundle", teacher=None, progress=Listening())
    assert [text for text in told if "is not finished" in text]


def test_a_run_that_cannot_be_read_or_has_lost_its_data_is_not_published(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputRejected, match=r"run\.json"):
        export_run(tmp_path, tmp_path / "bundle")
    with pytest.raises(InputRejected, match="images"):
        export_run(run, tmp_path / "bundle", data=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_command_ends_with_2_when_a_bundle_is_in_the_way(run: Path, published: Published) -> None:
    line = [sys.executable, "-m", "samdistill", "export", str(run), "--out", str(published.path)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "--force" in done.stderr
    assert verify(published.path).bundle_sha256 == published.sha256


def test_a_bundle_is_made_again_bit_by_bit(cases: list[Case], tmp_path: Path) -> None:
    one, other = (publish(source(), cases, tmp_path / place, name="n") for place in "xy")
    assert one.sha256 == other.sha256


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": ["fp7"]}, "precision must be one of int8, fp16, bf16, mixed, fp32, not 'fp7'"),
        ({"prompts": "loudly"}, "prompts must be mine, burden, box or a TOML file, not 'loudly'"),
        ({"teacher": "sam_vit_x"}, "sam_vit_x"),
    ],
)
def test_bad_options_of_the_command_are_refused_before_anything_is_written(
    run: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises((UsageError, InputRejected), match=message):
        command(run, tmp_path / "bundle", **options)
    assert list(tmp_path.iterdir()) == []


def test_the_command_exports_the_runs_own_way_of_prompting_or_a_files(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def record(*arguments: Any, **options: Any) -> Any:
        asked.append(options)
        raise UsageError("enough")

    monkeypatch.setattr(publishing, "publish", record)
    file = tmp_path / "prompts.toml"
    file.write_text('first_pass = "box"\n[prompts]\ncount = 3\n')
    for options in ({}, {"prompts": str(file)}, {"prompts": "burden"}, {"no_teacher": True}):
        with pytest.raises(UsageError, match="enough"):
            command(run, tmp_path / "bundle", **options)
    assert [one["prompts"].first_pass for one in asked] == ["all", "box", "box", "all"]
    assert asked[1]["prompts"].prompts.count == 3
    assert [one["teacher"] is None for one in asked] == [False, False, False, True]
    assert asked[0]["teacher"].name == "tiny"
    assert len(asked[0]["calibration"]) > 0


def test_the_command_exports_the_runs_own_teacher(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mined = tmp_path / "run"
    shutil.copytree(run, mined)
    record = json.loads((mined / "run.json").read_text())
    record["config"]["teacher"] = "sam_vit_b:/gone/sam.pth"
    (mined / "run.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match=r"/gone/sam\.pth is no file"):
        command(mined, tmp_path / "bundle")
    command(mined, tmp_path / "bundle", no_teacher=True)
    assert Bundle.open(tmp_path / "bundle").manifest.teacher is None
