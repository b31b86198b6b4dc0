"""What DICOM's compressed streams will grow to, judged before anything decodes them. Knows bytes alone."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

DEFLATED = "1.2.840.10008.1.2.1.99"
RLE = "1.2.840.10008.1.2.5"
_MARK = slice(128, 132)
_LONG_VRS = (b"OB", b"OW", b"OF", b"SQ", b"UT", b"UN")
_META_GROUP = 2
_TRANSFER_SYNTAX = 0x10
_NOT_FRAMES = (0xC4, 0xC8, 0xCC)  # among JPEG's SOF codes: tables, reserved, arithmetic conditioning
_JPEG_LS_FRAME = 0xF7
_PRECISIONS = range(2, 17)  # bits a sample (T.81 table B.2, T.87 table C.1)
_JPEG_START, _J2K_START = b"\xff\xd8", b"\xff\x4f\xff\x51"
_DISCRETE, _LINEAR = 0, 1  # operations of a segmented palette
_STEP = 1 << 20


def transfer_syntax_and_inflated_size(content: bytes, most: int) -> tuple[str | None, int]:
    """Read a DICOM file's transfer syntax, and how large it is once inflated.

    Parameters
    ----------
    content
        The file.
    most
        Where to stop counting: what is larger comes back as more than this.

    Returns
    -------
    tuple
        The transfer syntax's UID, None when this is no DICOM file with a header (PS3.10 7.1); and bytes.
    """
    if content[_MARK] != b"DICM":
        return None, 0
    place, syntax = _MARK.stop, None
    while place + 8 <= len(content):
        group, element, vr = struct.unpack_from("<HH2s", content, place)
        if group != _META_GROUP:
            break
        if vr in _LONG_VRS:
            if place + 12 > len(content):
                break
            length, value = struct.unpack_from("<I", content, place + 8)[0], place + 12
        else:
            length, value = struct.unpack_from("<H", content, place + 6)[0], place + 8
        if element == _TRANSFER_SYNTAX:
            syntax = content[value : value + length].decode("ascii", "replace").rstrip("\0 ")
        place = value + length
        if place > len(content):
            return None, 0  # pydicom would go on by rules of its own
    if syntax != DEFLATED:
        return syntax, len(content)
    size, machine, rest = 0, zlib.decompressobj(-zlib.MAX_WBITS), content[place:]
    try:
        while size <= most and not machine.eof:
            piece = machine.decompress(rest, _STEP)
            if not piece:
                break
            size, rest = size + len(piece), machine.unconsumed_tail
    except zlib.error:
        return None, size
    return syntax, size


def frame_problem(
    frame: bytes, syntax: str, size: tuple[int, int], samples: int, raw_bytes: int
) -> str | None:
    """Compare what a compressed frame says of itself with what the file's header promises.

    Parameters
    ----------
    frame
        One frame's stream.
    syntax
        The transfer syntax's UID.
    size
        (height, width) of the header.
    samples
        A pixel, of the header.
    raw_bytes
        Of the decoded frame.

    Returns
    -------
    str or None
        What is wrong; None when decoding gives what was promised. JPEG 2000 of an unknown kind is None, too:
        no decoder takes it.
    """
    if syntax == RLE:
        grown = _rle_size(frame, raw_bytes)
        return None if grown <= raw_bytes + 64 else "a frame grows beyond its size"
    jpeg = frame[:2] == _JPEG_START
    try:
        found = _jpeg_size(frame) if jpeg else _jpeg_2000_size(frame)
    except struct.error:
        return "a frame is cut short or of an unknown kind"
    if found is None and jpeg:  # decoders pass over what is between the markers, and find a frame after all
        return "the header of a frame is damaged"
    if found is not None and found[:2] != size:
        return f"a frame has {found[1]} x {found[0]} pixels, the header says {size[1]} x {size[0]}"
    if found is not None and found[2] != samples:
        return f"a frame has {found[2]} samples a pixel, the header says {samples}"
    return None


def palette_entries(words: Sequence[int], most: int) -> int:
    """Count what a segmented palette (PS3.3 C.7.9.2) unfolds to; counting stops above `most`.

    Parameters
    ----------
    words
        Operation, length and values of one segment after the other.
    most
        What is larger comes back as more than this, and so does a palette whose segments repeat others.
    """
    total = place = 0
    while place + 1 < len(words) and total <= most:
        operation, length = words[place : place + 2]
        total += length
        if operation not in (_DISCRETE, _LINEAR):
            return most + 1
        place += 2 + (length if operation == _DISCRETE else 1)
    return total


def _jpeg_size(frame: bytes) -> tuple[int, int, int] | None:
    """(height, width, samples) of the frame header of JPEG or JPEG-LS; None where there is no sound one."""
    place = 2
    while place + 10 <= len(frame):
        if frame[place] != 0xFF:
            return None
        code = frame[place + 1]
        if code == 0xFF:  # a fill byte
            place += 1
        elif (0xC0 <= code <= 0xCF and code not in _NOT_FRAMES) or code == _JPEG_LS_FRAME:
            precision, height, width, samples = struct.unpack_from(">BHHB", frame, place + 4)
            if precision not in _PRECISIONS:  # GDCM ends the process
                return None
            return height, width, samples
        else:
            place += 2 + struct.unpack_from(">H", frame, place + 2)[0]
    return None


def _jpeg_2000_size(frame: bytes) -> tuple[int, int, int] | None:
    """(height, width, samples) of a JPEG 2000 codestream, bare or in its JP2 boxes."""
    place = 0
    while frame[place : place + 4] != _J2K_START:
        length, kind = struct.unpack_from(">I4s", frame, place)
        head = 8
        if length == 1:
            head, length = 16, struct.unpack_from(">Q", frame, place + 8)[0]
        if kind != b"jp2c" and length < head:
            return None
        place += head if kind == b"jp2c" else length
    width, height, left, top = struct.unpack_from(">IIII", frame, place + 8)
    (samples,) = struct.unpack_from(">H", frame, place + 40)
    return height - top, width - left, samples


def _rle_size(frame: bytes, most: int) -> int:
    """Bytes that the PackBits segments of an RLE frame (PS3.5 G) unpack to; counting stops above `most`."""
    if len(frame) < 64:
        return 0
    count, *offsets = struct.unpack_from("<16I", frame)
    if not 1 <= count <= len(offsets):
        return 0  # no decoder takes it
    ends = [*offsets[1:count], len(frame)]
    total = 0
    for start, end in zip(offsets[:count], ends, strict=True):
        place, end = start, min(end, len(frame))
        while place < end and total <= most + 64:
            head = frame[place]
            if head < 128:
                total += head + 1
                place += head + 2
            else:
                total += 257 - head if head > 128 else 0
                place += 2 if head > 128 else 1
    return total
