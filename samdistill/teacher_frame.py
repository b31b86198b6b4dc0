"""How images and prompts enter a SAM and how its logits come back; numpy alone.

Used by the teacher in training and by the exported one alike, and the only place where half-open boxes become
SAM's pixel indices and where coordinates are scaled as SAM's ResizeLongestSide scales them. Knows no network.

Frames: the image's; the encoder's, a square of `side` pixels; the low-resolution frame of the decoder's
logits, which covers the encoder's square, padding included.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage

from samdistill.arrays import Image, Logits, Mask
from samdistill.errors import DeviceUnavailable
from samdistill.geometry import resize_maps, sigmoid
from samdistill.prompts import Prompts

Preprocessing = Literal["sam", "medsam"]
EMBED_PIXELS = 8 * 256 * 256  # of the encoder's input in one call
MOST_SETS, MOST_KEYS = 256, 1 << 26  # prompt sets in one call of the decoder, values of all their image keys
MOST_UPSCALED = 1 << 26  # values that are brought to an image's size at a time
UNUSED = -2  # label of a point slot that holds nothing; -1 is SAM's own padding point, which is a token


class PromptArrays(NamedTuple):
    """N prompt sets, padded to common length: what the decoder takes, in its order."""

    points: npt.NDArray[np.float32]  # (N, P, 2) xy, encoder's frame, P >= 1
    point_labels: npt.NDArray[np.int64]  # (N, P): 1, 0, -1 SAM's padding token, UNUSED
    boxes: npt.NDArray[np.float32]  # (N, 4) xyxy pixel indices, encoder's frame
    has_box: npt.NDArray[np.bool_]  # (N,)
    masks: npt.NDArray[np.float32]  # (N, 1, 4h, 4w) logits, low-resolution frame
    has_mask: npt.NDArray[np.bool_]  # (N,)


@dataclass(frozen=True, eq=False)
class TeacherMasks:
    """What the decoder made of N prompt sets, in flattened order.

    Attributes
    ----------
    masks
        N bool (H, W), each at its own image's size.
    low_res_logits
        (N, 4h, 4w) float32 in the decoder's frame; what `previous` takes.
    predicted_iou
        (N,) float32, the teacher's own estimate of each mask's IoU.
    """

    masks: list[Mask]
    low_res_logits: npt.NDArray[np.float32]
    predicted_iou: npt.NDArray[np.float32]


@dataclass(frozen=True)
class TeacherFrame:
    """How one image enters a teacher and how its answer comes back.

    Attributes
    ----------
    image_size
        (height, width) of the image.
    side
        Of the encoder's square input, pixels.
    preprocessing
        "sam": longest side to `side`, padded right and below; "medsam": stretched to the square.
    """

    image_size: tuple[int, int]
    side: int
    preprocessing: Preprocessing = "sam"

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) that the image takes in the encoder's square input; the rest is padding."""
        if self.preprocessing == "medsam":
            return self.side, self.side
        scale = self.side * 1.0 / max(self.image_size)
        height, width = self.image_size
        return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))

    @property
    def scale(self) -> npt.NDArray[np.float64]:
        """(2,) xy factors from the image's frame to the encoder's, without a half-pixel shift, as SAM's."""
        (height, width), (input_height, input_width) = self.image_size, self.input_size
        return np.array([input_width / width, input_height / height])

    def resized(self, image: Image) -> npt.NDArray[np.uint8]:
        """Resize a uint8 (H, W, 3) image to `input_size`."""
        if self.preprocessing == "medsam":
            return _medsam_resize(image, self.side)
        height, width = self.input_size
        return np.asarray(PillowImage.fromarray(image).resize((width, height), _BILINEAR))

    def pixels(self, image: Image) -> npt.NDArray[np.uint8]:
        """Resize and pad a uint8 (H, W, 3) image into the encoder's uint8 (3, side, side)."""
        resized = self.resized(image)
        square = np.zeros((self.side, self.side, 3), np.uint8)
        square[: resized.shape[0], : resized.shape[1]] = resized
        return np.ascontiguousarray(square.transpose(2, 0, 1))

    def box(self, box: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Turn a half-open (4,) xyxy box of the image into pixel indices of the encoder's frame."""
        corner = 0.0 if self.preprocessing == "medsam" else 1.0  # its own script scales edges
        indices: npt.NDArray[np.float64] = (box - np.array([0, 0, corner, corner])) * np.tile(self.scale, 2)
        return indices

    def low_res(self, mask_logits: Logits, size: tuple[int, int]) -> npt.NDArray[np.float32]:
        """Bring (H, W) logits of the image to the decoder's `size`, the padding as low as the lowest."""
        if mask_logits.shape != self.image_size:
            raise ValueError(
                f"mask_logits must be {self.image_size}, the image's size, not {mask_logits.shape}."
            )
        square = np.full((1, self.side, self.side), mask_logits.min(), np.float32)
        height, width = self.input_size
        square[0, :height, :width] = resize_maps(mask_logits[None], (height, width))[0]
        low: npt.NDArray[np.float32] = resize_maps(square, size)[0]
        return low

    def upscale(
        self, low_res_logits: npt.NDArray[np.float32], size: tuple[int, int] | None = None
    ) -> npt.NDArray[np.float32]:
        """Bring (N, 4h, 4w) logits to (N, H, W) of the image, logits still (MedSAM: probabilities).

        As torch's `interpolate(mode="bilinear", align_corners=False)` in SAM's `postprocess_masks`: to the
        encoder's square, cut to the part that is no padding, and from there to the image.

        Parameters
        ----------
        size
            (height, width) of the result; None: the image's own.
        """
        size = size or self.image_size
        if self.preprocessing == "medsam":
            return _interpolate(sigmoid(low_res_logits), size)
        maps = _interpolate(low_res_logits, (self.side, self.side), keep=self.input_size)
        return maps if self.input_size == size else _interpolate(maps, size)


def most_embedded(side: int) -> int:
    """Count the images that one call of the encoder takes, of its input's side: 8 of `tiny`'s, 1 of SAM's."""
    return max(1, EMBED_PIXELS // side**2)


def most_sets(embedding: tuple[int, ...]) -> int:
    """Count the prompt sets that one call of the decoder takes, so that its memory is bounded.

    222 of `tiny`'s; 64 of SAM's, some 2 GB (32 took 1.1 GB).

    Parameters
    ----------
    embedding
        (C, h, w), the shape of one image's.
    """
    return max(1, min(MOST_SETS, MOST_KEYS // math.prod(embedding)))


def parts(count: int, most: int) -> list[slice]:
    """`count` things in order, at most so many at a time."""
    return [slice(start, min(start + most, count)) for start in range(0, count, most)]


def most_upscaled(size: tuple[int, int], side: int) -> int:
    """Count the maps that are brought to `size` (height, width) at a time, so that memory is bounded.

    On their way they have the encoder's `side`, which may be larger: 1024 of SAM, whatever the image's.
    """
    return max(1, MOST_UPSCALED // max(math.prod(size), side**2))


def prompt_arrays(
    frames: Sequence[TeacherFrame],
    prompts: Sequence[Sequence[Prompts]],
    mask_size: tuple[int, int],
    previous: npt.NDArray[np.float32] | None = None,
) -> PromptArrays:
    """Pad all sets to common length, in the encoder's frame and by SAM's conventions.

    Parameters
    ----------
    frames
        One an image.
    prompts
        For each image its prompt sets, in the image's frame.
    mask_size
        (4h, 4w) of the decoder's low-resolution frame.
    previous
        (N, 4h, 4w) float32 low-resolution logits of an earlier answer to the same sets in flattened order;
        they take the place of `mask_logits`.

    Raises
    ------
    ValueError
        When there is another number of frames than of images, `previous` has another shape, mask_logits have
        another size than their image, or MedSAM is given anything but boxes.
    """
    if len(frames) != len(prompts):
        raise ValueError(f"prompts must hold one list an embedding, {len(frames)}, not {len(prompts)}.")
    sets = [(frame, one) for frame, each in zip(frames, prompts, strict=True) for one in each]
    if previous is not None and previous.shape != (len(sets), *mask_size):
        raise ValueError(f"previous must be float32 {(len(sets), *mask_size)}, not {previous.shape}.")
    if previous is not None and any(frame.preprocessing == "medsam" for frame in frames):
        raise ValueError("previous must be None for MedSAM, which takes boxes alone.")
    kept = [_points(one, boxes_only=frame.preprocessing == "medsam") for frame, one in sets]
    # SAM adds its padding point where there are points and no box.
    lengths = [len(points) + (one.box is None) for (points, _), (_, one) in zip(kept, sets, strict=True)]
    n, slots = len(sets), max([1, *lengths])
    points, labels = np.zeros((n, slots, 2), np.float32), np.full((n, slots), UNUSED, np.int64)
    boxes, has_box = np.zeros((n, 4), np.float32), np.zeros(n, np.bool_)
    masks, has_mask = np.zeros((n, 1, *mask_size), np.float32), np.zeros(n, np.bool_)
    for i, ((frame, one), (own, own_labels)) in enumerate(zip(sets, kept, strict=True)):
        if len(own):
            points[i, : len(own)], labels[i, : len(own)] = own * frame.scale, own_labels
            if one.box is None:
                labels[i, len(own)] = -1
        if one.box is not None:
            boxes[i], has_box[i] = frame.box(one.box), True
        if previous is not None:
            masks[i, 0], has_mask[i] = previous[i], True
        elif one.mask_logits is not None:
            masks[i, 0], has_mask[i] = frame.low_res(one.mask_logits, mask_size), True
    return PromptArrays(points, labels, boxes, has_box, masks, has_mask)


def wants_best_of_three(
    prompts: Sequence[Sequence[Prompts]], multimask: bool | None, *, has_previous: bool
) -> npt.NDArray[np.bool_]:
    """(N,) whether each set gets the best of three masks by predicted IoU instead of the single mask.

    With `multimask` None those do that are ambiguous: points alone, without box or mask.
    """
    sets = [one for each in prompts for one in each]
    if multimask is not None:
        return np.full(len(sets), multimask)
    return np.array(
        [not has_previous and one.box is None and one.mask_logits is None for one in sets], np.bool_
    )


_BILINEAR = PillowImage.Resampling.BILINEAR


def _points(one: Prompts, *, boxes_only: bool) -> tuple[npt.NDArray[np.float32], npt.NDArray[Any]]:
    """Points and labels of a set without its padding."""
    if boxes_only and (one.box is None or one.points is not None or one.mask_logits is not None):
        raise ValueError("prompts must be a box alone for MedSAM, which was trained with nothing else.")
    if one.points is None or one.point_labels is None:
        return np.zeros((0, 2), np.float32), np.zeros(0, np.int64)
    real = one.point_labels >= 0
    return one.points[real], one.point_labels[real]


def _medsam_resize(image: Image, side: int) -> npt.NDArray[np.uint8]:
    """(side, side, 3), as MedSAM's inference script stretches an image."""
    try:
        from skimage.transform import resize  # type: ignore[import-untyped,unused-ignore]
    except ImportError as error:
        raise DeviceUnavailable(
            "MedSAM's preprocessing needs scikit-image: pip install scikit-image."
        ) from error
    stretched: npt.NDArray[np.uint8] = resize(  # type: ignore[no-untyped-call]
        image, (side, side), order=3, preserve_range=True, anti_aliasing=True
    ).astype(np.uint8)
    return stretched


def _interpolate(
    maps: npt.NDArray[np.float32], size: tuple[int, int], *, keep: tuple[int, int] | None = None
) -> npt.NDArray[np.float32]:
    """Resize (N, h, w) to `size`, two neighbours an axis and no averaging; only the first `keep` rows and
    columns of the result."""
    for axis, (length, kept) in enumerate(zip(size, keep or size, strict=True), start=1):
        below, above, share = _neighbours(maps.shape[axis], length, kept)
        share = share.reshape(-1, 1) if axis == 1 else share
        low = maps.take(below, axis)
        difference = maps.take(above, axis)
        difference -= low
        difference *= share
        maps = np.add(difference, low, out=difference)
    return maps


def _neighbours(
    length: int, to_length: int, kept: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """For each of the first `kept` pixels of a resized axis: its two source pixels and the second's share."""
    scale = np.float32(length) / np.float32(to_length)
    position = scale * (np.arange(kept, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)
    position = np.maximum(position, np.float32(0))
    below = np.minimum(position.astype(np.intp), length - 1)
    share = np.clip(position - below.astype(np.float32), np.float32(0), np.float32(1))
    return below, np.minimum(below + 1, length - 1), share
