"""Large images in overlapping tiles: each tile is an image of its own to the student, the maps are blended.

A tile keeps detail that shrinking the whole image would lose, and sees less around it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice, product

import numpy as np
import numpy.typing as npt

from samdistill.arrays import Image, ProbabilityMaps
from samdistill.geometry import ModelFrame
from samdistill.judging import IN_TILES, NO_RULE
from samdistill.predictor import Pixels, Predictor, Segmentation, masks_of
from samdistill.quality import unknown

OVERLAP = 0.25  # of a tile's side
TOGETHER = 4  # tiles in one call of the network


@dataclass(frozen=True)
class Tile:
    """Where a tile lies: rows y0..y1 and columns x0..x1 of the image, half-open."""

    y0: int
    y1: int
    x0: int
    x1: int


def tiles_of(image_size: tuple[int, int], side: int) -> list[Tile]:
    """Cut (height, width) into tiles of at most `side` px that overlap by a quarter or more.

    One tile where the whole image fits.
    """
    rows, columns = (_starts(length, side) for length in image_size)
    height, width = (min(side, length) for length in image_size)
    return [Tile(y, y + height, x, x + width) for y, x in product(rows, columns)]


def _starts(length: int, side: int) -> list[int]:
    """Evenly spread beginnings of as few parts as overlap enough."""
    if length <= side:
        return [0]
    count = 1 + int(np.ceil((length - side) / (side * (1 - OVERLAP))))
    return [int(start) for start in np.linspace(0, length - side, count).round()]


def segment_in_tiles(predictor: Predictor, pixels: Pixels, side: int) -> Segmentation:
    """Segment one image tile by tile.

    Parameters
    ----------
    predictor
        The opened bundle; its intensity rule sees the whole image.
    pixels
        (H, W) or (H, W, 3), as `Predictor.predict` takes them.
    side
        Of a tile, pixels of the image.

    Returns
    -------
    Segmentation
        In the image's own frame. Where the image fits one tile it is the answer `predict` gives.
    """
    manifest = predictor.manifest
    image = manifest.intensity.apply(pixels)
    size = (image.shape[0], image.shape[1])
    maps = np.zeros((len(predictor.class_names), *size), np.float32)
    weights = np.zeros(size, np.float32)
    tiles = iter(tiles_of(size, side))
    while chunk := list(islice(tiles, TOGETHER)):
        for tile, answer in zip(chunk, _answers(predictor, image, chunk), strict=True):
            weight = _weight(tile, size)
            area = (slice(tile.y0, tile.y1), slice(tile.x0, tile.x1))
            maps[:, *area] += answer * weight
            weights[area] += weight
    maps /= weights
    masks = masks_of(
        maps, thresholds=manifest.thresholds, multi_label=manifest.multi_label, cleaning=manifest.cleaning
    )
    known = manifest.calibration
    return Segmentation(
        masks,
        maps,
        predictor.class_names,
        manifest.multi_label,
        "fast",
        quality=unknown(NO_RULE if manifest.quality is None else IN_TILES),
        temperatures=None if known is None else known.temperatures,
    )


def _answers(predictor: Predictor, image: Image, tiles: list[Tile]) -> list[ProbabilityMaps]:
    """Probability maps of tiles of one size, each in its own frame."""
    contract = predictor.manifest.input
    cut = [image[tile.y0 : tile.y1, tile.x0 : tile.x1] for tile in tiles]
    frame = ModelFrame.of((cut[0].shape[0], cut[0].shape[1]), contract.size, contract.multiple)
    logits = predictor.student_logits(np.stack([frame.pixels(np.ascontiguousarray(one)) for one in cut]))
    return [frame.probability_maps(one) for one in logits]


def _weight(tile: Tile, size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """(h, w) float32: 1 in the middle and at the image's border, falling to nearly 0 over the overlap."""
    y = _ramp(tile.y0, tile.y1, size[0])
    x = _ramp(tile.x0, tile.x1, size[1])
    return y[:, None] * x[None, :]


def _ramp(start: int, stop: int, length: int) -> npt.NDArray[np.float32]:
    place = np.arange(stop - start, dtype=np.float32) + 0.5
    fade = max(1.0, (stop - start) * OVERLAP)
    ramp = np.ones(stop - start, np.float32)
    if start > 0:
        ramp = np.minimum(ramp, place / fade)
    if stop < length:
        ramp = np.minimum(ramp, place[::-1] / fade)
    return ramp
