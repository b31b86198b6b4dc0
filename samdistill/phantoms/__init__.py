"""The built-in data: pictures and masks made by code, of four kinds that look like medical images.

Deterministic in (kind, seed, index, size); numpy and Pillow only. `make` gives one phantom,
`samdistill.phantoms.folder` writes data folders. No phantom holds a pixel of a real image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from samdistill.arrays import Image, Masks
from samdistill.phantoms import breast, endoscopy, ultrasound, xray
from samdistill.phantoms.canvas import Canvas

__all__ = ["CLASS_NAMES", "KINDS", "MULTI_LABEL", "Phantom", "check_kind", "make"]

_RENDERERS: dict[str, Callable[[Canvas], tuple[Image, Masks]]] = {
    "endoscopy": endoscopy.render,
    "ultrasound": ultrasound.render,
    "xray": xray.render,
    "breast": breast.render,
}
CLASS_NAMES: dict[str, tuple[str, ...]] = {
    "endoscopy": endoscopy.CLASS_NAMES,
    "ultrasound": ultrasound.CLASS_NAMES,
    "xray": xray.CLASS_NAMES,
    "breast": breast.CLASS_NAMES,
}
MULTI_LABEL: dict[str, bool] = {kind: kind == "xray" for kind in _RENDERERS}
KINDS = tuple(_RENDERERS)
SMALLEST_PX = 32


@dataclass(frozen=True)
class Phantom:
    """One made picture with its truth.

    Attributes
    ----------
    image
        (H, W, 3) uint8 RGB; grey kinds repeat their channel.
    masks
        (C, H, W) bool; channel i is class_id i + 1. They overlap only where `multi_label`.
    class_names
        C names.
    multi_label
        Whether classes may overlap.
    """

    image: Image
    masks: Masks
    class_names: tuple[str, ...]
    multi_label: bool


def check_kind(kind: str) -> None:
    """Require one of KINDS, with a ValueError otherwise."""
    if kind not in _RENDERERS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}.")


def make(kind: str, *, seed: int = 0, index: int = 0, size: tuple[int, int] = (256, 256)) -> Phantom:
    """Make one phantom.

    Parameters
    ----------
    kind
        One of `KINDS`.
    seed
        Names a series, >= 0.
    index
        The phantom's place in the series, >= 0; each is made alone, in any order.
    size
        (height, width) in pixels, at least 32 x 32.

    Raises
    ------
    ValueError
        When an argument is out of its range.
    """
    check_kind(kind)
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index must be at least 0, not {seed} and {index}.")
    if min(size) < SMALLEST_PX:
        raise ValueError(f"size must be (height, width) of at least {SMALLEST_PX} px each, not {size}.")
    # The kind's letters enter the seed, so that one series number gives unrelated pictures of each kind.
    source = np.random.SeedSequence([*kind.encode(), seed, index])
    image, masks = _RENDERERS[kind](Canvas(size, np.random.Generator(np.random.PCG64(source))))
    return Phantom(image, masks, CLASS_NAMES[kind], MULTI_LABEL[kind])
