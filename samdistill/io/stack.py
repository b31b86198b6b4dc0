"""The images of one file, whatever its format: a picture holds one, a volume or a clip holds many.

The name says which format a file has to be, its content whether it is. NIfTI and DICOM need their extras.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, Protocol

from samdistill.errors import InputRejected
from samdistill.io.images import MAX_PIXELS, SUFFIXES, Pixels, image_size
from samdistill.io.images import read_image as read_picture
from samdistill.io.images import read_mask as read_picture_mask

Format = Literal["picture", "nifti", "dicom"]
Direction = tuple[float, float, float]

NIFTI_SUFFIXES = (".nii", ".nii.gz")
DICOM_SUFFIXES = (".dcm", ".dicom")
ALL_SUFFIXES = (*SUFFIXES, *NIFTI_SUFFIXES, *DICOM_SUFFIXES)
MAX_FILE_BYTES = 1 << 31
MAX_STACK_PIXELS = 1 << 28  # of all images of a file together; 1,024 slices of 512 x 512
MAX_IMAGES = 1 << 14  # each costs a call of the network, however small it is
_DICOM_MARK = (128, b"DICM")
_SAME_WAY = 0.5  # cosine; mirrored axes have -1 and exchanged ones 0


class Stack(Protocol):
    """The images of an opened file, read one at a time; all have one size.

    Attributes
    ----------
    path
        The file.
    format
        "picture", "nifti" or "dicom".
    size
        (height, width), pixels.
    spacing_mm
        From row to row and from column to column, (y, x); None where the file does not say.
    directions
        Unit vectors from column to column, from row to row and, in a volume, from slice to slice, in the
        patient as NIfTI has it: right, anterior, superior. None where the file does not say.
    """

    @property
    def path(self) -> Path: ...

    @property
    def format(self) -> Format: ...

    @property
    def size(self) -> tuple[int, int]: ...

    @property
    def spacing_mm(self) -> tuple[float, float] | None: ...

    @property
    def directions(self) -> tuple[Direction, ...] | None: ...

    def __len__(self) -> int: ...

    def image(self, index: int = 0) -> Pixels:
        """Read one image.

        Parameters
        ----------
        index
            0..N-1.

        Returns
        -------
        Pixels
            (H, W) or (H, W, 3); `MeasuredPixels` where the file says how its values are shown.
        """
        ...


@dataclass(frozen=True)
class PictureStack:
    """The one image of a PNG, JPEG, TIFF or BMP; a `Stack`."""

    path: Path
    size: tuple[int, int]
    max_pixels: int = MAX_PIXELS
    content: bytes | None = None
    format: Format = "picture"
    spacing_mm: tuple[float, float] | None = None
    directions: None = None

    def __len__(self) -> int:
        return 1

    def image(self, index: int = 0) -> Pixels:
        """Read it; see `Stack.image`."""
        check_index(index, 1)
        return read_picture(self.path, max_pixels=self.max_pixels, content=self.content)


def _open_picture(path: Path, content: bytes | None, max_pixels: int) -> Stack:
    return PictureStack(path, image_size(path, max_pixels=max_pixels, content=content), max_pixels, content)


def _open_nifti(path: Path, content: bytes | None, max_pixels: int) -> Stack:
    from samdistill.io.nifti import open_nifti

    return open_nifti(path, content, max_pixels=max_pixels, max_stack_pixels=MAX_STACK_PIXELS)


def _open_dicom(path: Path, content: bytes | None, max_pixels: int) -> Stack:
    from samdistill.io.dicom import open_dicom

    return open_dicom(path, content, max_pixels=max_pixels, max_stack_pixels=MAX_STACK_PIXELS)


READERS: dict[Format, Callable[[Path, bytes | None, int], Stack]] = {
    "picture": _open_picture,
    "nifti": _open_nifti,
    "dicom": _open_dicom,
}
LIBRARIES: dict[Format, tuple[str, ...]] = {
    "picture": (),
    "nifti": ("nibabel",),
    "dicom": ("pydicom", "highdicom"),
}
"""What a format needs beside base; the extra is called like the format."""


def open_stack(path: Path | str, content: bytes | None = None, *, max_pixels: int = MAX_PIXELS) -> Stack:
    """Open a file; only its header is read.

    Parameters
    ----------
    path
        Its name tells the format, see `format_of`; what has no known one is taken for a picture.
    content
        The file's bytes, where they have been read already.
    max_pixels
        Larger images are refused before they are decoded.

    Raises
    ------
    InputRejected
        When the file is missing, empty, damaged, too large, or not what its name says.
    ModuleNotFoundError
        When the format's extra is not installed.
    """
    path = Path(path)
    return READERS[format_of(path) or "picture"](path, content, max_pixels)


def read_image(path: Path | str, index: int | None = None, *, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Read one image of a file of any format.

    Parameters
    ----------
    path
        A picture, NIfTI or DICOM file.
    index
        Which image; None where the file must hold just one.
    max_pixels
        Larger images are refused before they are decoded.

    Returns
    -------
    Pixels
        (H, W) or (H, W, 3) RGB, as deep as the file; see `images.read_image` and docs/formats.md.

    Raises
    ------
    InputRejected
        As `open_stack`, and when there are several images and no index.
    """
    stack = open_stack(path, max_pixels=max_pixels)
    if index is None and len(stack) != 1:
        raise InputRejected(f"{path} must hold one image, not {len(stack)}. Say which.")
    return stack.image(index or 0)


def read_mask(path: Path | str, index: int | None = None, image: Stack | None = None) -> Pixels:
    """Read a mask's values, (H, W) of whole numbers, out of a picture or a slice of a NIfTI file.

    Parameters
    ----------
    path
        See `images.read_mask` for pictures.
    index
        Which slice, where the file has several.
    image
        What it is a mask of, where that is known.

    Raises
    ------
    InputRejected
        As `open_stack`, and for fractions, for DICOM, for a slice that is not there, and where image and mask
        say that their rows, columns or slices run different ways in the patient.
    """
    path = Path(path)
    kind = format_of(path) or "picture"
    if kind == "picture":
        return read_picture_mask(path)
    if kind == "dicom":
        raise InputRejected(f"{path} must be a picture or a NIfTI file to be a mask. Convert it.")
    stack = opened(path)
    for one, other in zip((image and image.directions) or (), stack.directions or (), strict=False):
        if sum(a * b for a, b in zip(one, other, strict=True)) < _SAME_WAY:
            raise InputRejected(
                f"{path} must lie as its image does; its header has rows, columns or slices run another way "
                "in the patient. Reslice it onto the image; if only the header is wrong, give it the image's."
            )
    wanted = 0 if len(stack) == 1 else index
    if wanted is None or wanted >= len(stack):
        raise InputRejected(f"{path} must have as many slices as its image, not {len(stack)}.")
    values = stack.image(wanted)
    if values.ndim != 2 or (values.dtype.kind == "f" and not (values == values.round()).all()):
        raise InputRejected(f"{path} must hold one whole class number a voxel, not colours or fractions.")
    return values if values.dtype.kind in "ui" else values.astype("int32")


def opened(path: Path) -> Stack:
    """Open a file, or take it from the last few that were opened, where it has not changed since."""
    try:
        state = path.stat()
    except OSError as error:
        raise InputRejected(f"{path} does not exist.") from error
    return _opened(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=4)
def _opened(path: Path, size: int, changed_ns: int) -> Stack:
    return open_stack(path)


def format_of(path: Path) -> Format | None:
    """Tell a file's format by its name; where that has no known suffix, DICOM by its mark in the file.

    DICOMDIR is none: it lists the files of a medium (PS3.10 8.6).
    """
    name = path.name.lower()
    for kind, suffixes in (("picture", SUFFIXES), ("nifti", NIFTI_SUFFIXES), ("dicom", DICOM_SUFFIXES)):
        if name.endswith(suffixes):
            return kind  # type: ignore[return-value]
    return "dicom" if name != "dicomdir" and _looks_like_dicom(path) else None


def stem(name: str) -> str:
    """A path's text without the suffix of its format; suffixes that are none, as in UIDs, stay."""
    lower = name.lower()
    for suffix in (".nii.gz", *ALL_SUFFIXES):
        if lower.endswith(suffix):
            return name[: -len(suffix)]
    return name


def check_index(index: int, count: int) -> None:
    """Require the number of an image."""
    if not 0 <= index < count:
        raise ValueError(f"index must be 0..{count - 1}, not {index}.")


def check_sizes(
    path: Path, size: tuple[int, int], count: int, max_pixels: int, max_stack_pixels: int
) -> None:
    """Refuse what a header promises to be too large.

    Raises
    ------
    InputRejected
        When there is nothing, or more than the caps.
    """
    height, width = size
    if height < 1 or width < 1 or count < 1:
        raise InputRejected(f"{path} must hold an image, not {count} of {width} x {height}. Export it again.")
    if height * width > max_pixels:
        raise InputRejected(
            f"{path} must have at most {max_pixels} pixels an image, not {width} x {height}. Make it smaller."
        )
    if height * width * count > max_stack_pixels:
        raise InputRejected(
            f"{path} must have at most {max_stack_pixels} pixels in all, not {count} images of "
            f"{width} x {height}. Cut it into parts."
        )
    if count > MAX_IMAGES:
        raise InputRejected(f"{path} must hold at most {MAX_IMAGES} images, not {count}. Cut it into parts.")


def read_content(path: Path) -> bytes:
    """Read a whole file.

    Raises
    ------
    InputRejected
        When it is missing, no file, empty, or larger than MAX_FILE_BYTES.
    """
    try:
        require_plain_file(path)
        with path.open("rb") as file:
            # Never more than there is: a buffer of the limit would be set up first.
            content = file.read(min(os.fstat(file.fileno()).st_size, MAX_FILE_BYTES) + 1)
    except FileNotFoundError as error:
        raise InputRejected(f"{path} does not exist.") from error
    except OSError as error:
        raise InputRejected(f"{path} cannot be read: {error.strerror}.") from error
    if not content:
        raise InputRejected(f"{path} is empty (0 bytes). Copy it again or remove it.")
    if len(content) > MAX_FILE_BYTES:
        raise InputRejected(f"{path} must have at most {MAX_FILE_BYTES} bytes. Cut it into parts.")
    return content


def require_plain_file(path: Path) -> None:
    """Refuse pipes and devices, which would be waited for without end.

    Raises
    ------
    OSError
        When there is nothing.
    InputRejected
        When it is no file.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise InputRejected(f"{path} must be a file. Take it out of the inputs.")


def _looks_like_dicom(path: Path) -> bool:
    start, mark = _DICOM_MARK
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(start + len(mark))[start:] == mark
    except OSError:
        return False
