"""Endoscopy-like colour pictures with one to three lesions of irregular outline (class `lesion`).

Mucosa is a relief lit by the scope: folds round the lumen and lesions are both made of height, so shading
alone does not tell them apart. A lesion carries its own tint and pit pattern; smooth bulges, blood, debris
and bubbles are there to be mistaken for it.
"""

from __future__ import annotations

import math

import numpy as np

from samdistill.arrays import Image, Masks
from samdistill.phantoms.canvas import Blob, Canvas, Field, bell, mix, smoothstep, soften, to_uint8

CLASS_NAMES = ("lesion",)

# Pink, pale, red, dusky, orange; the last two under narrow-band light and washed with blue dye.
MUCOSA = (
    (0.86, 0.47, 0.38),
    (0.90, 0.62, 0.48),
    (0.72, 0.33, 0.26),
    (0.82, 0.52, 0.50),
    (0.93, 0.55, 0.34),
    (0.52, 0.60, 0.50),
    (0.55, 0.50, 0.66),
)
# Multipliers of the mucosa's own colour: inflamed, dusky, pale, yellowish, nearly the same.
TINTS = ((1.02, 0.66, 0.66), (0.80, 0.62, 0.70), (1.10, 1.25, 1.28), (1.06, 1.10, 0.82), (0.98, 0.85, 0.90))


def render(canvas: Canvas) -> tuple[Image, Masks]:
    """Draw one picture and its masks.

    Returns
    -------
    image
        (H, W, 3) uint8 RGB.
    masks
        (1, H, W) bool.
    """
    lumen_x, lumen_y = canvas.uniform(-0.2, 1.2) * canvas.width, canvas.uniform(-0.2, 1.2) * canvas.height
    to_lumen = canvas.distance(lumen_x, lumen_y) + canvas.fractal(2.5, 2) * np.float32(0.10)
    relief = _folds(canvas, to_lumen)
    shades = MUCOSA if canvas.chance(0.3) else MUCOSA[:5]
    mucosa = np.asarray(shades[canvas.count(0, len(shades) - 1)]) * canvas.uniform(0.9, 1.08)
    mucosa = mucosa * np.array([1.0, canvas.uniform(0.86, 1.14), canvas.uniform(0.82, 1.18)])
    blotches = smoothstep(canvas.fractal(3.0, 3), -0.6, 0.8)[..., None]
    colour = mix(mucosa, mucosa * np.array([0.94, 0.76, 0.74]), blotches)
    colour *= np.float32(1.0) - _vessels(canvas)[..., None] * np.array([0.22, 0.5, 0.42], np.float32)

    for _ in range(canvas.count(0, 2)):
        relief = relief + _bulge(canvas)
    for _ in range(canvas.count(-2, 2)):
        _diverticulum(canvas, colour)
    if canvas.chance(0.35):
        _stain(canvas, colour)
    lesion = np.zeros(canvas.size, np.bool_)
    for blob in _lesions(canvas):
        relief = relief + _paint_lesion(canvas, blob, colour, mucosa)
        lesion |= blob.level < 1.0
    if canvas.chance(0.4):
        relief = relief + _debris(canvas, colour, lesion)

    light, gloss = _light(canvas, relief)
    shine = canvas.uniform(0.35, 0.9)
    lit = colour * (light * smoothstep(to_lumen, -0.02, canvas.uniform(0.15, 0.4)))[..., None]
    lit = lit + gloss[..., None] * np.float32(shine)
    if canvas.chance(0.3):
        lit = lit + _bubbles(canvas)[..., None]
    lit = lit + canvas.grain()[..., None] * np.float32(canvas.uniform(0.01, 0.05))
    seen = _vignette(canvas)
    lesion &= seen > 0.25  # what lies outside the field of view is no truth to find
    lit = lit * seen[..., None]
    blur = canvas.uniform(0.2, 1.0) if canvas.chance(0.8) else canvas.uniform(1.0, 2.2)
    return soften(to_uint8(lit), blur * canvas.unit_px / 256), lesion[None]


def _dome(level: Field) -> Field:
    """Height of a bump of height 1 over a blob: steep at its edge, flat on top."""
    inside = np.clip(np.float32(1.0) - level * level, 0.0, 1.0)
    return np.sqrt(inside) * np.float32(0.7) + smoothstep(level, 1.25, 0.6) * np.float32(0.3)


def _bulge(canvas: Canvas) -> Field:
    """A healthy bump in the mucosa's own colour: a bend of the wall, or as steep as a lesion."""
    x, y = canvas.place(0.0)
    blob = canvas.blob(x, y, canvas.uniform(0.05, 0.2), aspect=canvas.uniform(1.0, 2.4), wobble=0.35)
    if canvas.chance(0.35):
        return _dome(blob.level) * np.float32(blob.radius * canvas.uniform(0.15, 0.55))
    return smoothstep(blob.level, 1.5, 0.0) * np.float32(blob.radius * canvas.uniform(0.25, 0.7))


def _diverticulum(canvas: Canvas, colour: Field) -> None:
    """Darken `colour` in place to a hole in the wall with a pale rim."""
    x, y = canvas.place(0.0)
    blob = canvas.blob(x, y, canvas.uniform(0.03, 0.1), aspect=canvas.uniform(1.0, 1.6), wobble=0.25)
    hole = smoothstep(blob.level, 1.1, canvas.uniform(0.2, 0.8)) * np.float32(canvas.uniform(0.5, 0.9))
    rim = bell(blob.level - np.float32(1.15), 0.15) * np.float32(canvas.uniform(0.0, 0.2))
    colour *= (np.float32(1.0) - hole + rim)[..., None]


def _folds(canvas: Canvas, to_lumen: Field) -> Field:
    """Rings of tissue round the lumen, here and there missing, and a gently uneven wall."""
    phase = to_lumen / np.float32(canvas.uniform(0.14, 0.4)) + np.float32(canvas.uniform(0, 1))
    phase = phase + canvas.noise(2.0) * np.float32(0.3)
    t = np.float32(2.0) * (phase - np.floor(phase)) - np.float32(1.0)
    ridge = np.float32(1.0) - t * t
    gate = smoothstep(canvas.noise(2.5), -0.3, 0.6)
    height = canvas.uniform(0.01, 0.07)
    return ridge * ridge * gate * np.float32(height) + canvas.fractal(3.0, 3) * np.float32(0.03)


def _vessels(canvas: Canvas) -> Field:
    """(H, W) in [0, 1]: thin winding lines, the zero crossings of a noise."""
    line = bell(canvas.fractal(canvas.uniform(4.0, 7.0), 3), canvas.uniform(0.02, 0.05))
    return line * smoothstep(canvas.noise(3.0), -0.1, 0.7) * np.float32(canvas.uniform(0.0, 0.9))


def _lesions(canvas: Canvas) -> list[Blob]:
    """Place one to three blobs that do not touch one another; the first is always there."""
    blobs: list[Blob] = []
    wanted = (1, 1, 1, 1, 2, 2, 3)[canvas.count(0, 6)]
    for _ in range(wanted * 3):
        radius = canvas.uniform(0.06, 0.24 if not blobs else 0.13)
        x, y = canvas.place(min(radius * 0.9, 0.14))
        if any(math.hypot(b.x - x, b.y - y) < (b.radius + radius) * 1.7 for b in blobs):
            continue
        blobs.append(
            canvas.blob(x, y, radius, aspect=canvas.uniform(1.0, 1.9), wobble=canvas.uniform(0.15, 0.5))
        )
        if len(blobs) == wanted:
            break
    return blobs


def _paint_lesion(canvas: Canvas, blob: Blob, colour: Field, mucosa: Field) -> Field:
    """Tint `colour` in place where the lesion lies; return the height it adds."""
    tint = np.asarray(TINTS[canvas.count(0, len(TINTS) - 1)], np.float32)
    strength = canvas.uniform(0.4, 0.95)
    pits = canvas.fractal(canvas.uniform(10.0, 26.0), 2) * np.float32(canvas.uniform(0.15, 0.4))
    inside = smoothstep(blob.level, 1.06, 0.94)[..., None]
    own = mucosa.astype(np.float32) * tint * (np.float32(1.0) + pits[..., None])
    colour += (own - colour) * inside * np.float32(strength)
    colour *= np.float32(1.0) - bell(blob.level - np.float32(1.06), 0.12)[..., None] * np.float32(
        canvas.uniform(0.0, 0.25)
    )
    raised = canvas.uniform(0.05, 0.55) * blob.radius
    return _dome(blob.level) * np.float32(raised) + pits * inside[..., 0] * np.float32(0.012)


def _stain(canvas: Canvas, colour: Field) -> None:
    """Blood or bile on the wall: a lesion's colours without its height."""
    x, y = canvas.place(0.0)
    blob = canvas.blob(x, y, canvas.uniform(0.05, 0.2), aspect=canvas.uniform(1.0, 3.5), wobble=0.6)
    tone = (0.9, 0.45, 0.45) if canvas.chance(0.6) else (1.0, 1.02, 0.6)
    share = smoothstep(blob.level, 1.2, 0.5)[..., None] * np.float32(canvas.uniform(0.4, 0.9))
    colour *= np.float32(1.0) + (np.asarray(tone, np.float32) - np.float32(1.0)) * share


def _debris(canvas: Canvas, colour: Field, lesion: np.ndarray) -> Field:
    """Crumbs of stool and mucus; they keep off the lesions, so that the truth stays what is seen."""
    height: Field = np.zeros(canvas.size, np.float32)
    tone = np.asarray(((0.62, 0.50, 0.20), (0.45, 0.33, 0.14), (0.80, 0.74, 0.45))[canvas.count(0, 2)])
    texture = canvas.fractal(30.0, 2)
    for _ in range(canvas.count(1, 7)):
        x, y = canvas.place(0.0)
        blob = canvas.blob(x, y, canvas.uniform(0.015, 0.11), aspect=canvas.uniform(1.0, 2.0), wobble=0.45)
        share = smoothstep(blob.level, 1.05, 0.9)
        if np.any(lesion & (share > 0)):
            continue
        own = tone.astype(np.float32) * (np.float32(1.0) + texture[..., None] * np.float32(0.35))
        colour += (own - colour) * share[..., None] * np.float32(0.85)
        height = height + _dome(blob.level) * np.float32(blob.radius * 0.4)
    return height


def _light(canvas: Canvas, relief: Field) -> tuple[Field, Field]:
    """Light a relief from the scope: (diffuse, specular), each (H, W)."""
    lamp_x, lamp_y = canvas.uniform(0.25, 0.75) * canvas.width, canvas.uniform(0.25, 0.75) * canvas.height
    lamp_z = canvas.uniform(0.45, 0.9)
    dx, dy = np.float32(lamp_x) - canvas.x, np.float32(lamp_y) - canvas.y
    reach = dx * dx + dy * dy + np.float32(lamp_z * lamp_z)
    slope_x, slope_y = canvas.slopes(relief)
    steep = np.float32(1.0) + slope_x * slope_x + slope_y * slope_y
    facing = (np.float32(lamp_z) - slope_x * dx - slope_y * dy) / np.sqrt(reach * steep)
    falloff = np.float32(lamp_z * lamp_z + 0.12) / (reach + np.float32(0.12))
    diffuse = (np.clip(facing, 0.0, 1.0) * np.float32(0.8) + np.float32(0.2)) * np.sqrt(falloff)
    # A wet film: the mirror direction is where the fine slope points at a lamp beside the lens.
    wet = canvas.fractal(canvas.uniform(14.0, 24.0), 2) * np.float32(0.011)
    wet_x, wet_y = canvas.slopes(wet)
    off_x = (slope_x + wet_x) - dx * np.float32(0.9)
    off_y = (slope_y + wet_y) - dy * np.float32(0.9)
    mirror = bell(np.sqrt(off_x * off_x + off_y * off_y), 0.16)
    gloss = smoothstep(mirror * smoothstep(canvas.fractal(7.0, 2), -0.2, 0.5), 0.45, 0.85)
    return diffuse * np.float32(canvas.uniform(0.85, 1.25)), gloss


def _bubbles(canvas: Canvas) -> Field:
    """Light added by a cluster of foam bubbles: thin bright rims with a glint."""
    light: Field = np.zeros(canvas.size, np.float32)
    x, y = canvas.place(0.0)
    for _ in range(canvas.count(3, 9)):
        radius = canvas.uniform(0.012, 0.05)
        bx, by = x + canvas.uniform(-0.16, 0.16), y + canvas.uniform(-0.16, 0.16)
        away = canvas.distance(bx, by)
        light = light + bell(away - np.float32(radius), 0.006) * np.float32(0.25)
        light = light + bell(canvas.distance(bx - radius * 0.4, by - radius * 0.4), 0.008) * np.float32(0.6)
    return light


def _vignette(canvas: Canvas) -> Field:
    """The scope's round or cut-off field of view, black outside, darker toward the rim."""
    dx = (canvas.x - np.float32(canvas.width / 2)) / np.float32(canvas.width / 2)
    dy = (canvas.y - np.float32(canvas.height / 2)) / np.float32(canvas.height / 2)
    square = dx * dx + dy * dy
    dim = np.float32(1.0) - square * np.float32(canvas.uniform(0.05, 0.3))
    corner = np.maximum(
        np.abs(dx) + np.abs(dy) - np.float32(canvas.uniform(0.4, 0.9)), np.maximum(np.abs(dx), np.abs(dy))
    )
    rim = np.sqrt(square) * np.float32(0.9) if canvas.chance(0.5) else corner
    return dim * smoothstep(rim, canvas.uniform(1.0, 1.12), 0.97)
