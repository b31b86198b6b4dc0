"""What all files of a run have in common, one file on its way, and what came of it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event
from typing import Any

from samdistill._version import __version__
from samdistill.errors import DeviceUnavailable, InputRejected, SamdistillError
from samdistill.inference.cases import Case
from samdistill.inference.outputs import Options, Outputs, engines_of, settings_sha256
from samdistill.inference.records import Outcome, Record
from samdistill.inference.sources import Source
from samdistill.inference.tiles import segment_in_tiles
from samdistill.io.stack import open_stack, read_content
from samdistill.predictor import Pixels, Predictor, Segmentation

BATCH = 4  # on a CPU; of more images the activations leave its caches
WRITERS = 8
LARGE_BYTES = 1 << 23  # cases of more are written by the worker itself, so that they do not pile up
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # what writing fails with, whichever file it is


class Run:
    """What all files of a run have in common."""

    def __init__(
        self, predictor: Predictor, out: Path, options: Options, outputs: dict[Source, Outputs]
    ) -> None:
        self.predictor, self.out, self.options, self.outputs = predictor, out, options, outputs
        versions = _versions()
        self.settings = {**options.settings(predictor), **versions}
        self.settings_sha256 = settings_sha256(self.settings)
        self.stop = Event()
        # What ended the run, where the device did, or the disk.
        self.lost: DeviceUnavailable | OSError | None = None
        self.writers = ThreadPoolExecutor(WRITERS, "samdistill-write")
        self.facts: dict[str, Any] = {
            "bundle_sha256": predictor.bundle_sha256,
            "mode": options.mode,
            "engines": engines_of(predictor, options.mode),
            "provider": predictor.provider,
            "settings_sha256": self.settings_sha256,
            "versions": versions,
        }
        # What a DICOM Segmentation derives its UIDs from and tells of itself. A budget in seconds is another
        # least gain on another day, which may give other masks; as a setting it would let nothing be resumed.
        self.provenance = dict(self.settings)
        if options.mode == "auto":
            least = predictor.least_gain(options.parsed_budget(), stability=options.stability)
            self.facts["least_gain"] = least if math.isfinite(least) else None  # none may be refined
            self.provenance["least_gain"] = json.dumps(self.facts["least_gain"])


@dataclass
class Job:
    """One file on its way."""

    number: int
    source: Source
    case: Case | None = None
    record: Record | None = None
    timings_ms: dict[str, float] = field(default_factory=lambda: {"read": 0.0, "segment": 0.0, "write": 0.0})


def open_case(run: Run, job: Job) -> Case:
    """Read a file's bytes and header."""
    source = job.source
    if source.problem is not None:
        raise InputRejected(source.problem)
    with timed(job, "read"):
        content = read_content(source.path)
        sha256 = hashlib.sha256(content).hexdigest()
        job.record = unfinished(run, job, sha256)
        stack = open_stack(source.path, content)
        job.case = Case(stack, sha256, run.outputs[source], run.options, run.predictor)
    return job.case


def unfinished(run: Run, job: Job, input_sha256: str | None = None) -> Record:
    """What is known of a file before its masks are there; without its hash it has not been read."""
    return Record(
        str(job.source.relative),
        "failed",
        run.predictor.bundle_sha256,
        run.options.mode,
        input_sha256,
        None if input_sha256 is None else run.settings_sha256,
    )


def predict(run: Run, images: list[Pixels]) -> list[Segmentation]:
    tile = run.options.tile_px
    if tile is not None and max(images[0].shape[:2]) > tile:
        return [segment_in_tiles(run.predictor, pixels, tile) for pixels in images]
    options = run.options
    return run.predictor.predict_batch(
        images,
        options.mode,
        batch_size=len(images),
        budget=options.parsed_budget(),
        abstain=options.abstain,
        stability=options.stability,
    )


def needs_tiles(run: Run, case: Case) -> bool:
    return run.options.tile_px is not None and max(case.stack.size) > run.options.tile_px


def written(run: Run, job: Job) -> Outcome:
    """Write a file's outputs; on any failure none of them is left."""
    assert job.case is not None
    assert job.record is not None
    try:
        with timed(job, "write"):
            facts = job.case.write(run.out, run.provenance)
    except Exception as error:  # noqa: BLE001
        run.outputs[job.source].remove()
        return failed(run, job, error)
    except BaseException:
        run.outputs[job.source].remove()
        raise
    job.case = None
    record = replace(job.record, status="ok", **facts, latency_ms=round(sum(job.timings_ms.values()), 3))
    return Outcome(job.number, record, None, "ok", job.timings_ms)


def failed(run: Run, job: Job, error: Exception) -> Outcome:
    """Record a failure twice: with the file's name for results.jsonl, without any for messages."""
    job.case = None
    if isinstance(error, DeviceUnavailable) or (isinstance(error, OSError) and error.errno in _FULL):
        run.lost = error  # every further file would fail for no fault of its own
        run.stop.set()
    path = str(job.source.path)
    named = _word(path)
    if isinstance(error, MemoryError):
        reason = f"{path}: there is not enough memory for it."
    elif isinstance(error, OSError):
        reason = f"{path}: {error.strerror or type(error).__name__}."
    elif isinstance(error, (SamdistillError, ValueError)):
        reason = str(error) if named.search(str(error)) else f"{path}: {error}"
    else:
        reason = f"{path}: internal error, {type(error).__name__}."
    known = isinstance(error, (SamdistillError, ValueError, OSError, MemoryError))
    record = job.record or unfinished(run, job)
    nameless = named.sub(f"input {job.number}", reason)
    if _word(job.source.path.name).search(nameless):
        nameless = f"input {job.number} failed."
    kind = type(error).__name__ if known else f"internal error {type(error).__name__}"
    if isinstance(error, ValueError):  # pixels that do not go with the intensity rule
        kind = InputRejected.__name__
    # The folders above, which may name a site or a patient, are nobody's business in a list or a report.
    told = named.sub(lambda _: str(job.source.relative), reason)
    return Outcome(job.number, replace(record, error=told), nameless, kind, job.timings_ms)


def _word(name: str) -> re.Pattern[str]:
    """Where a name stands by itself in a message: a file may be called 8, and a message tell of uint8."""
    return re.compile(rf"(?<!\w){re.escape(name)}(?!\w)")


def _versions() -> dict[str, str]:
    """Of what may have a part in the answers; the runtimes' are with their engines."""
    from importlib import metadata

    versions = {"samdistill": __version__}
    for library in ("numpy", "pillow", "pydicom", "highdicom", "nibabel", "opencv-python-headless"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[library] = metadata.version(library)
    return versions


@contextlib.contextmanager
def timed(job: Job, what: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        job.timings_ms[what] += (time.perf_counter() - started) * 1000
