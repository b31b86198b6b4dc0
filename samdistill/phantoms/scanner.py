"""What an ultrasound scanner makes of echo strengths: attenuation, speckle, compression, the probe's fan."""

from __future__ import annotations

import numpy as np

from samdistill.phantoms.canvas import Canvas, Field, bell, smoothstep


def lost_contact(canvas: Canvas) -> Field:
    """(1, W) gain: columns where the probe hardly touched the skin."""
    loss = smoothstep(canvas.noise(canvas.uniform(2.0, 5.0))[:1], 0.25, 1.0)
    return np.float32(1.0) - loss * np.float32(canvas.uniform(0.0, 0.75))


def depth_gain(canvas: Canvas) -> Field:
    """(H, 1) gain: attenuation and what the operator's sliders made of it."""
    t = canvas.y / np.float32(canvas.height)
    gain = np.float32(1.0) - t * np.float32(canvas.uniform(0.0, 0.75))
    focus = bell(t - np.float32(canvas.uniform(0.2, 0.8)), 0.5) * np.float32(canvas.uniform(0.0, 0.6))
    return gain + focus


def speckle(canvas: Canvas) -> Field:
    """(H, W) speckle of mean about 1, grains wider than high.

    The magnitude of a complex field, averaged over one to three looks as scanners compound directions.
    """
    looks = canvas.count(1, 3)
    scale = (canvas.unit_px / 256) ** 2
    wide, high = canvas.uniform(2.0, 7.0) * scale, canvas.uniform(0.6, 2.0) * scale
    total: Field = np.zeros(canvas.size, np.float32)
    for _ in range(looks):
        real, imaginary = canvas.texture(wide, high), canvas.texture(wide, high)
        total += np.sqrt(real * real + imaginary * imaginary)
    return total * np.float32(0.8 / looks)


def compress(canvas: Canvas, magnitude: Field) -> Field:
    """Bring the magnitudes to grey in [0, 1] much as log compression does, and add electronic noise."""
    root = np.sqrt(np.sqrt(magnitude * np.float32(canvas.uniform(0.5, 1.6))))
    soft = root * np.float32(0.55) + np.sqrt(magnitude) * np.float32(0.45)
    floor = canvas.uniform(0.22, 0.42)
    grey = (soft - np.float32(floor)) * np.float32(canvas.uniform(0.75, 1.1))
    return grey + canvas.grain() * np.float32(canvas.uniform(0.0, 0.04))


def sector(canvas: Canvas) -> Field:
    """(H, W) of 0 or 1: the fan of a curved probe."""
    apex_y = -canvas.uniform(0.25, 0.7)
    down = canvas.y - np.float32(apex_y)
    aside = np.abs(canvas.x - np.float32(canvas.width / 2))
    reach = np.sqrt(down * down + aside * aside)
    near, far = canvas.uniform(-0.01, 0.04) - apex_y, canvas.height - canvas.uniform(0.0, 0.08) - apex_y
    opening = canvas.uniform(0.42, 0.75)
    inside: Field = (
        (aside < down * np.float32(opening)) & (reach > np.float32(near)) & (reach < np.float32(far))
    )
    return inside.astype(np.float32)
