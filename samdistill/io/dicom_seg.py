"""Masks -> DICOM Segmentation objects, through highdicom. The only module that imports it.

Everything in an object comes from the image, the bundle and the options, UIDs and times included, so that a
second run writes the same bytes.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import numpy.typing as npt
from highdicom.color import CIELabColor
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
from highdicom.sr.coding import CodedConcept

from samdistill._version import __version__
from samdistill.errors import InputRejected
from samdistill.io.dicom import DicomStack, copy_of, derive_uid, guarded

MANUFACTURER = "samdistill"
SERIES_NUMBER = 4711
_LONG_STRING = 64
# A bundle knows classes by name alone, so the codes are the most general there are.
_TISSUE = CodedConcept("85756007", "SCT", "Tissue")
_AI = CodedConcept("123110", "DCM", "Artificial Intelligence")
_PROCESSING = CodedConcept("109102", "DCM", "Processing Equipment")
_LONG_AGO = "19700101"
_CLOCK = re.compile(r"([01]\d|2[0-3])([0-5]\d([0-5]\d|60)?)?", re.ASCII)
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_IN_STACK_POSITION, _FRAME_CONTENT = 0x00209057, 0x00209111
_STEPS = 255  # of a probability in a fractional segmentation
# Attributes of type 2 that images should have and often lack; highdicom copies them.
_EXPECTED = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "ReferringPhysicianName", "Modality",
)  # fmt: skip
# Of these highdicom refuses values that are against the standard, which clinics have none the less.
_FREE = ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime")
_PLACES = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
_PLANES = ("PixelMeasuresSequence", "PlaneOrientationSequence")  # of all frames of an image
_UNICODE = "ISO_IR 192"


@dataclass(frozen=True)
class SegmentInfo:
    """One class: its name and its colour, RGB 0..255."""

    name: str
    colour: tuple[int, int, int]


@dataclass(frozen=True)
class Provenance:
    """What made a segmentation.

    Attributes
    ----------
    bundle_name, bundle_sha256
        The bundle.
    input_sha256
        Of the image's file.
    settings
        Everything else the answer depends on, name -> value.
    """

    bundle_name: str
    bundle_sha256: str
    input_sha256: str
    settings: dict[str, str]


def segmentation_bytes(
    stack: DicomStack,
    values: npt.NDArray[Any],
    segments: Sequence[SegmentInfo],
    provenance: Provenance,
) -> bytes:
    """Encode masks or probability maps as a DICOM Segmentation.

    Parameters
    ----------
    stack
        The image that was segmented.
    values
        (N, C, H, W): bool masks give a binary segmentation, in which classes may overlap; float32 in [0, 1]
        gives a fractional one of 255 steps, of type PROBABILITY.
    segments
        C classes, in channel order; segment number is class_id.
    provenance
        What goes into AlgorithmIdentification, ContributingEquipment and the UIDs.

    Returns
    -------
    bytes
        The whole file; every frame of the image is there, empty ones too, as viewers expect it.

    Raises
    ------
    InputRejected
        When the image lacks what a segmentation has to refer to.
    """
    if values.shape != (len(stack), len(segments), *stack.size):
        raise ValueError(f"values must be {(len(stack), len(segments), *stack.size)}, not {values.shape}.")
    fractional = values.dtype == np.float32
    return guarded(stack.path, "its header", lambda: _encode(stack, values, segments, provenance, fractional))


def read_masks(path: Path) -> npt.NDArray[np.bool_]:
    """Read the masks of a DICOM Segmentation written here.

    Returns
    -------
    array
        (N, C, H, W) bool: image, segment, and where the segment is.

    Raises
    ------
    InputRejected
        When the file is no such object.
    """

    def read() -> npt.NDArray[np.bool_]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what highdicom warns of may quote a patient's name
            made = highdicom.seg.segread(path)
        frames = np.atleast_3d(made.pixel_array.T).T  # a single frame has no axis of its own
        places = []
        shared = made.SharedFunctionalGroupsSequence[0]  # says the segment where there is just one
        for item in made.PerFrameFunctionalGroupsSequence:
            source = item.DerivationImageSequence[0].SourceImageSequence[0]
            identity = item.get("SegmentIdentificationSequence") or shared.SegmentIdentificationSequence
            segment = identity[0].ReferencedSegmentNumber
            places.append((int(source.get("ReferencedFrameNumber", 1)) - 1, int(segment) - 1))
        count = max(image for image, _ in places) + 1
        masks = np.zeros((count, len(made.SegmentSequence), *frames.shape[1:]), np.bool_)
        for (image, segment), frame in zip(places, frames, strict=True):
            masks[image, segment] = frame != 0
        return masks

    return guarded(path, "its segments", read)


def _encode(
    stack: DicomStack,
    values: npt.NDArray[Any],
    segments: Sequence[SegmentInfo],
    provenance: Provenance,
    fractional: bool,
) -> bytes:
    source = _complete(stack, provenance)
    date, time = _moment(stack.dataset)
    kind = "FRACTIONAL" if fractional else "BINARY"
    identity = (
        provenance.input_sha256,
        provenance.bundle_sha256,
        kind,
        *(f"{name}={value}" for name, value in sorted(provenance.settings.items())),
    )
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=_text(provenance.bundle_name),
        family=_AI,
        version=provenance.bundle_sha256,
        source=MANUFACTURER,
        parameters={_text(key): _text(value) for key, value in provenance.settings.items()},
    )
    software = (f"samdistill {__version__}", f"highdicom {highdicom.__version__}")
    equipment = highdicom.ContributingEquipment(
        manufacturer=MANUFACTURER,
        purpose_of_reference=_PROCESSING,
        manufacturer_model_name=_text(provenance.bundle_name),
        software_versions=software,
        device_serial_number=provenance.bundle_sha256,
        contribution_datetime=f"{date}{time}",
        contribution_description=f"Segmented with the bundle whose SHA-256 is {provenance.bundle_sha256}",
    )
    placed = _placed(source)
    alone = len(values) > 1 and not placed
    segmentation = Segmentation(
        source_images=[source],
        # highdicom wants (N, H, W, C).
        pixel_array=np.ascontiguousarray(values[: 1 if alone else None].transpose(0, 2, 3, 1)),
        segmentation_type=SegmentationTypeValues(kind),
        segment_descriptions=[
            SegmentDescription(
                segment_number=number,
                segment_label=_text(segment.name),
                segmented_property_category=_TISSUE,
                segmented_property_type=_TISSUE,
                algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
                algorithm_identification=algorithm,
                display_color=CIELabColor.from_rgb(*segment.colour),
            )
            for number, segment in enumerate(segments, 1)
        ],
        series_instance_uid=derive_uid("series", source.SeriesInstanceUID, *identity[1:]),
        series_number=SERIES_NUMBER,
        sop_instance_uid=derive_uid("instance", *identity),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=_text(provenance.bundle_name),
        software_versions=software,
        device_serial_number=provenance.bundle_sha256,
        series_description=_text(f"samdistill {provenance.bundle_name}"),
        content_label="SAMDISTILL",
        content_description=_text(f"{kind.lower()} {', '.join(one.name for one in segments)}"),
        content_date=date,
        content_time=time,
        omit_empty_frames=False,
        contributing_equipment=[equipment],
    )
    for keyword in _FREE:
        if stack.dataset.get(keyword):
            setattr(segmentation, keyword, stack.dataset[keyword].value)
    if not placed:
        segmentation.PatientOrientation = source.get("PatientOrientation", "")
        _refer_to(segmentation, stack.dataset.SOPClassUID)
    if alone:
        _add_frames(segmentation, values)
    return _finished(segmentation, identity, date, time)


def _complete(stack: DicomStack, provenance: Provenance) -> Any:
    """A copy of the image's dataset, without its pixels, with what highdicom needs to find there."""
    source = copy_of(stack.dataset, without=("PixelData",))
    # One character set for the patient's name and the classes', whichever the image has.
    source.decode()
    source.SpecificCharacterSet = _UNICODE
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        if not source.get(keyword):
            setattr(source, keyword, derive_uid(keyword, provenance.input_sha256))
    if not source.get("SOPClassUID"):
        raise InputRejected(f"{stack.path} must say its SOP class for a segmentation to refer to it.")
    for keyword in _EXPECTED:
        if keyword not in source or keyword in _FREE:
            setattr(source, keyword, None)
    _share_planes(source)
    if _placed(source):
        if "SliceThickness" not in source:
            source.SliceThickness = None
    else:
        for keyword in ("FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient"):
            source.pop(keyword, None)
        # What highdicom takes without a place is one frame of a class that needs none; see `_refer_to`
        # and `_add_frames` for the rest.
        source.SOPClassUID = _SECONDARY_CAPTURE
        for keyword in (
            "NumberOfFrames",
            "PerFrameFunctionalGroupsSequence",
            "SharedFunctionalGroupsSequence",
        ):
            source.pop(keyword, None)
    return source


def _share_planes(source: Any) -> None:
    """Move what is said of the planes frame by frame, and of all alike, to where highdicom looks for it."""
    frames = source.get("PerFrameFunctionalGroupsSequence") or []
    shared = source.get("SharedFunctionalGroupsSequence") or []
    if not (frames and shared):
        return
    for keyword in _PLANES:
        first = frames[0].get(keyword)
        if keyword not in shared[0] and first and all(item.get(keyword) == first for item in frames):
            setattr(shared[0], keyword, first)


def _placed(source: Any) -> bool:
    """Whether each frame has its own place in the patient, which highdicom then carries over.

    Frames of one place at several times have not: highdicom tells frames apart by their places.
    """
    if not source.get("FrameOfReferenceUID"):
        return False
    if "PerFrameFunctionalGroupsSequence" in source:
        shared = source.get("SharedFunctionalGroupsSequence") or [{}]
        frames = source.PerFrameFunctionalGroupsSequence
        return (
            all(keyword in shared[0] for keyword in _PLANES)
            and all("PlanePositionSequence" in item for item in frames)
            and _apart(frames, shared[0].PlaneOrientationSequence[0].ImageOrientationPatient)
        )
    return int(source.get("NumberOfFrames") or 1) == 1 and all(source.get(keyword) for keyword in _PLACES)


def _apart(frames: Sequence[Any], orientation: Sequence[float]) -> bool:
    """Whether planes of one orientation all lie at their own distance along its normal, in mm."""
    along = np.array(orientation, np.float64)
    places = np.array([item.PlanePositionSequence[0].ImagePositionPatient for item in frames], np.float64)
    distances = places @ np.cross(along[:3], along[3:])
    return len(np.unique(distances.round(6))) == len(frames)


def _moment(source: Any) -> tuple[str, str]:
    """When the image was made, as (YYYYMMDD, HHMMSS): the only time a repeated run knows again."""
    for kind in ("Content", "Acquisition", "Series", "Study"):
        date, time = str(source.get(f"{kind}Date") or ""), str(source.get(f"{kind}Time") or "")
        # Of what is no date or time, as 00000000 after a name was taken away: the next kind, or midnight.
        if len(date) == 8 and date.isascii() and date.isdigit():
            try:
                datetime.strptime(date, "%Y%m%d")
            except ValueError:
                continue
            clock = _CLOCK.fullmatch(time.split(".")[0])
            return date, clock[0].ljust(6, "0") if clock else "000000"
    return _LONG_AGO, "000000"


def _refer_to(segmentation: Any, sop_class: str) -> None:
    """Name the image's own SOP class wherever a segmentation refers to it."""
    for element in segmentation.iterall():
        if element.keyword == "ReferencedSOPClassUID" and element.value == _SECONDARY_CAPTURE:
            element.value = sop_class


def _add_frames(segmentation: Any, values: npt.NDArray[Any]) -> None:
    """Extend a segmentation of a clip's first frame to all frames, which have no place in the patient.

    highdicom refuses such images; PS3.3 A.51 has them: frames are told apart by segment and stack position.

    Parameters
    ----------
    segmentation
        Of the first frame; changed.
    values
        (N, C, H, W) bool, or float32 in [0, 1].
    """
    position = copy_of(segmentation.DimensionIndexSequence[0])
    position.DimensionIndexPointer = _IN_STACK_POSITION
    position.FunctionalGroupPointer = _FRAME_CONTENT
    position.DimensionDescriptionLabel = "In-Stack Position Number"
    segmentation.DimensionIndexSequence.append(position)
    items = []
    for segment, first in enumerate(segmentation.PerFrameFunctionalGroupsSequence, 1):
        for number in range(1, len(values) + 1):
            item = copy_of(first)
            content = item.FrameContentSequence[0]
            content.StackID, content.InStackPositionNumber = "1", number
            content.DimensionIndexValues = [segment, number]
            item.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber = number
            items.append(item)
    segmentation.PerFrameFunctionalGroupsSequence = items
    segmentation.NumberOfFrames = len(items)
    by_class = values.transpose(1, 0, 2, 3)
    if values.dtype == np.bool_:
        packed = np.packbits(by_class, bitorder="little")
    else:
        packed = np.rint(by_class * _STEPS).astype(np.uint8)
    content_bytes = packed.tobytes()
    segmentation.PixelData = content_bytes + bytes(len(content_bytes) % 2)


def _finished(segmentation: Any, identity: Sequence[str], date: str, time: str) -> bytes:
    """Replace what depends on the moment or on chance, and write."""
    organisation = derive_uid("dimensions", *identity)
    for item in (*segmentation.DimensionOrganizationSequence, *segmentation.DimensionIndexSequence):
        item.DimensionOrganizationUID = organisation
    for equipment in segmentation.ContributingEquipmentSequence:  # highdicom names itself, too
        if "ContributionDateTime" in equipment:
            equipment.ContributionDateTime = f"{date}{time}"
    shared = segmentation.SharedFunctionalGroupsSequence[0]
    # Without a slice thickness, which projections have not, highdicom cannot read the measures again.
    if not any("SliceThickness" in item for item in shared.get("PixelMeasuresSequence") or []):
        shared.pop("PixelMeasuresSequence", None)
    segmentation.InstanceCreationDate, segmentation.InstanceCreationTime = date, time
    buffer = io.BytesIO()
    segmentation.save_as(buffer)
    return buffer.getvalue()


def _text(text: str) -> str:
    """A value that fits DICOM's long string: 64 characters, no backslash, no control character."""
    clean = "".join(" " if sign == "\\" or not sign.isprintable() else sign for sign in text).strip()
    return clean[:_LONG_STRING] or "unnamed"
