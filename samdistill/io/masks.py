"""How the values of mask files stand for classes: index masks, black and white masks, one file a class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from samdistill.arrays import Mask, Masks
from samdistill.errors import InputRejected
from samdistill.io.dataset_toml import DATASET_TOML
from samdistill.io.images import Pixels
from samdistill.io.stack import Stack, open_stack, read_mask

MAX_INFERRED_CLASSES = 20
LISTED = 8
INSTANCES = "Object (instance) numbers? Masks must hold class numbers."


@dataclass(frozen=True)
class MaskCode:
    """How the values of mask files stand for classes.

    Parameters
    ----------
    class_names
        Channel i is class_names[i], class_id i + 1.
    values
        The value of each class in index masks; empty: 1..C.
    per_class
        One file a class, foreground where it is not 0 (or above `threshold`); else one index mask.
    ignore_index
        The value of pixels that do not count, or None.
    threshold
        Foreground is above it (one class, or one file a class); None: index masks.
    """

    class_names: tuple[str, ...]
    values: tuple[int, ...] = ()
    per_class: bool = False
    ignore_index: int | None = None
    threshold: int | None = None

    def decode(
        self, paths: Sequence[Path | None], image: Stack, index: int | None = None
    ) -> tuple[Masks, Mask]:
        """Read a case's mask files.

        Parameters
        ----------
        paths
            One index mask, or one file a class, None where the class is absent.
        image
            What they are masks of; every file must have its size, and lie as it does.
        index
            Which slice of files that hold several.

        Returns
        -------
        masks
            (C, H, W) bool.
        ignored
            (H, W) bool: where any file has the ignore index.
        """
        size = image.size
        masks = np.zeros((len(self.class_names), *size), np.bool_)
        ignored = np.zeros(size, np.bool_)
        for channel, path in enumerate(paths):
            if path is None:
                continue
            pixels = read_mask(path, index, image)
            if pixels.shape != size:
                raise InputRejected(
                    f"{path} must have the size of its image, {size[1]} x {size[0]}, not "
                    f"{pixels.shape[1]} x {pixels.shape[0]}. Export it again at the image's size."
                )
            if self.ignore_index is not None:
                away = pixels == self.ignore_index
                ignored |= away
                pixels = np.where(away, 0, pixels)
            if self.threshold is not None:
                masks[channel] = pixels > self.threshold
            elif self.per_class:
                masks[channel] = _black_and_white(pixels, path)
            else:
                masks = self._split_index_mask(pixels, path)
        masks &= ~ignored
        return masks, ignored

    def _split_index_mask(self, pixels: Pixels, path: Path) -> Masks:
        """(C, H, W) bool out of one (H, W) index mask."""
        values = self.values or tuple(range(1, len(self.class_names) + 1))
        present = np.unique(pixels)
        if not self.values and len(values) == 1 and present.tolist() in ([255], [0, 255]):
            values = (255,)  # black and white, the other common way to save one class
        wrong = [int(value) for value in present if value != 0 and value not in values]
        if wrong:
            named = [f"{v} {name}" for v, name in zip(values, self.class_names, strict=True)]
            known = ", ".join(named[:LISTED])
            if len(named) > LISTED:
                known += f" and {len(named) - LISTED} more"
            instances = f"{INSTANCES} " if len(wrong) > MAX_INFERRED_CLASSES else ""
            raise InputRejected(
                f"{path} must hold the values 0 background, {known}, not {wrong[0]}. {instances}Name every "
                f"class in {DATASET_TOML} (`classes`), or set class_values, ignore_index or mask_threshold "
                "there."
            )
        return np.stack([pixels == value for value in values])


class UnlikelyClasses(InputRejected):
    """Masks hold values that, with nothing declared, are no likely class numbers."""


def infer_class_names(paths: Iterable[Path], ignore_index: int | None) -> tuple[str, ...]:
    """Count the classes of index masks that nothing declares: their highest value; black and white is one.

    Raises
    ------
    UnlikelyClasses
        When the highest value is no likely number of classes.
    InputRejected
        When a file cannot be read.
    """
    highest, where = 0, None
    for path in dict.fromkeys(paths):
        slices = range(len(open_stack(path)))
        values = np.unique(np.concatenate([np.unique(read_mask(path, index)) for index in slices]))
        present = [int(value) for value in values if value != 0 and value != ignore_index]
        top = 1 if present == [255] else max(present, default=0)
        if top > highest:
            highest, where = top, path
    if highest > MAX_INFERRED_CLASSES:
        raise UnlikelyClasses(
            f"{where} holds the value {highest}, which is no likely class number. {INSTANCES} Grey levels? "
            f"Declare classes and class_values (or mask_threshold, ignore_index) in {DATASET_TOML}."
        )
    if highest <= 1:
        return ("foreground",)
    return tuple(f"class_{number}" for number in range(1, highest + 1))


def _black_and_white(pixels: Pixels, path: Path) -> Mask:
    """(H, W) bool: not 0, where the file holds 0 and at most one other value."""
    values = np.unique(pixels)
    values = values[values != 0]
    if values.size > 1:
        raise InputRejected(
            f"{path} must hold 0 and one other value, not {values[0]} and {values[-1]}. "
            f"Save it without loss, or set mask_threshold in {DATASET_TOML}."
        )
    foreground: Mask = pixels != 0
    return foreground
