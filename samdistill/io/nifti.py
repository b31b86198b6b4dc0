"""NIfTI files <-> arrays, through nibabel: slices as they lie in the file, never reoriented.

Pixel (y, x) of slice k is voxel (x, y, k): rows run along the second axis. What is written has the input's
header in everything that places it, byte for byte. The only module that imports nibabel.
"""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
from nibabel.arrayproxy import ArrayProxy
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError

from samdistill.errors import InputRejected
from samdistill.io.images import Pixels
from samdistill.io.stack import Direction, Format, check_index, check_sizes, read_content

GZIP = b"\x1f\x8b"
MAX_OFFSET = 1 << 26  # header and extensions before the voxels
_UNITS_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # unknown, metre, millimetre, micrometre
_IN_PATIENT = (1, 2)  # sform codes: scanner and aligned; the others are of an atlas, which has its own size
_DAMAGE = (OSError, EOFError, ValueError, zlib.error, struct.error, HeaderDataError, KeyError, OverflowError)
# Free text that may name a person or a site, and what speaks of the old values.
_TEXTS = ("data_type", "db_name", "aux_file", "intent_name", "descrip", "unused_str")
_VALUES = ("extents", "session_error", "regular", "cal_max", "cal_min", "glmax", "glmin")
_INTENTS = ("intent_code", "intent_p1", "intent_p2", "intent_p3")
Source = Path | io.BytesIO | gzip.GzipFile
Header = Any  # nibabel's headers are untyped mappings


@dataclass(frozen=True)
class NiftiStack:
    """The slices of a NIfTI file; a `Stack`. Slices of a .nii.gz are quick in order only.

    Attributes
    ----------
    path, size, spacing_mm
        As in `Stack`.
    header
        nibabel's, as the file has it.
    compressed
        Whether it is named as a gzipped file, as what is written for it then is.
    """

    path: Path
    size: tuple[int, int]
    spacing_mm: tuple[float, float] | None
    header: Header
    compressed: bool
    _count: int
    _voxels: ArrayProxy
    _packed: gzip.GzipFile | None = None
    _lock: Lock = field(default_factory=Lock, repr=False)
    format: Format = "nifti"

    @property
    def directions(self) -> tuple[Direction, ...] | None:
        """See `Stack.directions`.

        None, too, without a code that says what the header's matrix means, and for the matrix that programs
        write who know none: no shift, steps of 1 along the axes.
        """
        if int(self.header["sform_code"]) <= 0 and int(self.header["qform_code"]) <= 0:
            return None
        try:
            affine = np.asarray(self.header.get_best_affine(), np.float64)
        except _DAMAGE:
            return None
        if np.array_equal(abs(affine), np.eye(4)):
            return None
        steps = affine[:3, : 3 if len(self) > 1 else 2]
        lengths = np.linalg.norm(steps, axis=0)
        if not (np.isfinite(lengths).all() and (lengths > 0).all()):
            return None
        return tuple((float(x), float(y), float(z)) for x, y, z in (steps / lengths).T)

    def __len__(self) -> int:
        return self._count

    def image(self, index: int = 0) -> Pixels:
        """Read slice `index`, (H, W), or (H, W, 3) of colour; scaled where the header says so."""
        check_index(index, len(self))
        try:
            with self._lock:
                values = np.asarray(self._voxels[:, :, index])
                if self._packed is not None and index == len(self) - 1:
                    _read_to_end(self._packed)
        except _DAMAGE as error:
            raise InputRejected(f"{self.path} cannot be read: it is cut short or damaged.") from error
        if values.dtype.names is not None:
            values = np.stack([values[name] for name in "RGB"], axis=-1)
            return np.ascontiguousarray(values.transpose(1, 0, 2))
        values = np.ascontiguousarray(values.T)
        native: Pixels = values.astype(values.dtype.newbyteorder("="), copy=False)
        return native


def open_nifti(
    path: Path, content: bytes | None = None, *, max_pixels: int, max_stack_pixels: int
) -> NiftiStack:
    """Open a NIfTI-1 or NIfTI-2 file of two or three dimensions; see `stack.open_stack`."""
    source = _source(path, content)
    try:
        header = _read_header(source)
        shape, dtype = tuple(int(n) for n in header.get_data_shape()), header.get_data_dtype()
        offset, scaling = int(header["vox_offset"]), header.get_slope_inter()
    except _DAMAGE as error:
        raise InputRejected(
            f"{path} must be a NIfTI file (.nii or .nii.gz), and is none or damaged. Export it again."
        ) from error
    if not len(header.binaryblock) + 4 <= offset <= MAX_OFFSET:
        raise InputRejected(f"{path} has its voxels at byte {offset}, which cannot be. Export it again.")
    if any(n != 1 for n in shape[3:]) or len(shape) < 2:
        raise InputRejected(
            f"{path} must have two or three dimensions, not {' x '.join(map(str, shape))}. "
            "Save each time point or channel as a file of its own."
        )
    if dtype.names not in (None, ("R", "G", "B")) or (dtype.names is None and dtype.kind not in "uif"):
        raise InputRejected(f"{path} must hold numbers or RGB, not {dtype}. Convert it.")
    width, height, count = (*shape[:2], shape[2] if len(shape) > 2 else 1)
    check_sizes(path, (height, width), count, max_pixels, max_stack_pixels)
    # None where the header's slope is 0 or NaN, which says that nothing is scaled; colours never are.
    slope, intercept = scaling if None not in scaling and dtype.names is None else (1.0, 0.0)
    spec = ((width, height, count), dtype, offset, slope, intercept)
    voxels = ArrayProxy(source, spec, mmap=False)
    packed = source if isinstance(source, gzip.GzipFile) else None
    compressed = path.name.lower().endswith(".gz")
    return NiftiStack(path, (height, width), _spacing_mm(header), header, compressed, count, voxels, packed)


def nifti_bytes(stack: NiftiStack, values: npt.NDArray[Any], *, description: str) -> bytes:
    """Encode what was found in a NIfTI file as a NIfTI file that lies where that one lies.

    Parameters
    ----------
    stack
        The input; gzipped where it is.
    values
        (N, H, W) uint8 or float32, one layer a slice.
    description
        At most 79 characters of ASCII, for the header's `descrip`.

    Returns
    -------
    bytes
        The whole file: the input's header, affine and units included, without its texts and extensions. The
        same input gives the same bytes.
    """
    header = stack.header.copy()
    if values.shape != (len(stack), *stack.size):
        raise ValueError(f"values must be {(len(stack), *stack.size)}, not {values.shape}.")
    header.set_data_dtype(values.dtype)
    for key in (*_TEXTS, *_VALUES, *_INTENTS):
        if key in header:
            header[key] = np.zeros_like(header[key])
    header["descrip"] = description.encode("ascii", "replace")[:79]
    header["scl_slope"], header["scl_inter"] = 1, 0
    length = len(header.binaryblock)
    header["vox_offset"] = length + 4
    ordered = values.astype(values.dtype.newbyteorder(header.endianness), copy=False)
    # Voxel (x, y, k) in Fortran order is value (k, y, x) in C order.
    body = header.binaryblock + bytes(4) + np.ascontiguousarray(ordered).tobytes()
    return gzip.compress(body, 6, mtime=0) if stack.compressed else body


def _source(path: Path, content: bytes | None) -> Source:
    """Where nibabel finds a file's bytes, gzipped or not; no handle stays open."""
    try:
        if content is None:
            with path.open("rb") as file:
                plain = file.read(len(GZIP)) != GZIP
            if plain and not path.name.lower().endswith(".gz"):  # nibabel would unpack it by its name
                return path
            content = read_content(path)
    except OSError as error:
        raise InputRejected(f"{path} cannot be read: {error.strerror}.") from error
    if not content.startswith(GZIP):
        return io.BytesIO(content)
    return gzip.GzipFile(fileobj=io.BytesIO(content))


def _read_to_end(file: gzip.GzipFile) -> None:
    """Read what is behind the voxels: gzip compares its checksum there, the only sign of most damage."""
    left = MAX_OFFSET
    while left > 0 and (part := file.read(1 << 20)):
        left -= len(part)
    if left <= 0:
        raise ValueError("too much behind the voxels")


def _read_header(source: Source) -> Header:
    """Read the header alone, as it is: nothing mended, no extension."""
    if isinstance(source, Path):
        with source.open("rb") as file:
            start = file.read(540)
    else:
        start = source.read(540)
    for kind in (Nifti1Header, Nifti2Header):
        length = kind.template_dtype.itemsize
        if len(start) < length:
            continue
        header = kind(start[:length], check=False)
        magic = bytes(header["magic"]).rstrip(b"\0\r\n\x1a")
        if int(header["sizeof_hdr"]) == length and magic in (b"n+1", b"n+2"):
            return header
    raise ValueError("no NIfTI header")


def _spacing_mm(header: Header) -> tuple[float, float] | None:
    unit = _UNITS_MM.get(int(header["xyzt_units"]) & 7)
    x, y = (abs(float(value)) for value in header["pixdim"][1:3])
    if unit is None or not (0 < x < np.inf and 0 < y < np.inf):
        return None
    if int(header["qform_code"]) == 0 and int(header["sform_code"]) in _IN_PATIENT:
        # A matrix that alone tells where the voxels lie, and tells another distance: one of the two is wrong.
        # Of rows and columns that are not at right angles no two distances tell areas and lengths.
        axes = header.get_sform()[:3, :2]
        steps = np.linalg.norm(axes, axis=0)
        if not np.allclose(steps, (x, y), rtol=0.01) or abs(axes[:, 0] @ axes[:, 1]) > 0.01 * steps.prod():
            return None
    return y * unit, x * unit
