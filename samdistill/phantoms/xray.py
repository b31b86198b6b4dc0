"""Radiograph-like grey pictures of a wrist; classes overlap, for rays pass through one bone and the next.

Bones are solids in three dimensions, turned about the forearm's axis before they are projected: the more
the wrist is turned, the more its bones lie over one another. Five bones are classes (`radius`, `ulna`,
`scaphoid`, `lunate`, `capitate`); the other wrist and hand bones are drawn and belong to none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from samdistill.arrays import Image, Masks
from samdistill.phantoms.canvas import Canvas, Field, bell, smoothstep, soften, to_uint8

CLASS_NAMES = ("radius", "ulna", "scaphoid", "lunate", "capitate")

# Carpal bones: name, then centre across (toward the thumb < 0), along (toward the fingers > 0) and deep,
# half width, half length; in units of the scene's shorter side at scale 1.
CARPALS = (
    ("scaphoid", -0.088, 0.090, -0.030, 0.052, 0.074),
    ("lunate", 0.000, 0.070, 0.010, 0.056, 0.049),
    ("triquetrum", 0.088, 0.088, 0.030, 0.046, 0.044),
    ("pisiform", 0.105, 0.108, -0.045, 0.028, 0.030),
    ("trapezium", -0.142, 0.186, -0.040, 0.048, 0.046),
    ("trapezoid", -0.074, 0.196, 0.005, 0.040, 0.038),
    ("capitate", 0.002, 0.176, 0.015, 0.050, 0.078),
    ("hamate", 0.082, 0.178, 0.005, 0.052, 0.062),
)
METACARPALS = (
    (-0.20, 0.24, -0.05),
    (-0.095, 0.26, 0.0),
    (-0.005, 0.27, 0.01),
    (0.07, 0.26, 0.0),
    (0.13, 0.25, 0.0),
)


@dataclass(frozen=True)
class Wrist:
    """The frame of one wrist on the canvas: `across` and `along` are its coordinates of every pixel."""

    across: Field
    along: Field
    cosine: float
    sine: float
    scale: float

    def project(self, across: float, deep: float) -> float:
        """Where a point of the turned wrist falls across the film."""
        return across * self.cosine + deep * self.sine


def render(canvas: Canvas) -> tuple[Image, Masks]:
    """Draw one picture and its masks.

    Returns
    -------
    image
        (H, W, 3) uint8, three equal channels; dense is bright.
    masks
        (5, H, W) bool in the order of `CLASS_NAMES`; they overlap.
    """
    wrist = _place(canvas)
    masks = np.zeros((len(CLASS_NAMES), *canvas.size), np.bool_)
    absorbed = _soft_tissue(canvas, wrist)
    spongy = canvas.fractal(26.0, 3)
    strength = canvas.uniform(0.45, 1.0)
    levels: list[tuple[str, Field, float]] = []
    for name, level, half in _forearm(canvas, wrist):
        levels.append((name, level, half))
    for name, across, along, deep, half_width, half_length in CARPALS:
        level = _carpal(canvas, wrist, across, along, deep, half_width, half_length)
        levels.append((name, level, (half_width + half_length) / 2))
    for across, along, deep in METACARPALS:
        levels.append(("metacarpal", _metacarpal(canvas, wrist, across, along, deep), 0.03))
    for name, level, half in levels:
        absorbed = absorbed + _bone(level, spongy, half) * np.float32(strength * canvas.uniform(0.85, 1.15))
        if name in CLASS_NAMES:
            masks[CLASS_NAMES.index(name)] = level < 1.0
    if canvas.chance(0.35):
        absorbed = absorbed + _cast(canvas, wrist)
    if canvas.chance(0.2):
        absorbed = absorbed + _screws(canvas, wrist)
    return _film(canvas, absorbed), masks


def _place(canvas: Canvas) -> Wrist:
    """Lay the wrist on the film: turned, mirrored, shifted, larger or smaller."""
    turn = canvas.uniform(-0.45, 0.45) + (math.pi if canvas.chance(0.05) else 0.0)
    c, s = math.cos(turn), math.sin(turn)
    scale = canvas.uniform(1.0, 1.6)
    middle_x = canvas.width / 2 + canvas.uniform(-0.1, 0.1)
    middle_y = canvas.height * 0.58 + canvas.uniform(-0.1, 0.1)
    dx, dy = canvas.x - np.float32(middle_x), canvas.y - np.float32(middle_y)
    # A slow warp stands for bent fingers and for how bodies differ.
    across = (dx * np.float32(c) + dy * np.float32(s)) / np.float32(scale)
    along = (dx * np.float32(s) - dy * np.float32(c)) / np.float32(scale)
    across = across + canvas.noise(1.5) * np.float32(0.03)
    along = along + canvas.noise(1.5) * np.float32(0.03)
    if canvas.chance(0.5):
        across = -across
    view = canvas.uniform(-0.5, 0.5) if canvas.chance(0.7) else canvas.uniform(-1.2, 1.2)
    return Wrist(across, along, math.cos(view), math.sin(view), scale)


def _forearm(canvas: Canvas, wrist: Wrist) -> list[tuple[str, Field, float]]:
    """Radius and ulna: shafts that widen toward the wrist."""
    bones = []
    for name, across, deep, shaft, head, tip in (
        ("radius", -0.055, -0.012, 0.046, 0.098, 0.012),
        ("ulna", 0.085, 0.035, 0.036, 0.046, -0.012),
    ):
        tip = tip + canvas.uniform(-0.02, 0.02)
        end = wrist.project(across * canvas.uniform(0.92, 1.1), deep)
        lean = canvas.uniform(-0.12, 0.12) + (0.14 if name == "radius" else -0.02) * wrist.cosine
        back = np.float32(tip) - wrist.along
        middle = np.float32(end) + np.clip(back, 0.0, 1.0) * np.float32(lean)
        # Turned on its side the flat end of the radius is narrower than face on.
        wide = head * (0.62 + 0.38 * abs(wrist.cosine)) * canvas.uniform(0.9, 1.1)
        narrow = shaft * canvas.uniform(0.85, 1.15)
        half = np.float32(narrow) + np.float32(wide - narrow) * smoothstep(back, 0.24, 0.02)
        side = (wrist.across - middle) / half + canvas.noise(9.0) * np.float32(0.06)
        cap = np.clip(np.float32(0.035) - back, 0.0, 1.0) / np.float32(0.035)
        cap = np.clip(cap + canvas.noise(7.0) * np.float32(0.15) * (cap > 0), 0.0, None)
        bones.append((name, np.sqrt(side * side + cap * cap), narrow))
    return bones


def _carpal(
    canvas: Canvas,
    wrist: Wrist,
    across: float,
    along: float,
    deep: float,
    half_width: float,
    half_length: float,
) -> Field:
    """A pebble: an ellipse, slightly turned, with an uneven outline."""
    x = wrist.project(across + canvas.uniform(-0.008, 0.008), deep)
    y = along + canvas.uniform(-0.01, 0.01)
    lean = canvas.uniform(-0.5, 0.5)
    c, s = math.cos(lean), math.sin(lean)
    dx, dy = wrist.across - np.float32(x), wrist.along - np.float32(y)
    u = (dx * np.float32(c) + dy * np.float32(s)) / np.float32(half_width * canvas.uniform(0.88, 1.12))
    v = (dy * np.float32(c) - dx * np.float32(s)) / np.float32(half_length * canvas.uniform(0.88, 1.12))
    return np.sqrt(u * u + v * v) + canvas.noise(14.0) * np.float32(0.13)


def _metacarpal(canvas: Canvas, wrist: Wrist, across: float, along: float, deep: float) -> Field:
    """A slender bone toward the fingers, thicker at its near end."""
    base = wrist.project(across, deep)
    out = wrist.along - np.float32(along + canvas.uniform(-0.01, 0.01))
    spread = across * canvas.uniform(0.5, 1.1) * wrist.cosine
    half = np.float32(0.024) + np.float32(0.016) * smoothstep(out, 0.09, 0.0)
    side = (wrist.across - np.float32(base) - np.clip(out, 0.0, 1.0) * np.float32(spread)) / half
    cap = np.clip(np.float32(0.02) - out, 0.0, 1.0) / np.float32(0.02)
    level: Field = np.sqrt(side * side + cap * cap)
    return level


def _bone(level: Field, spongy: Field, half: float) -> Field:
    """What one bone absorbs: a dense rim round a spongy core."""
    inside = smoothstep(level, 1.04, 0.96)
    core = np.sqrt(np.clip(np.float32(1.1) - level * level, 0.0, 1.0))
    rim = bell(level - np.float32(0.93), min(0.012 / half, 0.3))
    return inside * (
        core * np.float32(0.32) + rim * np.float32(0.3) + np.float32(0.12) + spongy * np.float32(0.1)
    )


def _soft_tissue(canvas: Canvas, wrist: Wrist) -> Field:
    """Skin and muscle: a wide arm, a wider hand."""
    half = np.float32(0.21) + np.float32(canvas.uniform(0.0, 0.05)) * smoothstep(wrist.along, -0.05, 0.3)
    half = half * np.float32(0.62 + 0.38 * abs(wrist.cosine)) * np.float32(canvas.uniform(0.9, 1.15))
    level = (wrist.across + canvas.noise(3.0) * np.float32(0.015)) / half
    body = np.sqrt(np.clip(np.float32(1.0) - level * level, 0.0, 1.0))
    return body * np.float32(canvas.uniform(0.15, 0.6)) + body * canvas.fractal(4.0, 3) * np.float32(0.06)


def _cast(canvas: Canvas, wrist: Wrist) -> Field:
    """A plaster cast: woven bands across the arm."""
    weave = canvas.fractal(18.0, 2, stretch=3.0) * np.float32(0.12) + np.float32(0.25)
    edge = canvas.uniform(-0.1, 0.3)
    cover = smoothstep(wrist.along, edge + 0.02, edge - 0.02) * smoothstep(np.abs(wrist.across), 0.34, 0.3)
    plaster: Field = weave * cover * np.float32(canvas.uniform(0.4, 1.3))
    return plaster


def _screws(canvas: Canvas, wrist: Wrist) -> Field:
    """A metal plate on the forearm, or a pin."""
    x, y = canvas.uniform(-0.12, 0.12), canvas.uniform(-0.3, 0.05)
    width, length = canvas.uniform(0.006, 0.02), canvas.uniform(0.06, 0.2)
    bar = smoothstep(np.abs(wrist.across - np.float32(x)), width + 0.003, width - 0.003)
    return (
        bar
        * smoothstep(np.abs(wrist.along - np.float32(y)), length + 0.003, length - 0.003)
        * np.float32(2.5)
    )


def _film(canvas: Canvas, absorbed: Field) -> Image:
    """Expose the film: Beer-Lambert, scatter, quantum noise, collimation, marker."""
    absorbed = absorbed * np.float32(canvas.uniform(0.75, 1.3))
    # 1 / (1 + a + a^2 / 2) stands for exp(-a): division rounds alike everywhere, exp does not.
    through = np.float32(1.0) / (np.float32(1.0) + absorbed + absorbed * absorbed * np.float32(0.5))
    scatter = canvas.noise(1.2) * np.float32(0.08) + np.float32(canvas.uniform(0.0, 0.2))
    grey = np.float32(1.0) - through * np.float32(canvas.uniform(0.8, 1.0)) + scatter
    grey = grey + canvas.grain() * np.sqrt(through) * np.float32(canvas.uniform(0.02, 0.1))
    low, high = canvas.uniform(0.0, 0.2), canvas.uniform(0.75, 1.1)
    grey = (grey - np.float32(low)) / np.float32(high - low)
    if canvas.chance(0.3):
        tilt = canvas.uniform(-0.15, 0.15)
        aside = canvas.x - np.float32(canvas.width / 2) + (canvas.y - np.float32(0.5)) * np.float32(tilt)
        grey = grey * smoothstep(np.abs(aside), 0.47 * canvas.width, 0.46 * canvas.width)
    if canvas.chance(0.5):
        x, y = canvas.uniform(0.04, 0.12), canvas.uniform(0.05, 0.9) * canvas.height
        mark = (np.abs(canvas.x - np.float32(x)) < 0.012) & (np.abs(canvas.y - np.float32(y)) < 0.035)
        foot = (np.abs(canvas.x - np.float32(x + 0.02)) < 0.028) & (
            np.abs(canvas.y - np.float32(y + 0.028)) < 0.01
        )
        grey = np.where(mark | foot, np.float32(0.97), grey)
    picture = np.repeat(to_uint8(grey)[..., None], 3, axis=2)
    return soften(picture, canvas.uniform(0.2, 1.2) * canvas.unit_px / 256)
