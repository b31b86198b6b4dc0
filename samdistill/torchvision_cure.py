"""Lets `import torchvision` succeed beside a torch it was not built for.

torchvision's wheels carry a binary with its operators. Where it does not load (the CUDA build beside a CPU
torch is the common case) the import dies with "operator torchvision::nms does not exist", although nothing
else of torchvision needs that binary; segment_anything and segmentation_models_pytorch (through timm) die
with it. Declaring the two operators the import looks for cures it, and `nms` gets an implementation in torch,
since segment_anything calls it. Everything else in the binary (roi_align and so on) stays absent and says so.

A second declaration beside a healthy torchvision aborts the process, therefore the binary is tried first.
Knows neither SAM nor students: whatever imports torchvision, itself or through others, calls `cure` first.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.machinery
import importlib.util
from functools import cache
from pathlib import Path

import torch

_KEEP: list[torch.library.Library] = []  # a torch.library.Library that is collected takes its operators along


@cache
def cure() -> bool:
    """Make torchvision importable in this process; calling again is free.

    Returns
    -------
    bool
        True where operators had to be put in, False where torchvision was well or is not installed.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return False
    if _binary_loads(Path(spec.submodule_search_locations[0])):
        return False
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    library.impl("nms", nms, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    _KEEP.append(library)
    # torchvision.ops.nms asks whether the binary is there before it calls the operator.
    boxes = importlib.import_module("torchvision.ops.boxes")
    boxes._assert_has_ops = lambda: None  # type: ignore[attr-defined]
    return True


def _binary_loads(package: Path) -> bool:
    """Say whether torchvision's `_C` loads into this process, as torchvision itself will load it."""
    suffixes = (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES)
    spec = importlib.machinery.FileFinder(str(package), suffixes).find_spec("_C")
    if spec is None or spec.origin is None:
        return False
    try:
        ctypes.CDLL(spec.origin)
    except OSError:
        return False
    return hasattr(torch.ops.torchvision, "nms")


def nms(dets: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Non-maximum suppression of boxes, as `torchvision.ops.nms` defines it.

    Parameters
    ----------
    dets
        (N, 4) float boxes xyxy.
    scores
        (N,) float.
    iou_threshold
        A box goes when its IoU with a kept box of higher score is strictly above this.

    Returns
    -------
    torch.Tensor
        (K,) int64 indices of the kept boxes, highest score first; equal scores in order of index.
    """
    order = scores.sort(descending=True, stable=True).indices
    x0, y0, x1, y1 = dets[order].unbind(dim=1)
    areas = (x1 - x0) * (y1 - y0)
    alive = torch.ones(len(order), dtype=torch.bool, device=dets.device)
    kept: list[int] = []
    for i in range(len(order)):
        if not alive[i]:
            continue
        kept.append(i)
        width = (torch.minimum(x1[i], x1[i + 1 :]) - torch.maximum(x0[i], x0[i + 1 :])).clamp(min=0)
        height = (torch.minimum(y1[i], y1[i + 1 :]) - torch.maximum(y0[i], y0[i + 1 :])).clamp(min=0)
        shared = width * height
        overlap = shared / (areas[i] + areas[i + 1 :] - shared)
        alive[i + 1 :] &= ~(overlap.double() > iou_threshold)  # torchvision's threshold is a double
    return order[kept]
