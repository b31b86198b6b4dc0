"""Files in, masks out: gathers pictures, segments one after the other, writes what came of each.

A picture that cannot be segmented is recorded as failed and never gets a mask; the others go on. Every file
is written whole or not at all, and what an earlier run left under a name of this run goes first. Knows no
network and no terminal.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from samdistill.errors import InputRejected, SamdistillError, SomeInputsFailed, UsageError
from samdistill.io.images import SUFFIXES, read_image, write_mask, write_png
from samdistill.predictor import Mode, Pixels, Predictor, Segmentation

RESULTS = "results.jsonl"
OVERLAYS = "overlays"


@dataclass(frozen=True)
class Source:
    """One picture to segment.

    Attributes
    ----------
    path
        The file.
    relative
        What its outputs are named after: its path below the folder it was found in, or below the fixed part
        of the pattern; its name where it was given itself.
    problem
        Why there is nothing to read; None where there is.
    """

    path: Path
    relative: PurePosixPath
    problem: str | None = None


@dataclass(frozen=True)
class Outputs:
    """Where the outputs of a picture go.

    Attributes
    ----------
    masks
        Class name -> file where classes may overlap; "labels" -> the one file where they do not.
    overlay
        None when none is wanted.
    """

    masks: dict[str, Path]
    overlay: Path

    @property
    def files(self) -> tuple[Path, ...]:
        """All of them."""
        return *self.masks.values(), self.overlay


@dataclass(frozen=True)
class Record:
    """What came of one picture; a line of results.jsonl.

    Attributes
    ----------
    input
        The relative path that names it.
    status
        "ok" or "failed"; a failed one has `error` and no mask.
    bundle_sha256, mode
        What made the masks.
    image_size
        (height, width), pixels.
    masks
        Class name, or "labels", -> file, relative to the output folder.
    overlay
        File, relative to the output folder.
    classes
        Class name -> `area_px` and `max_probability`.
    latency_ms
        Reading, segmenting and writing.
    error
        What was wrong.
    """

    input: str
    status: str
    bundle_sha256: str
    mode: str
    image_size: tuple[int, int] | None = None
    masks: dict[str, str] | None = None
    overlay: str | None = None
    classes: dict[str, dict[str, float]] | None = None
    latency_ms: float | None = None
    error: str | None = None

    def to_json(self) -> str:
        """The record as one line of JSON, what it does not have left out."""
        return json.dumps({key: value for key, value in asdict(self).items() if value is not None})


def gather(inputs: Sequence[str], out: Path) -> list[Source]:
    """Find the pictures.

    Parameters
    ----------
    inputs
        Files, folders (searched through, hidden names left out; of a data folder its images/) and patterns
        with * ? [ ] or **.
    out
        The output folder; what lies in it is no input.

    Returns
    -------
    list
        In the order given, folders and patterns sorted; each file once. An input that is nothing, or holds no
        picture, is there with its `problem`.
    """
    sources: dict[tuple[Path, PurePosixPath], Source] = {}
    inside = out.resolve()
    for text in inputs:
        given = Path(text)
        if given.is_dir():
            root = given / "images" if (given / "images").is_dir() else given
            found = _walk(root)
        elif given.exists():
            root, found = given.parent, [given]
        else:
            root, pattern = _split_pattern(given)
            matches = sorted(root.glob(pattern)) if pattern else []
            found = [file for file in matches if file.is_file() and _is_picture(file.relative_to(root))]
        if not given.is_file():
            found = [file for file in found if not file.resolve().is_relative_to(inside)]
        for file in found:
            relative = PurePosixPath(file.relative_to(root).as_posix())
            sources.setdefault((file.resolve(), relative), Source(file, relative))
        if not found:
            problem = f"{text} holds no picture." if given.is_dir() else f"{text} does not exist."
            sources[given, PurePosixPath(text)] = Source(given, PurePosixPath(text), problem)
    return list(sources.values())


def plan(sources: Sequence[Source], out: Path, predictor: Predictor) -> dict[Source, Outputs]:
    """Decide where the outputs of each picture go.

    Raises
    ------
    UsageError
        When two pictures would write one file, or a picture would be written over.
    """
    readable = [source for source in sources if source.problem is None]
    taken: dict[Path, Source] = {}
    inputs = {source.path.resolve(): source for source in readable}
    outputs: dict[Source, Outputs] = {}
    for source in readable:
        outputs[source] = _outputs(source.relative, out, predictor)
        for file in outputs[source].files:
            other = taken.get(file)
            if other is source:
                raise UsageError(
                    f"no class may be named {OVERLAYS!r}: its masks would lie where the overlays do. "
                    "Rename the class and export the run again."
                )
            if other is not None:
                raise UsageError(
                    f"{other.path} and {source.path} must not have one output: both would write {file}. "
                    "Rename one, or segment them into two folders."
                )
            taken[file] = source
            over = inputs.get(file.resolve())
            if over is not None:
                raise UsageError(f"--out must not lead to an input: {over.path} would be written over.")
    return outputs


def segment_files(
    predictor: Predictor,
    sources: Sequence[Source],
    out: Path,
    *,
    mode: Mode = "fast",
    overlay: bool = False,
    tell: Callable[[Record], None] = lambda record: None,
) -> list[Record]:
    """Segment pictures into files.

    Parameters
    ----------
    predictor
        The opened bundle.
    sources
        As `gather` finds them.
    out
        Masks go to `<out>/<relative path>.png`: grey, the class number at each pixel, 0 = background. Where
        classes may overlap, to `<out>/<class>/<relative path>.png`: 255 inside, 0 outside.
    overlay
        Draw the masks over each picture, into `<out>/overlays/`.
    tell
        Gets each record as soon as it is there.

    Returns
    -------
    list
        One record a source, as `<out>/results.jsonl` has them.

    Raises
    ------
    UsageError
        For a mode the bundle cannot do, and as `plan`; before anything is written or removed.
    """
    predictor.require_mode(mode)
    outputs = plan(sources, out, predictor)
    out.mkdir(parents=True, exist_ok=True)
    (out / RESULTS).unlink(missing_ok=True)
    for planned in outputs.values():
        _remove(planned)
    # What an earlier run left for a picture that is now missing must not stay beside its failure.
    inputs = {source.path.resolve() for source in outputs}
    for source in sources:
        if source.problem is not None and source.path.suffix.lower() in SUFFIXES:
            left = _outputs(PurePosixPath(source.path.name), out, predictor)
            if not any(file.resolve() in inputs for file in left.files):
                _remove(left)
    records = []
    unfinished = out / f".{RESULTS}.partial"
    with unfinished.open("w", encoding="utf-8") as log:
        for source in sources:
            record = _segment_file(predictor, source, outputs.get(source), out, mode, overlay)
            records.append(record)
            log.write(record.to_json() + "\n")
            log.flush()
            tell(record)
        os.fsync(log.fileno())
    unfinished.replace(out / RESULTS)
    return records


def raise_for_failures(records: Sequence[Record]) -> None:
    """End a run in which something failed.

    Raises
    ------
    InputRejected
        When all failed; with the reason when there was only one.
    SomeInputsFailed
        When some of several failed.
    """
    failed = [record for record in records if record.status != "ok"]
    if not failed:
        return
    if len(records) == 1:
        raise InputRejected(failed[0].error or "the input failed.")
    if len(failed) == len(records):
        raise InputRejected(f"all {len(records)} inputs failed.")
    raise SomeInputsFailed(f"{len(failed)} of {len(records)} inputs failed; the others are done.")


def _segment_file(
    predictor: Predictor, source: Source, outputs: Outputs | None, out: Path, mode: Mode, overlay: bool
) -> Record:
    """Segment one picture and write its outputs; on any failure none of them is left."""
    started = time.perf_counter()
    record = Record(str(source.relative), "failed", predictor.bundle_sha256, mode, error=source.problem)
    if outputs is None:
        return record
    try:
        pixels = read_image(source.path)
        try:
            segmentation = predictor.predict(pixels, mode)
        except ValueError as error:
            raise InputRejected(f"{source.path}: {error}") from error
        _write(segmentation, pixels, predictor, outputs, overlay)
    except (SamdistillError, OSError, MemoryError) as error:
        _remove(outputs)
        reason = "there is not enough memory for it" if isinstance(error, MemoryError) else str(error)
        name = "" if str(source.path) in reason else f"{source.path}: "
        return replace(record, error=name + reason)
    except BaseException:
        _remove(outputs)
        raise
    areas = segmentation.masks.sum(axis=(1, 2))
    peaks = segmentation.probability_maps.max(axis=(1, 2))
    height, width = pixels.shape[:2]
    return replace(
        record,
        status="ok",
        image_size=(height, width),
        masks={name: file.relative_to(out).as_posix() for name, file in outputs.masks.items()},
        overlay=outputs.overlay.relative_to(out).as_posix() if overlay else None,
        classes={
            name: {"area_px": int(area), "max_probability": round(float(peak), 6)}
            for name, area, peak in zip(segmentation.class_names, areas, peaks, strict=True)
        },
        latency_ms=round((time.perf_counter() - started) * 1000, 3),
    )


def _write(
    segmentation: Segmentation, pixels: Pixels, predictor: Predictor, outputs: Outputs, overlay: bool
) -> None:
    if segmentation.multi_label:
        layers: list[Any] = list(segmentation.masks)
    else:
        layers = [segmentation.labels().astype(np.uint8)]
    for file, layer in zip(outputs.masks.values(), layers, strict=True):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_mask(file, layer)
    if overlay:
        from samdistill.report.overlay import draw_overlay

        image = predictor.manifest.intensity.apply(pixels)
        colours = [_rgb(one.colour) for one in predictor.manifest.classes]
        outputs.overlay.parent.mkdir(parents=True, exist_ok=True)
        write_png(outputs.overlay, draw_overlay(image, segmentation.masks, colours))


def _rgb(colour: tuple[int, ...]) -> tuple[int, int, int]:
    red, green, blue = colour
    return red, green, blue


def _outputs(relative: PurePosixPath, out: Path, predictor: Predictor) -> Outputs:
    name = relative.with_suffix(".png")
    if predictor.manifest.multi_label:
        masks = {label: out / label / name for label in predictor.class_names}
    else:
        masks = {"labels": out / name}
    return Outputs(masks, out / OVERLAYS / name)


def _remove(outputs: Outputs) -> None:
    for file in outputs.files:
        file.unlink(missing_ok=True)


def _walk(root: Path) -> list[Path]:
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(folder, name) for name in sorted(names) if _is_picture(Path(name))]
    return found


def _is_picture(relative: Path) -> bool:
    hidden = any(part.startswith(".") for part in relative.parts)
    return not hidden and relative.suffix.lower() in SUFFIXES


def _split_pattern(path: Path) -> tuple[Path, str]:
    """The folders before the first part with a wildcard, and the rest; an empty rest where there is none."""
    for place, part in enumerate(path.parts):
        if any(sign in part for sign in "*?["):
            return Path(*path.parts[:place]), "/".join(path.parts[place:])
    return path.parent, ""
