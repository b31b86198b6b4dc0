"""The exported teacher is the teacher: every combination of prompts, any size, alone and together."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from bundles import rewrite
from colour_student import CLASS_NAMES, ColourStudent
from hypothesis import given, settings
from hypothesis import strategies as st
from small_sam import small_sam, small_teacher
from teacher_bundles import Graphs, graphs_of

import samdistill.export.pieces as pieces
from samdistill import phantoms
from samdistill.bundled_teacher import BundledTeacher, answered
from samdistill.errors import BundleError, UsageError
from samdistill.export.bundle import publish
from samdistill.export.golden import make_teacher_golden
from samdistill.export.parity import ParityError
from samdistill.export.pieces import Source, teacher_record
from samdistill.export.teacher_onnx import export_encoder
from samdistill.export.teacher_parity import TeacherReference, combinations
from samdistill.golden import TeacherCase, compare_teacher
from samdistill.intensity import IntensityRule
from samdistill.io.dataset import Case, open_dataset
from samdistill.manifest import GoldenRecord
from samdistill.phantoms.folder import write
from samdistill.profiles import profiles
from samdistill.prompts import PromptConfig, Prompts
from samdistill.refine import BURDEN, MINE, RefineConfig
from samdistill.runtime import Arrays, Engine, open_engine
from samdistill.teacher import Teacher, load_teacher
from samdistill.teacher_frame import TeacherFrame
from samdistill.verify import verify

SIZES = [(90, 120), (131, 77), (128, 128), (300, 256)]  # smaller than the encoder's square, equal, larger


def opened(teacher: Teacher, graphs: Graphs) -> BundledTeacher:
    encoder, decoder = (open_engine(graph.content) for graph in graphs.values())
    return BundledTeacher(teacher_record(teacher, "none"), encoder, decoder)


@pytest.fixture(scope="module")
def small() -> tuple[Teacher, Graphs]:
    teacher = small_teacher()
    return teacher, graphs_of(teacher)


@pytest.fixture(scope="module")
def tiny() -> tuple[Teacher, Graphs]:
    teacher = load_teacher("tiny")
    return teacher, graphs_of(teacher)


@pytest.fixture(scope="module")
def medsam() -> tuple[Teacher, Graphs]:
    teacher = Teacher("medsam", small_sam(3), weights_sha256="0" * 64, preprocessing="medsam")
    return teacher, graphs_of(teacher)


def picture(size: tuple[int, int], index: int = 0) -> tuple[Any, list[Prompts]]:
    """A phantom and every combination of prompts for its first object."""
    phantom = phantoms.make("endoscopy", seed=4, index=index, size=size)
    return phantom.image, combinations(phantom.masks[phantom.masks.any(axis=(1, 2)).argmax()])


def agree(teacher: Teacher, exported: BundledTeacher, images: list[Any], sets: list[list[Prompts]]) -> None:
    theirs, ours = teacher.embed(images), exported.embed(images)
    for one, other in zip(theirs, ours, strict=True):
        np.testing.assert_allclose(other.features, one.features.numpy(), atol=2e-4)
        assert (one.image_size, one.input_size) == (other.image_size, other.frame.input_size)
    for multimask in (None, True, False):
        expected = teacher.segment(theirs, sets, multimask=multimask)
        found = exported.segment(ours, sets, multimask=multimask)
        np.testing.assert_allclose(found.predicted_iou, expected.predicted_iou, atol=1e-4)
        scale = max(1.0, np.abs(expected.low_res_logits).max())
        # In fp32 sums over thousands of tokens differ by their order: 3.1e-5 of the largest logit seen.
        np.testing.assert_allclose(found.low_res_logits, expected.low_res_logits, atol=5e-5 * scale)
        assert len(found.masks) == len(expected.masks)
        for mask, wanted in zip(found.masks, expected.masks, strict=True):
            assert mask.shape == wanted.shape
            assert (mask != wanted).mean() < 2e-4


@pytest.mark.parametrize("name", ["small", "tiny"])
def test_every_combination_of_prompts_on_images_of_every_size_gives_what_pytorch_gives(
    name: str, request: pytest.FixtureRequest
) -> None:
    teacher, graphs = request.getfixturevalue(name)
    exported = opened(teacher, graphs)
    pictures = [picture(size, index) for index, size in enumerate(SIZES)]
    images, sets = [image for image, _ in pictures], [own for _, own in pictures]
    agree(teacher, exported, images, sets)
    # Alone, each set gives what it gives in company.
    together = exported.segment(exported.embed(images), sets)
    alone = [exported.segment(exported.embed([image]), [[one]]) for image, own in pictures for one in own]
    for number, answer in enumerate(alone):
        np.testing.assert_allclose(answer.low_res_logits[0], together.low_res_logits[number], atol=2e-3)


class Elsewhere:
    """An engine that says that it computes somewhere else, and remembers how many sets it was given."""

    def __init__(self, engine: Engine, provider: str) -> None:
        self.engine, self.provider = engine, provider
        self.runtime, self.inputs, self.outputs = engine.runtime, engine.inputs, engine.outputs
        self.given: list[tuple[int, int]] = []

    def run(self, inputs: Arrays) -> dict[str, Any]:
        self.given.append((len(inputs["image_index"]), len(inputs["embeddings"])))
        return self.engine.run(inputs)


def test_a_cpu_gets_as_many_sets_at_a_time_as_its_cache_holds_and_a_gpu_what_its_plans_allow(
    tiny: tuple[Teacher, Graphs], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, graphs = tiny
    encoder, decoder = (open_engine(graph.content) for graph in graphs.values())
    pictures = [picture(size, index) for index, size in enumerate(SIZES)]
    sets = [pictures[0][1], [], pictures[2][1][:1], pictures[3][1]]
    answers = {}
    ways = (("CPU", 200, [(4, 1), (4, 4), (3, 1)]), ("GPU", 200, [(11, 4)]), ("GPU", 9, [(9, 4), (2, 1)]))
    for provider, most, expected in ways:
        monkeypatch.setattr("samdistill.teacher_frame.MOST_SETS", most)
        (profile,) = profiles("decoder", size=64, teacher=teacher_record(teacher, "none"))
        assert profile.inputs["image_index"][2] == (most,)
        engine = Elsewhere(decoder, provider)
        exported = BundledTeacher(teacher_record(teacher, "none"), encoder, engine)
        answers[provider, most] = exported.decode(exported.embed([image for image, _ in pictures]), sets)
        assert engine.given == expected
    first, *rest = answers.values()
    for answer in rest:
        for one, other in zip(first, answer, strict=True):
            np.testing.assert_allclose(one, other, atol=2e-3)


def test_onnx_runtime_finds_the_gelus_of_a_graph(tiny: tuple[Teacher, Graphs], tmp_path: Path) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(tiny[1]["decoder"].content, options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds.count("Gelu") == 4
    assert "Erf" not in kinds


def test_an_answer_is_given_back_as_a_prompt_like_in_pytorch(tiny: tuple[Teacher, Graphs]) -> None:
    teacher, graphs = tiny
    exported = opened(teacher, graphs)
    image, sets = picture((90, 120))
    (theirs,), (ours,) = teacher.embed([image]), exported.embed([image])
    first = teacher.segment([theirs], [sets]).low_res_logits
    expected = teacher.segment([theirs], [sets], previous=first)
    found = exported.segment([ours], [sets], previous=first)
    np.testing.assert_allclose(found.low_res_logits, expected.low_res_logits, atol=2e-3)
    np.testing.assert_array_equal(found.masks, expected.masks)


def test_medsam_gets_boxes_alone_and_answers_as_in_pytorch(medsam: tuple[Teacher, Graphs]) -> None:
    teacher, graphs = medsam
    assert graphs["encoder"].inputs == ("pixels",)
    exported = opened(teacher, graphs)
    pictures = [picture(size, index) for index, size in enumerate(SIZES)]
    agree(teacher, exported, [image for image, _ in pictures], [sets[:1] for _, sets in pictures])
    image, sets = pictures[0]
    with pytest.raises(ValueError, match="box alone for MedSAM"):
        exported.segment(exported.embed([image]), [sets[1:2]])


def test_no_prompts_are_no_masks(tiny: tuple[Teacher, Graphs]) -> None:
    exported = opened(*tiny)
    embeddings = exported.embed([picture((90, 120))[0]])
    assert exported.segment(embeddings, [[]]).masks == []
    assert exported.embed([]) == []
    with pytest.raises(ValueError, match="one list an embedding, 1, not 2"):
        exported.segment(embeddings, [[], []])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([16, 64, 256]), st.integers(0, 2**32 - 1))
def test_logits_come_back_to_the_image_as_in_torch(height: int, width: int, side: int, seed: int) -> None:
    """torch's bilinear interpolation, twice, with the padding cut in between, is the reference."""
    frame = TeacherFrame((height, width), side)
    logits = np.random.default_rng(seed).normal(0, 5, (2, side // 4, side // 4)).astype(np.float32)
    maps = torch.nn.functional.interpolate(torch.from_numpy(logits)[:, None], (side, side), mode="bilinear")
    maps = maps[..., : frame.input_size[0], : frame.input_size[1]]
    expected = torch.nn.functional.interpolate(maps, (height, width), mode="bilinear")[:, 0].numpy()
    np.testing.assert_allclose(frame.upscale(logits), expected, atol=1e-4)


def test_weights_that_do_not_fit_into_the_graph_lie_beside_it(small: tuple[Teacher, Graphs]) -> None:
    teacher, graphs = small
    split = export_encoder(teacher, max_bytes=1000)
    assert split.data is not None
    assert len(split.content) < len(graphs["encoder"].content)
    engine = open_engine(split.content, data={"encoder.onnx.data": split.data})
    whole = open_engine(graphs["encoder"].content)
    inputs = {
        "pixels": np.random.default_rng(0).integers(0, 256, (1, 3, 128, 128), np.uint8),
        "input_size": np.array([[128, 100]]),
    }
    np.testing.assert_allclose(engine.run(inputs)["embeddings"], whole.run(inputs)["embeddings"], atol=1e-5)
    with pytest.raises(BundleError, match=r"weights in itself, not in 'encoder\.onnx\.data'"):
        open_engine(split.content)


# --- the gate


def moved_bias(content: bytes, amount: float) -> bytes:
    """The graph with the last bias of its predicted masks moved: everything is a little wrong."""
    graph = onnx.load_from_string(content)
    tensor = max(
        (one for one in graph.graph.initializer if list(one.dims) == [4, 16] or "iou" in one.name),
        key=lambda one: one.name,
    )
    values = onnx.numpy_helper.to_array(tensor) + np.float32(amount)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return graph.SerializeToString()


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    folder = tmp_path_factory.mktemp("cases")
    write(folder, "endoscopy", 3, seed=5, size=(70, 96))
    return list(open_dataset(folder).cases)


def test_the_gate_passes_the_export_and_stops_one_whose_weights_were_moved(
    small: tuple[Teacher, Graphs], cases: list[Case]
) -> None:
    teacher, graphs = small
    reference = TeacherReference(
        teacher, teacher_record(teacher, "none"), ((c.read_image(), c.read_labels()) for c in cases)
    )
    encoder, decoder = (open_engine(graph.content) for graph in graphs.values())
    for part in ("encoder", "decoder"):
        report = reference.measure(encoder, decoder, model=part)
        report.require()
        assert report.images == 3
        assert report.masks == sum(7 * min(3, c.read_masks().any(axis=(1, 2)).sum()) for c in cases)
    wrong = open_engine(moved_bias(graphs["decoder"].content, 0.3))
    with pytest.raises(ParityError, match="the decoder exported in fp32"):
        reference.measure(encoder, wrong, model="decoder").require()


class WrongWithoutBox(Elsewhere):
    """A decoder that turns its answers round where mask logits come without a box."""

    def run(self, inputs: Arrays) -> dict[str, Any]:
        answers = super().run(inputs)
        logits = answers["low_res_logits"].copy()
        logits[inputs["has_mask"] & ~inputs["has_box"]] *= -1
        return {**answers, "low_res_logits": logits}


@pytest.mark.parametrize(("config", "seen"), [(MINE, False), (BURDEN, True)])
def test_gate_and_golden_case_ask_what_the_bundles_own_second_pass_asks(
    small: tuple[Teacher, Graphs], cases: list[Case], config: RefineConfig, seen: bool
) -> None:
    """BURDEN's has points and mask logits without a box; MINE has one pass, and nobody asks for that."""
    teacher, graphs = small
    record = teacher_record(teacher, "none")
    encoder, decoder = (open_engine(graph.content) for graph in graphs.values())
    wrong = WrongWithoutBox(decoder, "CPU")
    images = [(case.read_image(), case.read_labels()) for case in cases[:1]]
    reference = TeacherReference(teacher, record, images, config)
    assert reference.measure(encoder, decoder, model="decoder").failures() == []
    assert bool(reference.measure(encoder, wrong, model="decoder").failures()) == seen
    origin, case = make_teacher_golden(teacher, config)
    golden = GoldenRecord("teacher", "golden/teacher.npz", origin, 0.002, 0.001, part="teacher")
    for engine, passed in ((decoder, True), (wrong, not seen)):
        found = answered(BundledTeacher(record, encoder, engine), case)
        assert compare_teacher(found, case, golden).passed == passed


def test_the_gate_asks_about_objects_where_each_class_has_a_threshold(cases: list[Case]) -> None:
    """An image may show fewer objects than there are classes, and a threshold of 1 is of probabilities."""
    teacher = small_teacher()
    images = [(case.read_image(), case.read_labels()) for case in cases[:1]]
    record = teacher_record(teacher, "none")
    found, wanted = (
        TeacherReference(teacher, record, images, RefineConfig(PromptConfig(threshold=threshold)))
        for threshold in ((0.1, 0.9, 1.0, 0.5, 0.5), 0.5)
    )
    assert len(found.answers[0].refined) >= 1
    np.testing.assert_array_equal(found.answers[0].refined, wanted.answers[0].refined)


# --- in a bundle


@pytest.fixture(scope="module")
def source() -> Source:
    return Source(ColourStudent(), CLASS_NAMES, False, IntensityRule(), 64, {})


@pytest.fixture
def bundle(
    source: Source,
    small: tuple[Teacher, Graphs],
    cases: list[Case],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    teacher, graphs = small
    monkeypatch.setattr(pieces, "export_encoder", lambda teacher: graphs["encoder"])
    monkeypatch.setattr(pieces, "export_decoder", lambda teacher: graphs["decoder"])
    unlabelled = [case.without_labels() for case in cases]
    config = RefineConfig(PromptConfig(count=2, per_component=True), second_pass="points")
    return publish(source, unlabelled, tmp_path / "bundle", teacher=teacher, prompts=config).path


def test_a_bundle_holds_teacher_and_prompts_and_opens_without_torch(
    bundle: Path, small: tuple[Teacher, Graphs]
) -> None:
    code = (
        "import sys; from samdistill.bundled_teacher import BundledTeacher; "
        "from samdistill.bundle import Bundle; from samdistill.verify import verify; "
        f"bundle = Bundle.open({str(bundle)!r}); print(bundle.manifest.prompts.prompts.count); "
        "teacher = BundledTeacher.load(bundle); print(teacher.record.name, teacher.parts['decoder']); "
        f"print([case.name for case in verify({str(bundle)!r}).golden]); "
        "sys.exit(str({'torch', 'onnx', 'segment_anything'} & set(sys.modules) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
    assert done.stdout.splitlines() == [
        "2",
        "small onnxruntime fp32 (CPUExecutionProvider)",
        "['endoscopy', 'ultrasound', 'xray', 'teacher', 'teacher']",  # encoder, decoder
    ]
    image, sets = picture((90, 120))
    agree(small[0], BundledTeacher.load(bundle), [image], [sets])


@pytest.mark.parametrize("amount", [0.3])
def test_a_decoder_edited_after_publication_is_found_by_verify(bundle: Path, amount: float) -> None:
    file = bundle / "decoder.onnx"
    file.write_bytes(moved_bias(file.read_bytes(), amount))
    with pytest.raises(BundleError, match=r"decoder\.onnx must have"):
        verify(bundle)
    rewrite(bundle)
    with pytest.raises(BundleError, match=r"golden cases come out otherwise.*teacher"):
        verify(bundle)


def test_encoder_and_decoder_swapped_are_found(bundle: Path) -> None:
    one, other = bundle / "encoder.onnx", bundle / "decoder.onnx"
    contents = one.read_bytes(), other.read_bytes()
    one.write_bytes(contents[1])
    other.write_bytes(contents[0])
    rewrite(bundle)
    with pytest.raises(BundleError, match="the encoder's inputs must be pixels, input_size, not"):
        BundledTeacher.load(bundle)


def test_a_bundle_without_a_teacher_says_so(tiny_bundle: Path) -> None:
    with pytest.raises(UsageError, match="must hold a teacher"):
        BundledTeacher.load(tiny_bundle)


def test_a_golden_case_comes_back_from_its_file(bundle: Path) -> None:
    content = (bundle / "golden" / "teacher.npz").read_bytes()
    case = TeacherCase.from_npz(content, "teacher")
    assert case.to_npz() == content
    assert len(case.prompts()) == 6  # the bundle's second pass among them
    assert len(case.masks) == len(case.predicted_iou) == len(case.probabilities) == 12
    assert any(mask.any() and not mask.all() for mask in case.masks)
