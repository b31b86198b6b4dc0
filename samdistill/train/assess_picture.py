"""The picture of an assessment: bars with intervals, and what the teacher made of a few images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from samdistill.io.files import atomic_write
from samdistill.report.overlay import COLOURS, draw_overlay
from samdistill.train.assess import WAYS, Answer, Assessment

EXAMPLES = 5
BLUE, GREY, GREEN = "#0072b2", "#8a939b", "#009e73"
BAR_COLOURS = {"ellipse": GREY, "student": GREY, "refined": GREEN}


def examples(assessment: Assessment, *, way: str = "rough_box", count: int = EXAMPLES) -> list[str]:
    """Case ids from the worst to the best by a way's Dice, evenly spaced."""
    ranked = sorted(assessment.cases, key=lambda case: (assessment.cases[case][way], case))
    count = min(count, len(ranked))
    steps = [round(index * (len(ranked) - 1) / max(1, count - 1)) for index in range(count)]
    return [ranked[step] for step in dict.fromkeys(steps)]


def draw(path: Path, assessment: Assessment, shown: Sequence[Answer], *, title: str) -> None:
    """Write a PNG: a bar a way, and below the answers to some images in rough boxes.

    Parameters
    ----------
    path
        Its folder must exist.
    assessment
        The numbers.
    shown
        From the worst to the best.
    title
        Plain text.
    """
    ways = list(assessment.dice)[::-1]
    figure = Figure(figsize=(12, 0.45 * len(ways) + 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subfigures(2, 1, height_ratios=(0.45 * len(ways) + 1.4, 3.2), squeeze=False)
    top, bottom = rows[:, 0]
    axes = top.subplots()
    for place, way in enumerate(ways):
        one = assessment.dice[way]
        axes.barh(place, one.mean, height=0.62, color=BAR_COLOURS.get(way, BLUE))
        end = one.mean
        if one.low == one.low:
            axes.plot(
                [one.low, one.high], [place, place], color="black", linewidth=1.4, solid_capstyle="butt"
            )
            end = one.high
        axes.text(max(end, one.mean) + 0.01, place, f"{one.mean:.3f}", va="center", fontsize=10)
    axes.set_yticks(range(len(ways)), [WAYS[way] for way in ways])
    axes.set_xlim(0, 1.08)
    axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    axes.set_xlabel(f"Dice, mean over {len(assessment.cases)} images; lines are 95 % intervals")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, loc="left", fontsize=12)
    grid = bottom.subplots(1, EXAMPLES, squeeze=False)[0]
    bottom.suptitle(
        "The teacher in rough boxes, from its worst image to its best: solid its mask, dashed the truth",
        fontsize=10,
        x=0.01,
        ha="left",
    )
    for place in grid:
        place.axis("off")
    for place, answer in zip(grid, shown, strict=False):
        place.imshow(draw_overlay(answer.image, answer.masks["rough_box"], COLOURS, truth=answer.truth))
        for x0, y0, x1, y1 in answer.rough_boxes:
            place.add_patch(
                Rectangle(
                    (x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, edgecolor="white", linewidth=0.8
                )
            )
        place.set_title(f"Dice {answer.dice['rough_box']:.3f}", fontsize=9)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
