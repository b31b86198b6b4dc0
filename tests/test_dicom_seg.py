"""DICOM segmentations: read back alike by pydicom and highdicom, valid to dciodvfy, the same bytes again."""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import dicoms
import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from samdistill.io.dicom import DicomStack
from samdistill.io.dicom_seg import Provenance, SegmentInfo, read_masks, segmentation_bytes
from samdistill.io.stack import open_stack

RNG = np.random.default_rng(5)
SEGMENTS = [SegmentInfo("lesion", (255, 0, 0)), SegmentInfo("a \\ very odd name " * 5, (0, 255, 0))]
DCIODVFY = shutil.which("dciodvfy")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # highdicom's, of persons' names


def opened(path: Path) -> DicomStack:
    stack = open_stack(path)
    assert isinstance(stack, DicomStack)
    return stack


def provenance(**settings: str) -> Provenance:
    return Provenance("polyps", "ab" * 32, "cd" * 32, {"mode": "fast", **settings})


def inputs(folder: Path) -> dict[str, Path]:
    """Projections without a frame of reference, a clip, and pydicom's own CT and MR."""
    clip = RNG.integers(0, 256, (3, 20, 30, 3)).astype(np.uint8)
    deep = RNG.integers(0, 4096, (21, 30)).astype(np.uint16)
    return {
        "radiograph": dicoms.write(folder / "cr.dcm", deep, bits=12),
        "ultrasound": dicoms.write(folder / "us.dcm", clip[0], kind="US"),
        "clip": dicoms.write(folder / "clip.dcm", clip),
        "ct": dicoms.sample("CT_small.dcm"),
        "ct without a place": dicoms.sample("693_J2KI.dcm"),
        "mr": dicoms.sample("MR_small_bigendian.dcm"),
    }  # fmt: skip


@pytest.mark.parametrize("fractional", [False, True])
def test_what_was_written_is_read_back(tmp_path: Path, fractional: bool) -> None:
    for name, path in inputs(tmp_path).items():
        stack = opened(path)
        values = RNG.random((len(stack), 2, *stack.size), np.float32)
        if not fractional:
            values = values > 0.7
        content = segmentation_bytes(stack, values, SEGMENTS, provenance())
        made = pydicom.dcmread(io.BytesIO(content))
        pixels = made.pixel_array.reshape(2, len(stack), *stack.size).transpose(1, 0, 2, 3)
        if fractional:
            np.testing.assert_allclose(pixels / 255, values, atol=0.5 / 255 + 1e-6, err_msg=name)
        else:
            np.testing.assert_array_equal(pixels, values, err_msg=name)
        again = highdicom.seg.Segmentation.from_dataset(made)
        assert again.SegmentSequence[0].SegmentLabel == "lesion"
        assert made.StudyInstanceUID == stack.dataset.StudyInstanceUID
        assert made.PatientName == stack.dataset.PatientName
        reference = (
            made.PerFrameFunctionalGroupsSequence[-1].DerivationImageSequence[0].SourceImageSequence[0]
        )
        assert reference.ReferencedSOPInstanceUID == stack.dataset.SOPInstanceUID
        assert reference.ReferencedSOPClassUID == stack.dataset.SOPClassUID
        algorithm = made.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
        assert algorithm.AlgorithmVersion == "ab" * 32
        if DCIODVFY is None:
            continue
        (tmp_path / "seg.dcm").write_bytes(content)
        verdict = subprocess.run(
            [DCIODVFY, str(tmp_path / "seg.dcm")], capture_output=True, text=True, check=False
        )
        # What the image itself lacks, its segmentation cannot have: 693 says it is de-identified, not how.
        errors = [one for one in verdict.stderr.splitlines() if one.startswith("Error")]
        assert not [one for one in errors if "Deidentification" not in one], name
    if DCIODVFY is None:
        pytest.skip("read back, but not checked by dciodvfy: install Debian's dicom3tools")


def test_empty_masks_of_every_frame_are_written(tmp_path: Path) -> None:
    stack = opened(inputs(tmp_path)["clip"])
    content = segmentation_bytes(stack, np.zeros((3, 2, 20, 30), np.bool_), SEGMENTS, provenance())
    made = pydicom.dcmread(io.BytesIO(content))
    assert (made.NumberOfFrames, int(made.pixel_array.sum())) == (6, 0)
    numbers = [
        item.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber
        for item in made.PerFrameFunctionalGroupsSequence
    ]
    assert numbers == [1, 2, 3, 1, 2, 3]


def test_the_same_inputs_give_the_same_bytes_and_others_other_uids(tmp_path: Path) -> None:
    stack = opened(inputs(tmp_path)["radiograph"])
    masks = np.zeros((1, 2, 21, 30), np.bool_)
    contents = [segmentation_bytes(stack, masks, SEGMENTS, provenance()) for _ in range(2)]
    assert contents[0] == contents[1]
    first = pydicom.dcmread(io.BytesIO(contents[0]))
    other = pydicom.dcmread(io.BytesIO(segmentation_bytes(stack, masks, SEGMENTS, provenance(tile="512"))))
    assert first.SOPInstanceUID != other.SOPInstanceUID
    assert (first.ContentDate, first.ContentTime) == ("20200102", "030405")
    with pytest.raises(ValueError, match="values must be"):
        segmentation_bytes(stack, masks[:, :1], SEGMENTS, provenance())


@pytest.mark.parametrize(
    ("date", "time", "moment"),
    [
        ("00000000", "111111", ("20190304", "030405")),  # left by programs that take names away
        ("20201345", "111111", ("20190304", "030405")),
        ("20200229", "240000", ("20200229", "000000")),
        ("20200229", "235960", ("20200229", "235960")),
        ("20200229", "0304.5", ("20200229", "030400")),
    ],
)
def test_dates_and_times_that_cannot_be_are_passed_over(
    tmp_path: Path, date: str, time: str, moment: tuple[str, str]
) -> None:
    pixels = np.zeros((8, 9), np.uint8)
    path = dicoms.write(tmp_path / "a.dcm", pixels, ContentDate=date, ContentTime=time, StudyDate="20190304")
    content = segmentation_bytes(opened(path), np.zeros((1, 2, 8, 9), np.bool_), SEGMENTS, provenance())
    made = pydicom.dcmread(io.BytesIO(content))
    assert (made.ContentDate, made.ContentTime) == moment


def placed(**tags: object) -> dict[str, object]:
    """What says where a CT lies."""
    where = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2",
        "FrameOfReferenceUID": "1.2.3.77",
        "ImagePositionPatient": [0, 0, 5],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [0.5, 0.5],
    }
    return {**where, **tags}


def test_images_of_imperfect_headers_get_their_segmentation(tmp_path: Path) -> None:
    """What highdicom wants and images lack or say wrongly; the patient's data stay as the image has them."""
    japanese = "Yamada^Tarou=\u5c71\u7530^\u592a\u90ce=\u3084\u307e\u3060^\u305f\u308d\u3046"
    headers = {
        "no thickness": placed(),
        "empty thickness": placed(SliceThickness=None),
        "no orientation": placed(ImageOrientationPatient=None),
        "no spacing": placed(PixelSpacing=None),
        "no position": placed(ImagePositionPatient=None),
        "empty frame of reference": placed(FrameOfReferenceUID=""),
        "sex": {"PatientSex": "weiblich"},
        "dates": {"PatientBirthDate": "1.1.70", "StudyDate": "unknown", "StudyTime": "noon"},
        "latin": {"PatientName": "M\u00fcller^J\u00f6rg", "SpecificCharacterSet": "ISO_IR 100"},
        "kanji": {"PatientName": japanese, "SpecificCharacterSet": ["", "ISO 2022 IR 87"]},
        "unknown character set": {"SpecificCharacterSet": "ISO_IR 999"},
    }
    masks = RNG.random((1, 1, 8, 9)) > 0.5
    for name, tags in headers.items():
        stack = opened(dicoms.write(tmp_path / "in.dcm", np.zeros((8, 9), np.uint8), **tags))
        content = segmentation_bytes(stack, masks, [SegmentInfo("\u606f\u8089", (255, 0, 0))], provenance())
        (tmp_path / "seg.dcm").write_bytes(content)
        made = pydicom.dcmread(io.BytesIO(content))
        assert made.SegmentSequence[0].SegmentLabel == "\u606f\u8089", name
        assert made.get("FrameOfReferenceUID") == ("1.2.3.77" if "thickness" in name else None), name
        for keyword in ("PatientName", "PatientSex", "PatientBirthDate", "StudyDate", "StudyTime"):
            assert made[keyword].value == stack.dataset[keyword].value, (name, keyword)
        highdicom.seg.Segmentation.from_dataset(made)
        np.testing.assert_array_equal(read_masks(tmp_path / "seg.dcm"), masks)


def enhanced(*, by_frame: bool = False, heights: Sequence[float] = (0, 2, 4)) -> Dataset:
    """A stack of planes that says of each frame, or once for all, how they lie."""

    def item(**tags: object) -> Dataset:
        made = Dataset()
        for key, value in tags.items():
            setattr(made, key, value)
        return made

    planes = {
        "PixelMeasuresSequence": [item(PixelSpacing=[0.5, 0.5], SliceThickness=2)],
        "PlaneOrientationSequence": [item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
    }
    frames = [
        item(PlanePositionSequence=[item(ImagePositionPatient=[0, 0, z])], **planes if by_frame else {})
        for z in heights
    ]
    return dicoms.dataset(
        np.zeros((len(heights), 8, 9), np.uint8),
        SOPClassUID="1.2.840.10008.5.1.4.1.1.4.1",
        FrameOfReferenceUID="1.2.3.77",
        SharedFunctionalGroupsSequence=[item(**{} if by_frame else planes)],
        PerFrameFunctionalGroupsSequence=frames,
    )


def test_planes_that_are_told_frame_by_frame_are_carried_over(tmp_path: Path) -> None:
    masks = RNG.random((3, 1, 8, 9)) > 0.5
    contents = []
    for by_frame in (False, True):
        stack = opened(dicoms.save(tmp_path / "in.dcm", enhanced(by_frame=by_frame)))
        contents.append(segmentation_bytes(stack, masks, SEGMENTS[:1], provenance()))
    assert contents[0] == contents[1]
    (tmp_path / "seg.dcm").write_bytes(contents[0])
    np.testing.assert_array_equal(read_masks(tmp_path / "seg.dcm"), masks)
    made = pydicom.dcmread(io.BytesIO(contents[0]))
    where = [item.PlanePositionSequence[0] for item in made.PerFrameFunctionalGroupsSequence]
    assert sorted(float(one.ImagePositionPatient[2]) for one in where) == [0, 2, 4]


@pytest.mark.parametrize("heights", [(4, 2, 0), (0, 1, 7), (0, 0, 2), (0, 0, 0), (0, 2, 0, 2)])
def test_frames_in_any_order_and_of_one_place_get_their_own_masks(
    tmp_path: Path, heights: tuple[float, ...]
) -> None:
    """A beating heart has a plane at several times, which highdicom does not tell apart."""
    masks = RNG.random((len(heights), 2, 8, 9)) > 0.5
    stack = opened(dicoms.save(tmp_path / "in.dcm", enhanced(heights=heights)))
    (tmp_path / "seg.dcm").write_bytes(segmentation_bytes(stack, masks, SEGMENTS[:2], provenance()))
    np.testing.assert_array_equal(read_masks(tmp_path / "seg.dcm"), masks)
