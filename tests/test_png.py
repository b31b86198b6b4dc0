"""Plain PNGs are read as Pillow reads them, or left to it; what is written holds the very pixels."""

from __future__ import annotations

import io
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image as PillowImage
from PIL.PngImagePlugin import PngInfo
from reference import png as reference

from samdistill.errors import InputRejected
from samdistill.io import png
from samdistill.io.images import png_bytes, read_image, read_mask

KINDS = st.one_of(
    arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=19)),
    arrays(np.uint16, array_shapes(min_dims=2, max_dims=2, max_side=9)),
    arrays(np.uint8, st.tuples(st.integers(1, 19), st.integers(1, 19), st.just(3))),
)
RNG = np.random.default_rng(3)
PICTURE = RNG.integers(0, 256, (9, 13, 3)).astype(np.uint8)
PAETH = [4] * 9


def decoded(content: bytes) -> Any:
    return png.decode(content, max_pixels=1 << 20)


def by_pillow(content: bytes) -> Any:
    return np.asarray(PillowImage.open(io.BytesIO(content)))


@given(KINDS, st.data())
def test_every_filter_is_undone_as_pillow_does(pixels: Any, data: st.DataObject) -> None:
    kinds = st.one_of(st.just(4), st.integers(0, 4))
    filters = [data.draw(kinds) for _ in range(len(pixels))]
    content = reference.png(pixels, filters, parts=data.draw(st.integers(1, 3)))
    found = decoded(content)
    assert found is not None
    assert found.dtype == pixels.dtype
    np.testing.assert_array_equal(found, pixels)
    np.testing.assert_array_equal(by_pillow(content), pixels)


@given(KINDS)
def test_what_is_written_is_read_by_pillow_and_here(pixels: Any) -> None:
    content = png_bytes(pixels)
    np.testing.assert_array_equal(by_pillow(content), pixels)
    np.testing.assert_array_equal(decoded(content), pixels)


def test_arrays_that_lie_otherwise_in_memory_are_written_alike() -> None:
    for pixels in (PICTURE[:, ::-1], PICTURE.transpose(1, 0, 2), PICTURE[::2, :, 0]):
        np.testing.assert_array_equal(by_pillow(png_bytes(pixels)), pixels)


def saved(image: PillowImage.Image, **how: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **how)
    return buffer.getvalue()


def not_plain() -> dict[str, bytes]:
    """Right files that hold more than rows of pixels."""
    picture = PillowImage.fromarray(PICTURE)
    turned = picture.getexif()
    turned[274] = 6
    text = PngInfo()
    text.add_text("Raw profile type exif", "\nexif\n 0\n")
    return {
        "palette": saved(picture.quantize(7)),
        "alpha": saved(picture.convert("RGBA")),
        "one bit": saved(picture.convert("1")),
        "transparent": saved(picture.convert("L"), transparency=7),
        "turned": saved(picture, exif=turned),
        "texts": saved(picture, pnginfo=text),
        "profile": saved(picture, icc_profile=b"none"),
        "pages": saved(picture, save_all=True, append_images=[picture.rotate(180)]),
        "JPEG": b"\xff\xd8\xff\xe0 and so on",
    }


@pytest.mark.parametrize("name", not_plain())
def test_what_is_not_plain_is_left_to_pillow(name: str) -> None:
    assert decoded(not_plain()[name]) is None


def test_sizes_are_read_from_what_comes_before_the_pixels() -> None:
    good = reference.png(PICTURE, PAETH, reference.chunk(b"pHYs", bytes(9)))
    assert png.size(good) == (9, 13)
    assert png.size(good[: good.index(b"IDAT")]) is None
    for name in ("no header", "no side", "interlaced", "depth"):
        assert png.size(damaged()[name]) is None, name
    for name in ("palette", "alpha", "turned", "transparent", "JPEG"):
        assert png.size(not_plain()[name]) is None, name


def test_harmless_chunks_change_nothing(tmp_path: Path) -> None:
    extra = [
        reference.chunk(b"gAMA", b"\0\0\xb1\x8f"),
        reference.chunk(b"pHYs", bytes(9)),
        reference.chunk(b"tEXt", b"Software\0a scanner"),
    ]
    content = reference.png(PICTURE, PAETH, *extra)
    np.testing.assert_array_equal(decoded(content), PICTURE)


def damaged() -> dict[str, bytes]:
    """Files with something wrong."""
    good = reference.png(PICTURE, PAETH)
    data = zlib.compress(reference.filtered(PICTURE, PAETH))
    idat = reference.chunk(b"IDAT", data)
    first, longer, shorter = (reference.SIGNATURE + reference.header(13, n, 8, 2) for n in (9, 10, 8))
    end = reference.chunk(b"IEND", b"")
    place = good.index(b"IDAT") + 20
    changed = bytearray(data)
    changed[-1] ^= 1
    return {
        "a bit": good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :],
        "its sum": first + reference.chunk(b"IDAT", bytes(changed)) + end,
        "parts apart": first
        + reference.chunk(b"IDAT", data[:9])
        + reference.chunk(b"tEXt", b"a\0b")
        + reference.chunk(b"IDAT", data[9:])
        + end,
        "short gamma": first + reference.chunk(b"gAMA", b"") + idat + end,
        "no end": good[: -len(end)],
        "no pixels": first + end,
        "too few": longer + idat + end,
        "too many": shorter + idat + end,
        "a filter": first + reference.chunk(b"IDAT", zlib.compress(bytes([9] * 360))) + end,
        "interlaced": reference.SIGNATURE + reference.header(13, 9, 8, 2, 1) + good[33:],
        "depth": reference.SIGNATURE + reference.header(13, 9, 16, 2) + good[33:],
        "no header": reference.SIGNATURE + good[33:],
        "no side": reference.SIGNATURE + reference.header(0, 9, 8, 2) + good[33:],
    }


@pytest.mark.parametrize("name", damaged())
def test_what_is_wrong_is_left_to_pillow(name: str) -> None:
    assert decoded(damaged()[name]) is None


def test_what_stands_behind_the_pixels_is_passed_over_as_by_pillow() -> None:
    content = reference.png(PICTURE, PAETH)
    start, end = content.index(b"IDAT") + 4, content.index(b"IEND") - 8
    more = reference.chunk(b"IDAT", content[start:end] + b"more")
    content = content[: start - 8] + more + reference.chunk(b"IEND", b"")
    np.testing.assert_array_equal(decoded(content), PICTURE)
    np.testing.assert_array_equal(by_pillow(content), PICTURE)


def test_a_file_cut_anywhere_is_never_half_a_picture(tmp_path: Path) -> None:
    """Pillow takes a file whose last pixel is there; whatever else is cut it refuses."""
    good, path = reference.png(PICTURE, PAETH, parts=3), tmp_path / "cut.png"
    refused = 0
    for length in range(len(good)):
        path.write_bytes(good[:length])
        assert decoded(good[:length]) is None
        try:
            np.testing.assert_array_equal(read_image(path), PICTURE)
        except InputRejected:
            refused += 1
    assert refused > len(good) - 40


def test_large_and_swelling_files_cost_nothing() -> None:
    bomb = zlib.compress(bytes(1 << 26), 9)
    small = reference.SIGNATURE + reference.header(13, 9, 8, 2) + reference.chunk(b"IDAT", bomb)
    large = reference.SIGNATURE + reference.header(30_000, 30_000, 8, 0) + reference.chunk(b"IDAT", bomb)
    tracemalloc.start()
    assert decoded(small + reference.chunk(b"IEND", b"")) is None
    assert decoded(large + reference.chunk(b"IEND", b"")) is None
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20


@pytest.mark.parametrize("name", not_plain())
def test_readers_give_what_pillow_alone_gives(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"

    def outcomes() -> list[Any]:
        found: list[Any] = []
        for read in (read_image, read_mask):
            try:
                found.append(read(path))
            except InputRejected as error:
                found.append(str(error))
        return found

    for content in (not_plain()[name], reference.png(PICTURE, PAETH), reference.png(PICTURE[:, :, 1], PAETH)):
        path.write_bytes(content)
        here = outcomes()
        with monkeypatch.context() as patch:
            patch.setattr(png, "decode", lambda *args, **options: None)
            alone = outcomes()
        for one, other in zip(here, alone, strict=True):
            np.testing.assert_array_equal(one, other)
            assert getattr(one, "dtype", None) == getattr(other, "dtype", None)
