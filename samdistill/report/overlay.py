"""Masks drawn as thin outlines over an image, so that the pixels they speak of stay visible.

A prediction is a solid line in its class's colour, the truth a dashed near-white one. Lines lie on the
mask's own outermost pixels, inside it. Layers are RGBA and transparent elsewhere, so that a report can
switch them on and off; `draw_overlay` puts them on the image for a file.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage
from PIL import ImageDraw

from samdistill.arrays import Image, Mask, Masks, check_image, check_masks
from samdistill.metrics import surface
from samdistill.prompts import Prompts

Colour = tuple[int, int, int]
Layer = npt.NDArray[np.uint8]  # (H, W, 4) RGBA

COLOURS: tuple[Colour, ...] = (
    (86, 180, 233),  # sky blue first: nothing inside a body has it
    (240, 228, 66),  # yellow
    (230, 159, 0),  # orange
    (0, 158, 115),  # bluish green
    (204, 121, 167),  # reddish purple
    (213, 94, 0),  # vermillion
    (0, 114, 178),  # blue
)
"""Okabe and Ito's palette, told apart with any colour vision; classes beyond the seventh start again."""

FILL_OPACITY = 0.4
SHADOW_OPACITY = 0.45  # of the dark rim that keeps a light line visible on light tissue
TRUTH_WHITENESS = 0.7  # how far the truth's colour goes to white
DASH_PX = 4  # at a line width of 1


def class_colour(index: int, colours: Sequence[Colour] = COLOURS) -> Colour:
    """Colour of channel `index` (class_id index + 1)."""
    return colours[index % len(colours)]


def truth_colour(index: int, colours: Sequence[Colour] = COLOURS) -> Colour:
    """Colour of the truth's dashes of channel `index`: the class's, nearly white."""
    red, green, blue = (
        round(255 * TRUTH_WHITENESS + part * (1 - TRUTH_WHITENESS)) for part in class_colour(index, colours)
    )
    return red, green, blue


def line_width(image_size: tuple[int, int]) -> int:
    """Width in pixels that shows as 1 to 2 on a screen: one for every 320 of the shortest side."""
    return max(1, round(min(image_size) / 320))


def outline_layer(
    masks: Masks, colours: Sequence[Colour] = COLOURS, *, width: int = 1, dashed: bool = False
) -> Layer:
    """Draw the outline of each mask on a transparent layer.

    Parameters
    ----------
    masks
        (C, H, W) bool or uint8, image frame; later classes are drawn over earlier ones.
    colours
        RGB of each class, used in turns.
    width
        Line width, pixels.
    dashed
        Leave every second dash out (the truth's look) and whiten the colour.

    Returns
    -------
    Layer
        uint8 (H, W, 4) RGBA, opaque on the lines, a translucent dark pixel beside them, else transparent.
    """
    masks = check_masks(masks)
    layer = np.zeros((*masks.shape[1:], 4), np.uint8)
    kept = _dashes(masks.shape[1:], width) if dashed else np.ones(masks.shape[1:], bool)
    lines = [_outline(mask, width) & kept for mask in masks]
    for line in lines:
        layer[_grown(line)] = (0, 0, 0, round(255 * SHADOW_OPACITY))
    for index, line in enumerate(lines):
        rgb = truth_colour(index, colours) if dashed else class_colour(index, colours)
        layer[line] = (*rgb, 255)
    return layer


def fill_layer(masks: Masks, colours: Sequence[Colour] = COLOURS) -> Layer:
    """Tint each mask of bool (C, H, W) on a transparent layer; the image stays visible underneath."""
    masks = check_masks(masks)
    layer = np.zeros((*masks.shape[1:], 4), np.uint8)
    for index, mask in enumerate(masks):
        layer[mask] = (*class_colour(index, colours), round(255 * FILL_OPACITY))
    return layer


def draw_overlay(
    image: Image,
    masks: Masks,
    colours: Sequence[Colour] = COLOURS,
    *,
    outline: bool = True,
    truth: Masks | None = None,
    prompts: Sequence[Sequence[Prompts]] = (),
) -> Image:
    """Draw masks, and the truth where it is given, onto a copy of an image.

    Parameters
    ----------
    image
        uint8 (H, W, 3) RGB.
    masks
        (C, H, W) bool or uint8, image frame: the prediction.
    colours
        RGB of each class, used in turns.
    outline
        Draw lines; False tints the area instead.
    truth
        (C, H, W) bool or uint8, image frame: dashed, near-white lines over the prediction's.
    prompts
        For each class its prompt sets, image frame, drawn over everything; see `prompt_layer`.

    Returns
    -------
    Image
        uint8 (H, W, 3) RGB.
    """
    image = check_image(image)
    width = line_width((image.shape[0], image.shape[1]))
    layers = [outline_layer(masks, colours, width=width) if outline else fill_layer(masks, colours)]
    if truth is not None:
        layers.append(outline_layer(truth, colours, width=width, dashed=True))
    if any(prompts):
        layers.append(prompt_layer(prompts, (image.shape[0], image.shape[1]), colours, width=width))
    drawn = image.astype(np.float32)
    for layer in layers:
        if layer.shape[:2] != image.shape[:2]:
            raise ValueError(
                f"masks must have the image's size {image.shape[:2]}, not {layer.shape[:2]}. "
                "Resize them with geometry.resize_masks."
            )
        opacity = layer[..., 3:].astype(np.float32) / 255
        drawn += (layer[..., :3] - drawn) * opacity
    return np.rint(drawn).astype(np.uint8)


def prompt_layer(
    prompts: Sequence[Sequence[Prompts]],
    size: tuple[int, int],
    colours: Sequence[Colour] = COLOURS,
    *,
    width: int = 1,
) -> Layer:
    """Draw what a teacher was asked on a transparent layer.

    Boxes are thin rectangles in their class's colour, foreground points discs of it with a white rim,
    background points white discs with a rim of it.

    Parameters
    ----------
    prompts
        For each class its prompt sets, image frame.
    size
        (height, width) of the layer, pixels.
    width
        Line width, pixels.
    """
    drawn = PillowImage.new("RGBA", (size[1], size[0]))
    draw = ImageDraw.Draw(drawn)
    for index, sets in enumerate(prompts):
        colour, white = (*class_colour(index, colours), 255), (255, 255, 255, 255)
        for one in sets:
            if one.box is not None:
                x0, y0, x1, y1 = one.box.tolist()
                draw.rectangle((x0, y0, x1 - 1, y1 - 1), outline=colour, width=width)
            if one.points is None or one.point_labels is None:
                continue
            for (x, y), kind in zip(one.points.tolist(), one.point_labels.tolist(), strict=True):
                if kind >= 0:
                    radius = 2 * width
                    around = (x - radius, y - radius, x + radius, y + radius)
                    fill, rim = (colour, white) if kind == 1 else (white, colour)
                    draw.ellipse(around, fill=fill, outline=rim, width=width)
    return np.asarray(drawn)


def _outline(mask: Mask, width: int) -> Mask:
    """The mask's outermost pixels, `width` deep."""
    inner = mask
    for _ in range(width):
        inner = inner & ~surface(inner)
    return mask & ~inner


def _grown(mask: Mask) -> Mask:
    """The mask and its four neighbours."""
    framed = np.pad(mask, 1)
    grown: Mask = mask | framed[:-2, 1:-1] | framed[2:, 1:-1] | framed[1:-1, :-2] | framed[1:-1, 2:]
    return grown


def _dashes(size: tuple[int, ...], width: int) -> Mask:
    """A pattern whose stripes no outline follows for long: they run steeply down to the left."""
    y, x = np.ogrid[: size[0], : size[1]]
    stripes: Mask = (2 * x + y) // (2 * DASH_PX * width) % 2 == 0
    return stripes
