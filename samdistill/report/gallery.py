"""Pictures of cases: pixels below, outlines as layers above that the page can hide, sorted by a score.

Grows by layers: whatever SVG can draw (a refined mask, prompts) is one more name.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from PIL import Image as PillowImage

from samdistill.arrays import Image, Masks, check_image
from samdistill.geometry import resize_image, shrink_masks
from samdistill.report.contours import path_data
from samdistill.report.document import Section, escape, number
from samdistill.report.overlay import COLOURS, Colour, class_colour, truth_colour

LONGEST_PX = 800  # of a picture in a report: sharp when enlarged, some 80 kB a case at most
JPEG_QUALITY = 85
PREDICTION, TRUTH = "prediction", "truth"
ORDERS = (
    '<label>Order <select autocomplete="off"><option value="lowest">lowest first</option>'
    '<option value="highest">highest first</option><option value="name">by name</option></select></label>'
)


@dataclass(frozen=True)
class Picture:
    """Pixels and layers of one case.

    Parameters
    ----------
    image
        uint8 (H, W, 3) RGB.
    layers
        Name -> SVG elements in pixel edges of `image`, drawn in this order: markup, made by this package.
    """

    image: Image
    layers: Mapping[str, str]


@dataclass(frozen=True)
class Case:
    """An entry of a gallery.

    Parameters
    ----------
    title
        Plain text, the case's id.
    picture
        What is shown.
    score
        Sorts the gallery, better is higher, in [0, 1]; None where there is none (shown last).
    notes
        Short plain texts under the title.
    """

    title: str
    picture: Picture
    score: float | None = None
    notes: Sequence[str] = field(default=())


def draw_picture(
    image: Image,
    masks: Mapping[str, Masks],
    *,
    colours: Sequence[Colour] = COLOURS,
    longest: int = LONGEST_PX,
) -> Picture:
    """Bring an image and its masks to a report's size and draw each set of masks as a layer.

    Parameters
    ----------
    image
        uint8 (H, W, 3) RGB.
    masks
        Layer name -> bool (C, H, W), image frame; the layer named "truth" is dashed, others are solid.
    colours
        RGB of each class, used in turns.
    longest
        Longest side of the picture, pixels; smaller images stay as they are. Of larger ones small and thin
        objects are drawn a little too large, rather than not at all.
    """
    image = check_image(image)
    scale = min(1.0, longest / max(image.shape[:2]))
    size = max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale))
    layers = {}
    for name, one in masks.items():
        colour = truth_colour if name == TRUTH else class_colour
        layers[name] = "".join(
            _outline(path_data(mask), colour(index, colours), dashed=name == TRUTH)
            for index, mask in enumerate(shrink_masks(one, size))
        )
    return Picture(resize_image(image, size), layers)


def gallery(
    title: str,
    cases: Sequence[Case],
    *,
    class_names: Sequence[str],
    colours: Sequence[Colour] = COLOURS,
    note: str = "",
    score_name: str = "Dice",
    wide: bool = False,
) -> Section:
    """Make a section of cases, lowest score first, with a legend, switches for layers and orders to choose.

    Parameters
    ----------
    title, note
        Plain text; the note says which cases these are.
    cases
        In any order.
    class_names, colours
        Of channel 0, 1, ...; for the legend.
    score_name
        What a case's score is called.
    wide
        The pictures are several times as wide as high.
    """
    ordered = sorted(cases, key=lambda case: (case.score is None, case.score or 0.0, case.title))
    names = list(dict.fromkeys(name for case in ordered for name in case.picture.layers))
    told = f"<p>{escape(note)}</p>" if note else ""
    figures = "".join(_figure(case, score_name) for case in ordered)
    tools = _legend(class_names, colours, names) + _switches(names) + ORDERS
    cases_class = "cases wide" if wide else "cases"
    body = (
        f'<div class="gallery">{told}<div class="tools">{tools}</div>'
        f'<div class="{cases_class}">{figures}</div></div>'
    )
    return Section(title, body)


def _figure(case: Case, score_name: str) -> str:
    height, width = case.picture.image.shape[:2]
    images = f'<img src="{_jpeg(case.picture.image)}" alt="{escape(case.title)}">'
    images += "".join(
        f'<svg class="layer" data-layer="{escape(name)}" viewBox="0 0 {width} {height}" aria-hidden="true">'
        f"{layer}</svg>"
        for name, layer in case.picture.layers.items()
    )
    notes = [note.replace(" ", "\N{NO-BREAK SPACE}") for note in case.notes]
    bar, score = "", ""
    if case.score is not None:
        score = f"{case.score:.6f}"
        notes.insert(0, f"{score_name}\N{NO-BREAK SPACE}{number(case.score)}")
        bar = f'<div class="score" style="--score:{min(max(case.score, 0.0), 1.0):.3f}"></div>'
    return (
        f'<figure class="case" data-score="{score}"><button type="button" '
        f'aria-label="Enlarge {escape(case.title)}"><span class="stack">{images}</span></button>'
        f'<figcaption><b title="{escape(case.title)}">{escape(case.title)}</b>'
        f"<span>{escape(' · '.join(notes))}</span>{bar}</figcaption></figure>"
    )


def _legend(class_names: Sequence[str], colours: Sequence[Colour], layers: Sequence[str]) -> str:
    entries = []
    for index, name in enumerate(class_names):
        if not layers or any(layer != TRUTH for layer in layers):  # none: drawn into the pixels
            entries.append((name, class_colour(index, colours), ""))
        if TRUTH in layers:
            entries.append((f"{name}, {TRUTH}", truth_colour(index, colours), " dashed"))
    return "".join(
        f'<span class="legend"><i class="line{dashes}" style="--colour:rgb{rgb}"></i>{escape(name)}</span>'
        for name, rgb, dashes in entries
    )


def _switches(layers: Sequence[str]) -> str:
    return "".join(
        f'<label><input type="checkbox" autocomplete="off" checked data-layer="{escape(name)}"> '
        f"{escape(name)}</label>"
        for name in layers
    )


def _outline(data: str, colour: Colour, *, dashed: bool) -> str:
    """A path drawn twice: a dark rim that keeps a light line visible on light tissue, and the line."""
    if not data:
        return ""
    line = ' stroke-dasharray="5 4"' if dashed else ""
    return f'<path class="rim" d="{data}"{line}/><path style="stroke:rgb{colour}" d="{data}"{line}/>'


def _jpeg(image: Image) -> str:
    buffer = io.BytesIO()
    PillowImage.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
