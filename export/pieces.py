"""What a bundle is put together from: the student's piece and the teacher's, each exported and proved.

Knows how networks are exported and compared; `bundle` puts pieces into a folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from samdistill.arrays import Image
from samdistill.errors import InputRejected
from samdistill.export.golden import make_golden, make_teacher_golden
from samdistill.export.onnx import INPUT, OPSET, OUTPUT, export_onnx
from samdistill.export.parity import ParityReport, StudentReference, Truth
from samdistill.export.teacher_onnx import Graph, export_decoder, export_encoder
from samdistill.export.teacher_parity import TeacherReference
from samdistill.intensity import IntensityRule
from samdistill.io.dataset import Case
from samdistill.manifest import EngineRecord, GoldenRecord, ModelRecord, Part, TeacherRecord
from samdistill.runtime import open_engine
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


def student_piece(
    source: Source,
    cases: Sequence[Case],
    *,
    thresholds: tuple[float, ...],
    progress: Progress,
) -> Piece:
    """Export the student and hold it against PyTorch.

    Raises
    ------
    ParityError
        When the exported network does not do what the student does.
    """
    progress.on_message("exporting the student to ONNX")
    model = export_onnx(source.student)
    progress.on_message(f"comparing the student with PyTorch on {len(cases)} validation images")
    contract: dict[str, Any] = {
        "size": source.size,
        "thresholds": thresholds,
        "multi_label": source.multi_label,
    }
    reference = StudentReference(source.student, _reading(cases, source.intensity, progress), **contract)
    parity = reference.measure(open_engine(model))
    parity.require()
    progress.on_message("making golden cases")
    files, golden = {STUDENT: model}, []
    made = make_golden(source.student, intensity=source.intensity, **contract)
    for kind, (origin, case) in made.items():
        file = f"golden/{kind}.npz"
        files[file] = case.to_npz()
        golden.append(GoldenRecord(kind, file, origin, GOLDEN_DIFFERENCE, GOLDEN_CHANGED))
    parameters = sum(parameter.numel() for parameter in source.student.parameters())
    record = ModelRecord(STUDENT, OPSET, parameters, (INPUT,), (OUTPUT,))
    engine = EngineRecord("student", "onnxruntime", "cpu", "fp32", STUDENT, parity.to_dict())
    return Piece(files, {"student": record}, (engine,), tuple(golden), (parity,))


def teacher_piece(
    teacher: Teacher,
    record: TeacherRecord,
    cases: Sequence[Case],
    intensity: IntensityRule,
    *,
    progress: Progress,
) -> Piece:
    """Export the teacher's encoder and decoder and hold them against PyTorch; errors as for the student's."""
    progress.on_message(f"exporting the teacher {record.name} to ONNX")
    graphs: dict[Part, Graph] = {"encoder": export_encoder(teacher), "decoder": export_decoder(teacher)}
    files: dict[str, bytes] = {}
    models: dict[Part, ModelRecord] = {}
    engines = {}
    for part, graph in graphs.items():
        file = f"{part}.onnx"
        data = None if graph.data is None else f"{file}.data"
        files[file] = graph.content
        if data is not None and graph.data is not None:
            files[data] = graph.data
        models[part] = ModelRecord(file, OPSET, graph.parameters, graph.inputs, graph.outputs, data)
        engines[part] = open_engine(graph.content, data={data: files[data]} if data else {})
    progress.on_message(f"comparing the teacher with PyTorch on {len(cases)} validation images")
    reference = TeacherReference(teacher, record, _reading(cases, intensity, progress))
    reports = []
    for part in models:
        report = reference.measure(engines["encoder"], engines["decoder"], model=part)
        report.require()
        reports.append(report)
    origin, case = make_teacher_golden(teacher)
    files["golden/teacher.npz"] = case.to_npz()
    return Piece(
        files,
        models,
        tuple(
            EngineRecord(
                part,
                "onnxruntime",
                "cpu",
                "fp32",
                models[part].file,
                report.to_dict(),
                data=models[part].data,
            )
            for part, report in zip(models, reports, strict=True)
        ),
        (
            GoldenRecord(
                "teacher", "golden/teacher.npz", origin, GOLDEN_DIFFERENCE, GOLDEN_CHANGED, part="teacher"
            ),
        ),
        tuple(reports),
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
    cases: Sequence[Case], intensity: IntensityRule, progress: Progress
) -> Iterator[tuple[Image, Truth | None]]:
    for done, case in enumerate(cases):
        progress.on_case(done, len(cases))
        yield _read(case, intensity)
    progress.on_case(len(cases), len(cases))


def _read(case: Case, intensity: IntensityRule) -> tuple[Image, Truth | None]:
    """Read a case as the networks are to see it, with its truth where it is labelled."""
    try:
        image = intensity.apply(case.read_image())
    except ValueError as error:
        raise InputRejected(f"{case.image_path}: {error}") from error
    return image, case.read_labels() if case.labelled else None
