"""Does a bundle still give the masks it was published with: hashes of all files, then its golden cases.

Needs no torch and no real image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from samdistill.bundle import Bundle
from samdistill.bundled_teacher import BundledTeacher
from samdistill.errors import BundleError
from samdistill.golden import GoldenCase, GoldenResult, TeacherCase, compare, compare_teacher
from samdistill.manifest import GoldenRecord
from samdistill.predictor import Predictor


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
        What computed the golden cases.
    golden
        One result a case.
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
    predictor = Predictor.load(bundle, device, runtime, expect_sha256=opened.sha256)
    results = []
    for record, result in _results(opened, predictor, device, runtime):
        if not result.passed:
            raise BundleError(
                f"golden cases come out otherwise on {predictor.provider}; {result.name}: "
                f"probabilities differ by {result.max_probability_difference:.3g} "
                f"(at most {record.max_probability_difference:.3g}), "
                f"{result.changed_pixels:.2%} of a mask's pixels (at most {record.max_changed_pixels:.2%}). "
                "Do not use this bundle; export it again."
            )
        results.append(result)
    return Verification(opened.sha256, files, predictor.runtime, predictor.provider, tuple(results))


def _results(
    bundle: Bundle, predictor: Predictor, device: str, runtime: str
) -> Iterator[tuple[GoldenRecord, GoldenResult]]:
    """Compute each golden case again."""
    cases = bundle.manifest.golden
    teacher = None
    if any(record.part == "teacher" for record in cases):
        teacher = BundledTeacher.load(bundle, device, runtime)
    for record in cases:
        content = bundle.read(record.file)
        try:
            if record.part == "student":
                case = GoldenCase.from_npz(content, record.file)
                answer = predictor.predict(case.pixels)
                yield record, compare(answer.masks, answer.probability_maps, case, record)
            else:
                assert teacher is not None
                expected = TeacherCase.from_npz(content, record.file)
                yield record, compare_teacher(answered(teacher, expected), expected, record)
        except ValueError as error:
            raise BundleError(f"golden case {record.name} cannot be computed: {error}") from error


def answered(teacher: BundledTeacher, case: TeacherCase) -> TeacherCase:
    """A teacher's own answers to a golden case."""
    (embedding,) = teacher.embed([case.pixels])
    return case.answered_by(lambda sets, multimask: teacher.segment([embedding], [sets], multimask=multimask))
