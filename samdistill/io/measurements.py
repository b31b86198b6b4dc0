"""What a mask measures: area, longest diameter, components; in pixels and, where spacing is known, in mm."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from samdistill.arrays import Mask
from samdistill.components import Components, label

Points = npt.NDArray[np.float64]  # (N, 2) xy


@dataclass(frozen=True)
class Measurement:
    """One class in one image.

    Attributes
    ----------
    area_px, area_mm2
        Of all its pixels; None where the spacing is not known.
    components
        Number of 8-connected components.
    longest_diameter_px, longest_diameter_mm
        The longest straight line between two corners of pixels of one component; 0 where there is none.
    """

    area_px: int
    area_mm2: float | None
    components: int
    longest_diameter_px: float
    longest_diameter_mm: float | None


def measure(mask: Mask, spacing_mm: tuple[float, float] | None = None) -> Measurement:
    """Measure a mask.

    Parameters
    ----------
    mask
        (H, W) bool.
    spacing_mm
        From row to row and from column to column, (y, x).
    """
    found = label(mask)
    area = int(found.area_px.sum())
    in_px = longest_diameter(found, (1.0, 1.0))
    if spacing_mm is None:
        return Measurement(area, None, len(found), in_px, None)
    y, x = spacing_mm
    in_mm = in_px * y if y == x else longest_diameter(found, spacing_mm)
    return Measurement(area, area * y * x, len(found), in_px, in_mm)


def longest_diameter(found: Components, spacing: tuple[float, float]) -> float:
    """The longest line between two pixel corners of one component, in the unit of the spacing (y, x)."""
    scale = np.array([spacing[1], spacing[0]])
    sides = (found.boxes[:, 2:] - found.boxes[:, :2]) * scale
    diagonals = np.hypot(sides[:, 0], sides[:, 1])
    longest = 0.0
    for index in np.argsort(-diagonals, kind="stable"):
        if diagonals[index] <= longest:
            break  # no further component can be longer than its box's diagonal
        x0, y0, x1, y1 = found.boxes[index]
        inside = found.labels[y0:y1, x0:x1] == index + 1
        corners = _hull(_corners(inside)) * scale
        steps = corners[:, None] - corners[None]
        longest = max(longest, float(np.sqrt((steps**2).sum(axis=2).max())))
    return longest


def _corners(inside: Mask) -> Points:
    """Corners of each row's outermost pixels, which hold the convex hull's; every row has a pixel."""
    rows = np.arange(len(inside))
    left, right = inside.argmax(axis=1), inside.shape[1] - inside[:, ::-1].argmax(axis=1)
    columns = np.concatenate([left, left, right, right])
    return np.stack([columns, np.concatenate([rows, rows + 1] * 2)], axis=1).astype(np.float64)


def _hull(points: Points) -> Points:
    """The corners of the convex hull (Andrew 1979, monotone chain)."""
    ordered = sorted({(x, y) for x, y in points.tolist()})
    chains: list[list[tuple[float, float]]] = []
    for line in (ordered, ordered[::-1]):
        chain: list[tuple[float, float]] = []
        for x, y in line:
            while len(chain) > 1:
                (ax, ay), (bx, by) = chain[-2:]
                if (bx - ax) * (y - ay) - (by - ay) * (x - ax) > 0:
                    break
                chain.pop()
            chain.append((x, y))
        chains.append(chain[:-1])
    return np.array(chains[0] + chains[1])
