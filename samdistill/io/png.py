"""Plain PNGs, quickly: grey of 8 or 16 bits and RGB of 8, whole, upright and without transparency.

Pillow judges everything else, and everything that is wrong: what `decode` returns is what Pillow would read,
and where there is any doubt it returns None. Of the two libraries libdeflate unpacks in 0.6 of ISA-L's time,
but takes ten times its time to pack a mask.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

import deflate
import numpy as np
import numpy.typing as npt
from isal import isal_zlib

from samdistill import _core

SIGNATURE = b"\x89PNG\r\n\x1a\n"
LEVEL = 2  # ISA-L's default; its 3 is hardly smaller
_HEADER = struct.Struct(">IIBBBBB")
_GREY, _RGB = 0, 2
_PLAIN = ((_GREY, 8), (_GREY, 16), (_RGB, 8))
_UP = 2  # the row filter: what differs from the row above
# These change no pixel. A text that may turn the picture over is looked at in `_harmless`.
_HARMLESS = (b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"bKGD", b"tIME", b"tEXt")
_LENGTHS = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"pHYs": 9, b"tIME": 7}
_TURNING = (b"Raw profile", b"XML:")
_MAY_TURN = (b"eXIf", b"iTXt", b"zTXt")
_MOST_TEXT = 1 << 16


def decode(content: bytes, *, max_pixels: int) -> npt.NDArray[Any] | None:
    """Read a plain PNG.

    Parameters
    ----------
    content
        The whole file.
    max_pixels
        Larger pictures are not decoded.

    Returns
    -------
    array
        (H, W) uint8 or uint16, or (H, W, 3) uint8; None where the file is not plain, damaged or too large.
    """
    data: list[memoryview] = []
    header: tuple[int, ...] | None = None
    before = b""
    for kind, body in _chunks(content):
        if kind == b"IDAT" and header is not None:
            if data and before != kind:
                break  # the pixels' parts must follow each other
            data.append(body)
        elif kind == b"IHDR" and header is None and len(body) == _HEADER.size:
            header = _HEADER.unpack(body)
        elif kind == b"IEND" and header is not None:
            return _pixels(header, b"".join(data), max_pixels)
        elif not _harmless(kind, body):
            break
        before = kind
    return None


def size(content: bytes) -> tuple[int, int] | None:
    """Read (height, width) of a plain PNG from what comes before its pixels; None where it may be another."""
    found: tuple[int, int] | None = None
    for kind, body in _chunks(content):
        if kind == b"IHDR" and found is None and len(body) == _HEADER.size:
            width, height, depth, colour, *methods = _HEADER.unpack(body)
            if any(methods) or (colour, depth) not in _PLAIN or not (width and height):
                return None
            found = height, width
        elif kind == b"IDAT":
            return found
        elif not _harmless(kind, body):
            return None
    return None


def turned_behind(file: BinaryIO) -> bool:
    """Whether something stands behind a PNG's pixels that may turn the picture over; reads no pixels."""
    if file.read(len(SIGNATURE)) != SIGNATURE:
        return False
    behind = False
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        start = file.read(min(length, 16)) if behind and kind == b"tEXt" else b""
        if behind and (kind in _MAY_TURN or start.startswith(_TURNING)):
            return True
        behind = behind or kind == b"IDAT"
        file.seek(length + 4 - len(start), os.SEEK_CUR)
    return False


def encode(pixels: npt.NDArray[Any]) -> bytes:
    """Write a PNG.

    Parameters
    ----------
    pixels
        (H, W) uint8 or uint16, or (H, W, 3) uint8, no side 0.
    """
    height, width = pixels.shape[:2]
    depth = 8 * pixels.dtype.itemsize
    colour = _RGB if pixels.ndim == 3 else _GREY
    values = np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder(">"))
    given = values.view(np.uint8).reshape(height, -1)
    rows = np.empty((height, 1 + given.shape[1]), np.uint8)
    rows[:, 0] = _UP
    rows[0, 1:] = given[0]
    np.subtract(given[1:], given[:-1], out=rows[1:, 1:])
    header = _HEADER.pack(width, height, depth, colour, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", isal_zlib.compress(rows, LEVEL)), (b"IEND", b""))
    return SIGNATURE + b"".join(_chunk(kind, body) for kind, body in parts)


def _chunk(kind: bytes, body: bytes) -> bytes:
    checksum = deflate.crc32(body, deflate.crc32(kind))
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def _chunks(content: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Kind and body of each chunk, as long as they are whole and right."""
    if not content.startswith(SIGNATURE):
        return
    view, place = memoryview(content), len(SIGNATURE)
    while place + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, place)
        kind, end = content[place + 4 : place + 8], place + 8 + length
        if (
            end + 4 > len(content)
            or deflate.crc32(view[place + 4 : end]).to_bytes(4, "big") != view[end : end + 4]
        ):
            return
        yield kind, view[place + 8 : end]
        place = end + 4


def _harmless(kind: bytes, body: memoryview) -> bool:
    if kind == b"tEXt" and (len(body) > _MOST_TEXT or bytes(body[:16]).startswith(_TURNING)):
        return False
    return kind in _HARMLESS and len(body) == _LENGTHS.get(kind, len(body))


def _pixels(header: tuple[int, ...], data: bytes, max_pixels: int) -> npt.NDArray[Any] | None:
    width, height, depth, colour, *methods = header
    if any(methods) or (colour, depth) not in _PLAIN:
        return None
    if not 0 < width * height <= max_pixels:
        return None
    pixel_bytes = 3 if colour == _RGB else depth // 8
    row_bytes = width * pixel_bytes
    wanted = height * (1 + row_bytes)
    try:
        rows = deflate.zlib_decompress(data, wanted)  # damaged, too, where there would be more than wanted
    except deflate.DeflateError:
        return None
    if len(rows) != wanted:
        return None
    values = _core.unfilter_png(np.frombuffer(rows, np.uint8), height, row_bytes, pixel_bytes)
    if values is None or colour == _RGB:
        return None if values is None else values.reshape(height, width, 3)
    return values if depth == 8 else values.view(">u2").astype(np.uint16)
