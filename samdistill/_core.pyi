from enum import Enum
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

def version() -> str: ...
def assign(
    weights: npt.NDArray[np.float64], maximize: bool
) -> tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]]: ...
def cover(
    covered_by: npt.NDArray[np.bool_],
    inside: npt.NDArray[np.float64],
    outside: npt.NDArray[np.float64],
    total: npt.NDArray[np.float64],
    lower: npt.NDArray[np.int64],
    upper: npt.NDArray[np.int64],
    limit: npt.NDArray[np.int64],
    pieces: tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]] | None,
    nodes: int,
    seconds: float,
) -> tuple[bool, list[npt.NDArray[np.int64]], float, int, int]: ...
def resize_rgb(image: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]: ...
def resize_maps(maps: npt.NDArray[np.float32], height: int, width: int) -> npt.NDArray[np.float32]: ...
def unfilter_png(
    rows: npt.NDArray[np.uint8], height: int, row_bytes: int, pixel_bytes: int
) -> npt.NDArray[np.uint8] | None: ...
def mask_iou(masks_a: npt.NDArray[np.bool_], masks_b: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]: ...
def nms(
    boxes: npt.NDArray[np.float32] | npt.NDArray[np.float64], order: npt.NDArray[np.int64], iou: float
) -> npt.NDArray[np.int64]: ...

_Table: TypeAlias = tuple[  # area, boxes, centroids, mean probability
    npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.float64] | None
]
_Runs: TypeAlias = tuple[
    npt.NDArray[np.int32], npt.NDArray[np.int32], int, int
]  # edges, labels, height, width

_Cleaning: TypeAlias = tuple[  # thresholds, keep, min_area_px, erosion, footprint
    npt.NDArray[np.float32], "Keep", int, bool, npt.NDArray[np.int32] | None
]
_Sets: TypeAlias = tuple[  # class index, component, boxes, points, point labels, offsets
    npt.NDArray[np.int32],
    npt.NDArray[np.int32],
    npt.NDArray[np.float32],
    npt.NDArray[np.float32],
    npt.NDArray[np.int32],
    npt.NDArray[np.int64],
]

class NotANumber(ValueError): ...

class Keep(Enum):
    __pybind11_native_enum__: object
    likeliest = ...
    largest = ...
    all = ...

def label(
    mask: npt.NDArray[np.bool_] | npt.NDArray[np.uint8], diagonal: bool
) -> tuple[npt.NDArray[np.int32], _Table]: ...
def summarize(
    map: npt.NDArray[np.float32], threshold: float, diagonal: bool
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], _Table]: ...
def paint(
    edges: npt.NDArray[np.int32], run_labels: npt.NDArray[np.int32], height: int, width: int
) -> npt.NDArray[np.int32]: ...
def clean(
    maps: npt.NDArray[np.float32],
    thresholds: npt.NDArray[np.float32],
    keep: Keep,
    min_area_px: int,
    erosion: bool,
    footprint: npt.NDArray[np.int32] | None,
) -> npt.NDArray[np.bool_]: ...

class PointRule(Enum):
    __pybind11_native_enum__: object
    none = ...
    likeliest = ...
    centre = ...

def extract_prompts(
    maps: npt.NDArray[np.float32],
    thresholds: npt.NDArray[np.float32],
    keep: Keep,
    min_area_px: int,
    erosion: bool,
    footprint: npt.NDArray[np.int32] | None,
    per_component: bool,
    points: PointRule,
    count: int,
    spread_px: float,
    snap: bool,
    negatives: bool,
    seed: int,
    with_masks: bool,
) -> tuple[_Sets, npt.NDArray[np.bool_] | None]: ...
