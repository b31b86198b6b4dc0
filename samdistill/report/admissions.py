"""SamDSK's admissions to look at: who was admitted in which round, why, and what became of the proposals."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from samdistill.arrays import Image
from samdistill.refine import Refinement
from samdistill.report.charts import histogram
from samdistill.report.document import Section, number, table
from samdistill.report.gallery import Case, Picture, draw_picture, gallery

SHOWN = 12  # images of each kind
PANEL_PX = 420  # longest side of each of the two panels
GAP_PX = 6
STUDENT, ANNOTATION = "student", "annotation"
EDGES = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0)
GOOD_DICE = 0.8  # from which on an annotation is called good


@dataclass(frozen=True)
class Matched:
    """What became of an image in a round.

    Parameters
    ----------
    case_id, round, admitted, reason
        As the admission record has them.
    beta, ceiling
        None where there was nothing to match.
    proposals
        How many the teacher made.
    chosen
        One a class: numbers of its proposals.
    dice, student_dice
        Of the annotation and of the student's mask against hidden truth; None where nobody looked.
    """

    case_id: str
    round: int
    admitted: bool
    reason: str
    beta: float | None
    ceiling: float | None
    proposals: int
    chosen: Sequence[Sequence[int]]
    dice: float | None = None
    student_dice: float | None = None


def admission_sections(
    rounds: Mapping[int, Sequence[Matched]],
    limit: float,
    *,
    read: Callable[[str, int], Refinement],
    image: Callable[[str], Image],
    class_names: Sequence[str],
    shown: int = SHOWN,
) -> list[Section]:
    """The rounds, the distribution of beta, precision where truth was looked at, pictures, every record.

    Parameters
    ----------
    rounds
        Records by round, from 1.
    limit
        beta*, above which an image is admitted.
    read
        Gives an image's entry of a round.
    image
        Gives the uint8 (H, W, 3) image.
    class_names
        Of channel 0, 1, ...
    """
    last = {one.case_id: one for number_ in sorted(rounds) for one in rounds[number_]}
    matched = [one for one in last.values() if one.beta is not None]
    charts = histogram(
        f"Beta when last matched (admitted above {limit:g})",
        _known(matched, "beta"),
        x_label="beta",
    ) + histogram(
        "Ceiling: the greatest beta any annotation could have", _known(matched, "ceiling"), x_label="ceiling"
    )
    reasons = Counter((one.reason, one.admitted) for one in last.values())
    why = table(
        ["when last matched", "images"],
        [[reason, str(count)] for (reason, _), count in sorted(reasons.items(), key=lambda one: -one[1])],
    )
    sections = [
        Section("Admissions", f'{_rounds(rounds, limit)}{why}<div class="charts">{charts}</div>'),
        *_audit(list(last.values()), limit),
    ]
    low = sorted((one for one in matched if one.admitted), key=lambda one: one.beta or 0.0)
    rest = sorted((one for one in matched if not one.admitted), key=lambda one: -(one.beta or 0.0))
    for title, own, which in (
        ("Admitted, lowest beta first", low, "of lowest beta"),
        ("Not admitted, highest beta", rest, "of highest beta"),
    ):
        if not own:
            continue
        cases = [_case(one, read, image) for one in own[:shown]]
        note = (
            f"{len(cases)} of {len(own)} images {which}. Left the student's mask, right the annotation: the "
            "proposals that were chosen."
        )
        sections.append(
            gallery(title, cases, class_names=class_names, note=note, score_name="beta", wide=True)
        )
    return [*sections, _records(list(last.values()), class_names)]


def _rounds(rounds: Mapping[int, Sequence[Matched]], limit: float) -> str:
    rows = []
    for round_ in sorted(rounds):
        own = rounds[round_]
        ceilings = _known(own, "ceiling")
        admitted = _known([one for one in own if one.admitted], "dice")
        rows.append(
            [
                str(round_),
                str(len(own)),
                str(sum(one.admitted for one in own)),
                number(_good(admitted)),
                number(_mean(admitted)),
                number(_mean(_known([one for one in own if not one.admitted], "dice"))),
                number(_median(_known(own, "beta"))),
                number(_median(ceilings)),
                str(sum(ceiling <= limit for ceiling in ceilings)),
            ]
        )
    headers = [
        "round", "matched", "admitted", "precision", "Dice, admitted", "Dice, others", "median beta",
        "median ceiling", f"up to {limit:g}",
    ]  # fmt: skip
    caption = (
        f"An image is admitted when its beta is above {limit:g}. Where the ceiling is not, no annotation "
        "whatever could be: the student's map is too unsure, or its object too small. Dice is that of the "
        "annotations against hidden labels, where training ran with --audit-labels; precision is the share "
        f"of admitted images whose annotation has Dice from {GOOD_DICE:g}."
    )
    return table(headers, rows, caption=caption)


def _audit(records: Sequence[Matched], limit: float) -> list[Section]:
    """How true annotations are by beta; nothing where nobody looked."""
    known = [one for one in records if one.dice is not None and one.beta is not None]
    if not known:
        return []
    rows = []
    edges = sorted({*EDGES, limit})
    for low, high in itertools.pairwise(edges):
        own = [one for one in known if low < (one.beta or 0.0) <= high or (low == 0 and one.beta == 0)]
        if own:
            means = [_mean(_known(own, name)) for name in ("dice", "student_dice")]
            rows.append(
                [
                    f"{low:g} to {high:g}",
                    str(len(own)),
                    *(number(mean) for mean in means),
                    number(_good(_known(own, "dice"))),
                ]
            )
    headers = [
        "beta",
        "images",
        "true Dice",
        "Dice of the student's mask",
        f"share with Dice from {GOOD_DICE:g}",
    ]
    caption = "Against labels that training did not see, for each image when it was last matched."
    return [Section("Beta and truth", table(headers, rows, caption=caption))]


def _records(records: Sequence[Matched], class_names: Sequence[str]) -> Section:
    """Every image when it was last matched."""
    rows = []
    for one in sorted(records, key=lambda one: one.case_id):
        chosen = [", ".join(map(str, own)) or "none" for own in one.chosen]
        if len(chosen) > 1:
            chosen = [f"{name}: {own}" for name, own in zip(class_names, chosen, strict=True)]
        numbers = [number(value) for value in (one.beta, one.ceiling, one.dice)]
        cells = [str(one.round), "yes" if one.admitted else "no", one.reason, *numbers]
        rows.append([one.case_id, *cells, str(one.proposals), "; ".join(chosen)])
    headers = [
        "image", "round", "admitted", "reason", "beta", "ceiling", "true Dice", "proposals", "chosen",
    ]  # fmt: skip
    caption = (
        "Each image when it was last matched. Proposals are numbered as the cache holds them; "
        "pseudo/ROUND.jsonl in the run folder has all rounds, bounds and certificates."
    )
    return Section("Records", table(headers, rows, caption=caption))


def two_panels(picture: Image, refinement: Refinement) -> Picture:
    """The student's mask left, the annotation right, as one picture with two layers.

    Parameters
    ----------
    picture
        uint8 (H, W, 3), of the refinement's size.
    refinement
        As the store holds it, in the image's frame.
    """
    drawn = draw_picture(
        picture, {STUDENT: refinement.student_masks, ANNOTATION: refinement.masks}, longest=PANEL_PX
    )
    height, width = drawn.image.shape[:2]
    panels = np.concatenate([drawn.image, np.zeros((height, GAP_PX, 3), np.uint8), drawn.image], axis=1)
    moved = f'<g transform="translate({width + GAP_PX} 0)">{drawn.layers[ANNOTATION]}</g>'
    return Picture(panels, {STUDENT: drawn.layers[STUDENT], ANNOTATION: moved})


def _case(one: Matched, read: Callable[[str, int], Refinement], image: Callable[[str], Image]) -> Case:
    notes = [f"round {one.round}", f"ceiling {number(one.ceiling)}"]
    if one.dice is not None:
        notes.append(f"true Dice {number(one.dice)}")
    return Case(one.case_id, two_panels(image(one.case_id), read(one.case_id, one.round)), one.beta, notes)


def _known(records: Sequence[Matched], name: str) -> list[float]:
    return [value for one in records if (value := getattr(one, name)) is not None]


def _good(dice: Sequence[float]) -> float | None:
    return _mean([float(value >= GOOD_DICE) for value in dice])


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if values else None


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
