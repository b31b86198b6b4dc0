"""DICOM files -> arrays, through pydicom: single and multi-frame, compressed or not, as deep as they are.

Grey goes the standard's way (PS3.3 C.11): modality LUT, then VOI LUT or window, then MONOCHROME1's inversion.
Nothing of a file's texts enters a message, since they may name a person. pydicom is imported here only.
"""

from __future__ import annotations

import copy
import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames, get_frame, parse_basic_offsets
from pydicom.pixels import apply_color_lut, get_decoder

from samdistill.errors import InputRejected
from samdistill.intensity import MeasuredPixels
from samdistill.io.codestream import RLE, frame_problem, palette_entries, transfer_syntax_and_inflated_size
from samdistill.io.images import Pixels
from samdistill.io.stack import Direction, Format, check_index, check_sizes

MAX_INFLATED = 1 << 30
MAX_PALETTE = 1 << 16
MM_PER_CM = 10.0
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_NO_PICTURES = {  # objects whose pixels are no picture
    "1.2.840.10008.5.1.4.1.1.66.4": "a segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "a segmentation",
    "1.2.840.10008.5.1.4.1.1.481.2": "a dose",
}
# One decoder each. pydicom goes on to the next where one fails, and of a damaged stream GDCM ends the process
# (JPEG) and CharLS by itself never returns (JPEG-LS).
_PLUGINS = {
    "1.2.840.10008.1.2.4.50": "pillow",
    "1.2.840.10008.1.2.4.51": "pillow",
    "1.2.840.10008.1.2.4.80": "gdcm",
    "1.2.840.10008.1.2.4.81": "gdcm",
}
_CM = 3  # PhysicalUnits of an ultrasound region
# Where PixelSpacing is the same as one of these it is of the detector, too (PS3.3 10.7.1.3).
_DETECTOR_SPACINGS = ("ImagerPixelSpacing", "NominalScannedPixelSpacing")
_FUNCTIONAL_GROUPS = ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence")
Floats = npt.NDArray[np.float64]
T = TypeVar("T")


@dataclass(frozen=True)
class DicomStack:
    """The frames of a DICOM file; a `Stack`.

    Attributes
    ----------
    path, size, spacing_mm
        As in `Stack`.
    dataset
        pydicom's, with its pixel data.
    burned_in
        Whether the file says that its pixels name the patient (BurnedInAnnotation).
    """

    path: Path
    size: tuple[int, int]
    spacing_mm: tuple[float, float] | None
    dataset: Dataset
    burned_in: bool
    _count: int
    format: Format = "dicom"

    @property
    def directions(self) -> tuple[Direction, ...] | None:
        """See `Stack.directions`; of rows and columns alone, since frames may come in any order."""
        return guarded(self.path, "its orientation", lambda: _directions(self.dataset))

    def __len__(self) -> int:
        return self._count

    def image(self, index: int = 0) -> Pixels:
        """Read frame `index`; see `Stack.image`."""
        check_index(index, len(self))
        dataset = self.dataset
        stored, photometric = _decode(self.path, dataset, index, self._count)
        if stored.ndim == 3:
            if stored.dtype != np.uint8:
                raise InputRejected(
                    f"{self.path} has {stored.dtype.itemsize * 8} bits a colour channel; only 8 are read. "
                    "Export it as 8-bit colour or as grey."
                )
            return np.ascontiguousarray(stored)
        if photometric == "PALETTE COLOR":
            guarded(self.path, "its palette", lambda: _check_palette(self.path, dataset))
            colours = guarded(self.path, "its palette", lambda: apply_color_lut(stored, dataset))
            deep = colours.dtype == np.uint16 and guarded(self.path, "its palette", lambda: _is_deep(dataset))
            return np.ascontiguousarray(colours >> 8 if deep else colours, np.uint8)
        return guarded(self.path, "its grey values", lambda: _grey(stored, dataset, index))


def open_dicom(
    path: Path, content: bytes | None = None, *, max_pixels: int, max_stack_pixels: int
) -> DicomStack:
    """Open a DICOM file that holds images; see `stack.open_stack`."""
    quiet()
    if content is None:
        from samdistill.io.stack import read_content

        content = read_content(path)
    syntax, inflated = transfer_syntax_and_inflated_size(content, MAX_INFLATED)
    if syntax is None:
        raise InputRejected(
            f"{path} must be a DICOM file with its header (DICM at byte 128), and is none or damaged."
        )
    if inflated > MAX_INFLATED:
        raise InputRejected(f"{path} must inflate to at most {MAX_INFLATED} bytes, and is larger.")
    dataset = guarded(path, "it", lambda: pydicom.dcmread(io.BytesIO(content)))
    what = _NO_PICTURES.get(str(dataset.get("SOPClassUID", "")))
    if what is not None or "PixelData" not in dataset:
        raise InputRejected(f"{path} must hold an image, not {what or 'none'}. Take it out of the inputs.")
    size, count, samples, photometric = guarded(path, "its header", lambda: _header(dataset))
    check_sizes(path, size, count, max_pixels, max_stack_pixels)
    known = (*_GREY, "PALETTE COLOR") if samples == 1 else _COLOUR
    if samples not in (1, 3) or photometric not in known:
        raise InputRejected(
            f"{path} has a photometric interpretation that is not known for {samples} samples a pixel. "
            "Convert it to MONOCHROME2 or RGB."
        )
    guarded(path, "its header", lambda: _check_bits(path, dataset))
    guarded(path, "its frames", lambda: _find_frames(dataset, count))
    return DicomStack(
        path,
        size,
        guarded(path, "its spacing", lambda: _spacing_mm(dataset)),
        dataset,
        str(dataset.get("BurnedInAnnotation", "")).upper() == "YES",
        count,
    )


def derive_uid(*sources: str) -> str:
    """A UID that depends on nothing but its sources (PS3.5 B.2: 2.25 and a UUID)."""
    import hashlib
    import uuid

    digest = hashlib.sha256("\0".join(sources).encode()).digest()
    return f"2.25.{uuid.UUID(bytes=digest[:16], version=5).int}"


def copy_of(dataset: Dataset, *, without: Sequence[str] = ()) -> Dataset:
    """A deep copy of a dataset, some of its attributes left out; the file's own header stays shared."""
    kept = Dataset()
    for element in dataset:
        if element.keyword not in without:
            kept.add(copy.deepcopy(element))
    if hasattr(dataset, "file_meta"):
        kept.file_meta = dataset.file_meta
    return kept


def quiet() -> None:
    """Keep pydicom and highdicom from writing values of a file, and so perhaps a name, to standard error."""
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
    for name in ("pydicom", "highdicom"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def guarded(path: Path, what: str, read: Callable[[], T]) -> T:
    """Run a piece of reading; what a damaged file makes of it becomes a message without the file's texts."""
    try:
        return read()
    except (InputRejected, MemoryError):
        raise
    except Exception as error:
        raise InputRejected(
            f"{path} cannot be read: {what} is damaged or not known ({type(error).__name__}). "
            "Export it again, uncompressed."
        ) from error


def _header(dataset: Dataset) -> tuple[tuple[int, int], int, int, str]:
    """(height, width), frames, samples a pixel, photometric interpretation."""
    return (
        (int(dataset.Rows), int(dataset.Columns)),
        int(dataset.get("NumberOfFrames") or 1),
        int(dataset.get("SamplesPerPixel", 1)),
        str(dataset.get("PhotometricInterpretation", "")),
    )


def _check_bits(path: Path, dataset: Dataset) -> None:
    """Refuse raw values that lie above the lowest bits, as files from before DICOM do; pydicom cuts them."""
    syntax = dataset.file_meta.TransferSyntaxUID
    stored, allocated = int(dataset.BitsStored), int(dataset.BitsAllocated)
    above = stored <= int(dataset.get("HighBit", stored - 1)) < allocated
    if above and (syntax == RLE or not syntax.is_encapsulated):
        raise InputRejected(
            f"{path} must have its values in the lowest bits (HighBit {stored - 1}), not up to bit "
            f"{dataset.HighBit}. Export it again with another program."
        )


def _find_frames(dataset: Dataset, count: int) -> None:
    """Note where compressed frames begin, where the file does not: else each is looked for from the first."""
    if count == 1 or not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        return
    if "ExtendedOffsetTable" in dataset or parse_basic_offsets(dataset.PixelData):
        return
    frames = list(generate_frames(dataset.PixelData, number_of_frames=count))
    if len(frames) == count:
        dataset.PixelData = encapsulate(frames)


def _decode(path: Path, dataset: Dataset, index: int, count: int) -> tuple[npt.NDArray[Any], str]:
    """Decode frame `index`: stored values (H, W) or RGB (H, W, 3), and what they stand for."""
    syntax = dataset.file_meta.TransferSyntaxUID
    # Before anything else is asked of it: of a private one pydicom does not know whether it is compressed.
    decoder = guarded(path, "its transfer syntax", lambda: get_decoder(syntax))
    (height, width), _, samples, _ = _header(dataset)
    if syntax.is_encapsulated:
        raw_bytes = height * width * samples * int(dataset.BitsAllocated) // 8
        frame = guarded(
            path, "its frames", lambda: get_frame(dataset.PixelData, index, number_of_frames=count)
        )
        problem = guarded(
            path, "its frames", lambda: frame_problem(frame, str(syntax), (height, width), samples, raw_bytes)
        )
        if problem is not None:
            raise InputRejected(f"{path} cannot be read: {problem}. Export it again.")
    plugin = _PLUGINS.get(str(syntax), "")
    values, about = guarded(
        path, "its pixel data", lambda: decoder.as_array(dataset, index=index, decoding_plugin=plugin)
    )
    photometric = str(about["photometric_interpretation"])
    if values.shape not in ((height, width), (height, width, 3)) or (samples == 3 and photometric != "RGB"):
        raise InputRejected(f"{path} cannot be read: its colours are stored in an unknown way. Convert it.")
    return values, photometric


def _check_palette(path: Path, dataset: Dataset) -> None:
    """Refuse a segmented palette that would unfold to more than a palette has."""
    for colour in ("Red", "Green", "Blue", "Alpha"):
        data = dataset.get(f"Segmented{colour}PaletteColorLookupTableData")
        if not data:
            continue
        bits = int(dataset.RedPaletteColorLookupTableDescriptor[2])
        words = np.frombuffer(data, np.uint8 if bits == 8 else _word(dataset), len(data) // (bits // 8))
        if palette_entries(words.tolist(), MAX_PALETTE) > MAX_PALETTE:
            raise InputRejected(
                f"{path} must have a palette of at most {MAX_PALETTE} colours, without segments that repeat "
                "others. Export it as RGB."
            )


def _is_deep(dataset: Dataset) -> bool:
    """Whether a palette of 16-bit words has 16 bits; those of 8 may lie in such (PS3.3 C.7.6.3.1.6).

    Some files say 16 of what has 8.
    """
    tables = [dataset.get(f"{colour}PaletteColorLookupTableData") for colour in ("Red", "Green", "Blue")]
    if int(dataset.RedPaletteColorLookupTableDescriptor[2]) == 8:
        return False
    return not all(tables) or any(int(np.frombuffer(one, _word(dataset)).max()) > 255 for one in tables)


def _grey(stored: npt.NDArray[Any], dataset: Dataset, index: int) -> Pixels:
    """Stored values (H, W) to measured ones and, where the file says how, what is shown of them."""
    bits, signed = int(dataset.BitsStored), bool(dataset.get("PixelRepresentation", 0))
    inverted = (
        dataset.PhotometricInterpretation == "MONOCHROME1"
        or str(dataset.get("PresentationLUTShape", "")).upper() == "INVERSE"
    )
    extremes = np.array([-(1 << (bits - 1)), (1 << (bits - 1)) - 1] if signed else [0, (1 << bits) - 1])
    values, ends = (_modality(some, dataset, index) for some in (stored, extremes))
    shown = _shown(values, dataset, index, signed=bool(ends.min() < 0))
    if shown is None and bits < 8 and _dtype(values, extremes) is np.uint8:
        # The rule "identity" would take them for 8 bits: 6 of them as a picture that is almost black.
        shown = values / extremes[1]
    if inverted:
        # The sum of the two ends mirrors the range onto itself.
        values = ends.sum() - values.astype(ends.dtype)
    values = np.ascontiguousarray(values, _dtype(values, extremes))
    if shown is None:
        return values
    grey = np.clip(np.rint(shown * 255), 0, 255).astype(np.uint8)
    return MeasuredPixels.of(values, np.uint8(255) - grey if inverted else grey)


def _dtype(values: npt.NDArray[Any], extremes: npt.NDArray[np.int64]) -> type[np.generic]:
    """The smallest of the usual types that holds every value a file of these extremes may have."""
    if values.dtype.kind != "f":
        for dtype in (np.uint8, np.uint16, np.int32):
            if np.iinfo(dtype).min <= extremes.min() and extremes.max() <= np.iinfo(dtype).max:
                return dtype
    return np.float32


def _modality(values: npt.NDArray[Any], dataset: Dataset, index: int) -> npt.NDArray[Any]:
    """Modality LUT or rescale (PS3.3 C.11.1); untouched where there is neither."""
    tables = dataset.get("ModalityLUTSequence")
    if tables:
        return _look_up(values, tables[0], dataset, signed=bool(dataset.get("PixelRepresentation", 0)))[0]
    item = _functional_group(dataset, index, "PixelValueTransformationSequence", "RescaleSlope")
    slope = float(item.get("RescaleSlope", 1) or 1)
    intercept = float(item.get("RescaleIntercept", 0) or 0)
    if (slope, intercept) == (1.0, 0.0):
        return values
    return values * slope + intercept


def _shown(values: npt.NDArray[Any], dataset: Dataset, index: int, *, signed: bool) -> Floats | None:
    """VOI LUT or window (PS3.3 C.11.2) onto 0..1; None where the file has neither that can be meant.

    Parameters
    ----------
    signed
        Whether values may be negative.
    """
    item = _functional_group(dataset, index, "FrameVOILUTSequence", "WindowCenter")
    tables = item.get("VOILUTSequence") or dataset.get("VOILUTSequence")
    if tables:
        looked_up, bits = _look_up(values, tables[0], dataset, signed=signed)
        return looked_up / float((1 << bits) - 1)
    if item.get("WindowCenter") is None or item.get("WindowWidth") is None:
        return None
    centre, width = (float(np.atleast_1d(item[key].value)[0]) for key in ("WindowCenter", "WindowWidth"))
    function = str(item.get("VOILUTFunction", "LINEAR") or "LINEAR").upper()
    # No window is as narrow (PS3.3 C.11.2.1.2, C.11.2.1.3): 0 stands where nothing was to be said.
    if not (width > 0 if function in ("SIGMOID", "LINEAR_EXACT") else width >= 1):
        return None
    x = values.astype(np.float64)
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (x - centre) / width, -700, 700)))
    if function == "LINEAR_EXACT":
        return np.clip((x - centre) / width + 0.5, 0, 1)
    if width == 1:
        return (x > centre - 0.5).astype(np.float64)
    return np.clip((x - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)


def _look_up(
    values: npt.NDArray[Any], item: Dataset, dataset: Dataset, *, signed: bool
) -> tuple[Floats, int]:
    """Values through a table (PS3.3 C.11.1.1), and how many bits its entries have."""
    count, first, bits = (int(n) for n in item.LUTDescriptor)
    if signed and first >= 1 << 15:  # told as an unsigned number, whatever the values are
        first -= 1 << 16
    data = item.LUTData
    if isinstance(data, bytes):
        data = np.frombuffer(data, np.uint8 if len(data) < 2 * (count or 1 << 16) else _word(dataset))
    table = np.atleast_1d(np.asarray(data, np.float64))[: count or 1 << 16]
    return table[np.clip(values.astype(np.int64) - first, 0, len(table) - 1)], bits


def _word(dataset: Dataset) -> str:
    """numpy's name of 16 bits as the file has them."""
    return "<u2" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">u2"


def _functional_group(dataset: Dataset, index: int, sequence: str, key: str) -> Dataset:
    """Where an attribute of a frame stands: in its functional group, the shared one, or the dataset."""
    per_frame, shared = (dataset.get(name) for name in _FUNCTIONAL_GROUPS)
    for groups, place in ((per_frame, index), (shared, 0)):
        if groups and place < len(groups):
            items = groups[place].get(sequence)
            if items and key in items[0]:
                found: Dataset = items[0]
                return found
    return dataset


def _of_all_frames(dataset: Dataset, sequence: str, key: str) -> list[Any]:
    """The values that an attribute has in the frames, each once; None among them where a frame has none."""
    found: list[Any] = []
    for index in range(len(dataset.get(_FUNCTIONAL_GROUPS[0]) or ()) or 1):
        value = _functional_group(dataset, index, sequence, key).get(key)
        if value not in found:
            found.append(value)
    return found


def _spacing_mm(dataset: Dataset) -> tuple[float, float] | None:
    """(y, x) millimetres between pixel centres in the patient; detector spacing is no such thing.

    None, too, where the frames have several.
    """
    found = _of_all_frames(dataset, "PixelMeasuresSequence", "PixelSpacing")
    if len(found) > 1:
        return None
    if values := found[0]:
        y, x = (float(value) for value in values)
        at_detector = any(_equal(dataset.get(key), (y, x)) for key in _DETECTOR_SPACINGS)
        if at_detector and not dataset.get("PixelSpacingCalibrationType"):
            return None
    else:
        regions = dataset.get("SequenceOfUltrasoundRegions") or []
        if len(regions) != 1 or not all(
            regions[0].get(f"PhysicalUnits{axis}Direction") == _CM for axis in "XY"
        ):
            return None
        y, x = (abs(float(regions[0][f"PhysicalDelta{axis}"].value)) * MM_PER_CM for axis in "YX")
    return (y, x) if 0 < x < np.inf and 0 < y < np.inf else None


def _directions(dataset: Dataset) -> tuple[Direction, ...] | None:
    """`Stack.directions` of rows and columns; None where the frames have several."""
    found = _of_all_frames(dataset, "PlaneOrientationSequence", "ImageOrientationPatient")
    if len(found) > 1 or not found[0] or len(found[0]) != 6:
        return None
    x0, y0, z0, x1, y1, z1 = (float(value) for value in found[0])
    return (-x0, -y0, z0), (-x1, -y1, z1)  # DICOM's axes lead to the left and to the back


def _equal(spacing: Sequence[Any] | None, other: tuple[float, float]) -> bool:
    return bool(spacing) and np.allclose([float(value) for value in spacing or ()], other, rtol=1e-4, atol=0)
