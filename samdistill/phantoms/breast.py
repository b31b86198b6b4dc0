"""Breast-ultrasound-like grey pictures with one class, `lesion`, exactly one in each picture.

From the skin down: fat lobules between septa, a bright fibroglandular layer, the chest muscle, sometimes
ribs. A benign lesion is a smooth oval lying flat, with a thin capsule and brighter tissue behind it; a
malignant one is ragged, taller, fades into a bright halo and casts a shadow. Dark fat lobules, ducts, shadows
of the nipple and of ligaments are there to be mistaken for it.
"""

from __future__ import annotations

import math

import numpy as np

from samdistill.arrays import Image, Masks
from samdistill.phantoms.canvas import Blob, Canvas, Field, bell, smoothstep, to_uint8
from samdistill.phantoms.scanner import compress, depth_gain, lost_contact, speckle

CLASS_NAMES = ("lesion",)


def render(canvas: Canvas) -> tuple[Image, Masks]:
    """Draw one picture and its mask.

    Returns
    -------
    image
        (H, W, 3) uint8, three equal channels.
    masks
        (1, H, W) bool: lesion, never empty.
    """
    top, bottom = canvas.uniform(0.12, 0.3), canvas.uniform(0.55, 0.8)
    echo = _layers(canvas, top, bottom)
    malignant = canvas.chance(0.5)
    lesion = _lesion_outline(canvas, top, bottom, malignant=malignant)
    for _ in range(canvas.count(2, 6)):
        _lobule(canvas, echo, top, bottom)
    for _ in range(canvas.count(0, 2)):
        _duct(canvas, echo, top, bottom)
    behind = _paint_malignant(canvas, lesion, echo) if malignant else _paint_benign(canvas, lesion, echo)
    gain = behind * _ligament_shadows(canvas, lesion)
    if canvas.chance(0.35):
        gain = gain * _ribs(canvas, echo, lesion, bottom)
    seen = echo * gain * lost_contact(canvas) * depth_gain(canvas)
    picture = to_uint8(compress(canvas, seen * speckle(canvas)))
    return np.repeat(picture[..., None], 3, axis=2), (lesion.level < 1.0)[None]


def _layers(canvas: Canvas, top: float, bottom: float) -> Field:
    """Skin, fat down to `top`, glandular tissue down to `bottom`, muscle below; echo strength (H, W)."""
    wave = canvas.fractal(2.0, 3, stretch=1.5) * np.float32(canvas.uniform(0.03, 0.1))
    depth = canvas.y + wave
    echo = np.full(canvas.size, np.float32(canvas.uniform(0.1, 0.2)))
    glandular = np.float32(canvas.uniform(0.3, 0.6)) * (
        np.float32(1.0) + canvas.fractal(canvas.uniform(8.0, 16.0), 3, stretch=1.8) * np.float32(0.6)
    )
    echo += (glandular - echo) * smoothstep(depth, top - 0.03, top + 0.03)
    fibres = canvas.fractal(canvas.uniform(14.0, 26.0), 2, stretch=canvas.uniform(4.0, 8.0))
    muscle = np.float32(canvas.uniform(0.1, 0.25)) * (np.float32(1.0) + fibres * np.float32(0.7))
    echo += (muscle - echo) * smoothstep(depth, bottom - 0.015, bottom + 0.015)
    echo += bell(depth - np.float32(bottom), 0.008) * np.float32(canvas.uniform(0.3, 1.0))
    # Septa between the fat lobules: bright where a noise crosses zero, above the gland alone.
    septa = bell(canvas.noise(canvas.uniform(4.0, 7.0)), 0.08) * smoothstep(depth, top + 0.02, top - 0.03)
    echo += septa * np.float32(canvas.uniform(0.2, 0.6))
    echo += bell(canvas.y, canvas.uniform(0.015, 0.035)) * np.float32(0.9)
    return np.clip(echo, 0.02, 2.0)


def _lesion_outline(canvas: Canvas, top: float, bottom: float, *, malignant: bool) -> Blob:
    """Where the lesion lies: within the gland or at its border, never cut by the picture's edge."""
    radius = canvas.uniform(0.05, 0.18)
    x = canvas.uniform(radius * 1.6, canvas.width - radius * 1.6)
    y = canvas.uniform(max(top * 0.7, radius * 1.5 + 0.04), max(bottom - radius * 0.6, top + 0.08))
    if malignant:
        return canvas.blob(x, y, radius, aspect=canvas.uniform(1.0, 1.4), wobble=canvas.uniform(0.25, 0.45))
    return _lying(canvas, x, y, radius, aspect=canvas.uniform(1.2, 2.1), wobble=canvas.uniform(0.02, 0.12))


def _lying(canvas: Canvas, x: float, y: float, radius: float, *, aspect: float, wobble: float) -> Blob:
    """An oval whose long axis keeps to the layers, a little tilted."""
    tilt = np.float32(canvas.uniform(-0.3, 0.3))
    across, down = canvas.x - np.float32(x), canvas.y - np.float32(y)
    root = math.sqrt(aspect)
    u = (across + down * tilt) / np.float32(radius * root)
    v = (down - across * tilt) / np.float32(radius / root)
    push = canvas.noise(min(0.7 / radius, 24.0))
    return Blob(np.sqrt(u * u + v * v) + push * np.float32(wobble), x, y, radius)


def _paint_benign(canvas: Canvas, blob: Blob, echo: Field) -> Field:
    """Even and dark, a cyst or a solid one, with a thin capsule; return the gain (H, W) behind it."""
    level = canvas.uniform(0.01, 0.05) if canvas.chance(0.35) else canvas.uniform(0.05, 0.16)
    inside = smoothstep(blob.level, 1.06, 0.94) * np.float32(canvas.uniform(0.85, 1.0))
    grain = canvas.fractal(20.0, 2) * np.float32(canvas.uniform(0.0, 0.5))
    own = np.float32(level) * (np.float32(1.0) + grain)
    echo += (own - echo) * inside
    echo += bell(blob.level - np.float32(1.03), 0.05) * np.float32(canvas.uniform(0.0, 0.4))
    return np.float32(1.0) + _beneath(canvas, blob) * np.float32(canvas.uniform(0.0, 1.0))


def _paint_malignant(canvas: Canvas, blob: Blob, echo: Field) -> Field:
    """Uneven and dark with spikes, specks and a bright halo; return the gain (H, W) behind it."""
    edge = canvas.uniform(0.08, 0.3)
    own = np.float32(canvas.uniform(0.03, 0.13)) * (np.float32(1.0) + canvas.fractal(14.0, 3))
    echo += bell(blob.level - np.float32(1.25), 0.3) * np.float32(canvas.uniform(0.0, 0.35))
    echo += (own - echo) * smoothstep(blob.level, 1.0 + edge, 1.0 - edge) * np.float32(0.92)
    spikes = smoothstep(canvas.noise(canvas.uniform(12.0, 20.0)), 0.25, 0.6) * bell(
        blob.level - np.float32(1.1), 0.3
    )
    echo *= np.float32(1.0) - spikes * np.float32(canvas.uniform(0.2, 0.6))
    if canvas.chance(0.4):
        specks = smoothstep(canvas.noise(45.0), 0.62, 0.75) * smoothstep(blob.level, 0.9, 0.6)
        echo += specks * np.float32(canvas.uniform(0.4, 1.0))
    return np.float32(1.0) - _beneath(canvas, blob) * np.float32(canvas.uniform(0.1, 0.85))


def _beneath(canvas: Canvas, blob: Blob) -> Field:
    """(H, W) in [0, 1]: the strip of tissue that the beam reaches through a blob."""
    width = bell((canvas.x - np.float32(blob.x)) / np.float32(blob.radius), 1.1)
    below: Field = smoothstep(canvas.y, blob.y + blob.radius * 0.5, blob.y + blob.radius * 1.2)
    return width * below


def _lobule(canvas: Canvas, echo: Field, top: float, bottom: float) -> None:
    """A fat lobule, as dark as many a lesion; most lie flat above the gland or in it."""
    x, y = canvas.uniform(0.0, canvas.width), canvas.uniform(0.06, bottom)
    blob = _lying(canvas, x, y, canvas.uniform(0.03, 0.1), aspect=canvas.uniform(1.4, 3.0), wobble=0.2)
    edge = canvas.uniform(0.15, 0.6)
    level = np.float32(canvas.uniform(0.07, 0.22))
    echo += (
        (level - echo) * smoothstep(blob.level, 1.0 + edge, 1.0 - edge) * np.float32(canvas.uniform(0.5, 0.9))
    )
    echo += bell(blob.level - np.float32(1.0), 0.07) * np.float32(canvas.uniform(0.0, 0.3))


def _duct(canvas: Canvas, echo: Field, top: float, bottom: float) -> None:
    """A dark tube across the gland."""
    x, y = canvas.uniform(0.0, canvas.width), canvas.uniform(top, bottom)
    along = canvas.x - np.float32(x)
    line = canvas.y - np.float32(y) - along * np.float32(canvas.uniform(-0.5, 0.5))
    line = line + canvas.noise(3.0) * np.float32(0.03)
    tube = bell(line, canvas.uniform(0.008, 0.02)) * bell(along, canvas.uniform(0.08, 0.25))
    echo *= np.float32(1.0) - tube * np.float32(0.85)


def _ligament_shadows(canvas: Canvas, lesion: Blob) -> Field:
    """(H, W) gain: columns that ligaments or the nipple darken; none lies over the lesion's middle."""
    gain: Field = np.ones((1, 1), np.float32)
    for _ in range(canvas.count(0, 3)):
        x, half = canvas.uniform(0.0, canvas.width), canvas.uniform(0.02, 0.09)
        begin = canvas.uniform(0.03, 0.4)
        depth = np.float32(canvas.uniform(0.2, 0.75))
        if abs(x - lesion.x) < half + lesion.radius * 1.2:
            continue
        drift = (canvas.y - np.float32(begin)) * np.float32(canvas.uniform(-0.15, 0.15))
        column = bell(canvas.x - np.float32(x) - drift, half) * smoothstep(canvas.y, begin, begin + 0.1)
        gain = gain * (np.float32(1.0) - column * depth)
    return gain


def _ribs(canvas: Canvas, echo: Field, lesion: Blob, bottom: float) -> Field:
    """Round bright ribs below the muscle; return the gain (H, W), near 0 in their shadows."""
    gain: Field = np.ones((1, 1), np.float32)
    spacing, x = canvas.uniform(0.35, 0.6), canvas.uniform(0.0, 0.3)
    y = max(canvas.uniform(bottom + 0.06, bottom + 0.18), lesion.y + lesion.radius * 1.6)
    while x < canvas.width:
        half = canvas.uniform(0.06, 0.13)
        along = (canvas.x - np.float32(x)) / np.float32(half)
        surface = np.float32(y) + along * along * np.float32(canvas.uniform(0.02, 0.06))
        within = smoothstep(np.abs(along), 1.0, 0.8)
        echo += bell(canvas.y - surface, 0.01) * within * np.float32(canvas.uniform(0.6, 1.4))
        gain = gain * (np.float32(1.0) - smoothstep(canvas.y - surface, 0.0, 0.04) * within * np.float32(0.9))
        x += spacing
    return gain
