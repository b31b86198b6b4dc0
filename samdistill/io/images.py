"""Image files <-> arrays: PNG, JPEG, TIFF and BMP, pixels as deep as the file has them.

Reading never rounds: what Pillow would cut to 8 bits is refused. Making pixels uint8 is the intensity rule's
matter, not this module's. A file's header is judged before anything of it is decoded.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage
from PIL import ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from samdistill.arrays import describe
from samdistill.errors import InputRejected
from samdistill.io import png
from samdistill.io.files import write_bytes

Pixels = npt.NDArray[Any]  # (H, W) or (H, W, 3): uint8, uint16, int32, uint32 or float32

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
MAX_PIXELS = 1 << 26  # 67 megapixels; the largest radiographs have about 20
MAX_PLAIN_BYTES = 1 << 28  # of a PNG read at once; an incompressible picture of MAX_PIXELS has fewer

# What Pillow raises for files that are cut short, garbled or made to hurt. Its decompression-bomb warning is
# here for those who turn warnings into errors.
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
    PillowImage.DecompressionBombError,
    PillowImage.DecompressionBombWarning,
)
_ORIENTATION = 274  # the EXIF tag; 5..8 swap height and width
_TURNING = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}  # where Pillow finds one
_SAMPLE_FORMAT, _SIGNED = 339, 2  # of a TIFF; without one its values are unsigned
_TILE_WIDTH, _TILE_LENGTH = 322, 323  # of a TIFF; a tile is decoded whole, however little of it is shown


def read_image(path: Path | str, *, max_pixels: int = MAX_PIXELS, content: bytes | None = None) -> Pixels:
    """Read one picture, upright, with the depth it has.

    Parameters
    ----------
    path
        PNG, JPEG, TIFF (one page) or BMP; told by content, not by name.
    max_pixels
        Larger pictures are refused from their header, before they are decoded.
    content
        The file's bytes, where they have been read already.

    Returns
    -------
    Pixels
        (H, W) for grey, (H, W, 3) RGB for colour and palette. uint8; uint16 for 16-bit grey; int32 or float32
        for such TIFFs, uint32 where a value is too large for int32; 1-bit becomes 0 and 255. The EXIF
        orientation is carried out. Transparency is laid over black: what is invisible in the file never
        shows.

    Raises
    ------
    InputRejected
        When the file is missing, empty, damaged, no such image, too large, has several pages, or holds colour
        deeper than 8 bits, which could only be read with loss.
    """
    plain = _plain(Path(path), max_pixels, content)
    if plain is not None:
        return plain
    with _opened(Path(path), max_pixels, content=content) as image:
        return _pixels(image, Path(path))


def read_mask(path: Path | str, *, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Read a mask's values: palette masks give their indices, 1-bit masks 0 and 1, grey ones their grey.

    Returns
    -------
    Pixels
        (H, W) uint8, uint16 or int32, in the file's EXIF orientation.

    Raises
    ------
    InputRejected
        As `read_image`, and for colour pictures whose channels differ and for fractions.
    """
    values = _plain(Path(path), max_pixels, None)
    if values is None:
        with _opened(Path(path), max_pixels) as image:
            if image.mode == "1":
                return np.asarray(image).astype(np.uint8)
            if image.mode in ("P", "PA"):
                return np.asarray(image if image.mode == "P" else image.getchannel(0)).copy()
            values = _pixels(image, Path(path))
    if values.ndim == 3:
        if (values != values[:, :, :1]).any():
            raise InputRejected(
                f"{path} must hold one class number a pixel, not colours. Save class indices (grey or "
                "palette), or one black and white file a class in masks/<class>/."
            )
        values = np.ascontiguousarray(values[:, :, 0])
    if values.dtype.kind == "f":
        raise InputRejected(f"{path} must hold whole class numbers, not {values.dtype} values.")
    return values


def image_size(
    path: Path | str, *, max_pixels: int = MAX_PIXELS, content: bytes | None = None
) -> tuple[int, int]:
    """Read (height, width), EXIF orientation carried out, from the header alone.

    Raises
    ------
    InputRejected
        As `read_image`, as far as the header shows it.
    """
    plain = None if content is None else png.size(content)
    if plain is not None and plain[0] * plain[1] <= max_pixels and not _turned_behind(Path(path), content):
        return plain
    with _opened(Path(path), max_pixels, decode=False, content=content) as image:
        width, height = image.size
        # Pillow turns a TIFF's size by its tag, and decodes a whole PNG to look for EXIF behind its pixels.
        may_turn = image.format not in ("PNG", "TIFF") or bool(_TURNING & image.info.keys())
        if isinstance(image, TiffImageFile):
            may_turn &= _ORIENTATION not in image.tag_v2
        elif not may_turn:
            may_turn = _turned_behind(Path(path), content)
        turned = may_turn and image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
        return (width, height) if turned else (height, width)


def write_png(path: Path, pixels: npt.NDArray[Any]) -> None:
    """Write a PNG atomically.

    Parameters
    ----------
    path
        Its folder must exist.
    pixels
        (H, W) or (H, W, 3) uint8, or (H, W) uint16.

    Raises
    ------
    ValueError
        When shape or dtype differ.
    """
    write_bytes(path, png_bytes(pixels))


def png_bytes(pixels: npt.NDArray[Any]) -> bytes:
    """Encode a PNG; see `write_png`."""
    grey = pixels.ndim == 2 and pixels.dtype in (np.uint8, np.uint16)
    colour = pixels.ndim == 3 and pixels.shape[2:] == (3,) and pixels.dtype == np.uint8
    if not (grey or colour) or 0 in pixels.shape:
        raise ValueError(
            f"pixels must be uint8 (H, W) or (H, W, 3) or uint16 (H, W), not {describe(pixels)}."
        )
    return png.encode(pixels)


def write_mask(path: Path, mask: npt.NDArray[Any]) -> None:
    """Write a mask as PNG atomically: bool as 0 and 255, class numbers (uint8 or uint16) as they are.

    Parameters
    ----------
    path
        Its folder must exist.
    mask
        (H, W) bool, uint8 or uint16.

    Raises
    ------
    ValueError
        When shape or dtype differ.
    """
    write_bytes(path, mask_bytes(mask))


def mask_bytes(mask: npt.NDArray[Any]) -> bytes:
    """Encode a mask as PNG; see `write_mask`."""
    if mask.ndim != 2 or mask.dtype not in (np.bool_, np.uint8, np.uint16):
        raise ValueError(f"mask must be bool, uint8 or uint16 (H, W), not {describe(mask)}.")
    return png_bytes(mask.astype(np.uint8) * np.uint8(255) if mask.dtype == np.bool_ else mask)


def _plain(path: Path, max_pixels: int, content: bytes | None) -> Pixels | None:
    """Read a plain PNG quickly; None where Pillow has to look at the file."""
    if content is None:
        try:
            with path.open("rb") as file:
                start = file.read(len(png.SIGNATURE))
                if start != png.SIGNATURE or os.fstat(file.fileno()).st_size > MAX_PLAIN_BYTES:
                    return None
                content = start + file.read()
        except OSError:
            return None
    return png.decode(content, max_pixels=max_pixels)


def _turned_behind(path: Path, content: bytes | None) -> bool:
    with path.open("rb") if content is None else io.BytesIO(content) as file:
        return png.turned_behind(file)


@contextmanager
def _opened(
    path: Path, max_pixels: int, *, decode: bool = True, content: bytes | None = None
) -> Iterator[PillowImage.Image]:
    """Open a file, judge its header, decode it and turn it upright; every damage becomes InputRejected."""
    try:
        if (path.stat().st_size if content is None else len(content)) == 0:
            raise InputRejected(f"{path} is empty (0 bytes). Copy it again or remove it.")
        # Given a path, Pillow maps uncompressed TIFFs into memory and scrambles those lying on their side.
        opened = path.open("rb") if content is None else io.BytesIO(content)
        with opened as file, PillowImage.open(file, formats=FORMATS) as image:
            _judge_header(image, path, max_pixels)
            if not decode:
                yield image
                return
            image.load()
            ImageOps.exif_transpose(image, in_place=True)  # a copy would forget the format
    except InputRejected:
        raise
    except FileNotFoundError as error:
        raise InputRejected(f"{path} does not exist.") from error
    except UnidentifiedImageError as error:
        raise InputRejected(
            f"{path} must be a PNG, JPEG, TIFF or BMP file, and is none or damaged. Convert it."
        ) from error
    except (PillowImage.DecompressionBombError, PillowImage.DecompressionBombWarning) as error:
        raise InputRejected(
            f"{path} must have at most {max_pixels} pixels, and has many more. Make it smaller."
        ) from error
    except DAMAGE as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputRejected(f"{path} cannot be read: {reason}. Copy or export it again.") from error
    yield image


def _judge_header(image: PillowImage.Image, path: Path, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise InputRejected(
            f"{path} must have at most {max_pixels} pixels, not {width} x {height}. Make it smaller."
        )
    if image.format == "TIFF":
        tags = getattr(image, "tag_v2", {})
        tile = int(tags.get(_TILE_WIDTH, 0)) * int(tags.get(_TILE_LENGTH, 0))
        if tile > max_pixels:
            raise InputRejected(
                f"{path} must have tiles of at most {max_pixels} pixels, not {tile}. Save it without tiles."
            )
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format in ("TIFF", "PNG"):  # a JPEG's further pictures are previews
        raise InputRejected(
            f"{path} must hold one picture, not {frames}. Save each page as a file of its own."
        )
    # Pillow decodes such files to 8 bits without a word; only its decoder's arguments tell.
    if image.mode[0] not in "IF" and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ())):
        raise InputRejected(
            f"{path} has 16 bits a colour channel, which cannot be read without loss. "
            "Save it as 16-bit grey or as 8-bit colour."
        )


def _pixels(image: PillowImage.Image, path: Path) -> Pixels:
    """Turn a loaded picture into an array, without loss."""
    mode = image.mode
    if mode == "1":
        return np.asarray(image).astype(np.uint8) * np.uint8(255)
    if mode in ("P", "PA", "LA", "RGBA", "RGBa") or (mode in ("L", "RGB") and "transparency" in image.info):
        grey = mode in ("LA", "L")
        layers = np.asarray(image.convert("RGBA"))
        colour, alpha = layers[..., :3], layers[..., 3:]
        if (alpha < 255).any():
            colour = ((colour.astype(np.uint16) * alpha + 127) // 255).astype(np.uint8)
        return np.ascontiguousarray(colour[..., 0] if grey else colour)
    if mode in ("CMYK", "YCbCr"):
        return np.asarray(image.convert("RGB")).copy()
    # Pillow takes signed bytes of a TIFF for unsigned ones, and unsigned words of 32 bits for signed ones.
    signed = getattr(image, "tag_v2", {}).get(_SAMPLE_FORMAT, (0,))[0] == _SIGNED
    if mode in ("L", "RGB", "F"):
        values = np.asarray(image).copy()
        return values.view(np.int8).astype(np.int32) if signed else values
    if mode.startswith("I"):
        values = np.asarray(image)
        if mode == "I" and image.format != "PNG":
            values = values.astype(np.int32)
            return values if signed or values.min() >= 0 else values.view(np.uint32)
        values = values.astype(np.uint16)
        inverted = image.format == "TIFF" and image.getexif().get(262) == 0  # 0: white is zero
        return np.uint16(65535) - values if inverted else values
    raise InputRejected(
        f"{path} has the colour mode {mode}, which is not known. Save the picture as grey or RGB."
    )
