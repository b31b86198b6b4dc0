"""What came of each file: records, the journal that a killed run leaves, and the audit that names nobody."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from samdistill.io.files import atomic_write, sync_folder

RESULTS = "results.jsonl"
AUDIT = "audit.jsonl"
BEGUN = "begun"  # a record's status in the journal: the files it names may be there, none is promised
JUDGED = ("flag", "score", "reasons")  # of a record's quality, in the audit


@dataclass(frozen=True)
class Record:
    """What came of one file; a line of results.jsonl.

    Attributes
    ----------
    input
        The relative path that names it.
    status
        "ok" or "failed"; a failed one has `error` and no mask.
    bundle_sha256, mode
        What made the masks.
    input_sha256
        Of the file.
    settings_sha256
        Of everything else the answer depends on; see `outputs.Options.settings`.
    image_size
        (height, width), pixels.
    images
        How many images the file holds, where it is one that can hold several.
    spacing_mm
        From row to row and from column to column, (y, x), where the file says it.
    masks
        Class name, "labels" or "segments" -> file, relative to the output folder.
    overlay, contours
        Files, relative to the output folder.
    probabilities
        Class name, or "segments", -> file, relative to the output folder.
    classes
        Class name -> `area_px` of all images and `max_probability`.
    refined
        Where the teacher was asked: class name -> how many images have its mask, how many the student's and
        why, and what it said; see `refined.told`.
    routed
        In mode "auto": how many images were refined, and why each was or was not; see `routing.told`.
    quality
        Flag, score, numbers and why any is missing, of the worst image; see `quality.told`.
    calibrated
        Whether the probability maps that were written are calibrated.
    measurements
        One for each image and class: `image`, `class`, and what `io.measurements.Measurement` has.
    files
        Every output file, relative to the output folder -> its SHA-256.
    warnings
        What whoever uses the masks should know: "burned_in_annotation", the pixels name the patient;
        "length_unknown", nobody can tell whether the video was cut short.
    latency_ms
        Reading, its share of the network's call, and writing.
    error
        What was wrong.
    """

    input: str
    status: str
    bundle_sha256: str
    mode: str
    input_sha256: str | None = None
    settings_sha256: str | None = None
    image_size: tuple[int, int] | None = None
    images: int | None = None
    spacing_mm: tuple[float, float] | None = None
    masks: dict[str, str] | None = None
    overlay: str | None = None
    contours: str | None = None
    probabilities: dict[str, str] | None = None
    classes: dict[str, dict[str, float]] | None = None
    refined: dict[str, dict[str, Any]] | None = None
    routed: dict[str, Any] | None = None
    quality: dict[str, Any] | None = None
    calibrated: bool | None = None
    measurements: list[dict[str, Any]] | None = None
    files: dict[str, str] | None = None
    warnings: list[str] | None = None
    latency_ms: float | None = None
    error: str | None = None

    def to_json(self) -> str:
        """The record as one line of JSON, what it does not have left out."""
        # Not `asdict`, which copies deeply: every value is plain.
        return json.dumps({key: value for key, value in vars(self).items() if value is not None})

    @classmethod
    def from_json(cls, line: str) -> Record | None:
        """Read a line; None where it is cut short or no record of this version."""
        try:
            values = json.loads(line)
            known = set(values) <= _NAMES and isinstance(values.get("files", {}), dict)
            named = all(isinstance(file, str) for file in values.get("masks", {}).values())
            return cls(**values) if known and named else None
        except (ValueError, TypeError, AttributeError):
            return None


_NAMES = {one.name for one in fields(Record)}


@dataclass(frozen=True)
class Outcome:
    """A record with what is told of it elsewhere.

    Attributes
    ----------
    number
        Place of the source in the run, from 1: what messages call it.
    record
        For results.jsonl.
    reason
        What was wrong, without the name of any file; None where nothing was.
    exit
        "ok", "kept" (done by an earlier run), or the kind of error.
    timings_ms
        `read`, `segment`, `write`.
    """

    number: int
    record: Record
    reason: str | None
    exit: str
    timings_ms: dict[str, float]


@dataclass
class Summary:
    """How a run went.

    Attributes
    ----------
    total, done, kept, failed
        Files: all, segmented now, kept from an earlier run, failed.
    reason
        Why the first that failed did, without any name.
    """

    total: int
    done: int = 0
    kept: int = 0
    failed: int = 0
    reason: str | None = None

    def count(self, outcome: Outcome) -> None:
        """Add what came of a file."""
        if outcome.exit == "kept":
            self.kept += 1
        elif outcome.record.status == "ok":
            self.done += 1
        else:
            self.failed += 1
            self.reason = self.reason or outcome.reason


class Journal:
    """Records as they come; at the end they are results.jsonl, after a kill what `--resume` goes by.

    Make one with `journal`.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b")
        self._places: list[tuple[int, int]] = []

    def begin(self, records: Iterable[Record]) -> None:
        """Append what is to be written, so that whatever ends the process its files are known for a run's.

        They are no part of `lines`.
        """
        self._file.writelines(record.to_json().encode() + b"\n" for record in records)
        self._file.flush()
        os.fsync(self._file.fileno())

    def add(self, number: int, record: Record) -> None:
        """Append a record and hand it to the system."""
        self._places.append((number, self._file.tell()))
        self._file.write(record.to_json().encode() + b"\n")
        self._file.flush()

    def lines(self) -> Iterator[bytes]:
        """The lines in the order of the sources' numbers; nothing can be added afterwards."""
        for _, place in sorted(self._places):
            self._file.seek(place)
            yield self._file.readline()

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def unfinished_of(results: Path) -> Path:
    """Where the records of a run lie that has not ended, or was killed; `earlier_records` finds them."""
    return results.with_name(f".{results.name}.partial")


@contextmanager
def journal(results: Path, kept: Mapping[int, Record], begun: Iterable[Record]) -> Iterator[Journal]:
    """Open the journal beside results.jsonl; when the block ends well it becomes results.jsonl.

    Parameters
    ----------
    results
        Where the finished list goes.
    kept
        Number of the source -> the record of an earlier run that still holds. They are written before the
        earlier lists go, so that a kill forgets nothing.
    begun
        What this run is going to write.
    """
    unfinished = unfinished_of(results)
    fresh = results.with_name(f".{results.name}.new")
    opened = Journal(fresh)
    try:
        for number, record in kept.items():
            opened.add(number, record)
        opened.begin(begun)
        fresh.replace(unfinished)
        sync_folder(results.parent)
        results.unlink(missing_ok=True)
        yield opened
        with atomic_write(results) as temporary, temporary.open("wb") as file:
            file.writelines(opened.lines())
    finally:
        opened.close()
    unfinished.unlink()


def is_list(name: str, file: str) -> bool:
    """Whether a name is that of such a list, RESULTS say, of a whole run or of a shard."""
    stem, suffix = file.split(".")
    return re.fullmatch(rf"{stem}(-\d+-of-\d+)?\.{suffix}", name) is not None


def earlier_records(out: Path) -> dict[str, Record]:
    """The last good record of each input that earlier runs into this folder left, finished or killed."""
    return {record.input: record for record in _recorded(out) if record.status == "ok"}


def earlier_files(out: Path) -> dict[str, str]:
    """What earlier runs wrote into this folder, or may have when they were killed -> the input it is of.

    Files, and folders of videos, relative to the folder.
    """
    found: dict[str, str] = {}
    for record in _recorded(out):
        found.update(dict.fromkeys((*(record.files or {}), *(record.masks or {}).values()), record.input))
    return found


def _recorded(out: Path) -> list[Record]:
    """The records of files that were or are to be written, the oldest list's first."""
    while True:
        try:
            return [record for path in _lists(out) for record in records_in(path)]
        except FileNotFoundError:  # a shard that begins or ends beside us has just renamed its list
            continue


def _lists(out: Path) -> list[Path]:
    """The lists of runs, finished, killed or set aside, the oldest first."""
    stem, suffix = RESULTS.split(".")
    found = [path for path in out.glob(f"{stem}*.{suffix}") if is_list(path.name, RESULTS)]
    for path in out.glob(f".{stem}*.{suffix}*.partial"):
        if is_list(f"{path.name[1:].split('.')[0]}.{suffix}", RESULTS):
            found.append(path)
    # A link to nothing is no list that was renamed: nobody would find it again.
    there = [path for path in found if path.exists() or not path.is_symlink()]
    return sorted(there, key=lambda path: path.stat().st_mtime_ns)


def records_in(path: Path) -> Iterator[Record]:
    """The records of a list that name files, written or about to be."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            record = Record.from_json(line)
            if record is not None and record.status in ("ok", BEGUN):
                yield record


class Audit:
    """Appends a line a file to the audit: who made what of which bytes; no name, path or tag.

    Parameters
    ----------
    path
        Of the audit; what is there stays.
    facts
        What is the same for every line: bundle, engine, provider, versions.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any]) -> None:
        self._file = path.open("ab", buffering=0)
        self._facts = dict(facts)

    def add(self, outcome: Outcome) -> None:
        """Append a line in one write."""
        record = outcome.record
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "input_sha256": record.input_sha256,
            **self._facts,
            "image_size": record.image_size,
            "images": record.images,
            "quality": None if record.quality is None else {key: record.quality[key] for key in JUDGED},
            "routed": record.routed,
            "timings_ms": {key: round(value, 3) for key, value in outcome.timings_ms.items()},
            "exit": outcome.exit,
        }
        self._file.write(json.dumps(line).encode() + b"\n")

    def close(self) -> None:
        """Make what was written last, and let go of the file."""
        os.fsync(self._file.fileno())
        self._file.close()


Tell = Callable[[Outcome], None]
