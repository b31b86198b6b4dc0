"""DICOM files made by code, each with a patient whose name must turn up nowhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

NAME = "Doering^Janina"
CLASSES = {
    "CR": "1.2.840.10008.5.1.4.1.1.1",
    "US": "1.2.840.10008.5.1.4.1.1.6.1",
    "US clip": "1.2.840.10008.5.1.4.1.1.3.1",
}


def dataset(
    pixels: npt.NDArray[Any], *, kind: str = "CR", photometric: str | None = None, bits: int | None = None,
    **tags: Any,
) -> Dataset:  # fmt: skip
    """A data set of (H, W), (N, H, W), (H, W, 3) or (N, H, W, 3) pixels, uint8, uint16 or int16."""
    colour = pixels.ndim > 2 and pixels.shape[-1] == 3
    frames = pixels.shape[0] if pixels.ndim == 3 + colour else None
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID = CLASSES["US clip" if frames else kind]
    made.SOPInstanceUID, made.StudyInstanceUID, made.SeriesInstanceUID = "1.2.3.4", "1.2.3", "1.2.3.9"
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    made.PatientName, made.PatientID, made.PatientBirthDate, made.PatientSex = NAME, "P-4711", "19700101", "F"
    made.StudyDate, made.StudyTime, made.AccessionNumber, made.StudyID = "20200102", "030405", "A1", "1"
    made.ReferringPhysicianName, made.Modality, made.PatientOrientation = "Brandner^B", kind[:2], ""
    made.SeriesNumber, made.InstanceNumber, made.Manufacturer = 1, 1, "none"
    made.Rows, made.Columns = pixels.shape[-3:-1] if colour else pixels.shape[-2:]
    made.SamplesPerPixel = 3 if colour else 1
    if colour:
        made.PlanarConfiguration = 0
    if frames:
        made.NumberOfFrames = frames
    made.PhotometricInterpretation = photometric or ("RGB" if colour else "MONOCHROME2")
    made.BitsAllocated = pixels.dtype.itemsize * 8
    made.BitsStored = bits or made.BitsAllocated
    made.HighBit = made.BitsStored - 1
    made.PixelRepresentation = int(pixels.dtype.kind == "i")
    data = np.ascontiguousarray(pixels).tobytes()
    made.PixelData = data + bytes(len(data) % 2)
    made["PixelData"].VR = "OW" if made.BitsAllocated > 8 else "OB"
    for key, value in tags.items():
        setattr(made, key, value)
    return made


def save(path: Path, made: Dataset) -> Path:
    """Write a data set as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path, enforce_file_format=True)
    return path


def write(path: Path, pixels: npt.NDArray[Any], **tags: Any) -> Path:
    """Write pixels as a DICOM file."""
    return save(path, dataset(pixels, **tags))


def table(first: int, values: npt.NDArray[np.uint16], bits: int = 16) -> Dataset:
    """An item of a Modality or VOI LUT Sequence."""
    item = Dataset()
    item.LUTDescriptor = [len(values), first, bits]
    item.LUTData = values.astype("<u2").tobytes()
    item["LUTData"].VR = "OW"
    item["LUTDescriptor"].VR = "US"
    item.ModalityLUTType = "US"
    return item


def sample(name: str) -> Path:
    """A file that pydicom is installed with."""
    return Path(pydicom.__file__).parent / "data" / "test_files" / name
