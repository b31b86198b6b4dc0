"""DICOM: grey goes the standard's way, compressed or not; twins are equal; damage has a message."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import dicoms
import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate, get_frame, parse_basic_offsets
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import ExplicitVRBigEndian, RLELossless

from samdistill.errors import InputRejected
from samdistill.intensity import IntensityRule, MeasuredPixels
from samdistill.io import open_dataset, write_mask
from samdistill.io.check import check_data
from samdistill.io.codestream import frame_problem
from samdistill.io.stack import format_of, open_stack

RNG = np.random.default_rng(3)
PERCENTILES = IntensityRule("percentiles", 0.5, 99.5)


def read(path: Path, index: int = 0) -> Any:
    return open_stack(path, path.read_bytes()).image(index)


def shown(path: Path, index: int = 0) -> np.ndarray:
    return IntensityRule().apply(read(path, index))[:, :, 0]


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("dtype", "bits", "slope"), [("uint16", 12, 1), ("int16", 16, 2), ("uint8", 8, 1)])
def test_windows_are_pydicoms(tmp_path: Path, function: str, dtype: str, bits: int, slope: int) -> None:
    """pydicom's windowing is the reference; its range is the stored values', ours 0..255."""
    limits = (-3000, 3000) if dtype == "int16" else (0, 1 << bits)
    pixels = RNG.integers(*limits, (20, 30)).astype(dtype)
    window = {"VOILUTFunction": function, "WindowCenter": ["90", "1"], "WindowWidth": ["120", "2"]}
    rescale = {"RescaleSlope": slope, "RescaleIntercept": -7 * (slope - 1)}
    made = dicoms.dataset(pixels, bits=bits, **window, **rescale)
    path = dicoms.save(tmp_path / "w.dcm", made)
    reference = apply_voi_lut(apply_modality_lut(pixels, made), made, index=0).astype(np.float64)
    ends = [-(1 << 15), (1 << 15) - 1] if dtype == "int16" else [0, (1 << bits) - 1]
    low, high = (end * slope - 7 * (slope - 1) for end in ends)
    np.testing.assert_allclose(shown(path), (reference - low) / (high - low) * 255, atol=0.51)


def test_lookup_tables_are_pydicoms(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 4096, (20, 30)).astype(np.uint16)
    made = dicoms.dataset(pixels, bits=12)
    made.ModalityLUTSequence = [dicoms.table(100, RNG.integers(0, 4096, 1000).astype(np.uint16))]
    made.VOILUTSequence = [dicoms.table(0, np.sort(RNG.integers(0, 1024, 4096)).astype(np.uint16), 10)]
    path = dicoms.save(tmp_path / "l.dcm", made)
    measured = apply_modality_lut(pixels, made)
    np.testing.assert_array_equal(np.asarray(read(path)), measured)
    reference = apply_voi_lut(measured, made).astype(np.float64) / 1023 * 255
    np.testing.assert_allclose(shown(path), reference, atol=0.51)


def test_a_table_may_begin_below_zero_and_come_in_the_other_order_of_bytes(tmp_path: Path) -> None:
    """Hounsfield units from stored values without a sign; 64512 is -1024 in 16 bits."""
    pixels = RNG.integers(0, 4096, (20, 30)).astype(np.uint16)
    entries = (np.arange(4096) * 16).astype(np.uint16)
    below = {"RescaleSlope": 1, "RescaleIntercept": -1024, "VOILUTSequence": [dicoms.table(64512, entries)]}
    grey = np.rint(entries[pixels] / 65535 * 255)
    np.testing.assert_array_equal(shown(dicoms.write(tmp_path / "b.dcm", pixels, bits=12, **below)), grey)
    made = dicoms.dataset(pixels, bits=12, VOILUTSequence=[dicoms.table(0, entries)])
    made.PixelData, made.VOILUTSequence[0].LUTData = (
        pixels.astype(">u2").tobytes(),
        entries.astype(">u2").tobytes(),
    )
    made.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    np.testing.assert_array_equal(shown(dicoms.save(tmp_path / "o.dcm", made)), grey)


@pytest.mark.parametrize(
    ("function", "widths"), [("LINEAR", (0, -5, 0.5)), ("LINEAR_EXACT", (0, -5)), ("SIGMOID", (0,))]
)
def test_a_window_without_width_is_none(tmp_path: Path, function: str, widths: tuple[float, ...]) -> None:
    """It would make every pixel black or white."""
    for width in widths:
        window = {"WindowCenter": 0, "WindowWidth": width, "VOILUTFunction": function}
        pixels = RNG.integers(0, 256, (20, 30)).astype(np.uint8)
        np.testing.assert_array_equal(shown(dicoms.write(tmp_path / "w.dcm", pixels, **window)), pixels)
        deep = dicoms.write(tmp_path / "d.dcm", pixels.astype(np.uint16), bits=12, **window)
        with pytest.raises(ValueError, match="must be uint8 under the intensity rule 'identity'"):
            shown(deep)


def test_values_without_a_window_stay_as_deep_as_they_are(tmp_path: Path) -> None:
    deep = RNG.integers(0, 4096, (8, 9)).astype(np.uint16)
    pixels = read(dicoms.write(tmp_path / "d.dcm", deep, bits=12))
    assert (pixels.dtype, isinstance(pixels, MeasuredPixels)) == (np.uint16, False)
    np.testing.assert_array_equal(pixels, deep)
    with pytest.raises(ValueError, match="must be uint8 under the intensity rule"):
        IntensityRule().apply(pixels)
    flat = RNG.integers(0, 256, (8, 9)).astype(np.uint8)
    np.testing.assert_array_equal(shown(dicoms.write(tmp_path / "f.dcm", flat)), flat)


@pytest.mark.parametrize(("bits", "dtype"), [(1, np.uint8), (6, np.uint8), (6, np.uint16)])
def test_values_of_fewer_than_8_bits_are_shown_from_black_to_white(
    tmp_path: Path, bits: int, dtype: type
) -> None:
    most = (1 << bits) - 1
    values = RNG.integers(0, most + 1, (8, 9)).astype(dtype)
    wanted = np.rint(values / most * 255)
    path = dicoms.write(tmp_path / "a.dcm", values, bits=bits)
    np.testing.assert_array_equal(shown(path), wanted)
    np.testing.assert_array_equal(read(path), values, err_msg="measured they are what they are")
    turned = dicoms.write(tmp_path / "b.dcm", most - values, bits=bits, photometric="MONOCHROME1")
    np.testing.assert_array_equal(shown(turned), wanted)
    window = {"VOILUTFunction": "LINEAR_EXACT", "WindowCenter": 127.5, "WindowWidth": 255}
    np.testing.assert_array_equal(
        shown(dicoms.write(tmp_path / "c.dcm", values, bits=bits, **window)), values, err_msg="as it says"
    )


@pytest.mark.parametrize("window", [{}, {"WindowCenter": 2000, "WindowWidth": 900}])
@pytest.mark.parametrize("rescale", [{}, {"RescaleSlope": 0.5, "RescaleIntercept": -100}])
def test_monochrome_twins_are_equal_measured_and_shown(tmp_path: Path, window: Any, rescale: Any) -> None:
    """Stored upside down and said to be so, the same picture comes out, whatever rule takes it."""
    pixels = RNG.integers(0, 4096, (20, 30)).astype(np.uint16)
    a = dicoms.write(tmp_path / "2.dcm", pixels, bits=12, **window, **rescale)
    inverse = {"WindowCenter": 4095 - 2000 + 1, "WindowWidth": 900} if window else {}
    if rescale and window:  # the window is in rescaled values
        a = dicoms.write(tmp_path / "2.dcm", pixels, bits=12, WindowCenter=900, WindowWidth=450, **rescale)
        inverse = {"WindowCenter": -100 + (4095 * 0.5 - 100) - 900 + 1, "WindowWidth": 450}
    turned = {"photometric": "MONOCHROME1", "PresentationLUTShape": "INVERSE", **inverse, **rescale}
    b = dicoms.write(tmp_path / "1.dcm", (4095 - pixels).astype(np.uint16), bits=12, **turned)
    np.testing.assert_allclose(PERCENTILES.apply(read(a)), PERCENTILES.apply(read(b)), atol=1)
    np.testing.assert_allclose(np.asarray(read(a)), np.asarray(read(b)), atol=1e-3)
    if window:
        np.testing.assert_allclose(shown(a).astype(int), shown(b).astype(int), atol=1)


def test_eight_and_sixteen_bits_and_frames_are_twins(tmp_path: Path) -> None:
    flat = RNG.integers(0, 256, (3, 20, 30)).astype(np.uint8)
    deep = flat.astype(np.uint16) * 257
    clip = dicoms.write(tmp_path / "clip.dcm", flat)
    assert len(open_stack(clip)) == 3
    for index in range(3):
        one = dicoms.write(tmp_path / "one.dcm", flat[index])
        two = dicoms.write(
            tmp_path / "two.dcm", deep[index], WindowCenter=32768, WindowWidth=65536, VOILUTFunction="LINEAR"
        )
        np.testing.assert_array_equal(shown(one), flat[index])
        np.testing.assert_array_equal(shown(two), flat[index])
        np.testing.assert_array_equal(shown(clip, index), flat[index])
        np.testing.assert_array_equal(PERCENTILES.apply(read(two)), PERCENTILES.apply(read(one)))


@pytest.mark.parametrize(
    "name",
    ["RLE", "bigendian", "implicit", "jp2klossless", "jpeg_ls_lossless", "padded", "expb"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_lossless_transfer_syntaxes_give_the_same_pixels(name: str) -> None:
    plain = read(dicoms.sample("MR_small.dcm"))
    other = read(dicoms.sample(f"MR_small_{name}.dcm"))
    np.testing.assert_array_equal(np.asarray(other), np.asarray(plain))
    assert np.array_equal(shown(dicoms.sample(f"MR_small_{name}.dcm")), shown(dicoms.sample("MR_small.dcm")))


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("SC_rgb_gdcm_KY.dcm", 0),  # JPEG 2000
        ("SC_rgb_jpeg_gdcm.dcm", 0),  # JPEG Lossless
        ("SC_rgb_dcmtk_+eb+cr.dcm", 12),  # JPEG Baseline, RGB
        ("SC_rgb_dcmtk_+eb+cy+np.dcm", 12),  # YBR_FULL_422
        ("SC_rgb_dcmtk_+eb+cy+n1.dcm", 12),  # YBR_FULL
        ("SC_ybr_full_422_uncompressed.dcm", 12),
    ],
)
def test_colours_come_out_whatever_they_are_stored_as(name: str, tolerance: int) -> None:
    """All are pictures of the same colour bars."""
    plain = read(dicoms.sample("SC_rgb_rle.dcm")).astype(int)
    other = read(dicoms.sample(name)).astype(int)
    assert other.shape == plain.shape == (100, 100, 3)
    assert np.median(np.abs(other - plain)) <= tolerance
    assert np.abs(other - plain)[5:8, 5:95].mean() <= tolerance + 1


def test_palettes_deflated_files_and_frames_of_clips_are_read() -> None:
    assert read(dicoms.sample("examples_palette.dcm")).shape == (350, 800, 3)
    assert read(dicoms.sample("image_dfl.dcm")).shape == (512, 512)
    clip = open_stack(dicoms.sample("examples_ybr_color.dcm"))
    assert (len(clip), clip.image(29).shape) == (30, (240, 320, 3))


def test_the_spacing_is_the_patients(tmp_path: Path) -> None:
    pixels = np.zeros((8, 9), np.uint8)
    cases: list[tuple[dict[str, Any], tuple[float, float] | None]] = [
        ({}, None),
        ({"PixelSpacing": [0.5, 0.25]}, (0.5, 0.25)),
        ({"ImagerPixelSpacing": [0.5, 0.25]}, None),  # at the detector, not in the patient
        ({"PixelSpacing": [0, 0.25]}, None),
        # The same twice is the detector's or the film's, too (PS3.3 10.7.1.3), unless it was calibrated.
        ({"PixelSpacing": [0.5, 0.25], "ImagerPixelSpacing": [0.5, 0.25]}, None),
        ({"PixelSpacing": [0.5, 0.5], "NominalScannedPixelSpacing": [0.5, 0.5]}, None),
        ({"PixelSpacing": [0.4, 0.2], "ImagerPixelSpacing": [0.5, 0.25]}, (0.4, 0.2)),
        (
            {
                "PixelSpacing": [0.5, 0.25],
                "ImagerPixelSpacing": [0.5, 0.25],
                "PixelSpacingCalibrationType": "FIDUCIAL",
            },
            (0.5, 0.25),
        ),
    ]
    frames = []
    for spacing in ([0.5, 0.25], [0.5, 0.25], [0.6, 0.25]):
        measures, frame = pydicom.Dataset(), pydicom.Dataset()
        measures.PixelSpacing, frame.PixelMeasuresSequence = spacing, [measures]
        frames.append(frame)
    cases += [({"PerFrameFunctionalGroupsSequence": frames[:2]}, (0.5, 0.25))]
    cases += [({"PerFrameFunctionalGroupsSequence": frames}, None)]  # which of the two?
    region = pydicom.Dataset()
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX, region.PhysicalDeltaY = 0.02, 0.03
    cases += [({"SequenceOfUltrasoundRegions": [region]}, (0.3, 0.2))]
    cases += [({"SequenceOfUltrasoundRegions": [region, region]}, None)]
    for number, (tags, spacing) in enumerate(cases):
        found = open_stack(dicoms.write(tmp_path / f"{number}.dcm", pixels, **tags)).spacing_mm
        assert found == (pytest.approx(spacing) if spacing else None), tags


def test_dicom_without_a_suffix_is_told_by_its_mark(tmp_path: Path) -> None:
    path = dicoms.write(tmp_path / "1.2.840.4711", np.zeros((8, 9), np.uint8))
    assert open_stack(path).format == "dicom"
    path.with_name("DICOMDIR").write_bytes(path.read_bytes())
    assert format_of(path.with_name("DICOMDIR")) is None, "it lists files, and holds no image"


def test_a_data_folder_may_hold_dicom_which_is_read_as_inference_reads_it(tmp_path: Path) -> None:
    """A clip is a group whose frames are cases; of radiographs measured and shown values come through."""
    clip = RNG.integers(0, 256, (3, 12, 10)).astype(np.uint8)
    deep = RNG.integers(0, 4096, (12, 10)).astype(np.uint16)
    images, masks = tmp_path / "images", tmp_path / "masks"
    window = {"WindowCenter": 2000, "WindowWidth": 900}
    one = dicoms.write(images / "film.dcm", deep, bits=12, photometric="MONOCHROME1", **window)
    dicoms.write(images / "clip", clip)
    masks.mkdir()
    truth = RNG.integers(0, 2, (3, 12, 10)).astype(np.uint8)
    write_mask(masks / "film.png", truth[0])
    nibabel.save(nibabel.Nifti1Image(truth.transpose(2, 1, 0), np.eye(4)), masks / "clip.nii.gz")
    dataset = open_dataset(tmp_path)
    assert [case.id for case in dataset.cases] == ["clip_0000", "clip_0001", "clip_0002", "film"]
    assert [case.group for case in dataset.cases] == ["clip"] * 3 + ["film"]
    for index, case in enumerate(dataset.cases[:3]):
        np.testing.assert_array_equal(case.read_image(), clip[index])
        np.testing.assert_array_equal(case.read_masks()[0], truth[index] == 1)
    film = dataset.cases[3]
    for rule in (IntensityRule(), PERCENTILES, IntensityRule("window", 100, 3000)):
        np.testing.assert_array_equal(rule.apply(film.read_image()), rule.apply(read(one)))
    np.testing.assert_array_equal(film.read_masks()[0], truth[0] == 1)
    report = check_data(tmp_path)
    assert (report.readable, report.labelled, report.groups) == (4, 4, 2)


# --- what is refused


def bad_files(folder: Path) -> dict[str, tuple[bytes, str]]:
    pixels = RNG.integers(0, 4096, (16, 16)).astype(np.uint16)

    def changed(**tags: Any) -> bytes:
        buffer = io.BytesIO()
        dicoms.dataset(pixels, **tags).save_as(buffer, enforce_file_format=True)
        return buffer.getvalue()

    good = changed()
    private = good.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.113619.5.99\0")
    packed = dicoms.dataset(pixels)
    packed.compress(RLELossless)
    del packed.BitsAllocated
    packed["PixelData"].VR = "OB"
    buffer = io.BytesIO()
    packed.save_as(buffer, enforce_file_format=True)
    start = good.index(b"DICM") + 4
    start += 12 + struct.unpack_from("<I", good, start + 8)[0]
    meta = good[: good.index(b"DICM") + 4]
    syntax = b"1.2.840.10008.1.2.1.99"
    element = struct.pack("<HH2sH", 2, 0x10, b"UI", len(syntax)) + syntax
    broken = meta + element + b"no stream of deflate"
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = packer.compress(bytes(1 << 23)) + packer.flush()
    return {
        "empty": (b"", "0 bytes"),
        "text": (b"no image" * 100, "DICM at byte 128"),
        "cut": (good[:-100], "damaged or not known"),
        "head": (good[:200], "."),
        "wide": (changed(Rows=60000, Columns=60000), "at most"),
        "long": (changed(NumberOfFrames=2_000_000), "pixels in all"),
        "frames": (changed(NumberOfFrames=5), "damaged or not known"),
        "none": (changed(Rows=0), "must hold an image"),
        "colours": (changed(PhotometricInterpretation="CIELAB"), "photometric interpretation"),
        "samples": (changed(SamplesPerPixel=4), "photometric interpretation"),
        "private": (private, "transfer syntax is damaged or not known"),
        "packed without bits": (buffer.getvalue(), "header is damaged or not known"),
        "deflated": (broken, "none or damaged"),
        "meta without end": (
            meta + element + struct.pack("<HH2sHI", 2, 0x102, b"OB", 0, 2**32 - 1) + body,
            "damaged",
        ),
        "deflated bomb": (meta + element + body, "must inflate to at most"),
    }


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_bombs_and_damage_are_refused_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samdistill.io.dicom.MAX_INFLATED", 1 << 22)
    for name, (content, message) in bad_files(tmp_path).items():
        path = tmp_path / f"{name}.dcm"
        path.write_bytes(content)
        with pytest.raises(InputRejected, match=message) as caught:
            stack = open_stack(path, content or None)
            for index in range(len(stack)):
                stack.image(index)
        assert str(caught.value).startswith(str(path))
        assert "Doering" not in str(caught.value)
        assert "Janina" not in str(caught.value)


def test_values_that_lie_above_the_lowest_bits_are_refused_and_unused_bits_cut(tmp_path: Path) -> None:
    """pydicom would give bits 0..11 of values that lie in 4..15, which is another picture."""
    values = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    path = dicoms.write(tmp_path / "a.dcm", values << 4, bits=12, HighBit=15)
    with pytest.raises(InputRejected, match=r"HighBit 11\), not up to bit 15"):
        open_stack(path)
    path = dicoms.write(tmp_path / "b.dcm", values | 0x1000, bits=12)  # an overlay in the unused bits
    np.testing.assert_array_equal(open_stack(path).image(), values)


def test_what_is_no_image_is_refused() -> None:
    for name in ("rtplan.dcm", "test-SR.dcm", "liver_1frame.dcm", "rtdose.dcm"):
        with pytest.raises(InputRejected, match="must hold an image, not"):
            open_stack(dicoms.sample(name))
    with pytest.raises(InputRejected, match="16 bits a colour channel"):
        read(dicoms.sample("SC_rgb_rle_16bit.dcm"))


def test_streams_that_would_grow_beyond_their_header_are_told_before_they_are_decoded() -> None:
    def problem(frame: bytes, syntax: str, size: tuple[int, int] = (16, 16), samples: int = 1) -> str | None:
        return frame_problem(frame, f"1.2.840.10008.1.2.{syntax}", size, samples, 256)

    def siz(width: int, height: int, samples: int = 1) -> bytes:
        place = struct.pack(">HHIIIIIIIIH", 47, 0, width, height, 0, 0, width, height, 0, 0, samples)
        return b"\xff\x4f\xff\x51" + place

    def jpeg(samples: int, before: bytes = b"") -> bytes:
        frame = b"\xff\xc0" + struct.pack(">HBHHB", 17, 8, 9000, 8000, samples)
        return b"\xff\xd8" + before + frame + bytes(20)

    comment = b"\xff\xfe" + struct.pack(">H", 2 + len(siz(16, 16))) + siz(16, 16)
    for before in (b"", comment):
        assert "8000 x 9000" in str(problem(jpeg(1, before), "4.50"))
        assert problem(jpeg(1, before), "4.50", (9000, 8000)) is None
    for junk in (b"\0\0", b"\xff\x01"):  # which decoders pass over
        assert "is damaged" in str(problem(jpeg(1, junk), "4.50", (9000, 8000)))
    for bits in (0, 1, 17, 182, 255):  # more than 16 end GDCM, and the process with it
        odd = jpeg(1).replace(struct.pack(">HB", 17, 8), struct.pack(">HB", 17, bits))
        assert "is damaged" in str(problem(odd, "4.70", (9000, 8000)))
    assert "3 samples" in str(problem(jpeg(3), "4.50", (9000, 8000)))
    mark = struct.pack(">I4s4s", 12, b"jP  ", b"\r\n\x87\n")
    junk = struct.pack(">I4s", 8 + len(siz(16, 16)), b"uuid") + siz(16, 16)
    for boxes in (
        b"",
        mark + struct.pack(">I4s", 0, b"jp2c"),
        mark + junk + struct.pack(">I4sQ", 1, b"jp2c", 0),
    ):
        assert "8000 x 9000" in str(problem(boxes + siz(8000, 9000), "4.90"))
        assert problem(boxes + siz(8000, 9000), "4.90", (9000, 8000)) is None
        assert "16384 samples" in str(problem(boxes + siz(16, 16, 16384), "4.90"))
    runs = struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\x00" * 5000  # each two bytes are 128
    assert problem(runs, "5") is not None
    fair = struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\x00" * 2
    assert problem(fair, "5") is None
    for rest in (b"", b"\xff", b"\xff\xd8", b"\xff\xd8\xff", b"\xff\x4f\xff\x51", bytes(64)):
        problem(rest, "4.50")
        problem(rest, "5")


def test_damaged_streams_neither_end_the_process_nor_hold_it(tmp_path: Path) -> None:
    """GDCM dies of bytes between markers or of a precision, CharLS never returns of a JPEG-LS cut short."""
    baseline = pydicom.dcmread(dicoms.sample("SC_rgb_dcmtk_+eb+cr.dcm"))
    lossless = pydicom.dcmread(dicoms.sample("MR_small_jpeg_ls_lossless.dcm"))
    frames = [get_frame(one.PixelData, 0, number_of_frames=1) for one in (baseline, lossless)]
    streams = [(baseline, frames[0][:2] + b"\0\0" + frames[0][2:])]
    streams += [(baseline, frames[0][:at] + bytes(40) + frames[0][at:]) for at in (350, 700)]
    streams += [(lossless, frames[1][:1745])]
    deep = pydicom.dcmread(dicoms.sample("SC_rgb_jpeg_gdcm.dcm"))
    stream = bytearray(get_frame(deep.PixelData, 0, number_of_frames=1))
    stream[stream.index(b"\xff\xc3") + 4] = 182  # bits a sample
    streams += [(deep, bytes(stream))]
    paths = []
    for number, (made, stream) in enumerate(streams):
        made.PixelData = encapsulate([stream])
        paths.append(str(dicoms.save(tmp_path / f"{number}.dcm", made)))
    code = (
        "import sys\nfrom samdistill.errors import InputRejected\n"
        "from samdistill.io.stack import open_stack\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n        open_stack(path).image()\n    except InputRejected:\n        print('refused')\n"
    )
    run = [sys.executable, "-W", "ignore", "-c", code, *paths]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("refused") >= 3


def test_frames_are_looked_for_once(tmp_path: Path) -> None:
    """A clip may not say where its frames begin; its time would grow with the square of their number."""
    values = RNG.integers(0, 256, (50, 8, 8)).astype(np.uint8)
    made = dicoms.dataset(values)
    made.compress(RLELossless)
    packed = [get_frame(made.PixelData, k, number_of_frames=50) for k in range(50)]
    made.PixelData = encapsulate(packed, has_bot=False)
    stack = open_stack(dicoms.save(tmp_path / "clip.dcm", made))
    assert len(parse_basic_offsets(stack.dataset.PixelData)) == 50  # type: ignore[attr-defined]
    np.testing.assert_array_equal([stack.image(k) for k in range(50)], values)


def test_a_palette_of_8_bits_may_lie_in_words_of_16(tmp_path: Path) -> None:
    """And some files say that its 8 bits are 16; shifted down, either would be a black picture."""
    indices = np.arange(72, dtype=np.uint8).reshape(8, 9)
    entries = np.arange(256)
    for bits, words in (
        (8, entries.astype("u1")),
        (8, entries.astype("<u2")),
        (16, entries.astype("<u2")),
        (16, (257 * entries).astype("<u2")),
    ):
        made = dicoms.dataset(indices, photometric="PALETTE COLOR")
        for colour in ("Red", "Green", "Blue"):
            setattr(made, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, bits])
            setattr(made, f"{colour}PaletteColorLookupTableData", words.tobytes())
        colours = read(dicoms.save(tmp_path / "p.dcm", made))
        np.testing.assert_array_equal(colours, np.repeat(indices[..., None], 3, axis=2), err_msg=str(bits))


def test_palettes_that_unfold_without_end_are_refused(tmp_path: Path) -> None:
    def read_with(words: list[int]) -> Any:
        made = dicoms.dataset(np.full((8, 9), 2, np.uint8), photometric="PALETTE COLOR")
        for colour in ("Red", "Green", "Blue"):
            setattr(made, f"{colour}PaletteColorLookupTableDescriptor", [4, 0, 16])
            data = np.array(words, "<u2").tobytes()
            setattr(made, f"Segmented{colour}PaletteColorLookupTableData", data)
        return read(dicoms.save(tmp_path / "p.dcm", made))

    assert (read_with([0, 1, 0x1000, 1, 3, 0x4000]) == 0x30).all()
    assert read_with([0, 1, 0x1000, 1, 65535, 0x4000]).shape == (8, 9, 3)
    for words in ([0, 1, 0, *[1, 65535, 7] * 2], [0, 1, 0, 2, 1, 0, 0]):
        with pytest.raises(InputRejected, match="palette of at most 65536"):
            read_with(words)
