"""Everything a teacher finds in an image: SAM's automatic masks, the same set, without their slowness.

A grid of points is decoded in batches over one embedding; what segment_anything computes for every prompt and
then throws away is not computed: full-size masks of bad predicted IoU, and run-length codes. Knows no class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from samdistill.arrays import Image, Mask, Masks
from samdistill.components import label
from samdistill.proposals import Proposals, boxes_of, mask_nms, nms, stability_scores
from samdistill.teacher.decoder import attend, check_finite, draw, encode_points
from samdistill.teacher_frame import most_upscaled

if TYPE_CHECKING:
    from samdistill.teacher.sam import Embedding, Teacher

Floats = npt.NDArray[np.float32]
CROP_EDGE_PX = 20.0  # segment_anything's tolerance for a mask cut by its crop's edge


@dataclass(frozen=True)
class ProposeConfig:
    """How proposals are made; the thresholds are SamDSK's, the rest segment_anything's defaults.

    Attributes
    ----------
    points_per_side
        The grid has that many points squared.
    points_per_batch
        Prompt sets a decoder call, fewer where their masks would exceed 256 MB; more pays on a GPU, less
        stays in a CPU's caches.
    predicted_iou
        A mask goes when the teacher's own estimate is not above this; 0 keeps all.
    stability
        A mask goes when its stability score is below this; 0 keeps all that are not empty.
    stability_offset
        By how many logits the threshold is moved for the stability score.
    box_iou
        Box suppression: a mask goes when its box overlaps that of a better one by more than this.
    mask_iou
        Mask suppression after it, by the masks' own overlap; None: none.
    min_region_px
        Holes and islands with fewer pixels are filled and removed; 0: left alone.
    crop_layers
        Layer i adds (2 ** i) ** 2 crops of the image, each with a grid of its own; 0: the image alone.
    crop_box_iou
        Box suppression among crops; the smaller crop wins.
    crop_overlap
        Share of the shortest side by which the crops of the first layer overlap.
    crop_grid_divisor
        Layer i has points_per_side / crop_grid_divisor ** i points a side.
    """

    points_per_side: int = 32
    points_per_batch: int = 16
    predicted_iou: float = 0.5
    stability: float = 0.5
    stability_offset: float = 1.0
    box_iou: float = 0.5
    mask_iou: float | None = None
    min_region_px: int = 0
    crop_layers: int = 0
    crop_box_iou: float = 0.5
    crop_overlap: float = 512 / 1500
    crop_grid_divisor: int = 1

    def __post_init__(self) -> None:
        for name in ("points_per_side", "points_per_batch", "crop_grid_divisor"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")
        for name in ("box_iou", "crop_box_iou", "crop_overlap", "mask_iou"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must be in [0, 1], not {value}.")
        for name in ("min_region_px", "crop_layers", "stability_offset"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, not {getattr(self, name)}.")


@dataclass
class _Found:
    """Masks of one crop, still in its frame: packed bits, boxes as segment_anything draws them, scores."""

    bits: npt.NDArray[np.uint8]  # (K, ceil(H W / 8))
    boxes: Floats  # (K, 4) xyxy pixel indices: x1 and y1 are the last pixel's
    scores: Floats  # (K,)
    stability: Floats  # (K,)

    def select(self, indices: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> _Found:
        return _Found(self.bits[indices], self.boxes[indices], self.scores[indices], self.stability[indices])


def propose(
    teacher: Teacher, embedding: Embedding, config: ProposeConfig | None = None, *, image: Image | None = None
) -> Proposals:
    """Ask a teacher for everything.

    Parameters
    ----------
    teacher
        Any but MedSAM, which takes no points.
    embedding
        Of the whole image.
    config
        Default: SamDSK's.
    image
        uint8 (H, W, 3) RGB, the image itself; needed for crops alone.

    Returns
    -------
    Proposals
        Best predicted IoU first; with crops, those of smaller crops first.

    Raises
    ------
    InputRejected
        When the network answers with NaN or infinity.
    """
    config = config or ProposeConfig()
    if teacher.preprocessing == "medsam":
        raise ValueError(
            "teacher must take points to make proposals, which MedSAM does not. Use SAM or tiny."
        )
    crops = crop_boxes(embedding.image_size, config.crop_layers, config.crop_overlap)
    if len(crops) > 1 and (image is None or image.shape[:2] != embedding.image_size):
        raise ValueError("image must be given, at the embedding's size, when crop_layers is not 0.")
    parts: list[tuple[_Found, tuple[int, int, int, int]]] = []
    for layer, crop in crops:
        x0, y0, x1, y1 = crop
        inside = embedding
        if layer and image is not None:
            (inside,) = teacher.embed([np.ascontiguousarray(image[y0:y1, x0:x1])])
        grid = point_grid(config.points_per_side // config.crop_grid_divisor**layer)
        found = _search(teacher, inside, grid, config)
        found = found.select(~_cut_by_crop(found.boxes, crop, embedding.image_size))
        parts.append((found.select(_suppress(found.boxes, found.scores, config.box_iou)), crop))
    masks = np.concatenate([_uncrop(found, crop, embedding.image_size) for found, crop in parts])
    boxes = np.concatenate([found.boxes + _row(*crop[:2], *crop[:2]) for found, crop in parts])
    scores = np.concatenate([found.scores for found, _ in parts])
    stability = np.concatenate([found.stability for found, _ in parts])
    if len(parts) > 1:
        areas = [np.full(len(f.scores), (c[2] - c[0]) * (c[3] - c[1])) for f, c in parts]
        kept = _suppress(boxes, (1 / np.concatenate(areas)).astype(np.float32), config.crop_box_iou)
        masks, boxes, scores, stability = masks[kept], boxes[kept], scores[kept], stability[kept]
    if config.min_region_px and len(masks):
        cleaned = [clean_regions(mask, config.min_region_px) for mask in masks]
        masks = np.stack([mask for mask, _ in cleaned])
        untouched = np.array([not changed for _, changed in cleaned], np.float32)
        indices = boxes_of(masks) - _row(0, 0, 1, 1)
        kept = _suppress(indices, untouched, max(config.box_iou, config.crop_box_iou))
        masks, scores, stability = masks[kept], scores[kept], stability[kept]
    if config.mask_iou is not None:
        kept = mask_nms(masks, scores, config.mask_iou)
        masks, scores, stability = masks[kept], scores[kept], stability[kept]
    return Proposals(masks, boxes_of(masks), scores, stability)


@torch.no_grad()
def _search(
    teacher: Teacher, embedding: Embedding, grid: npt.NDArray[np.float64], config: ProposeConfig
) -> _Found:
    """Decode a grid of points over one embedding and keep what passes both thresholds."""
    model, device = teacher.model, teacher.device
    dense = model.prompt_encoder.no_mask_embed.weight[:, None]
    image_pe = model.prompt_encoder.get_dense_pe()
    points = torch.from_numpy((grid * embedding.input_size[::-1]).astype(np.float32)).to(device)
    height, width = embedding.image_size
    keys_height, keys_width = embedding.features.shape[1:]
    kept: list[_Found] = []
    most = max(1, most_upscaled(embedding.image_size, teacher.input_side) // 3)  # points, of three masks each
    for batch in torch.split(points, min(config.points_per_batch, most)):
        pairs = torch.stack([batch, torch.zeros_like(batch)], dim=1)  # the point and SAM's padding point
        labels = torch.tensor([[1, -1]], device=device).expand(len(batch), -1)
        tokens = encode_points(model.prompt_encoder, pairs, labels)
        exists = torch.ones(labels.shape, dtype=torch.bool, device=device)
        mask_tokens, keys, scores = attend(
            model.mask_decoder, embedding.features[None], image_pe, tokens, exists, dense
        )
        good = (
            scores[:, 1:] > config.predicted_iou if config.predicted_iou > 0 else scores[:, 1:] > -torch.inf
        )
        rows = good.any(dim=1)  # masks are drawn for these points alone
        logits = draw(model.mask_decoder, mask_tokens[rows], keys[rows], (keys_height, keys_width))[:, 1:]
        check_finite(logits, scores)
        full = teacher.upscale(logits[good[rows]], embedding).cpu().numpy()
        iou = scores[:, 1:][good].cpu().numpy()
        threshold = teacher.mask_threshold
        stability = stability_scores(full, threshold=threshold, offset=config.stability_offset)
        stable = stability >= config.stability
        masks = full[stable] > threshold
        solid = masks.reshape(len(masks), height * width).any(axis=1)
        chosen = masks[solid]
        kept.append(
            _Found(
                np.packbits(chosen.reshape(len(chosen), height * width), axis=1),
                boxes_of(chosen) - _row(0, 0, 1, 1),
                iou[stable][solid],
                stability[stable][solid],
            )
        )
    return _Found(
        np.concatenate([f.bits for f in kept]),
        np.concatenate([f.boxes for f in kept]),
        np.concatenate([f.scores for f in kept]),
        np.concatenate([f.stability for f in kept]),
    )


def point_grid(side: int) -> npt.NDArray[np.float64]:
    """(side ** 2, 2) xy in [0, 1], the centres of a square grid in raster order."""
    centres = (np.arange(max(side, 1)) + 0.5) / max(side, 1)
    x, y = np.meshgrid(centres, centres)
    return np.stack([x.ravel(), y.ravel()], axis=1)


def crop_boxes(
    image_size: tuple[int, int], layers: int, overlap_share: float
) -> list[tuple[int, tuple[int, int, int, int]]]:
    """List the crops as (layer, half-open xyxy), the whole image first; segment_anything's rounding.

    Of a small or narrow image those without a pixel are left out.
    """
    height, width = image_size
    crops = [(0, (0, 0, width, height))]
    for layer in range(1, layers + 1):
        n = 2**layer
        overlap = int(overlap_share * min(height, width) * (2 / n))
        w, h = (-(-(overlap * (n - 1) + length) // n) for length in (width, height))
        for i in range(n):
            for j in range(n):
                x0, y0 = i * (w - overlap), j * (h - overlap)
                x1, y1 = min(x0 + w, width), min(y0 + h, height)
                if x0 < x1 and y0 < y1:
                    crops.append((layer, (x0, y0, x1, y1)))
    return crops


def clean_regions(mask: Mask, min_px: int) -> tuple[Mask, bool]:
    """Fill holes and then remove islands of fewer pixels (both 8-connected); the largest island stays.

    Returns
    -------
    tuple
        The mask, and whether it changed.
    """
    changed = False
    holes = label(~mask)
    small = np.flatnonzero(holes.area_px < min_px) + 1
    if len(small):
        mask, changed = mask | np.isin(holes.labels, small), True
    islands = label(mask)
    large = np.flatnonzero(islands.area_px >= min_px) + 1
    if len(large) < len(islands):
        if len(large) == 0:
            large = np.array([int(np.argmax(islands.area_px)) + 1])
        mask, changed = np.isin(islands.labels, large), True
    return mask, changed


def _row(*values: float) -> Floats:
    return np.array(values, np.float32)


def _suppress(boxes: Floats, scores: Floats, iou: float) -> npt.NDArray[np.int64]:
    """Box suppression on boxes of pixel indices, best first.

    One pixel wide or high, such a box has no area and overlaps nothing, which half-open boxes cannot say.
    """
    flat = (boxes[:, 2] <= boxes[:, 0]) | (boxes[:, 3] <= boxes[:, 1])
    solid = np.flatnonzero(~flat)
    kept = np.sort(np.concatenate([np.flatnonzero(flat), solid[nms(boxes[solid], scores[solid], iou)]]))
    return kept[np.argsort(-scores[kept], kind="stable")]


def _cut_by_crop(
    boxes: Floats, crop: tuple[int, int, int, int], image_size: tuple[int, int]
) -> npt.NDArray[np.bool_]:
    """Say which boxes end at their crop's edge though the image goes on there."""
    placed = boxes + _row(*crop[:2], *crop[:2])
    at_crop = np.abs(placed - _row(*crop)) <= CROP_EDGE_PX
    at_image = np.abs(placed - _row(0, 0, image_size[1], image_size[0])) <= CROP_EDGE_PX
    cut: npt.NDArray[np.bool_] = (at_crop & ~at_image).any(axis=1)
    return cut


def _uncrop(found: _Found, crop: tuple[int, int, int, int], image_size: tuple[int, int]) -> Masks:
    """Unpack the masks of a crop into the image's frame."""
    x0, y0, x1, y1 = crop
    size = (y1 - y0) * (x1 - x0)
    inside = np.unpackbits(found.bits, axis=1, count=size).astype(np.bool_).reshape(-1, y1 - y0, x1 - x0)
    if (y1 - y0, x1 - x0) == image_size:
        return inside
    masks = np.zeros((len(inside), *image_size), np.bool_)
    masks[:, y0:y1, x0:x1] = inside
    return masks
