"""Publishing: student in, a bundle out that has proved itself, or nothing.

Everything is made in a hidden folder beside the target and renamed once the parity gate and `verify` have
passed there, so that whatever happens meanwhile, no half bundle lies under the target's name.
"""

from __future__ import annotations

import hashlib
import platform
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from samdistill._version import __version__
from samdistill.arrays import Image
from samdistill.errors import InputRejected, UsageError
from samdistill.export.golden import make_golden
from samdistill.export.model_card import model_card
from samdistill.export.onnx import INPUT, OPSET, OUTPUT, export_onnx
from samdistill.export.parity import ParityReport, measure
from samdistill.intensity import IntensityRule
from samdistill.io.dataset import Case
from samdistill.io.files import atomic_folder
from samdistill.manifest import (
    MANIFEST,
    SCHEMA,
    ClassInfo,
    FileRecord,
    GoldenRecord,
    InputContract,
    Manifest,
    ModelRecord,
    Models,
    Normalisation,
)
from samdistill.report.overlay import class_colour
from samdistill.runtime import open_engine
from samdistill.verify import Verification, verify

STUDENT, MODEL_CARD = "student.onnx", "MODEL_CARD.md"
GOLDEN_DIFFERENCE = 0.002  # of a probability; engines of one precision differ by less than 1e-4
GOLDEN_CHANGED = 0.001  # of an image's pixels
VERSIONS_OF = ("torch", "onnx", "onnxscript", "onnxslim", "onnxruntime", "numpy", "pillow")


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
    parity, verification
        What the two gates found.
    """

    path: Path
    sha256: str
    bytes: int
    parity: ParityReport
    verification: Verification


def export_run(
    run: Path | str,
    out: Path | str,
    *,
    data: Path | None = None,
    force: bool = False,
    name: str | None = None,
    licence: str = "not stated",
    progress: Progress | None = None,
) -> Published:
    """Publish the best student of a training run; parameters as for `publish`.

    Parameters
    ----------
    run
        The run's folder.
    data
        Where the run's data lie now; None takes the place the run recorded.

    Raises
    ------
    InputRejected
        When the run cannot be read or its validation images are not to be found.
    """
    from samdistill.train.run import Run

    check_target(Path(out), force=force)
    opened = Run.load(run)
    source = Source(
        opened.load_student(),
        opened.class_names,
        opened.multi_label,
        opened.intensity,
        opened.config.student.size,
        opened.provenance(data),
    )
    return publish(
        source,
        opened.validation_cases(data),
        Path(out),
        force=force,
        name=name,
        licence=licence,
        progress=progress,
    )


def publish(
    source: Source,
    cases: Sequence[Case],
    out: Path,
    *,
    force: bool = False,
    name: str | None = None,
    licence: str = "not stated",
    progress: Progress | None = None,
) -> Published:
    """Export a student, prove the export, and put the bundle in its place.

    Parameters
    ----------
    source
        The student.
    cases
        Validation images for the parity gate; at least one. Nothing of them enters the bundle.
    out
        The bundle's folder.
    force
        Replace a bundle that is there; anything else there is never touched.
    name
        Of the bundle, for people; None takes the folder's.
    licence
        Under which the weights may be used.

    Raises
    ------
    UsageError
        When something is in the way.
    ParityError
        When the exported network does not do what the student does.
    BundleError
        When the finished bundle does not verify.
    """
    progress = progress or Silent()
    check_target(out, force=force)
    if not cases:
        raise InputRejected("the run must have validation images for the parity gate, and has none.")
    thresholds = (0.5,) * len(source.class_names)
    progress.on_message("exporting the student to ONNX")
    model = export_onnx(source.student)
    progress.on_message(f"comparing with PyTorch on {len(cases)} validation images")
    parity = measure(
        source.student,
        open_engine(model),
        (_pixels(case, source.intensity) for case in cases),
        size=source.size,
        thresholds=thresholds,
        multi_label=source.multi_label,
        tell=lambda done: progress.on_case(done, len(cases)),
    )
    parity.require()
    progress.on_message("making golden cases")
    files: dict[str, bytes] = {STUDENT: model}
    golden = []
    for kind, (origin, case) in make_golden(
        source.student,
        size=source.size,
        intensity=source.intensity,
        thresholds=thresholds,
        multi_label=source.multi_label,
    ).items():
        file = f"golden/{kind}.npz"
        files[file] = case.to_npz()
        golden.append(GoldenRecord(kind, file, origin, GOLDEN_DIFFERENCE, GOLDEN_CHANGED))
    manifest = Manifest(
        schema=SCHEMA,
        name=name or out.name,
        classes=tuple(
            ClassInfo(label, class_colour(index), thresholds[index])
            for index, label in enumerate(source.class_names)
        ),
        multi_label=source.multi_label,
        input=InputContract(size=source.size),
        intensity=source.intensity,
        normalisation=_normalisation(source.student),
        models=Models(
            ModelRecord(
                STUDENT,
                OPSET,
                sum(p.numel() for p in source.student.parameters()),
                input=INPUT,
                output=OUTPUT,
            )
        ),
        golden=tuple(golden),
        files=(*(_record(path, content) for path, content in files.items()), _record(MODEL_CARD, b"")),
        versions=_versions(),
        provenance=source.provenance,
        parity=parity.to_dict(),
        licence=licence,
        model_card=MODEL_CARD,
    )
    files[MODEL_CARD] = model_card(manifest).encode()
    manifest = replace(manifest, files=tuple(_record(path, files[path]) for path in sorted(files)))
    files[MANIFEST] = manifest.to_json()
    progress.on_message("verifying the bundle")
    staging = out if not out.exists() else out.with_name(f".{out.name}.{secrets.token_hex(4)}.new")
    try:
        with atomic_folder(staging) as folder:
            for path, content in files.items():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(content)
            verification = verify(folder)
        if staging != out:
            _replace(staging, out)
    finally:
        if staging != out:
            shutil.rmtree(staging, ignore_errors=True)
    size = sum(len(content) for content in files.values())
    return Published(out, verification.bundle_sha256, size, parity, verification)


def check_target(out: Path, *, force: bool) -> None:
    """Refuse a target that is taken, before any work is done.

    Raises
    ------
    UsageError
        When `out` is there, unless `force` is given and it is a bundle, or it is an empty folder.
    """
    if not out.exists() and not out.is_symlink():
        out.parent.mkdir(parents=True, exist_ok=True)  # where that cannot be, say so before the work
        return
    if out.is_dir() and not out.is_symlink():
        if not any(out.iterdir()):
            return
        if (out / MANIFEST).is_file():
            if force:
                return
            raise UsageError(
                f"{out} must not exist yet. Name another bundle, or replace this one with --force."
            )
    raise UsageError(f"{out} must be a new place for a bundle; what is there is no bundle and stays.")


def _pixels(case: Case, intensity: IntensityRule) -> Image:
    """Read a case's image as the student is to see it."""
    try:
        return intensity.apply(case.read_image())
    except ValueError as error:
        raise InputRejected(f"{case.image_path}: {error}") from error


def _replace(staging: Path, out: Path) -> None:
    """Put a finished bundle in another's place; for a moment there is none, never half of one."""
    old = out.with_name(f".{out.name}.{secrets.token_hex(4)}.old")
    out.rename(old)
    try:
        staging.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


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
