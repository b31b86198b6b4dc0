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
from samdistill.engines import candidates, open_part, open_record
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
    results = list(_results(opened, device, runtime))
    # What would be chosen has to open; the others are those whose libraries are here.
    student = open_part(opened, "student", device=device, runtime=runtime)
    provider = student.engine.provider
    return Verification(opened.sha256, files, student.record.runtime, provider, tuple(results))


def _results(bundle: Bundle, device: str, runtime: str) -> Iterator[GoldenResult]:
    """Compute each golden case again on each engine; a plan that is new to this machine is kept then."""
    manifest = bundle.manifest
    parts: tuple[Part, ...] = ("student",) if manifest.teacher is None else ("student", "encoder", "decoder")
    for part in parts:
        for engine in candidates(bundle, part, device=device, runtime=runtime):
            if not is_installed(engine.runtime):
                continue
            opened = open_record(bundle, engine, device=device)
            if part == "student":
                compute = Predictor(bundle, opened, threads=None, device=device).golden_result
            else:
                compute = partial(golden_result, bundle, opened)
            yield from golden_results(bundle, opened, compute)
