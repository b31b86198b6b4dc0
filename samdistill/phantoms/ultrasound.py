"""Ultrasound-like grey pictures with the classes `nerve` and `vessel`, either of which may be absent.

Tissue is a map of echo strength, layered from the skin down; speckle is the magnitude of a band-limited
complex field, as in a real scanner. A vessel is dark with a bright wall and brighter tissue behind it, a
nerve a bright oval with a honeycomb of dark bundles. Dark muscle bellies, fat lobules, bone with its shadow
and lost contact are there to be mistaken for them.
"""

from __future__ import annotations

import math

import numpy as np

from samdistill.arrays import Image, Masks
from samdistill.phantoms.canvas import Blob, Canvas, Field, bell, smoothstep, to_uint8
from samdistill.phantoms.scanner import compress, depth_gain, lost_contact, sector, speckle

CLASS_NAMES = ("nerve", "vessel")


def render(canvas: Canvas) -> tuple[Image, Masks]:
    """Draw one picture and its masks.

    Returns
    -------
    image
        (H, W, 3) uint8, three equal channels.
    masks
        (2, H, W) bool: nerve, vessel; they do not overlap.
    """
    echo = _layers(canvas)
    gain_behind = np.ones(canvas.size, np.float32)
    taken: list[Blob] = []
    for _ in range(canvas.count(1, 3)):
        _muscle_or_fat(canvas, echo)
    nerve, vessel = np.zeros(canvas.size, np.bool_), np.zeros(canvas.size, np.bool_)
    which = canvas.uniform(0.0, 1.0)
    if which < 0.85:
        for _ in range(canvas.count(1, 2)):
            blob = _free_blob(canvas, taken, 0.06, 0.15, aspect=2.2, wobble=0.35)
            if blob is not None:
                _paint_nerve(canvas, blob, echo)
                nerve |= blob.level < 1.0
    if which > 0.25:
        for _ in range(canvas.count(1, 2)):
            blob = _free_blob(canvas, taken, 0.04, 0.13, aspect=1.6, wobble=0.12)
            if blob is not None:
                gain_behind = gain_behind * _paint_vessel(canvas, blob, echo)
                vessel |= blob.level < 1.0
    if canvas.chance(0.45):
        gain_behind = gain_behind * _bone(canvas, echo, taken)
    seen = echo * gain_behind * lost_contact(canvas) * depth_gain(canvas)
    grey = compress(canvas, seen * speckle(canvas))
    if canvas.chance(0.45):
        inside = sector(canvas)
        grey = grey * inside
        nerve &= inside > 0.5
        vessel &= inside > 0.5
    picture = to_uint8(grey)
    return np.repeat(picture[..., None], 3, axis=2), np.stack([nerve, vessel & ~nerve])


def _layers(canvas: Canvas) -> Field:
    """Skin, fat and muscles in wavy layers with bright fascia between them."""
    tilt = canvas.uniform(-0.25, 0.25) * (canvas.x - np.float32(canvas.width / 2))
    depth = canvas.y + tilt + canvas.fractal(2.2, 3, stretch=1.6) * np.float32(canvas.uniform(0.02, 0.13))
    echo = np.full(canvas.size, np.float32(canvas.uniform(0.12, 0.3)))
    fibres = canvas.fractal(canvas.uniform(12.0, 26.0), 2, stretch=canvas.uniform(3.0, 7.0))
    top = canvas.uniform(0.04, 0.1)
    while top < canvas.height * 1.2:
        thick = canvas.uniform(0.07, 0.3)
        level = canvas.uniform(0.06, 0.4)
        band = smoothstep(depth, top - 0.01, top + 0.01)
        streaks = np.float32(1.0) + fibres * np.float32(canvas.uniform(0.3, 1.1))
        echo += (np.float32(level) * streaks - echo) * band
        fascia = bell(depth - np.float32(top), canvas.uniform(0.004, 0.012))
        echo += fascia * smoothstep(canvas.noise(4.0), -0.5, 0.3) * np.float32(canvas.uniform(0.2, 1.3))
        top += thick
    for _ in range(canvas.count(0, 7)):
        # Short septa inside the layers, slanted as muscle fibres are.
        x, y = canvas.place(0.0)
        strand = canvas.y - np.float32(y) - (canvas.x - np.float32(x)) * np.float32(canvas.uniform(-0.4, 0.4))
        echo += (
            bell(strand, 0.004)
            * bell(canvas.x - np.float32(x), canvas.uniform(0.05, 0.2))
            * np.float32(canvas.uniform(0.3, 1.0))
        )
    echo += bell(canvas.y, canvas.uniform(0.01, 0.03)) * np.float32(0.8)
    return np.clip(echo, 0.02, 2.0)


def _free_blob(
    canvas: Canvas, taken: list[Blob], smallest: float, largest: float, *, aspect: float, wobble: float
) -> Blob | None:
    """Find room for a structure that touches none of those before it; None when ten tries fail."""
    for _ in range(10):
        radius = canvas.uniform(smallest, largest)
        x, y = canvas.place(radius)
        if y > 0.12 and all(math.hypot(b.x - x, b.y - y) > (b.radius + radius) * 1.45 for b in taken):
            long = canvas.uniform(1.0, aspect)
            blob = canvas.blob(x, y, radius, aspect=long, wobble=canvas.uniform(0.0, wobble))
            taken.append(blob)
            return blob
    return None


def _paint_nerve(canvas: Canvas, blob: Blob, echo: Field) -> None:
    """A bright oval speckled with dark bundles, its sheath a little brighter still."""
    bundles = smoothstep(canvas.noise(canvas.uniform(0.32, 0.5) * 10 / math.sqrt(blob.radius)), 0.0, 0.5)
    level = canvas.uniform(0.35, 0.75)
    own = np.float32(level) * (np.float32(1.0) - bundles * np.float32(canvas.uniform(0.45, 0.85)))
    inside = smoothstep(blob.level, 1.08, 0.92) * np.float32(canvas.uniform(0.75, 1.0))
    echo += (own - echo) * inside
    sheath = bell(blob.level - np.float32(0.98), canvas.uniform(0.05, 0.12))
    echo += sheath * np.float32(canvas.uniform(0.0, 0.35))


def _paint_vessel(canvas: Canvas, blob: Blob, echo: Field) -> Field:
    """A dark lumen with a bright wall; return the gain (H, W) of what lies behind it."""
    inside = smoothstep(blob.level, 1.08, 0.9)
    echo += (np.float32(canvas.uniform(0.01, 0.09)) - echo) * inside
    # The wall shines where the beam meets it square on: above and below, not at the sides.
    across = np.abs(canvas.y - np.float32(blob.y)) / np.float32(blob.radius)
    wall = bell(blob.level - np.float32(1.06), canvas.uniform(0.06, 0.14)) * smoothstep(across, 0.1, 0.8)
    echo += wall * np.float32(canvas.uniform(0.05, 0.7))
    width = bell((canvas.x - np.float32(blob.x)) / np.float32(blob.radius), 1.0)
    below = smoothstep(canvas.y, blob.y + blob.radius * 0.7, blob.y + blob.radius * 1.1)
    return np.float32(1.0) + below * width * np.float32(canvas.uniform(0.0, 1.2))


def _muscle_or_fat(canvas: Canvas, echo: Field) -> None:
    """A dark belly without a wall, or a bright lobule without bundles."""
    x, y = canvas.place(0.0)
    blob = canvas.blob(x, y, canvas.uniform(0.04, 0.15), aspect=canvas.uniform(1.2, 3.0), wobble=0.4)
    dark = canvas.chance(0.6)
    level = canvas.uniform(0.04, 0.12) if dark else canvas.uniform(0.35, 0.7)
    edge = canvas.uniform(0.1, 0.5)
    echo += (np.float32(level) - echo) * smoothstep(blob.level, 1.0 + edge, 1.0 - edge) * np.float32(0.85)
    if canvas.chance(0.4):
        echo += (
            bell(blob.level - np.float32(1.0), 0.07)
            * np.float32(0.4)
            * smoothstep(canvas.noise(5.0), 0.0, 0.5)
        )


def _bone(canvas: Canvas, echo: Field, taken: list[Blob]) -> Field:
    """A bright arc that lets nothing through; return the gain (H, W), near 0 in its shadow.

    It keeps clear of nerves and vessels, so that no marked structure vanishes in a shadow.
    """
    for _ in range(6):
        x, y = canvas.uniform(0, canvas.width), canvas.uniform(0.45, 0.95) * canvas.height
        half = canvas.uniform(0.08, 0.25)
        if any(abs(b.x - x) < half + b.radius * 1.5 and b.y > y - 0.15 for b in taken):
            continue
        along = (canvas.x - np.float32(x)) / np.float32(half)
        surface = np.float32(y) + along * along * np.float32(canvas.uniform(0.02, 0.12))
        surface = surface + canvas.noise(6.0)[:1] * np.float32(0.01)
        within = smoothstep(np.abs(along), 1.0, 0.85)
        echo += bell(canvas.y - surface, 0.011) * within * np.float32(canvas.uniform(0.9, 1.8))
        shadow = smoothstep(canvas.y - surface, 0.0, 0.03) * within
        return np.float32(1.0) - shadow * np.float32(canvas.uniform(0.8, 0.97))
    return np.ones((1, 1), np.float32)
