"""What a bundle is put together from: the student's piece and the teacher's, each exported and proved.

Knows how networks are exported and compared; `bundle` puts pieces into a folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from samdistill.arrays import Image
from samdistill.bundled_teacher import BundledTeacher, answered
from samdistill.errors import DeviceUnavailable, InputRejected
from samdistill.evaluation import channel_order
from samdistill.export.golden import IMAGES, image_golden, make_golden, make_teacher_golden
from samdistill.export.ladder import OnTrial, Proved, climb
from samdistill.export.onnx import INPUT, OPSET, OUTPUT, export_onnx
from samdistill.export.parity import ParityReport, StudentReference, Truth
from samdistill.export.plans import Planned, with_plans
from samdistill.export.quantize import quantize
from samdistill.export.teacher_onnx import Graph, export_decoder, export_encoder
from samdistill.export.teacher_parity import TeacherReference
from samdistill.golden import GoldenResult, compare, compare_teacher
from samdistill.intensity import IntensityRule
from samdistill.io.dataset import Case
from samdistill.manifest import EngineRecord, GoldenRecord, ModelRecord, Part, Precision, TeacherRecord
from samdistill.refine import RefineConfig
from samdistill.runtime import Engine, is_installed, open_engine
from samdistill.teacher import Teacher

STUDENT = "student.onnx"
GOLDEN_DIFFERENCE = 0.002  # of a probability; engines of one precision differ by less than 1e-4
GOLDEN_CHANGED = 0.001  # of an image's pixels


class Progress(Protocol):
    """Is told how publishing goes on."""

    def on_message(self, text: str) -> None:
        """A new step begins."""
        ...

    def on_case(self, done: int, total: int) -> None:
        """Images compared so far."""
        ...


class Silent:
    """A Progress that says nothing."""

    def on_message(self, text: str) -> None:
        """Say nothing."""

    def on_case(self, done: int, total: int) -> None:
        """Say nothing."""


@dataclass(frozen=True)
class Source:
    """A student and what has to be known of it.

    Attributes
    ----------
    student
        In eval mode on the CPU: uint8 (N, 3, H, W) in, float32 logits (N, C, H, W) out; its buffers `mean`
        and `std` are its normalisation, units 0..255.
    class_names, multi_label, intensity, size
        The contract it was trained with.
    provenance
        Of its training, plain values, without a path or file name.
    """

    student: nn.Module
    class_names: tuple[str, ...]
    multi_label: bool
    intensity: IntensityRule
    size: int
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Piece:
    """Files of a bundle and what the manifest says of them.

    Attributes
    ----------
    files
        Path in the bundle -> content.
    models
        The networks, by part.
    engines, golden
        As in the manifest.
    parity
        What the gate measured.
    """

    files: dict[str, bytes]
    models: dict[Part, ModelRecord]
    engines: tuple[EngineRecord, ...]
    golden: tuple[GoldenRecord, ...]
    parity: tuple[ParityReport, ...]


@dataclass(frozen=True)
class Engines:
    """Which engines are wanted besides ONNX Runtime in fp32.

    Attributes
    ----------
    precisions
        Each is proved or replaced by the next that passes; see `ladder`. int8 is for the student alone.
    openvino
        Prove OpenVINO's engines too.
    planned
        Build TensorRT's engines too.
    """

    precisions: tuple[Precision, ...] = ()
    openvino: bool = False
    planned: Planned | None = None

    def __post_init__(self) -> None:
        if self.openvino and not is_installed("openvino"):
            raise DeviceUnavailable(
                "openvino must be installed for its engines. Run: pip install 'samdistill[openvino]'."
            )


FP32 = Engines()


def student_piece(
    source: Source,
    cases: Sequence[Case],
    *,
    thresholds: tuple[float, ...],
    progress: Progress,
    engines: Engines = FP32,
    calibration: Sequence[Case] = (),
    include_images: bool = False,
) -> Piece:
    """Export the student and hold it against PyTorch.

    Parameters
    ----------
    calibration
        Images that int8's ranges are taken from.
    include_images
        Make golden cases of some of `cases` too.

    Raises
    ------
    ParityError
        When the exported network does not do what the student does.
    """
    if "int8" in engines.precisions and not calibration:
        raise InputRejected("int8 must have images of the run's training part for its ranges, and has none.")
    progress.on_message("exporting the student to ONNX")
    content = export_onnx(source.student)
    progress.on_message(f"comparing the student with PyTorch on {len(cases)} validation images")
    contract: dict[str, Any] = {
        "size": source.size,
        "thresholds": thresholds,
        "multi_label": source.multi_label,
    }
    seen = _reading(cases, source.intensity, progress, source.class_names)
    reference = StudentReference(source.student, seen, **contract)
    made = make_golden(source.student, intensity=source.intensity, **contract)
    if include_images:
        images = [case.read_image() for case in cases[:IMAGES]]
        made |= image_golden(source.student, images, intensity=source.intensity, **contract)
    records = {
        kind: GoldenRecord(kind, f"golden/{kind}.npz", origin, GOLDEN_DIFFERENCE, GOLDEN_CHANGED)
        for kind, (origin, _) in made.items()
    }

    def golden(engine: Engine) -> tuple[float, float]:
        found = []
        for kind, (_, case) in made.items():
            masks, maps = reference.answer(engine, source.intensity.apply(case.pixels))
            found.append(compare(masks, maps, case, records[kind]))
        return _worst(found)

    parameters = sum(parameter.numel() for parameter in source.student.parameters())
    model = ModelRecord(STUDENT, OPSET, parameters, (INPUT,), (OUTPUT,))
    trial = OnTrial(
        "student",
        model,
        content,
        {},
        lambda engine, precision: reference.measure(engine, precision=precision),
        golden,
        {INPUT: reference.answers[-1].pixels},
        lambda: quantize(content, (_image(case, source.intensity) for case in calibration), size=source.size),
    )
    proved = _proved(trial, engines, size=source.size, teacher=None, progress=progress)
    files = {STUDENT: content, **proved.files}
    files |= {records[kind].file: case.to_npz() for kind, (_, case) in made.items()}
    return Piece(files, {"student": model}, proved.engines, tuple(records.values()), proved.reports)


def teacher_piece(
    teacher: Teacher,
    record: TeacherRecord,
    cases: Sequence[Case],
    intensity: IntensityRule,
    *,
    size: int,
    prompts: RefineConfig,
    progress: Progress,
    engines: Engines = FP32,
) -> Piece:
    """Export the teacher's encoder and decoder and hold them against PyTorch; errors as for the student's.

    Parameters
    ----------
    prompts
        How the student's answer will be put to it.
    """
    progress.on_message(f"exporting the teacher {record.name} to ONNX")
    graphs: dict[Part, Graph] = {"encoder": export_encoder(teacher), "decoder": export_decoder(teacher)}
    files: dict[str, bytes] = {}
    models: dict[Part, ModelRecord] = {}
    fp32: dict[Part, Engine] = {}
    for part, graph in graphs.items():
        file = f"{part}.onnx"
        beside = {} if graph.data is None else {f"{file}.data": graph.data}
        files |= {file: graph.content, **beside}
        data = next(iter(beside), None)
        models[part] = ModelRecord(file, OPSET, graph.parameters, graph.inputs, graph.outputs, data)
        fp32[part] = open_engine(graph.content, data=beside)
    progress.on_message(f"comparing the teacher with PyTorch on {len(cases)} validation images")
    reference = TeacherReference(teacher, record, _reading(cases, intensity, progress), prompts)
    origin, case = make_teacher_golden(teacher, prompts)
    files["golden/teacher.npz"] = case.to_npz()
    golden_record = GoldenRecord(
        "teacher", "golden/teacher.npz", origin, GOLDEN_DIFFERENCE, GOLDEN_CHANGED, part="teacher"
    )
    examples = reference.examples(fp32["encoder"])
    proved = []
    for part in models:

        def pair(engine: Engine, part: Part = part) -> tuple[Engine, Engine]:
            return (engine, fp32["decoder"]) if part == "encoder" else (fp32["encoder"], engine)

        def measure(engine: Engine, precision: Precision, part: Part = part) -> ParityReport:
            encoder, decoder = pair(engine, part)
            return reference.measure(encoder, decoder, model=part, precision=precision)

        def golden(engine: Engine, part: Part = part) -> tuple[float, float]:
            answer = answered(BundledTeacher(record, *pair(engine, part)), case)
            return _worst([compare_teacher(answer, case, golden_record)])

        data = models[part].data
        trial = OnTrial(
            part,
            models[part],
            graphs[part].content,
            {} if data is None else {data: files[data]},
            measure,
            golden,
            examples[part],
        )
        proved.append(_proved(trial, engines, size=size, teacher=record, progress=progress))
    for one in proved:
        files |= one.files
    return Piece(
        files,
        models,
        tuple(engine for one in proved for engine in one.engines),
        (golden_record,),
        tuple(report for one in proved for report in one.reports),
    )


def _proved(
    trial: OnTrial, engines: Engines, *, size: int, teacher: TeacherRecord | None, progress: Progress
) -> Proved:
    """Every engine of a network that is wanted and passes; `size` is the student's."""
    floor = (GOLDEN_DIFFERENCE, GOLDEN_CHANGED)
    say = progress.on_message
    proved = climb(trial, precisions=engines.precisions, openvino=engines.openvino, floor=floor, say=say)
    if engines.planned is None:
        return proved
    return with_plans(trial, proved, engines.planned, size=size, teacher=teacher, floor=floor, say=say)


def _worst(results: Sequence[GoldenResult]) -> tuple[float, float]:
    return (
        max(result.max_probability_difference for result in results),
        max(result.changed_pixels for result in results),
    )


def teacher_record(teacher: Teacher, licence: str) -> TeacherRecord:
    """What the manifest says of a teacher."""
    prompt_encoder: Any = teacher.model.prompt_encoder
    return TeacherRecord(
        name=teacher.name,
        weights_sha256=teacher.weights_sha256,
        preprocessing=teacher.preprocessing,
        side=teacher.input_side,
        embedding=(prompt_encoder.embed_dim, *prompt_encoder.image_embedding_size),
        mask_size=tuple(prompt_encoder.mask_input_size),
        mask_threshold=teacher.mask_threshold,
        licence=licence,
    )


def _reading(
    cases: Sequence[Case], intensity: IntensityRule, progress: Progress, class_names: tuple[str, ...] = ()
) -> Iterator[tuple[Image, Truth | None]]:
    """Read cases as the networks are to see them, with their truth where they are labelled.

    The truth has the classes in the order of `class_names`, or, where nobody asks for classes, the data's.
    """
    for done, case in enumerate(cases):
        progress.on_case(done, len(cases))
        image, truth = _image(case, intensity), None
        if case.labelled:
            masks, ignored = case.read_labels()
            truth = (masks[channel_order(case, class_names)] if class_names else masks), ignored
        yield image, truth
    progress.on_case(len(cases), len(cases))


def _image(case: Case, intensity: IntensityRule) -> Image:
    try:
        return intensity.apply(case.read_image())
    except ValueError as error:
        raise InputRejected(f"{case.image_path}: {error}") from error
