"""Video files -> frames, one after the other and never all at once, through OpenCV's FFmpeg.

The only module of inference that imports OpenCV, and only when a video is read.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from samdistill.arrays import Image
from samdistill.errors import InputRejected
from samdistill.io.images import MAX_PIXELS
from samdistill.io.stack import MAX_STACK_PIXELS, check_sizes

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv")
LIBRARY = "cv2"
# A frame that repeats the last one takes some 40 bytes, however large: a small file could be hours of work.
# Films have a few hundred pixels a byte, black ones of 3840 x 2160 a fifth of a million.
MOST_PIXELS_A_BYTE = 1 << 19
LEAST_PIXELS = 1 << 16  # that a frame counts as: the network's work is no less
SPARE = 0.01  # of the frames that a header promises; some containers only estimate them
_MPEG = (b"\0\0\1\xba", b"\0\0\1\xb3")  # streams that tell their length nowhere
_EBML = b"\x1a\x45\xdf\xa3"  # Matroska and WebM
_ASF = b"\x30\x26\xb2\x75"
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")  # its length in bytes stands 40 on
_STARTS = (b"RIFF", _EBML, *_MPEG, _ASF)
_LONGEST_TABLE = 1 << 24  # bytes; a film of days, each frame of another length, has less
_ATOMS = (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip")  # at byte 4 of MP4 and MOV


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame.

    Attributes
    ----------
    index
        From 0.
    time_ms
        Since the beginning.
    image
        uint8 (H, W, 3) RGB, upright.
    """

    index: int
    time_ms: float
    image: Image


def is_video(path: Path) -> bool:
    """Whether a file's name is a video's."""
    return path.name.lower().endswith(VIDEO_SUFFIXES)


def tells_its_length(path: Path) -> bool:
    """Whether a video says how long it is, so that one that was cut short is refused.

    MPEG streams do not, nor do Matroska and MP4 files that were recorded as streams, as browsers do.
    """
    start = _start(path)
    if start in (*_MPEG, _ASF):
        return start == _ASF
    cv2 = _library()
    capture = cv2.VideoCapture(_name_for_ffmpeg(path), cv2.CAP_FFMPEG)
    try:
        return bool(capture.get(cv2.CAP_PROP_FRAME_COUNT) > 0)
    finally:
        capture.release()


def frames(path: Path, *, max_pixels: int = MAX_PIXELS) -> Generator[Frame]:
    """Read a video frame by frame.

    Parameters
    ----------
    path
        The file; of several video streams the first.
    max_pixels
        Of larger frames none comes. FFmpeg decodes the first to learn its size, and itself refuses what has
        about 2^28 pixels or more.

    Yields
    ------
    Frame
        All have one size.

    Raises
    ------
    InputRejected
        When the file is missing, no video, too large, cut short, or unfolds to far more than films do. Damage
        inside a stream is concealed by its decoder, as in any player, and a frame of another size scaled to
        the first one's.
    ModuleNotFoundError
        When OpenCV is not installed.
    """
    shown = _check_container(path)
    cv2 = _library()
    capture = cv2.VideoCapture(_name_for_ffmpeg(path), cv2.CAP_FFMPEG)
    try:
        if not capture.isOpened():
            raise InputRejected(f"{path} must be a video, and is none or damaged. Export it again.")
        size = tuple(int(capture.get(side)) for side in (cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH))
        promised, rate = min(capture.get(cv2.CAP_PROP_FRAME_COUNT), shown), capture.get(cv2.CAP_PROP_FPS)
        check_sizes(path, (size[0], size[1]), 1, max_pixels, max_pixels)
        allowed = MAX_STACK_PIXELS + MOST_PIXELS_A_BYTE * path.stat().st_size
        count, shape, time_ms = 0, None, 0.0
        while True:
            found, pixels = capture.read()
            if not found:
                break
            if pixels.shape != (shape or pixels.shape):
                raise InputRejected(f"{path} must have frames of one size. Export it again.")
            shape = pixels.shape
            if (count + 1) * max(pixels.shape[0] * pixels.shape[1], LEAST_PIXELS) > allowed:
                raise InputRejected(
                    f"{path} must not unfold to so many frames of {shape[1]} x {shape[0]} from "
                    f"{path.stat().st_size} bytes, as no film does. Save its frames as pictures."
                )
            time_ms = float(capture.get(cv2.CAP_PROP_POS_MSEC))
            yield Frame(count, time_ms, np.ascontiguousarray(pixels[:, :, ::-1]))
            count += 1
        if _start(path) == _EBML and rate > 0 and time_ms > 0:
            # Matroska does not count its frames: OpenCV multiplies duration and rate, as if there were no
            # pauses. At the rate that the frames came in there are fewer.
            promised = min(promised, promised * 1000 * (count - 1) / (rate * time_ms))
        if count == 0 or promised - count > max(1.0, SPARE * promised):
            raise InputRejected(
                f"{path} must have {max(promised, 1):.0f} frames, and only {count} can be read: it was cut "
                "short. Copy it again."
            )
    except cv2.error as error:
        raise InputRejected(f"{path} cannot be read: it is damaged.") from error
    finally:
        capture.release()


def _start(path: Path) -> bytes:
    """The first bytes, which tell the container."""
    with path.open("rb") as file:
        return file.read(4)


def _check_container(path: Path) -> float:
    """Let nothing but a container reach FFmpeg, which would open what a playlist names.

    Returns
    -------
    float
        Frames that it shows at most. An MP4 that was trimmed counts those that are left out, too.
    """
    try:
        with path.open("rb") as file:
            start = file.read(1 << 16)
            size = file.seek(0, os.SEEK_END)
            parts = list(_parts(file, 0, size)) if start[4:8] in _ATOMS else []
            shown = _frames_shown(file, parts)
    except OSError as error:
        raise InputRejected(f"{path} cannot be read: {error.strerror}.") from error
    if not start:
        raise InputRejected(f"{path} is empty (0 bytes). Copy it again or remove it.")
    place = start.find(_ASF_PROPERTIES) + 40
    # Of these FFmpeg knows no number of frames.
    if start.startswith(_ASF) and place > 40 and int.from_bytes(start[place : place + 8], "little") > size:
        raise InputRejected(f"{path} must be as long as its header says: it was cut short. Copy it again.")
    if not start.startswith(_STARTS) and start[4:8] not in _ATOMS:
        raise InputRejected(f"{path} must be a video, and is none or damaged. Export it again.")
    if parts and parts[-1].end > size:
        raise InputRejected(f"{path} must be as long as its parts say: it was cut short. Copy it again.")
    return shown


class _Part(NamedTuple):
    """A part of an MP4: its kind, and where its content lies."""

    kind: bytes
    begin: int
    end: int


def _parts(file: BinaryIO, place: int, end: int) -> Iterator[_Part]:
    """The parts of an MP4 that lie between two places; of the last one the end that it says it has."""
    while place + 16 <= end:
        file.seek(place)
        length, kind, long = struct.unpack(">I4sQ", file.read(16))
        head = 16 if length == 1 else 8
        length = long if length == 1 else length
        if length < head or not kind.isalnum():  # 0: to the end of the file; else what is behind the parts
            return
        yield _Part(kind, place + head, place + length)
        place += length


def _frames_shown(file: BinaryIO, parts: list[_Part]) -> float:
    """Frames of the film of an MP4 that its edits show, infinity where it has none.

    Off by as many as its codec reorders; never more than there are, or a whole film would be refused.
    """

    def inside(part: _Part, kind: bytes) -> list[_Part]:
        return [one for one in _parts(file, part.begin, part.end) if one.kind == kind]

    def table(part: _Part, *kinds: bytes) -> tuple[int, bytes]:
        """Version and content behind version and flags of the part at the end of a way."""
        for kind in kinds:
            (part,) = inside(part, kind)
        file.seek(part.begin)
        content = file.read(min(part.end - part.begin, _LONGEST_TABLE))
        return content[0], content[4:]

    def scale(version: int, content: bytes) -> int:
        return int(struct.unpack_from(">I", content, 16 if version else 8)[0])

    try:
        (movie,) = (one for one in parts if one.kind == b"moov")
        per_second = scale(*table(movie, b"mvhd"))
        for track in inside(movie, b"trak"):
            if table(track, b"mdia", b"hdlr")[1][4:8] != b"vide" or not inside(track, b"edts"):
                continue
            version, content = table(track, b"edts", b"elst")
            edit = ">QqI" if version else ">IiI"
            edits = list(struct.iter_unpack(edit, content[4 : 4 + _count(content) * struct.calcsize(edit)]))
            ticks = scale(*table(track, b"mdia", b"mdhd")) / per_second
            content = table(track, b"mdia", b"minf", b"stbl", b"stts")[1]
            runs = np.frombuffer(content, ">u4", 2 * _count(content), 4).reshape(-1, 2).astype(np.int64)
            ends, frames_then = np.cumsum(runs.prod(axis=1)), np.cumsum(runs[:, 0])
            at = np.array([(begin, begin + length * ticks) for length, begin, _ in edits if begin >= 0])
            before = np.interp(at, np.append(0, ends), np.append(0, frames_then))
            return float(np.floor((before[:, 1] - before[:, 0]).sum())) or math.inf  # none: it is damaged
    except (struct.error, ValueError, IndexError, ZeroDivisionError):
        pass  # damaged or of another kind: what FFmpeg makes of it counts
    return math.inf


def _name_for_ffmpeg(path: Path) -> str:
    """A file's name as OpenCV takes it: absolute, since FFmpeg takes what is before a colon for a protocol.

    Raises
    ------
    InputRejected
        When it is no text, for which OpenCV ends the process.
    """
    name = str(path.absolute())
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise InputRejected(f"{path} must have a name in UTF-8 to be read as a video. Rename it.") from error
    return name


def _count(content: bytes) -> int:
    return int(struct.unpack_from(">I", content)[0])


def _library() -> Any:
    """Import OpenCV, which then says nothing: its messages name files."""
    os.environ["OPENCV_FFMPEG_LOGLEVEL"] = "-8"
    import cv2

    library: Any = cv2
    library.utils.logging.setLogLevel(library.utils.logging.LOG_LEVEL_SILENT)
    return library
