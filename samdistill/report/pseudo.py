"""Pseudo labels to look at: three panels of the student's mask, the prompts made of it and the answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from samdistill.arrays import Image
from samdistill.geometry import map_boxes, map_points
from samdistill.prompts import Prompts
from samdistill.refine import Refinement
from samdistill.report.charts import histogram
from samdistill.report.document import Section, facts, number
from samdistill.report.gallery import Case, Picture, draw_picture, gallery
from samdistill.report.overlay import COLOURS, class_colour

WORST, BEST = 24, 12  # images shown
PANEL_PX = 420  # longest side of each of the three panels
GAP_PX = 6
STUDENT, PROMPTS, TEACHER = "student", "prompts", "teacher"


@dataclass(frozen=True)
class Labels:
    """The pseudo labels of some images, read one at a time.

    Parameters
    ----------
    case_ids
        Of images that have an entry, labelled or not.
    read
        Gives an image's entry, at the image's own size.
    image
        Gives the uint8 (H, W, 3) image.
    class_names
        Of channel 0, 1, ...
    reasons
        Case id to why the image got no mask, for those that got none.
    """

    case_ids: Sequence[str]
    read: Callable[[str], Refinement]
    image: Callable[[str], Image]
    class_names: Sequence[str]
    reasons: Mapping[str, str] = field(default_factory=dict)


def pseudo_sections(labels: Labels, *, worst: int = WORST, best: int = BEST) -> list[Section]:
    """Summary, distributions, and the worst and best pseudo labels by predicted IoU.

    Where no teacher was asked (a random walker, images with nothing to ask about) agreement ranks.
    """
    iou, agreement, nothing = {}, {}, 0
    for case_id in labels.case_ids:
        one = labels.read(case_id)
        iou[case_id], agreement[case_id] = _mean(one.predicted_iou), _mean(one.agreement)
        nothing += one.empty
    score = {case_id: agreement[case_id] if iou[case_id] is None else iou[case_id] for case_id in iou}
    told: dict[str, object] = {
        "images": len(labels.case_ids),
        "nothing to ask about": nothing,
        "predicted IoU, mean": number(_mean(_known(iou))),
        "agreement of student and teacher, mean Dice": number(_mean(_known(agreement))),
    }
    if labels.reasons:
        told["left without a mask"] = len(labels.reasons)
    charts = "".join(
        histogram(title, _known(values).tolist(), x_label=label)
        for title, label, values in (
            ("Predicted IoU of the images", "predicted IoU", iou),
            ("Agreement of student and teacher", "Dice", agreement),
        )
        if _known(values).size
    )
    ranked = sorted(
        (case_id for case_id in score if score[case_id] is not None),
        key=lambda case_id: (score[case_id], case_id),
    )
    chosen = ranked if len(ranked) <= worst + best else [*ranked[:worst], *ranked[-best:]]
    which = (
        f"All {len(ranked)} images with a pseudo label."
        if len(chosen) == len(ranked)
        else f"The {worst} worst and the {best} best of {len(ranked)} images with a pseudo label."
    )
    note = (
        f"{which} Left the student's cleaned mask, in the middle the prompts made of it (box, dots for the "
        "object, crosses against it), right the teacher's answer."
    )
    cases = [_case(case_id, labels, score[case_id], agreement[case_id]) for case_id in chosen]
    by = "predicted IoU" if _known(iou).size else "agreement"
    return [
        Section("Pseudo labels", f'{facts(told)}<div class="charts">{charts}</div>'),
        gallery("Worst and best", cases, class_names=labels.class_names, note=note, score_name=by, wide=True),
    ]


def side_by_side(image: Image, refinement: Refinement) -> Picture:
    """Three panels of one image as one picture with three layers.

    Parameters
    ----------
    image
        uint8 (H, W, 3), of the refinement's size.
    refinement
        Masks and prompts in the image's frame.
    """
    drawn = draw_picture(
        image, {STUDENT: refinement.student_masks, TEACHER: refinement.masks}, longest=PANEL_PX
    )
    height, width = drawn.image.shape[:2]
    gap = np.zeros((height, GAP_PX, 3), np.uint8)
    panels = np.concatenate([drawn.image, gap, drawn.image, gap, drawn.image], axis=1)
    prompts = "".join(
        _prompts(one, rgb, (image.shape[0], image.shape[1]), (height, width))
        for index, sets in enumerate(refinement.prompts)
        for one in sets
        for rgb in [class_colour(index, COLOURS)]
    )
    step = width + GAP_PX
    layers = {
        STUDENT: drawn.layers[STUDENT],
        PROMPTS: f'<g transform="translate({step} 0)">{prompts}</g>',
        TEACHER: f'<g transform="translate({2 * step} 0)">{drawn.layers[TEACHER]}</g>',
    }
    return Picture(panels, layers)


def _case(case_id: str, labels: Labels, score: float | None, agreement: float | None) -> Case:
    one = labels.read(case_id)
    notes = [] if agreement is None else [f"agreement {number(agreement)}"]
    notes += [
        f"{name} not found"
        for name, mask in zip(labels.class_names, one.student_masks, strict=True)
        if not mask.any()
    ]
    if case_id in labels.reasons:
        notes.append(f"no mask: {labels.reasons[case_id]}")
    return Case(case_id, side_by_side(labels.image(case_id), one), score, notes)


def _prompts(
    one: Prompts, rgb: tuple[int, int, int], from_size: tuple[int, int], to_size: tuple[int, int]
) -> str:
    """Box, dots and crosses in pixel edges of the panel; dots and lines keep their width at any zoom."""
    parts = []
    if one.box is not None:
        x0, y0, x1, y1 = map_boxes(one.box[None], from_size, to_size)[0]
        parts.append((f"M{x0:.1f} {y0:.1f}H{x1:.1f}V{y1:.1f}H{x0:.1f}Z", ""))
    if one.points is not None and one.point_labels is not None:
        arm = max(to_size) / 60
        for (x, y), kind in zip(
            map_points(one.points, from_size, to_size) + 0.5, one.point_labels, strict=True
        ):
            if kind == 1:  # a line without length has round ends alone: a dot
                parts.append((f"M{x:.1f} {y:.1f}h0", "dot"))
            elif kind == 0:
                low, high = f"{y - arm:.1f}", f"{y + arm:.1f}"
                left, right = f"{x - arm:.1f}", f"{x + arm:.1f}"
                parts.append((f"M{left} {low}L{right} {high}M{right} {low}L{left} {high}", ""))
    return "".join(
        f'<path class="rim {kind}" d="{data}"/><path class="{kind}" style="stroke:rgb{rgb}" d="{data}"/>'
        for data, kind in parts
    )


def _mean(values: npt.NDArray[np.floating]) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else None


def _known(values: Mapping[str, float | None]) -> npt.NDArray[np.float64]:
    return np.array([value for value in values.values() if value is not None], np.float64)
