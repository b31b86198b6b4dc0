"""Admission: proposals matched to the student's maps, and the images that match well (SamDSK, section 3).

A round leaves an entry a matched image in the store (the student's mask, the annotation) and, once it is
complete, one line an image in `<round>.jsonl`: what was chosen, how well it fits, why it was admitted or not.
Knows no training.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from samdistill.arrays import Masks, ProbabilityMaps
from samdistill.config import build
from samdistill.errors import InputRejected, UsageError
from samdistill.io.files import write_text
from samdistill.matching import Match, match
from samdistill.metrics import dice_per_class
from samdistill.proposals import Proposals, mask_nms
from samdistill.refine import Refinement
from samdistill.train.samdsk_config import Bounds, SamdskConfig

KNOWN_EMPTY = "known to hold nothing"


@dataclass(frozen=True)
class Admission:
    """What became of an image in a round.

    Parameters
    ----------
    case_id
        Of the data set.
    round
        From 1.
    admitted
        Whether it is trained on from now on.
    reason
        Why, or why not.
    proposals, matched
        How many the teacher made, and how many were left without near-duplicates.
    beta
        Mean IoU over the classes that are present; None where there is nothing to take the mean of.
    ceiling
        The greatest beta that any annotation whatever could have.
    iou
        Of each class's map with its annotation; None where the class is absent.
    chosen
        One a class: numbers of its proposals, as the cache holds them.
    bounds
        Least and most of each class, as known before matching.
    status, gap
        Of the match: "optimal", "feasible" (a limit ended the search, the gap says how far it may be from the
        best), "infeasible", or "not matched".
    confidence
        The student's own: mean probability over its mask, mean over the classes it found; for comparison.
    """

    case_id: str
    round: int
    admitted: bool
    reason: str
    proposals: int
    matched: int
    beta: float | None
    ceiling: float | None
    iou: tuple[float | None, ...]
    chosen: tuple[tuple[int, ...], ...]
    bounds: tuple[tuple[int, ...], ...]
    status: str
    gap: float | None
    confidence: float | None


def judge(
    case_id: str,
    probability_maps: ProbabilityMaps,
    proposals: Proposals,
    bounds: Sequence[Bounds],
    config: SamdskConfig,
    *,
    number: int = 1,
) -> tuple[Admission, Masks]:
    """Match an image's proposals to the student's maps and decide.

    Parameters
    ----------
    probability_maps
        (C, H, W) float32 in [0, 1], image frame.
    proposals
        Of the image.
    bounds
        Least and most of each class. A class of which there is known to be none is left out: its annotation
        is empty whatever the student sees, and it counts nowhere.
    number
        Of the round.

    Returns
    -------
    tuple
        The record and the annotation, (C, H, W) bool.

    Raises
    ------
    InputRejected
        When the bounds cannot be met and `config.on_infeasible` is "raise".
    """
    annotation: Masks = np.zeros(probability_maps.shape, np.bool_)
    record: dict[str, Any] = {
        "case_id": case_id,
        "round": number,
        "proposals": len(proposals),
        "matched": 0,
        "beta": None,
        "ceiling": None,
        "iou": (None,) * len(annotation),
        "chosen": ((),) * len(annotation),
        "bounds": tuple(bounds),
        "status": "not matched",
        "gap": None,
        "confidence": confidence_of(probability_maps),
    }
    searched = [channel for channel, (_, most) in enumerate(bounds) if most > 0]
    if not searched:
        return Admission(**record, admitted=True, reason=KNOWN_EMPTY), annotation
    if len(proposals) < config.min_proposals:
        reason = f"{len(proposals)} proposals, at least {config.min_proposals} wanted"
        return Admission(**record, admitted=False, reason=reason), annotation
    kept = np.sort(mask_nms(proposals.masks, proposals.iou_predictions, config.near_duplicate))
    try:
        found = match(
            probability_maps[searched],
            proposals.masks[kept],
            lower=[bounds[channel][0] for channel in searched],
            upper=[bounds[channel][1] for channel in searched],
            iou=config.iou,
            counted=config.counted,
            max_proposals=config.max_proposals,
            count_absent=config.count_absent,
            on_infeasible=config.on_infeasible,
            node_limit=config.node_limit or None,
            time_limit_s=config.time_limit_s,
        )
    except InputRejected as error:
        raise InputRejected(f"{case_id}: {error}") from error
    iou, chosen = list(record["iou"]), list(record["chosen"])
    for place, channel in enumerate(searched):
        annotation[channel] = found.masks[place]
        chosen[channel] = tuple(int(kept[index]) for index in found.selected[place])
        iou[channel] = round(float(found.scores[place]), 6) if found.present[place] else None
    feasible = found.status != "infeasible"
    record |= {
        "matched": len(kept),
        "status": found.status,
        "chosen": tuple(chosen),
        "ceiling": _number(found.ceiling),
    }
    if feasible:
        record |= {"iou": tuple(iou), "beta": _number(found.beta), "gap": _number(found.gap)}
    admitted = feasible and found.beta > config.beta  # NaN is above nothing
    return Admission(**record, admitted=admitted, reason=_reason(found, config.beta)), annotation


def _reason(found: Match, limit: float) -> str:
    if found.status == "infeasible":
        return found.reason
    if math.isnan(found.beta):
        return "no class is present"
    told = f"{found.reason}; " if found.reason else ""
    if found.beta > limit:
        return f"{told}beta above {limit:g}"
    if found.ceiling <= limit:
        return f"{told}beta not above {limit:g}, and no annotation whatever could be"
    return f"{told}beta not above {limit:g}"


def confidence_of(probability_maps: ProbabilityMaps) -> float | None:
    """Mean probability over the mask p > 0.5, mean over the classes that have one; None where none has."""
    means = [float(plane[plane > 0.5].mean()) for plane in probability_maps if (plane > 0.5).any()]
    return round(float(np.mean(means)), 6) if means else None


def as_pseudo(
    annotation: Masks, probability_maps: ProbabilityMaps, proposals: Proposals, record: Admission
) -> Refinement:
    """An annotation as the store keeps pseudo labels; nobody was prompted for it.

    The predicted IoU is the mean of the chosen proposals', NaN where there is none.
    """
    masks = probability_maps > 0.5
    predicted = [proposals.iou_predictions[list(own)] for own in record.chosen]
    agreement = dice_per_class(annotation, masks)
    agreement[~annotation.any(axis=(1, 2))] = np.nan
    return Refinement(
        annotation,
        masks,
        [[] for _ in annotation],
        np.array([one.mean() if len(one) else np.nan for one in predicted], np.float32),
        agreement.astype(np.float32),
    )


def write_record(path: Path, record: Admission) -> None:
    """Write one record, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(asdict(record)) + "\n")


def write_records(path: Path, records: Sequence[Admission]) -> None:
    """Write the records of a round that is complete, one a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(asdict(record)) + "\n" for record in records))


def read_records(path: Path) -> list[Admission]:
    """Read records, one a line.

    Raises
    ------
    InputRejected
        When the file is missing or damaged.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [
            build(Admission, json.loads(line), where=f"{path.name}, line {n}")
            for n, line in enumerate(lines, 1)
        ]
    except OSError as error:
        raise InputRejected(
            f"{path} must hold admission records, and cannot be read: {error.strerror}."
        ) from error
    except (UsageError, ValueError) as error:
        raise InputRejected(
            f"{path} is damaged: {error}. Delete it to have the round matched again."
        ) from error


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)
