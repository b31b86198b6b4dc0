"""Line charts and histograms as inline SVG: coloured by the page's style, readable without a script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from samdistill.report.document import escape

WIDTH, HEIGHT = 560.0, 260.0
LEFT, RIGHT, TOP, BOTTOM = 48.0, 12.0, 24.0, 38.0  # room for labels around the plot
MAX_POINTS = 400  # of a drawn curve; more cannot be seen
MAX_SERIES = 3  # the style tells so many apart


@dataclass(frozen=True)
class Series:
    """A curve.

    Parameters
    ----------
    name
        Plain text of the legend.
    x, y
        Equally many numbers; a point whose y is NaN is left out.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]


def line_chart(
    title: str, series: Sequence[Series], *, x_label: str, y_range: tuple[float, float] | None = None
) -> str:
    """A figure with up to three curves over one axis.

    Parameters
    ----------
    title, x_label
        Plain text.
    series
        At most three; they differ by colour and by dashes.
    y_range
        Bounds of the y axis; None fits them to the curves.
    """
    if len(series) > MAX_SERIES:
        raise ValueError(
            f"series must be at most {MAX_SERIES} in a chart, not {len(series)}. Draw two charts."
        )
    curves = [(one.name, _points(one)) for one in series]
    drawn = [point for _, points in curves for point in points]
    if not drawn:
        return _figure(title, '<text x="50%" y="50%" text-anchor="middle">nothing logged yet</text>')
    x_ticks = _ticks(min(x for x, _ in drawn), max(x for x, _ in drawn))
    y_ticks = _ticks(*(y_range or (min(y for _, y in drawn), max(y for _, y in drawn))))
    plot = _Plot(x_ticks, y_ticks)
    parts = [plot.axes(x_label)]
    for index, (name, points) in enumerate(curves):
        path = " ".join(f"{plot.x(x):.1f},{plot.y(y):.1f}" for x, y in points)
        if len(points) == 1:  # a line of one point is nothing to see
            path = f"{path} {path}"
        parts.append(
            f'<polyline class="curve s{index}" stroke-linecap="round" points="{path}">'
            f"<title>{escape(name)}</title></polyline>"
        )
    at = LEFT
    for index, (name, _) in enumerate(curves):
        parts.append(f'<line class="curve s{index}" x1="{at}" x2="{at + 22}" y1="9" y2="9"/>')
        parts.append(f'<text x="{at + 27}" y="13">{escape(name)}</text>')
        at += 47 + 6.2 * len(name)
    return _figure(title, "".join(parts))


def histogram(
    title: str,
    values: Sequence[float],
    *,
    x_label: str,
    bounds: tuple[float, float] = (0.0, 1.0),
    bins: int = 20,
) -> str:
    """A figure that counts values in equal bins, with a mark at their mean.

    Parameters
    ----------
    title, x_label
        Plain text.
    values
        Numbers; NaN is left out, what lies outside `bounds` falls into the first or last bin.
    bounds, bins
        The axis and how many bars it has; the last bin holds its upper bound.
    """
    known = np.array([value for value in values if not math.isnan(value)])
    counts, edges = np.histogram(np.clip(known, *bounds), bins=bins, range=bounds)
    plot = _Plot(_ticks(*bounds), _ticks(0.0, max(1.0, float(counts.max())), whole=True))
    parts = [plot.axes(x_label)]
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        top, left = plot.y(float(count)), plot.x(float(low)) + 1
        wide = plot.x(float(high)) - left - 1
        parts.append(
            f'<rect class="bar" x="{left:.1f}" y="{top:.1f}" width="{wide:.1f}" '
            f'height="{plot.y(0) - top:.1f}"><title>{low:.2f} to {high:.2f}: {count}</title></rect>'
        )
    if known.size:
        mean = float(known.mean())
        at = plot.x(min(max(mean, bounds[0]), bounds[1]))
        anchor = "end" if at > WIDTH / 2 else "start"
        parts.append(f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP - 8}" y2="{plot.y(0)}"/>')
        parts.append(
            f'<text x="{at + (-5 if anchor == "end" else 5):.1f}" y="{TOP - 10}" text-anchor="{anchor}">'
            f"mean {mean:.3g}</text>"
        )
    return _figure(title, "".join(parts))


class _Plot:
    """Data coordinates to those of the SVG; the axes run from the first tick to the last."""

    def __init__(self, x_ticks: list[float], y_ticks: list[float]) -> None:
        self.x_ticks, self.y_ticks = x_ticks, y_ticks

    def x(self, value: float) -> float:
        low, high = self.x_ticks[0], self.x_ticks[-1]
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        inside = min(max(value, low), high)
        return HEIGHT - BOTTOM - (inside - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def axes(self, x_label: str) -> str:
        parts = []
        for tick in self.y_ticks:
            at = self.y(tick)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{tick:g}</text>')
        below, middle = HEIGHT - BOTTOM + 16, (LEFT + WIDTH - RIGHT) / 2
        for tick in self.x_ticks:
            parts.append(f'<text x="{self.x(tick):.1f}" y="{below}" text-anchor="middle">{tick:g}</text>')
        parts.append(f'<text x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>')
        return "".join(parts)


def _points(series: Series) -> list[tuple[float, float]]:
    points = [(x, y) for x, y in zip(series.x, series.y, strict=True) if math.isfinite(y)]
    if len(points) <= MAX_POINTS:
        return points
    kept = np.unique(np.linspace(0, len(points) - 1, MAX_POINTS).round().astype(int))
    return [points[index] for index in kept]


def _ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Three to seven round numbers that enclose low..high."""
    if high <= low:
        low, high = low - 0.5, low + 0.5
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    if whole:
        step = max(1.0, float(math.ceil(step)))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * index, 12) for index in range(first, last + 1)]


def _figure(title: str, content: str) -> str:
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" role="img" aria-label="{escape(title)}">{content}</svg>'
        "</figure>"
    )
