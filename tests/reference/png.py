"""PNGs written chunk by chunk with any filter in any row, straight from the specification."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def header(width: int, height: int, depth: int, colour: int, interlaced: int = 0) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced))


def filtered(pixels: npt.NDArray[Any], filters: Sequence[int]) -> bytes:
    """The rows of (H, W) uint8 or uint16 or (H, W, 3) uint8 pixels, each after its filter's number."""
    height = len(pixels)
    rows = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder(">")).view(np.uint8).reshape(height, -1)
    size = pixels.dtype.itemsize * (3 if pixels.ndim == 3 else 1)
    out = bytearray()
    for y, kind in enumerate(filters):
        out.append(kind)
        for i in range(rows.shape[1]):
            a = int(rows[y, i - size]) if i >= size else 0
            b = int(rows[y - 1, i]) if y else 0
            c = int(rows[y - 1, i - size]) if y and i >= size else 0
            p = a + b - c
            paeth = min((a, b, c), key=lambda value: abs(p - value))  # the first of equals
            out.append((int(rows[y, i]) - (0, a, b, (a + b) // 2, paeth)[kind]) % 256)
    return bytes(out)


def png(pixels: npt.NDArray[Any], filters: Sequence[int], *extra: bytes, parts: int = 1) -> bytes:
    """A whole file; `extra` chunks come before the pixels, which lie in so many IDAT chunks."""
    height, width = pixels.shape[:2]
    data = zlib.compress(filtered(pixels, filters))
    step = -(-len(data) // parts)
    idat = b"".join(chunk(b"IDAT", data[place : place + step]) for place in range(0, len(data), step))
    colour = 2 if pixels.ndim == 3 else 0
    first = header(width, height, 8 * pixels.dtype.itemsize, colour)
    return SIGNATURE + first + b"".join(extra) + idat + chunk(b"IEND", b"")
