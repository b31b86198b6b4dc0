"""Does a bundle still give the masks it was published with: hashes of all files, then its golden cases.

Every engine that can run here computes them, not only the one that would be chosen. Needs no torch and no
real image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from samdistill.bundle import Bundle
from samdistill.bundled_teacher import golden_result
from samdistill.engines import OpenedPart, candidates, open_part, open_record, precision_of
from samdistill.errors import BundleError, DeviceUnavailable
from samdistill.golden import GoldenResult
from samdistill.manifest import Part
from samdistill.predictor import Predictor
from samdistill.proof import golden_results
from samdistill.runtime import is_installed


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
    unavailable
        Engines whose library is here and which cannot be had all the same, each with the reason.
    """

    bundle_sha256: str
    files: int
    runtime: str
    provider: str
    golden: tuple[GoldenResult, ...]
    unavailable: tuple[str, ...] = ()


def verify(
    bundle: Path | str,
    *,
    device: str = "cpu",
    runtime: str = "auto",
    precision: str | None = None,
    expect_sha256: str | None = None,
) -> Verification:
    """Hash every file of a bundle and compute its golden cases again.

    Parameters
    ----------
    bundle, device, runtime, precision, expect_sha256
        As for `Predictor.load`; None are all precisions.

    Raises
    ------
    BundleError
        When a file is missing, changed or unlisted, or a golden case comes out otherwise.
    DeviceUnavailable
        When the runtime or the device cannot be had.
    """
    opened = Bundle.open(bundle, expect_sha256=expect_sha256)
    files = opened.check_files()
    manifest = opened.manifest
    parts: tuple[Part, ...] = ("student",) if manifest.teacher is None else ("student", "encoder", "decoder")
    unavailable: list[str] = []
    results: list[GoldenResult] = []
    for part in parts:
        kind = "student" if part == "student" else "teacher"
        if all(case.part != kind for case in manifest.golden):
            raise BundleError(f"golden must hold a case of the {kind}, or nothing proves its {part}.")
        wanted = precision_of(opened, part, precision)
        own = list(_results(opened, part, device, runtime, wanted, unavailable))
        results += own
        if not own:  # says why
            open_part(opened, part, device=device, runtime=runtime, precision=wanted)
    student = open_part(opened, "student", device=device, runtime=runtime, precision=precision)
    provider = student.engine.provider
    return Verification(
        opened.sha256, files, student.record.runtime, provider, tuple(results), tuple(unavailable)
    )


def _results(
    bundle: Bundle, part: Part, device: str, runtime: str, precision: str | None, unavailable: list[str]
) -> Iterator[GoldenResult]:
    """Compute each golden case again on each engine; a plan that is new to this machine is kept then."""
    for engine in candidates(bundle, part, device=device, runtime=runtime, precision=precision):
        if not is_installed(engine.runtime):
            continue
        try:
            opened = open_record(bundle, engine, device=device)
        except DeviceUnavailable as error:
            unavailable.append(f"{part}: {engine.runtime} {engine.precision}: {error}")
            continue
        yield from engine_results(bundle, opened, device)


def engine_results(bundle: Bundle, opened: OpenedPart, device: str) -> list[GoldenResult]:
    """Compute the golden cases of an opened engine's network again; as `proof.golden_results`."""
    if opened.record.model == "student":
        compute = Predictor(bundle, opened, threads=None, device=device).golden_result
    else:
        compute = partial(golden_result, bundle, opened)
    return golden_results(bundle, opened, compute)
