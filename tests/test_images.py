"""Reading and writing pictures and masks: depth, colour modes, orientation, damage; atomic files."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import struct
import subprocess
import sys
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as PillowImage
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from samdistill.errors import InputRejected
from samdistill.intensity import IntensityRule
from samdistill.io import image_size, read_image, read_mask, write_mask, write_png
from samdistill.io.files import atomic_folder, atomic_write, sha256_file, write_bytes

GREY8 = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
GREY16 = np.arange(48, dtype=np.uint16).reshape(6, 8) * 1300
RGB8 = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def _png(width: int, height: int, *, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG by hand, for what Pillow does not write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
@pytest.mark.parametrize("pixels", [GREY8, RGB8], ids=["grey", "rgb"])
def test_8_bit_pictures_come_back_as_they_were(tmp_path: Path, suffix: str, pixels: np.ndarray) -> None:
    PillowImage.fromarray(pixels).save(tmp_path / f"a{suffix}")
    read = read_image(tmp_path / f"a{suffix}")
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, pixels)
    assert image_size(tmp_path / f"a{suffix}") == (6, 8)


def test_a_jpeg_is_read_as_rgb(tmp_path: Path) -> None:
    PillowImage.fromarray(np.full((16, 24, 3), (200, 30, 60), np.uint8)).save(tmp_path / "a.jpg")
    read = read_image(tmp_path / "a.jpg")
    assert read.shape == (16, 24, 3)
    assert np.abs(read[8, 8].astype(int) - (200, 30, 60)).max() < 4


def test_the_content_decides_and_not_the_suffix(tmp_path: Path) -> None:
    PillowImage.fromarray(RGB8).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.bmp")
    np.testing.assert_array_equal(read_image(tmp_path / "a.bmp"), RGB8)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_grey_keeps_its_depth_until_a_window_is_laid(tmp_path: Path, suffix: str) -> None:
    """Values 1300 apart would collapse to one byte if they were cut to 8 bits before windowing."""
    values = (30000 + GREY16 // 1300).astype(np.uint16)
    PillowImage.fromarray(values).save(tmp_path / f"a{suffix}")
    read = read_image(tmp_path / f"a{suffix}")
    assert read.dtype == np.uint16
    np.testing.assert_array_equal(read, values)
    windowed = IntensityRule("window", 30000, 30047).apply(read)
    assert len(np.unique(windowed)) == 48


def test_big_endian_16_bit_tiff_is_read_in_native_order(tmp_path: Path) -> None:
    body = GREY16.astype(">u2").tobytes()
    tags = [(256, 8), (257, 6), (258, 16), (259, 1), (262, 1), (273, 8), (277, 1), (278, 6), (279, len(body))]
    entries = b"".join(
        struct.pack(">HHI", tag, 4 if tag in (273, 279) else 3, 1)
        + (struct.pack(">I", value) if tag in (273, 279) else struct.pack(">HH", value, 0))
        for tag, value in tags
    )
    directory = struct.pack(">H", len(tags)) + entries + struct.pack(">I", 0)
    (tmp_path / "a.tif").write_bytes(b"MM\0*" + struct.pack(">I", 8 + len(body)) + body + directory)
    read = read_image(tmp_path / "a.tif")
    assert read.dtype == np.uint16
    assert read.dtype.isnative
    np.testing.assert_array_equal(read, GREY16)


def test_16_bit_tiff_with_white_as_zero_is_inverted(tmp_path: Path) -> None:
    PillowImage.fromarray(GREY16).save(tmp_path / "a.tif", tiffinfo={262: 0})
    with PillowImage.open(tmp_path / "a.tif") as image:
        assert image.tag_v2[262] == 0  # type: ignore[attr-defined]
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), 65535 - GREY16)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_float_and_32_bit_tiffs_keep_their_values(tmp_path: Path, dtype: type) -> None:
    values = (GREY8.astype(dtype) - 100) * 7
    PillowImage.fromarray(values).save(tmp_path / "a.tif")
    read = read_image(tmp_path / "a.tif")
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, values)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.uint8, np.uint16, np.uint32])
@pytest.mark.parametrize("fill", [0, 1])
def test_tiffs_of_whole_numbers_keep_them_signed_or_not(tmp_path: Path, dtype: type, fill: int) -> None:
    ends = np.iinfo(dtype)
    values = np.linspace(ends.min * fill, ends.max * fill, 48).reshape(6, 8).astype(dtype)
    values.flat[:2] = 100 * (1 - fill) + fill * ends.min, fill * ends.max
    tifffile.imwrite(tmp_path / "a.tif", values)
    read = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(read.astype(np.int64), values.astype(np.int64))
    tifffile.imwrite(tmp_path / "b.tif", values, extratags=[(274, 3, 1, 3, True)])
    np.testing.assert_array_equal(read_image(tmp_path / "b.tif"), read[::-1, ::-1])


@pytest.mark.parametrize("colour, channels", [(2, 3), (6, 4), (4, 2)], ids=["rgb", "rgba", "grey+alpha"])
def test_16_bit_colour_is_refused_because_it_would_be_cut(tmp_path: Path, colour: int, channels: int) -> None:
    rows = b"".join(b"\0" + bytes(range(4 * channels * 2)) for _ in range(4))
    (tmp_path / "a.png").write_bytes(_png(4, 4, depth=16, colour=colour, rows=rows))
    with pytest.raises(InputRejected, match=r"16 bits a colour channel.*16-bit grey"):
        read_image(tmp_path / "a.png")


def test_16_bit_rgb_tiff_is_refused_too(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    cv2.imwrite(str(tmp_path / "a.tif"), np.repeat(GREY16[..., None], 3, axis=2))
    with pytest.raises(InputRejected, match="16 bits a colour channel"):
        read_image(tmp_path / "a.tif")


def test_palette_pictures_become_colours_and_palette_masks_stay_indices(tmp_path: Path) -> None:
    indices = (GREY8 // 60).astype(np.uint8)
    picture = PillowImage.fromarray(indices)
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    assert picture.mode == "P"
    picture.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), indices)
    table = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]], np.uint8)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), table[indices])


def test_transparency_is_laid_over_black(tmp_path: Path) -> None:
    alpha = np.tile(np.array([0, 128, 255, 255], np.uint8), (6, 2))
    PillowImage.fromarray(np.dstack([RGB8, alpha])).save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png")
    assert read.shape == (6, 8, 3)
    assert (read[:, 0] == 0).all()
    np.testing.assert_array_equal(read[:, 2:4], RGB8[:, 2:4])
    np.testing.assert_array_equal(read[:, 1], (RGB8[:, 1].astype(int) * 128 + 127) // 255)


def test_opaque_alpha_changes_nothing(tmp_path: Path) -> None:
    PillowImage.fromarray(np.dstack([RGB8, np.full((6, 8), 255, np.uint8)])).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), RGB8)
    PillowImage.fromarray(np.dstack([GREY8, np.full((6, 8), 255, np.uint8)])).save(tmp_path / "b.png")
    np.testing.assert_array_equal(read_image(tmp_path / "b.png"), GREY8)


def test_1_bit_pictures_are_0_and_255_and_1_bit_masks_0_and_1(tmp_path: Path) -> None:
    PillowImage.fromarray(GREY8 > 100).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.where(GREY8 > 100, 255, 0))
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), GREY8 > 100)


def test_cmyk_jpegs_become_rgb(tmp_path: Path) -> None:
    PillowImage.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    assert read_image(tmp_path / "a.jpg")[8, 8].tolist() == pytest.approx([255, 0, 0], abs=6)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_exif_orientation_is_carried_out(tmp_path: Path, orientation: int, suffix: str) -> None:
    """The eight ways of the TIFF 6.0 specification, section 8; the header alone gives the turned size."""
    pixels = np.kron(GREY8, np.ones((8, 8), np.uint8))
    upright = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.T,
        6: pixels[::-1].T,
        7: pixels[::-1, ::-1].T,
        8: pixels[:, ::-1].T,
    }[orientation]
    path = tmp_path / f"a{suffix}"
    if suffix == ".tif":
        PillowImage.fromarray(pixels).save(path, tiffinfo={274: orientation})
    else:
        exif = PillowImage.Exif()
        exif[274] = orientation
        PillowImage.fromarray(pixels).save(path, exif=exif, quality=100)
    np.testing.assert_allclose(read_image(path).astype(int), upright, atol=2 if suffix == ".jpg" else 0)
    assert image_size(path) == upright.shape


@pytest.mark.parametrize("colours", ["RGB", "P"])
@pytest.mark.parametrize("place", ["before", "behind"])
def test_a_png_is_turned_wherever_it_says_so(tmp_path: Path, colours: str, place: str) -> None:
    buffer = io.BytesIO()
    PillowImage.new(colours, (6, 4)).save(buffer, "PNG")
    content = buffer.getvalue()
    exif = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 274, 3, 1, 6, 0, 0)
    chunk = struct.pack(">I", len(exif)) + b"eXIf" + exif + struct.pack(">I", zlib.crc32(b"eXIf" + exif))
    at = content.index(b"IDAT" if place == "before" else b"IEND") - 4
    content = content[:at] + chunk + content[at:]
    (tmp_path / "a.png").write_bytes(content)
    assert read_image(tmp_path / "a.png").shape == (6, 4, 3)
    assert image_size(tmp_path / "a.png") == (6, 4)
    assert image_size(tmp_path / "a.png", content=content) == (6, 4)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
def test_an_orientation_told_by_xmp_alone_turns_size_and_pixels_alike(tmp_path: Path, suffix: str) -> None:
    xmp = b'<x xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    path, picture = tmp_path / f"a{suffix}", PillowImage.new("L", (6, 4))
    if suffix == ".png":
        text = PngInfo()
        text.add_itxt("XML:com.adobe.xmp", xmp.decode())
        picture.save(path, pnginfo=text)
    elif suffix == ".tif":
        tags = ImageFileDirectory_v2()
        tags[700], tags.tagtype[700] = xmp, 1
        picture.save(path, tiffinfo=tags)
    else:
        picture.save(path, xmp=xmp)
    assert read_image(path).shape == image_size(path) == image_size(path, content=path.read_bytes()) == (6, 4)


def test_16_bit_pictures_are_turned_as_well(tmp_path: Path) -> None:
    exif = PillowImage.Exif()
    exif[274] = 6
    PillowImage.fromarray(GREY16).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.rot90(GREY16, -1))


def test_a_grey_mask_saved_as_rgb_is_still_a_mask_and_colours_are_not(tmp_path: Path) -> None:
    write_png(tmp_path / "grey.png", np.repeat(GREY8[..., None], 3, axis=2))
    np.testing.assert_array_equal(read_mask(tmp_path / "grey.png"), GREY8)
    write_png(tmp_path / "colour.png", RGB8)
    with pytest.raises(InputRejected, match=r"not colours.*masks/<class>/"):
        read_mask(tmp_path / "colour.png")


def test_a_mask_of_fractions_is_refused(tmp_path: Path) -> None:
    PillowImage.fromarray(GREY8.astype(np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(InputRejected, match="whole class numbers"):
        read_mask(tmp_path / "a.tif")


# What is no picture ---------------------------------------------------------------------------------------


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(InputRejected, match=r"a\.png does not exist"):
        read_image(tmp_path / "a.png")


def test_an_empty_file_is_said_to_be_empty(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(InputRejected, match="0 bytes"):
        read_image(tmp_path / "a.png")


def test_a_folder_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(InputRejected, match="cannot be read"):
        read_image(tmp_path)


def test_text_and_formats_outside_the_contract_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("hello")
    PillowImage.fromarray(RGB8).save(tmp_path / "b.gif")
    for name in ("a.png", "b.gif"):
        with pytest.raises(InputRejected, match="must be a PNG, JPEG, TIFF or BMP"):
            read_image(tmp_path / name)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp"])
def test_a_truncated_file_is_refused(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / f"a{suffix}"
    PillowImage.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Pillow's own about the TIFF directory that is gone
        with pytest.raises(InputRejected) as caught:
            read_image(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("side", [30_000, 9_000])
def test_a_decompression_bomb_is_refused_from_its_header(tmp_path: Path, side: int) -> None:
    """900 and 81 megapixels; the first is beyond Pillow's own limit too, the second is not."""
    (tmp_path / "a.png").write_bytes(_png(side, side, depth=8, colour=0, rows=b"\0" * 1000))
    with pytest.raises(InputRejected, match="at most 67108864 pixels"):
        read_image(tmp_path / "a.png")
    with pytest.raises(InputRejected, match="at most 67108864 pixels"):
        image_size(tmp_path / "a.png")


def _tiff(size: tuple[int, int], tile: tuple[int, int]) -> bytes:
    """A TIFF in grey whose one tile has no data."""
    tags = {
        256: size[0],
        257: size[1],
        258: 8,
        259: 8,
        262: 1,
        277: 1,
        322: tile[0],
        323: tile[1],
        324: 8,
        325: 0,
    }
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


def test_bombs_of_every_kind_of_picture_are_refused_from_their_headers(tmp_path: Path) -> None:
    large = 9_000
    jpeg = io.BytesIO()
    PillowImage.new("L", (16, 16)).save(jpeg, "JPEG")
    place = jpeg.getvalue().index(b"\xff\xc0") + 5
    bombs = {
        "bmp": b"BM" + struct.pack("<IIIIiiHHIIiiII", 60, 0, 54, 40, large, large, 1, 8, 1, 0, 0, 0, 0, 0),
        "jpg": jpeg.getvalue()[:place] + struct.pack(">HH", large, large) + jpeg.getvalue()[place + 4 :],
        "tif": _tiff((large, large), (64, 64)),
        "small.tif": _tiff((64, 64), (1 << 15, 1 << 15)),  # decoded as a whole tile
    }
    for name, content in bombs.items():
        (tmp_path / name).write_bytes(content)
        for known in (None, content):
            with pytest.raises(InputRejected, match="at most 67108864 pixels"):
                image_size(tmp_path / name, content=known)
        with pytest.raises(InputRejected, match="at most 67108864 pixels"):
            read_image(tmp_path / name)


def test_the_pixel_limit_can_be_set(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", GREY8)
    with pytest.raises(InputRejected, match="at most 47 pixels, not 8 x 6"):
        read_image(tmp_path / "a.png", max_pixels=47)
    assert read_image(tmp_path / "a.png", max_pixels=48).shape == (6, 8)


def test_a_tiff_of_several_pages_is_refused(tmp_path: Path) -> None:
    pages = [PillowImage.fromarray(GREY8)] * 3
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(InputRejected, match=r"one picture, not 3.*file of its own"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP"])
@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)
@given(data=st.data())
def test_garbled_files_are_read_or_refused_and_nothing_else(
    tmp_path: Path, kind: str, data: st.DataObject
) -> None:
    """Whatever bytes are changed, no exception but InputRejected comes out."""
    path = tmp_path / "garbled"
    PillowImage.fromarray(RGB8).save(path, format=kind)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content[: data.draw(st.integers(1, len(content)))]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for read in (read_image, read_mask, image_size):
            try:
                read(path)
            except InputRejected as error:
                assert "\n" not in str(error)


# Writing --------------------------------------------------------------------------------------------------


def test_masks_are_written_as_class_numbers_and_bool_as_black_and_white(tmp_path: Path) -> None:
    write_mask(tmp_path / "a.png", GREY8)
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), GREY8)
    write_mask(tmp_path / "b.png", GREY8 > 100)
    np.testing.assert_array_equal(read_mask(tmp_path / "b.png"), np.where(GREY8 > 100, 255, 0))
    write_mask(tmp_path / "c.png", GREY16)
    np.testing.assert_array_equal(read_mask(tmp_path / "c.png"), GREY16)


@pytest.mark.parametrize("wrong", [RGB8[..., :2], GREY8.astype(np.float32), np.zeros((0, 4), np.uint8)])
def test_pixels_that_a_png_cannot_hold_are_refused(tmp_path: Path, wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match="pixels must be uint8"):
        write_png(tmp_path / "a.png", wrong)
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_bytes(path, b"old")
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_bytes(b"half of the n")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_that_has_the_old_file_open_keeps_it_whole(tmp_path: Path) -> None:
    """The new file takes the old one's name, never its place on the disk."""
    path = tmp_path / "a.bin"
    write_bytes(path, b"old")
    with path.open("rb") as reader:
        write_bytes(path, b"newer")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"newer"


def test_written_files_have_the_permissions_of_ordinary_ones(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"x")
    (tmp_path / "b").write_bytes(b"x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_a_process_killed_while_writing_leaves_a_whole_file(tmp_path: Path) -> None:
    """SIGKILL at random moments of endless rewriting: the file is always one of the two versions."""
    path = tmp_path / "a.bin"
    versions = [bytes([n]) * 300_000 for n in (1, 2)]
    code = (
        "import sys; from pathlib import Path; from samdistill.io.files import write_bytes\n"
        "path = Path(sys.argv[1])\n"
        "write_bytes(path, bytes([1]) * 300_000); print('ready', flush=True)\n"
        "while True:\n"
        "    for n in (2, 1): write_bytes(path, bytes([n]) * 300_000)\n"
    )
    for delay in (0.01, 0.03, 0.05):
        writer = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(delay)
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        assert path.read_bytes() in versions
    left = [p for p in tmp_path.iterdir() if p != path]
    assert all(p.name.startswith(".a.bin.") and p.name.endswith(".tmp") for p in left)


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with pytest.raises(RuntimeError), atomic_folder(out) as folder:
        (folder / "a").write_text("x")
        raise RuntimeError
    assert not out.exists()
    assert list(out.parent.iterdir()) == []
    with atomic_folder(out) as folder:
        (folder / "a").write_text("x")
        assert not out.exists()
    assert [p.name for p in out.iterdir()] == ["a"]
    with pytest.raises(FileExistsError, match="new or empty"), atomic_folder(out):
        pass


def test_the_hash_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
