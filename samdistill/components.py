"""Connected components of masks and probability maps: labels, statistics, cleaning.

Validates and describes; the work is done in the compiled core, without the GIL. Knows no class meaning and
no model. Arrays that are not C-contiguous are copied once; another dtype is an error. An empty array (a side
of 0) has no component.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from samdistill import _core
from samdistill.arrays import Labels, Mask, Masks, ProbabilityMap, ProbabilityMaps, describe

Keep = Literal["likeliest", "largest", "all"]
Operation = Literal["erosion", "dilation"]
Element = Literal["square", "disk", "diamond", "star"]

MAX_PIXELS = 2**31 - 1  # positions in an image are 32-bit integers
MAX_RADIUS = 16
_KEEP = {name: _core.Keep[name] for name in get_args(Keep)}


class Components:
    """The connected components of one mask, numbered 1..N in raster order of their first pixel.

    Attributes
    ----------
    labels
        (H, W) int32, 0 = background. After `summarize` it is painted when it is first asked for.
    area_px
        (N,) int64, pixels of label i + 1.
    boxes
        (N, 4) int64, pixels, xyxy half-open.
    centroids
        (N, 2) float64, pixels, xy with pixel centres at integers.
    mean_probability
        (N,) float64 in [0, 1], the mean of the map over the component; None after `label`, which saw no map.
    """

    __slots__ = ("_labels", "_runs", "area_px", "boxes", "centroids", "mean_probability")

    area_px: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.int64]
    centroids: npt.NDArray[np.float64]
    mean_probability: npt.NDArray[np.float64] | None

    def __init__(self, labels: Labels | None, table: _core._Table, runs: _core._Runs | None = None) -> None:
        self._labels = labels
        self._runs = runs  # edges, label of each run, height, width: what the label image is painted from
        self.area_px, self.boxes, self.centroids, self.mean_probability = table

    @property
    def labels(self) -> Labels:
        """(H, W) int32, 0 = background."""
        if self._labels is None:
            assert self._runs is not None
            self._labels = _core.paint(*self._runs)
        return self._labels

    def __len__(self) -> int:
        """N, the number of components."""
        return len(self.area_px)

    def __repr__(self) -> str:
        return f"Components({len(self)} of {int(self.area_px.sum())} px)"


@dataclass(frozen=True)
class Morphology:
    """An erosion or dilation, exactly scikit-image's `erosion` and `dilation` on the same footprint.

    Outside the image counts as background for dilation and is ignored for erosion.

    Attributes
    ----------
    operation
        "erosion" or "dilation".
    element
        "square", "disk", "diamond" or "star", as in `skimage.morphology`.
    radius
        0..16; 0 is the identity. A square is 2 * radius + 1 wide.
    width
        1..33, of a square, instead of `radius`. An even square is off-centre: it reaches width / 2 - 1 pixels
        up and left and width / 2 down and right.
    """

    operation: Operation
    element: Element = "square"
    radius: int | None = None
    width: int | None = None

    def __post_init__(self) -> None:
        if self.operation not in get_args(Operation):
            raise ValueError(f"operation must be one of {get_args(Operation)}, not {self.operation!r}.")
        if self.element not in get_args(Element):
            raise ValueError(f"element must be one of {get_args(Element)}, not {self.element!r}.")
        if (self.radius is None) == (self.width is None):
            given = f"radius={self.radius}, width={self.width}"
            raise ValueError(f"Morphology must be given either radius or width, not {given}.")
        if self.width is not None and self.element != "square":
            raise ValueError(f"width must be left out for a {self.element}. Give it a radius.")
        size, least, most = (
            (self.radius, 0, MAX_RADIUS) if self.width is None else (self.width, 1, 2 * MAX_RADIUS + 1)
        )
        if isinstance(size, bool) or not isinstance(size, int) or not least <= size <= most:
            name = "radius" if self.width is None else "width"
            raise ValueError(f"{name} must be an integer of {least}..{most}, not {size!r}.")

    def footprint(self) -> npt.NDArray[np.uint8]:
        """Give the footprint, (height, width) uint8 of 0 and 1, as `skimage.morphology` makes it."""
        if self.width is not None:
            return np.ones((self.width, self.width), np.uint8)
        assert self.radius is not None
        reach = self.radius + self.radius // 2 if self.element == "star" else self.radius
        y, x = np.abs(np.mgrid[-reach : reach + 1, -reach : reach + 1])
        square = np.maximum(x, y) <= self.radius
        inside: dict[Element, Mask] = {
            "square": square,
            "disk": x**2 + y**2 <= self.radius**2,
            "diamond": x + y <= reach,
            "star": square | (x + y <= reach),
        }
        return inside[self.element].astype(np.uint8)


@lru_cache(maxsize=256)
def _footprint_rows(morphology: Morphology) -> npt.NDArray[np.int32] | None:
    """(rows, 3) int32 dy, left, right of a footprint whose rows have no holes; None for the identity."""
    footprint = morphology.footprint()
    if footprint.size == 1:
        return None
    centre = (len(footprint) - 1) // 2
    rows = [(y - centre, *(np.flatnonzero(row)[[0, -1]] - centre)) for y, row in enumerate(footprint)]
    return np.array(rows, np.int32)


def check_probability_map(value: object, *, name: str = "probability_map") -> ProbabilityMap:
    """Require a float32 (H, W) map of fewer than 2^31 pixels; C-contiguous it comes back.

    NaN is not looked for here: the core meets it while it reads the map.
    """
    return _map(value, name, 2, "(H, W)")


def check_probability_maps(value: object, *, name: str = "probability_maps") -> ProbabilityMaps:
    """Require float32 (C, H, W) maps of fewer than 2^31 pixels each; C-contiguous they come back."""
    return _map(value, name, 3, "(C, H, W)")


def _map(value: object, name: str, dimensions: int, shape: str) -> npt.NDArray[np.float32]:
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name} must be a float32 array {shape}, not {describe(value)}.")
    if value.dtype != np.float32 or value.ndim != dimensions:
        cure = " Convert with .astype(np.float32)." if value.ndim == dimensions else ""
        raise ValueError(f"{name} must be float32 {shape}, not {describe(value)}.{cure}")
    _check_size(value, name)
    return np.ascontiguousarray(value)


def _check_size(value: npt.NDArray[Any], name: str) -> None:
    height, width = value.shape[-2:]
    if height * width > MAX_PIXELS:
        raise ValueError(
            f"{name} must have fewer than 2^31 pixels, not {height} x {width}. Cut it into tiles."
        )


def _check_threshold(threshold: object, name: str = "threshold") -> float:
    if not isinstance(threshold, (int, float, np.floating)) or not 0 <= threshold <= 1:
        raise ValueError(f"{name} must be a number in [0, 1], not {threshold!r}.")
    return float(threshold)


def _check_connectivity(connectivity: int) -> bool:
    """Whether pixels that share only a corner are neighbours."""
    if connectivity not in (4, 8):
        raise ValueError(f"connectivity must be 4 or 8, not {connectivity!r}.")
    return connectivity == 8


def nan_error(name: str, shape: tuple[int, ...], error: _core.NotANumber) -> ValueError:
    """Say where the core met NaN in an array of this shape."""
    place = tuple(int(i) for i in np.unravel_index(error.args[0], shape))
    return ValueError(
        f"{name} must be numbers in [0, 1], not NaN at {place}. Look for overflow in the model."
    )


def label(mask: Mask | npt.NDArray[np.uint8], *, connectivity: int = 8) -> Components:
    """Find the connected components of a mask, their statistics and their label image.

    Parameters
    ----------
    mask
        (H, W) bool or uint8; non-zero is foreground. Fewer than 2^31 pixels.
    connectivity
        4 or 8.

    Returns
    -------
    Components
        Numbered 1..N in raster order of their first pixel; `labels` is painted.
    """
    if not isinstance(mask, np.ndarray):
        raise TypeError(f"mask must be a bool array (H, W), not {describe(mask)}.")
    if mask.ndim != 2 or mask.dtype not in (np.bool_, np.uint8):
        raise ValueError(f"mask must be bool or uint8 (H, W), not {describe(mask)}.")
    _check_size(mask, "mask")
    pixels: Mask = np.ascontiguousarray(mask)
    labels, table = _core.label(pixels, _check_connectivity(connectivity))
    return Components(labels, table)


def summarize(
    probability_map: ProbabilityMap, *, threshold: float = 0.5, connectivity: int = 8
) -> Components:
    """Find the connected components of p > threshold and their statistics, in one pass over the map.

    Parameters
    ----------
    probability_map
        (H, W) float32 in [0, 1], without NaN. Fewer than 2^31 pixels.
    threshold
        In [0, 1], taken as float32; the comparison is strict.
    connectivity
        4 or 8.

    Returns
    -------
    Components
        As `label` numbers them, with `mean_probability`; `labels` is painted when it is first asked for.

    Raises
    ------
    ValueError
        Where the map holds NaN, among others.
    """
    checked = check_probability_map(probability_map)
    try:
        edges, run_labels, table = _core.summarize(
            checked, _check_threshold(threshold), _check_connectivity(connectivity)
        )
    except _core.NotANumber as error:
        raise nan_error("probability_map", checked.shape, error) from None
    return Components(None, table, (edges, run_labels, *checked.shape))


def clean(
    probability_maps: ProbabilityMaps,
    *,
    threshold: float | Sequence[float] = 0.5,
    keep: Keep = "likeliest",
    min_area_px: int = 0,
    morphology: Morphology | None = None,
) -> Masks:
    """Make a mask out of each class's map: binarise, keep components, then erode or dilate.

    Step 3 of SAM Carries the Burden, eq. 1: the likeliest component is the one of greatest mean probability.

    Parameters
    ----------
    probability_maps
        (C, H, W) float32 in [0, 1], without NaN; channel i is class_id i + 1. Fewer than 2^31 pixels a map.
    threshold
        In [0, 1], taken as float32, one for all or one for each class; the comparison is strict.
    keep
        "likeliest", "largest" (by area) or "all" of the 8-connected components. Of equals the first in raster
        order stays.
    min_area_px
        Components of fewer pixels are dropped before one is chosen.
    morphology
        What is done to the components that stay; they may then touch, vanish or fall apart.

    Returns
    -------
    Masks
        (C, H, W) bool. Classes may overlap; one where nothing stays is empty.

    Raises
    ------
    ValueError
        Where a map holds NaN, among others.
    """
    checked = check_probability_maps(probability_maps)
    how = core_cleaning(len(checked), threshold, keep, min_area_px, morphology)
    try:
        return _core.clean(checked, *how)
    except _core.NotANumber as error:
        raise nan_error("probability_maps", checked.shape, error) from None


def without_overlap(masks: Masks, probability_maps: ProbabilityMaps) -> Masks:
    """Give a pixel that several classes claim to the most probable of them, among equals to the first.

    Parameters
    ----------
    masks
        (C, H, W) bool.
    probability_maps
        (C, H, W) float32 in [0, 1].

    Returns
    -------
    Masks
        (C, H, W) bool; the very `masks` where no pixel is claimed twice.
    """
    if np.count_nonzero(masks) == np.count_nonzero(masks.any(axis=0)):
        return masks
    claimed = np.where(masks, probability_maps, np.float32(-1))
    alone: Masks = masks & (np.arange(len(masks))[:, None, None] == claimed.argmax(axis=0))
    return alone


def core_cleaning(
    classes: int,
    threshold: float | Sequence[float],
    keep: Keep,
    min_area_px: int,
    morphology: Morphology | None,
) -> _core._Cleaning:
    """Check the arguments of `clean` and turn them into the core's; for those who clean inside the core."""
    if keep not in _KEEP:
        raise ValueError(f"keep must be one of {get_args(Keep)}, not {keep!r}.")
    if isinstance(min_area_px, bool) or not isinstance(min_area_px, (int, np.integer)) or min_area_px < 0:
        raise ValueError(f"min_area_px must be an integer >= 0, not {min_area_px!r}.")
    if isinstance(threshold, Sequence):
        if len(threshold) != classes:
            raise ValueError(f"threshold must be one number or {classes}, one a class, not {len(threshold)}.")
        thresholds = [_check_threshold(value, f"threshold[{c}]") for c, value in enumerate(threshold)]
    else:
        thresholds = [_check_threshold(threshold)] * classes
    footprint, erosion = None, False
    if morphology is not None:
        footprint, erosion = _footprint_rows(morphology), morphology.operation == "erosion"
    return np.array(thresholds, np.float32), _KEEP[keep], int(min_area_px), erosion, footprint
