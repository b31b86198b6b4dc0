"""A video as a stream: its masks are numbered PNGs in a folder of its name, which appears whole."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from samdistill import quality, routing
from samdistill.arrays import Image
from samdistill.errors import InputRejected
from samdistill.inference.cases import draw
from samdistill.inference.jobs import BATCH, Job, Run, failed, predict, timed, unfinished
from samdistill.inference.outputs import FRAMES, LABELS
from samdistill.inference.records import Outcome
from samdistill.io.files import atomic_folder, sha256_file, write_bytes
from samdistill.io.images import mask_bytes
from samdistill.io.measurements import measure
from samdistill.io.stack import require_plain_file
from samdistill.io.video import Frame, frames, tells_its_length
from samdistill.predictor import BATCH_PIXELS, Segmentation
from samdistill.refined import Refined, told

COLUMNS = ("frame", "file", "time_ms", "class", "area_px", "max_probability", "score", "flag")


class _Stopped(Exception):
    """The run is interrupted."""


def segment_video(run: Run, job: Job) -> Outcome | None:
    """Segment a video, a few frames at a time; None when the run was interrupted amid it."""
    outputs = run.outputs[job.source]
    try:
        return _segment(run, job)
    except _Stopped:
        return None
    except Exception as error:  # noqa: BLE001  (no file stops the rest)
        outputs.remove()
        return failed(run, job, error)
    except BaseException:
        outputs.remove()
        raise


def _segment(run: Run, job: Job) -> Outcome:
    path, options, outputs = job.source.path, run.options, run.outputs[job.source]
    if options.contours or options.probabilities:
        raise InputRejected(
            f"{path} must be given without --contours and --probabilities: videos have masks, an overlay and "
            "measurements. Save its frames as pictures for more."
        )
    with timed(job, "read"):
        require_plain_file(path)
        before = _state(path)
        job.record = unfinished(run, job, sha256_file(path))
    seen = _Seen(run)
    with ExitStack() as folders, closing(frames(path)) as stream:
        for folder in outputs.masks.values():
            folder.parent.mkdir(parents=True, exist_ok=True)
        places = {key: folders.enter_context(atomic_folder(file)) for key, file in outputs.masks.items()}
        tables = {key: folders.enter_context(_table(place)) for key, place in places.items()}
        for chunk in _chunks(stream, job):
            if run.stop.is_set():
                raise _Stopped
            with timed(job, "segment"):
                answers = predict(run, [frame.image for frame in chunk])
            with timed(job, "write"):
                for frame, answer in zip(chunk, answers, strict=True):
                    seen.add(frame, answer)
                    for key, place in places.items():
                        _write_frame(place, key, frame, answer, tables[key])
        if _state(path) != before:  # or masks of one film would stand under the hash of another
            raise InputRejected(f"{path} changed while it was read. Run again when nothing writes to it.")
    files = {
        file.relative_to(run.out).as_posix(): sha256_file(file)
        for folder in outputs.masks.values()
        for file in sorted(folder.iterdir())
    }
    overlay = None
    if options.overlay and seen.shown is not None:
        content = draw(*seen.shown[1:], run.predictor.manifest)
        outputs.overlay.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(outputs.overlay, content, settle_folder=False)
        overlay = outputs.overlay.relative_to(run.out).as_posix()
        files[overlay] = hashlib.sha256(content).hexdigest()
    masks = {key: file.relative_to(run.out).as_posix() for key, file in outputs.masks.items()}
    warned = None if tells_its_length(path) else ["length_unknown"]
    told = seen.told()
    record = replace(
        job.record, status="ok", masks=masks, overlay=overlay, files=files, warnings=warned, **told
    )
    record = replace(record, latency_ms=round(sum(job.timings_ms.values()), 3))
    return Outcome(job.number, record, None, "ok", job.timings_ms)


def _state(path: Path) -> tuple[int, int]:
    """What of a file tells that it was written to."""
    state = path.stat()
    return state.st_size, state.st_mtime_ns


def _chunks(stream: Iterator[Frame], job: Job) -> Iterator[list[Frame]]:
    """Frames in order, as many together as a worker may hold."""
    chunk: list[Frame] = []
    while True:
        with timed(job, "read"):
            frame = next(stream, None)
        if frame is not None:
            chunk.append(frame)
        full = chunk and len(chunk) >= min(BATCH, BATCH_PIXELS // chunk[0].image[..., 0].size)
        if full or (chunk and frame is None):
            yield chunk
            chunk = []
        if frame is None:
            return


class _Seen:
    """What is told of a video as a whole."""

    def __init__(self, run: Run) -> None:
        self._options, self._names = run.options, run.predictor.class_names
        self._areas: Counter[str] = Counter()
        self._peaks = dict.fromkeys(self._names, 0.0)
        self._measurements: list[dict[str, Any]] = []
        self._refined: list[Refined] = []
        self._routes: list[routing.Route] = []
        self._worst: tuple[int, quality.Quality] | None = None
        self._flags: Counter[str] = Counter()
        self._size: tuple[int, int] | None = None
        self._count = 0
        self.shown: tuple[int, Image, Any, Sequence[Any]] | None = None

    def add(self, frame: Frame, answer: Segmentation) -> None:
        """Take in the answer for the next frame."""
        self._count += 1
        self._size = (frame.image.shape[0], frame.image.shape[1])
        for name, mask, peak in zip(self._names, answer.masks, peaks_of(answer), strict=True):
            self._areas[name] += int(np.count_nonzero(mask))
            self._peaks[name] = max(self._peaks[name], peak)
            if self._options.measurements:
                self._measurements.append(
                    {"image": frame.index, "class": name, **asdict(measure(mask, None))}
                )
        if answer.refined is not None:
            self._refined.append(answer.refined.light())
        if answer.route is not None:
            self._routes.append(answer.route)
        self._flags[str(answer.quality.flag).lower()] += 1
        if self._worst is None or quality.told([self._worst[1], answer.quality])["image"] == 1:
            self._worst = frame.index, answer.quality
        area = int(np.count_nonzero(answer.masks))
        if self._options.overlay and (self.shown is None or area > self.shown[0]):
            self.shown = area, frame.image, answer.masks, answer.refined.prompts if answer.refined else ()

    def told(self) -> dict[str, Any]:
        """Fields of the video's record."""
        assert self._worst is not None
        judged = quality.told([self._worst[1]])
        return {
            "image_size": self._size,
            "images": self._count,
            "classes": {
                name: {"area_px": self._areas[name], "max_probability": round(self._peaks[name], 6)}
                for name in self._names
            },
            "refined": told(self._refined, self._names) if self._refined else None,
            "routed": routing.told(self._routes) if self._routes else None,
            "quality": {**judged, "image": self._worst[0], "flags": dict(sorted(self._flags.items()))},
            "measurements": self._measurements if self._options.measurements else None,
        }


def peaks_of(answer: Segmentation) -> list[float]:
    """The highest probability of each class."""
    return [float(one.max()) for one in answer.probability_maps]


@contextmanager
def _table(folder: Path) -> Iterator[Any]:
    """The writer of a folder's frames.csv: a row a frame and class."""
    with (folder / FRAMES).open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        yield rows


def _write_frame(folder: Path, key: str, frame: Frame, answer: Segmentation, rows: Any) -> None:
    name = f"{frame.index:06}.png"
    channels = range(len(answer.masks)) if key == LABELS else [answer.class_names.index(key)]
    layer = answer.labels().astype(np.uint8) if key == LABELS else answer.masks[channels[0]]
    (folder / name).write_bytes(mask_bytes(layer))
    score = answer.quality.score
    judged = ("" if score is None else round(score, 6), answer.quality.flag or "")
    peaks = peaks_of(answer)
    for channel in channels:
        area, peak = int(np.count_nonzero(answer.masks[channel])), round(peaks[channel], 6)
        time_ms = round(frame.time_ms, 3)
        rows.writerow((frame.index, name, time_ms, answer.class_names[channel], area, peak, *judged))
