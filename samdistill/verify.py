"""Does a bundle still give the masks it was published with: hashes of all files, then its golden cases.

Every engine that can run here computes them, not only the one that would be chosen. Needs no torch and no
real image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from samdistill.bundle import Bundle
from samdistill.bundled_teacher import BundledTeacher
from samdistill.engines import OpenedPart, candidates, open_part, open_record
from samdistill.errors import BundleError
from samdistill.golden import GoldenCase, GoldenResult, TeacherCase, compare, compare_teacher
from samdistill.manifest import EngineRecord, GoldenRecord, Part
from samdistill.predictor import Predictor
from samdistill.runtime import Engine, is_installed


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes
    ----------
    bundle_sha256
        The bundle's own hash.
    files
        How many files were hashed.
    runtime, provider
        What would be chosen for the student.
    golden
        One result a case and engine.
    """

    bundle_sha256: str
    files: int
    runtime: str
    provider: str
    golden: tuple[GoldenResult, ...]


def verify(
    bundle: Path | str,
    *,
    device: str = "cpu",
    runtime: str = "auto",
    expect_sha256: str | None = None,
) -> Verification:
    """Hash every file of a bundle and compute its golden cases again.

    Parameters
    ----------
    bundle, device, runtime, expect_sha256
        As for `Predictor.load`.

    Raises
    ------
    BundleError
        When a file is missing, changed or unlisted, or a golden case comes out otherwise.
    DeviceUnavailable
        When the runtime or the device cannot be had.
    """
    opened = Bundle.open(bundle, expect_sha256=expect_sha256)
    files = opened.check_files()
    # What would be chosen has to open; the others are those whose libraries are here.
    student = open_part(opened, "student", device=device, runtime=runtime)
    results = []
    for record, result in _results(opened, device, runtime):
        if not result.passed:
            raise BundleError(
                f"golden cases come out otherwise on {result.engine}; {result.name}: "
                f"probabilities differ by {result.max_probability_difference:.3g} "
                f"(at most {record.max_probability_difference:.3g}), "
                f"{result.changed_pixels:.2%} of a mask's pixels (at most {record.max_changed_pixels:.2%}). "
                "Do not use this bundle; export it again."
            )
        results.append(result)
    provider = student.engine.provider
    return Verification(opened.sha256, files, student.record.runtime, provider, tuple(results))


def _results(bundle: Bundle, device: str, runtime: str) -> Iterator[tuple[GoldenRecord, GoldenResult]]:
    """Compute each golden case again on each engine."""
    manifest = bundle.manifest
    parts: tuple[Part, ...] = ("student",) if manifest.teacher is None else ("student", "encoder", "decoder")
    for part in parts:
        for engine in candidates(bundle, part, device=device, runtime=runtime):
            if not is_installed(engine.runtime):
                continue
            opened = open_record(bundle, engine, device=device)
            name = f"{part}: {OpenedPart(opened, engine)}"
            for case in manifest.golden:
                if (case.part == "student") != (part == "student"):
                    continue
                allowed = _allowed(case, engine)
                try:
                    result = _compute(bundle, engine, opened, allowed, device)
                except ValueError as error:
                    raise BundleError(f"golden case {case.name} cannot be computed: {error}") from error
                yield allowed, replace(result, engine=name)


def _allowed(case: GoldenRecord, engine: EngineRecord) -> GoldenRecord:
    """The case with what this engine may differ by."""
    return replace(
        case,
        max_probability_difference=engine.max_probability_difference or case.max_probability_difference,
        max_changed_pixels=engine.max_changed_pixels or case.max_changed_pixels,
    )


def _compute(
    bundle: Bundle, engine: EngineRecord, opened: Engine, allowed: GoldenRecord, device: str
) -> GoldenResult:
    """Compute one case on an engine."""
    content = bundle.read(allowed.file)
    if engine.model == "student":
        expected = GoldenCase.from_npz(content, allowed.file)
        student = OpenedPart(opened, engine)
        answer = Predictor(bundle, student, threads=None, device=device).predict(expected.pixels)
        return compare(answer.masks, answer.probability_maps, expected, allowed)
    assert bundle.manifest.teacher is not None
    asked = TeacherCase.from_npz(content, allowed.file)
    other: Part = "decoder" if engine.model == "encoder" else "encoder"
    beside = open_part(bundle, other, device=device, precision="fp32").engine
    pair = (opened, beside) if engine.model == "encoder" else (beside, opened)
    teacher = BundledTeacher(bundle.manifest.teacher, *pair)
    return compare_teacher(answered(teacher, asked), asked, allowed)


def answered(teacher: BundledTeacher, case: TeacherCase) -> TeacherCase:
    """A teacher's own answers to a golden case."""
    (embedding,) = teacher.embed([case.pixels])
    return case.answered_by(lambda sets, multimask: teacher.segment([embedding], [sets], multimask=multimask))
