"""Bundles changed on purpose, and pictures whose right masks are known."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]


def rewrite(bundle: Path, edit: Callable[[dict[str, Any]], None] = lambda values: None) -> None:
    """Edit a bundle's manifest and make its hashes right again, as somebody who forges one would."""
    file = bundle / "manifest.json"
    values = json.loads(file.read_text())
    edit(values)
    for record in values["files"]:
        content = (bundle / record["path"]).read_bytes()
        record["sha256"], record["bytes"] = hashlib.sha256(content).hexdigest(), len(content)
    file.write_text(json.dumps(values))


def colours(height: int = 64, width: int = 64, *, seed: int = 0) -> Pixels:
    """A picture in which the classes of tests/colour_student.py are large blocks: red, bright, both, none."""
    image = np.full((height, width, 3), 60, np.uint8)
    y, x = height // 2, width // 2
    image[:y, :x] = (200, 60, 60)  # red
    image[:y, x:] = (220, 220, 220)  # bright
    image[y:, :x] = (255, 190, 190)  # both: bright by 32, red by 25
    noise = np.random.default_rng(seed).integers(-4, 5, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def expected(image: Pixels, *, multi_label: bool = False) -> npt.NDArray[np.bool_]:
    """The right masks of a picture that needs no resizing, worked out from what the student is said to do."""
    red, green, blue = image.astype(np.float64).transpose(2, 0, 1)
    margin = np.stack([red - (green + blue) / 2 - 40.25, (red + green + blue) / 3 - 180.2])
    masks = margin > 0
    if not multi_label:
        masks &= margin == margin.max(axis=0)
    return masks
