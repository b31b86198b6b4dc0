"""Benchmark cases of what brings pictures in and masks out: plain PNGs and resizing.

Peers: Pillow, and OpenCV for PNGs; its resizing is another one.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import cv2
import numpy as np
import numpy.typing as npt
from harness import Case
from PIL import Image

from samdistill import phantoms
from samdistill.geometry import resize_image, resize_maps
from samdistill.io import png

cv2.setNumThreads(1)
BILINEAR = Image.Resampling.BILINEAR


def encoded_by_pillow(pixels: npt.NDArray[np.uint8]) -> bytes:
    """A PNG as Pillow writes it."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def decoded_by_pillow(content: bytes) -> npt.NDArray[np.uint8]:
    """A PNG as Pillow reads it."""
    return np.asarray(Image.open(io.BytesIO(content)))


def cases() -> Iterator[Case]:
    """Read, write, shrink, enlarge."""
    image = phantoms.make("endoscopy", size=(512, 512)).image
    y, x = np.mgrid[:512, :512]
    mask = (np.hypot(y - 250, x - 200) < 90 + 9 * np.sin(x / 9)).astype(np.uint8)
    content = encoded_by_pillow(image)
    maps = np.random.default_rng(0).random((1, 128, 128), np.float32)

    def read() -> npt.NDArray[np.uint8] | None:
        return png.decode(content, max_pixels=1 << 20)

    def check_read() -> None:
        for found in (read(), decoded_by_pillow(content)):
            np.testing.assert_array_equal(found, image)

    yield Case(
        "read a PNG",
        "RGB 512²",
        read,
        {
            "Pillow": lambda: decoded_by_pillow(content),
            "OpenCV": lambda: cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR),
        },
        check_read,
        2,
    )
    for name, pixels, target in (("mask 512²", mask, 2), ("RGB 512²", image, 2)):

        def check_write(pixels: npt.NDArray[np.uint8] = pixels) -> None:
            np.testing.assert_array_equal(decoded_by_pillow(png.encode(pixels)), pixels)

        yield Case(
            "write a PNG",
            name,
            lambda pixels=pixels: png.encode(pixels),
            {
                "Pillow": lambda pixels=pixels: encoded_by_pillow(pixels),
                "OpenCV": lambda pixels=pixels: cv2.imencode(".png", pixels),
            },
            check_write,
            target,
        )

    def shrunk() -> npt.NDArray[np.uint8]:
        return np.asarray(Image.fromarray(image).resize((128, 128), BILINEAR))

    def enlarged() -> npt.NDArray[np.float32]:
        return np.asarray(Image.fromarray(maps[0]).resize((512, 512), BILINEAR))

    yield Case(
        "resize",
        "RGB 512² to 128²",
        lambda: resize_image(image, (128, 128)),
        {"Pillow": shrunk},
        lambda: np.testing.assert_array_equal(resize_image(image, (128, 128)), shrunk()),
        2,
    )
    yield Case(
        "resize",
        "a map 128² to 512²",
        lambda: resize_maps(maps, (512, 512)),
        {"Pillow": enlarged},
        lambda: np.testing.assert_array_equal(resize_maps(maps, (512, 512))[0], enlarged()),
        1,
    )
