"""Pictures that look the same: difference hashes and the pairs that are close. Knows no file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage

from samdistill.io.images import Pixels

SIDE = 16
# Of 256 bits. On seven sets of 40 to 60 pictures, copies scaled to 0.7 and saved as JPEG of quality 80 differ
# in 4 to 14 bits (few in more), and different pictures in 20 or more, most in over 40.
MAX_DISTANCE = 16

Hash = npt.NDArray[np.uint8]  # (32,), 256 bits


def difference_hash(pixels: Pixels) -> Hash:
    """Hash a picture by the signs of its horizontal differences, at 16 x 17 (dHash, Krawetz 2013).

    Returns
    -------
    Hash
        (32,) uint8; the same under scaling, brightness and contrast, nearly so under compression.
    """
    grey = pixels.astype(np.float32)
    if grey.ndim == 3:
        grey = grey @ np.array([0.299, 0.587, 0.114], np.float32)
    small = np.asarray(PillowImage.fromarray(grey).resize((SIDE + 1, SIDE), PillowImage.Resampling.BOX))
    # Flat regions must not hash to the noise in them.
    step = 0.004 * float(np.ptp(small))
    return np.packbits(small[:, 1:] - small[:, :-1] > step)


def near_pairs(hashes: Sequence[Hash], *, max_distance: int = MAX_DISTANCE) -> list[tuple[int, int]]:
    """Find all pairs of hashes that differ in at most `max_distance` bits.

    Hashes of (nearly) no set bit, pictures of one tone, are never paired.

    Returns
    -------
    list
        Of (i, j), i < j, in order.
    """
    if len(hashes) < 2:
        return []
    # +1/-1 bits turn the distance of all pairs into one matrix product: (256 - product) / 2.
    bits = np.unpackbits(np.stack(hashes), axis=1)
    signs = bits.astype(np.float32) * 2 - 1
    telling = bits.sum(axis=1) > max_distance
    pairs: list[tuple[int, int]] = []
    for start in range(0, len(signs), 1024):
        product: npt.NDArray[Any] = signs[start : start + 1024] @ signs[start:].T
        close = product >= bits.shape[1] - 2 * max_distance
        for i, j in zip(*np.nonzero(close), strict=True):
            if i < j and telling[start + i] and telling[start + j]:
                pairs.append((start + int(i), start + int(j)))
    return pairs
