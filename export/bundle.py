"""Publishing: student in, a bundle out that has proved itself, or nothing.

Everything is made in a hidden folder beside the target and renamed once the parity gate and `verify` have
passed there, so that whatever happens meanwhile, no half bundle lies under the target's name.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

from torch import nn

from samdistill import refine
from samdistill._version import __version__
from samdistill.bundle import Bundle
from samdistill.errors import InputRejected, UsageError
from samdistill.export.fit_quality import fit
from samdistill.export.model_card import model_card
from samdistill.export.parity import ParityReport
from samdistill.export.parity_page import parity_page
from samdistill.export.pieces import (
    FP32,
    Engines,
    Progress,
    Silent,
    Source,
    student_piece,
    teacher_piece,
    teacher_record,
)
from samdistill.export.plans import prove_for
from samdistill.io.dataset import Case
from samdistill.io.files import atomic_folder, check_folder_place, hidden_beside, sha256_file, sync_folder
from samdistill.manifest import (
    MANIFEST,
    MOST_NAME,
    SCHEMA,
    ClassInfo,
    EngineRecord,
    FileRecord,
    InputContract,
    Manifest,
    Models,
    Normalisation,
)
from samdistill.predictor import Predictor
from samdistill.profiles import check_points
from samdistill.refine import RefineConfig
from samdistill.report.overlay import class_colour
from samdistill.teacher import Teacher, load_teacher
from samdistill.teacher.checkpoints import KNOWN
from samdistill.verify import Verification, verify

__all__ = ["Published", "Silent", "Source", "check_target", "export_run", "publish"]

MODEL_CARD, PARITY = "MODEL_CARD.md", "parity.html"
VERSIONS_OF = (
    *("torch", "onnx", "onnxscript", "onnxslim", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"),
    *("numpy", "pillow"),
)


@dataclass(frozen=True)
class Published:
    """What `publish` made.

    Attributes
    ----------
    path
        The bundle.
    sha256
        Its hash, for `expect_sha256`.
    bytes
        Of all its files.
    parity
        What the gate against PyTorch found, a report an engine.
    verification
        What `verify` found.
    unverified
        Engines that were built for a GPU without one, to be proved where they are to run.
    """

    path: Path
    sha256: str
    bytes: int
    parity: tuple[ParityReport, ...]
    verification: Verification
    unverified: tuple[EngineRecord, ...]


def export_run(
    run: Path | str,
    out: Path | str,
    *,
    teacher: str | None = "tiny",
    prompts: RefineConfig | None = None,
    data: Path | None = None,
    force: bool = False,
    name: str | None = None,
    licence: str = "not stated",
    engines: Engines = FP32,
    include_images: bool = False,
    progress: Progress | None = None,
) -> Published:
    """Publish the best student of a training run; parameters as for `publish`.

    Parameters
    ----------
    run
        The run's folder.
    teacher
        Name or path for `load_teacher`, or None.
    prompts
        None takes the run's own.
    data
        Where the run's data lie now; None takes the place the run recorded.

    Raises
    ------
    InputRejected
        When the run or the teacher cannot be read, or the run's validation images are not to be found.
    """
    from samdistill.train.run import Run

    out = _named(Path(out))
    check_target(out, force=force)
    opened = Run.load(run)
    if progress is not None:
        opened.tell_if_unfinished(progress.on_message)
    source = Source(
        opened.load_student(),
        opened.class_names,
        opened.multi_label,
        opened.intensity,
        opened.config.student.size,
        opened.provenance(data),
    )
    parts = opened.cases(data)
    return publish(
        source,
        parts["validation"],
        out,
        teacher=None if teacher is None else load_teacher(teacher),
        teacher_licence="not stated" if teacher is None else licence_of(teacher),
        prompts=prompts or opened.config.refine_or_default,
        force=force,
        name=name,
        licence=licence,
        engines=engines,
        calibration=parts["train_labelled"] + parts["train_unlabelled"],
        include_images=include_images,
        training=parts["train_labelled"],
        progress=progress,
    )


def publish(
    source: Source,
    cases: Sequence[Case],
    out: Path,
    *,
    teacher: Teacher | None = None,
    teacher_licence: str = "not stated",
    prompts: RefineConfig = refine.MINE,
    force: bool = False,
    name: str | None = None,
    licence: str = "not stated",
    engines: Engines = FP32,
    calibration: Sequence[Case] = (),
    training: Sequence[Case] = (),
    include_images: bool = False,
    progress: Progress | None = None,
) -> Published:
    """Export a student, and a teacher beside it; prove the export and put the bundle in its place.

    Parameters
    ----------
    source
        The student.
    cases
        Validation images for the parity gate; at least one. Nothing of them enters the bundle, unless
        `include_images` says so. Where they are labelled, temperatures, the judgement of quality and the rule
        of mode "auto" are fitted on them.
    out
        The bundle's folder.
    teacher
        On the CPU; None leaves it out.
    teacher_licence
        Under which the teacher's weights may be used.
    prompts
        How the student's answer is put to the teacher.
    force
        Replace a bundle that is there; anything else there is never touched.
    name
        Of the bundle, for people; None takes the folder's.
    licence
        Under which the student's weights may be used.
    engines
        Which are wanted besides ONNX Runtime in fp32.
    calibration
        Images that int8's ranges are taken from; not those of the gate.
    training
        Labelled images that the student was trained on, to tell what is unlike them.
    include_images
        Put a few of `cases` into the bundle, raw, as golden cases.

    Raises
    ------
    UsageError
        When something is in the way.
    ParityError
        When an exported network does not do what the original does.
    BundleError
        When the finished bundle does not verify.
    """
    out = _named(out)
    progress, name = progress or Silent(), name or out.name
    check_target(out, force=force)
    if not 1 <= len(name) <= MOST_NAME:
        raise UsageError(f"name must have 1..{MOST_NAME} characters, not {len(name)}. Give another.")
    for what, words in (("name", name), ("licence", licence)):
        if not words.isprintable():  # bytes that are no UTF-8 are not, nor is what moves a terminal's cursor
            raise UsageError(f"{what} must be printable text, not {words!r}. Give another.")
    if teacher is not None:
        refine.check_thresholds(prompts, len(source.class_names))
        if engines.planned is not None:
            check_points(prompts.prompts, len(source.class_names))
    if not cases:
        raise InputRejected("the run must have validation images for the parity gate, and has none.")
    thresholds = (0.5,) * len(source.class_names)
    pieces = [
        student_piece(
            source,
            cases,
            thresholds=thresholds,
            progress=progress,
            engines=engines,
            calibration=calibration,
            include_images=include_images,
        )
    ]
    record = None
    if teacher is not None:
        record = teacher_record(teacher, teacher_licence)
        pieces.append(
            teacher_piece(
                teacher,
                record,
                cases,
                source.intensity,
                size=source.size,
                prompts=prompts,
                progress=progress,
                engines=engines,
            )
        )
    files = {path: content for piece in pieces for path, content in piece.files.items()}
    reports = tuple(report for piece in pieces for report in piece.parity)
    files[PARITY] = parity_page(name, reports)
    networks = {part: model for piece in pieces for part, model in piece.models.items()}
    manifest = Manifest(
        schema=SCHEMA,
        name=name,
        classes=tuple(
            ClassInfo(label, class_colour(index), thresholds[index])
            for index, label in enumerate(source.class_names)
        ),
        multi_label=source.multi_label,
        input=InputContract(size=source.size),
        intensity=source.intensity,
        normalisation=_normalisation(source.student),
        models=Models(**networks),
        golden=tuple(case for piece in pieces for case in piece.golden),
        files=(*(_record(path, content) for path, content in files.items()), _record(MODEL_CARD, b"")),
        versions=_versions(),
        provenance=source.provenance,
        engines=tuple(engine for piece in pieces for engine in piece.engines),
        licence=licence,
        model_card=MODEL_CARD,
        teacher=record,
        prompts=None if record is None else prompts,
    )
    staging = hidden_beside(out, "new")
    try:
        with atomic_folder(staging) as folder:
            manifest = _write(folder, files, manifest)
            opened = Predictor.load(folder, runtime="onnxruntime", precision="fp32")
            fitted = fit(opened, cases, training, progress)
            manifest = _write(folder, files, replace(manifest, **vars(fitted)))
            progress.on_message("verifying the bundle")
            verification = verify(folder)
            prove_for(Bundle.open(folder))
        check_target(out, force=force)  # what came there meanwhile stays
        _put(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    size = sum(len(content) for content in files.values())
    unverified = tuple(engine for engine in manifest.engines if not engine.parity)
    return Published(out, verification.bundle_sha256, size, reports, verification, unverified)


def _write(folder: Path, files: dict[str, bytes], manifest: Manifest) -> Manifest:
    """Write every file, the card and the manifest that lists them among them; the manifest as written."""
    files[MODEL_CARD] = model_card(manifest).encode()
    listed = sorted(path for path in files if path != MANIFEST)
    manifest = replace(manifest, files=tuple(_record(path, files[path]) for path in listed))
    files[MANIFEST] = manifest.to_json()
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return manifest


def check_target(out: Path, *, force: bool) -> None:
    """Refuse a target that is taken, before any work is done.

    Raises
    ------
    UsageError
        When `out` is there, unless it is an empty folder, or `force` is given and it is a bundle that holds
        nothing else; or when nothing can be put there.
    """
    if not out.exists() and not out.is_symlink():
        check_folder_place(out)
        return
    if out.is_dir() and not out.is_symlink():
        check_folder_place(out)
        if not any(out.iterdir()):
            return
        listed = _bundle_files(out)
        if listed is not None:
            if force:
                _check_nothing_else(out, listed)
                return
            raise UsageError(
                f"{out} must not exist yet. Name another bundle, or replace this one with --force."
            )
    raise UsageError(f"{out} must be a new place for a bundle; what is there is no bundle and stays.")


def _named(out: Path) -> Path:
    """The same place by a path that ends in its name, as `.` and `..` do not."""
    return out if out.name not in ("", "..") else out.resolve()


def _bundle_files(folder: Path) -> set[str] | None:
    """The files of the bundle that a folder is, of any schema; None where it is none.

    Other projects have files called manifest.json too.
    """
    try:
        values = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or not {"schema", "classes", "models", "files"} <= values.keys():
        return None
    files = values["files"] if isinstance(values["files"], list) else []
    return {MANIFEST, *(str(one["path"]) for one in files if isinstance(one, dict) and "path" in one)}


def _check_nothing_else(folder: Path, listed: set[str]) -> None:
    """Refuse to replace a bundle into which somebody has put something."""
    found = (
        (Path(base) / name).relative_to(folder).as_posix()
        for base, _, names in os.walk(folder)
        for name in names
    )
    other = next((name for name in found if name not in listed), None)
    if other is not None:
        raise UsageError(f"{folder} must hold nothing but the bundle to be replaced. Move {other} out of it.")


def _put(staging: Path, out: Path) -> None:
    """Put a finished bundle in its place, or another's; for a moment there is none, never half of one."""
    if not out.exists():
        staging.rename(out)
        sync_folder(out.parent)
        return
    old = hidden_beside(out, "old")
    out.rename(old)
    try:
        staging.rename(out)
    except OSError:
        old.rename(out)
        raise
    sync_folder(out.parent)  # before the old one goes
    shutil.rmtree(old, ignore_errors=True)


def licence_of(teacher: str) -> str:
    """Licence of the weights that words for `load_teacher` name; of a file's where it is the official one."""
    if teacher == "tiny":
        return "Apache-2.0"
    if teacher in KNOWN:
        return KNOWN[teacher].licence
    sha256 = sha256_file(Path(teacher.partition(":")[2] or teacher))
    return next((one.licence for one in KNOWN.values() if one.sha256 == sha256), "not stated")


def _record(path: str, content: bytes) -> FileRecord:
    return FileRecord(path, hashlib.sha256(content).hexdigest(), len(content))


def _normalisation(student: nn.Module) -> Normalisation:
    buffers = dict(student.named_buffers(recurse=False))
    mean, std = (tuple(float(v) for v in buffers[name].flatten()) for name in ("mean", "std"))
    return Normalisation(mean, std)


def _versions() -> dict[str, str]:
    versions = {"samdistill": __version__, "python": platform.python_version()}
    for library in VERSIONS_OF:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue  # onnxruntime may be there as onnxruntime-gpu
    return versions
