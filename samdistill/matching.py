"""Who gets what: linear assignment, and the matching of proposals to probability maps under known counts.

`match` is the constrained matcher of SamDSK (Zhang et al., "SamDSK: Combining Segment Anything Model with
Domain-Specific Knowledge for Semi-Supervised Learning in Medical Image Segmentation", 2023, equations 1, 3
and 4). Knows weights, masks, maps and counts; knows not where they came from.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
import numpy.typing as npt

from samdistill import _core, components, kernels
from samdistill.arrays import Masks, ProbabilityMaps, check_masks, describe
from samdistill.components import check_probability_maps
from samdistill.errors import InputRejected
from samdistill.proposals import Proposals

Indices = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]
Overlap = Literal["soft", "hard"]
Counted = Literal["proposals", "components"]
OnInfeasible = Literal["reject", "relax", "raise"]
Status = Literal["optimal", "feasible", "infeasible"]

NODE_LIMIT = 100_000


@dataclass(frozen=True, eq=False)
class Match:
    """Which proposals go to which class, how well they fit, and what proves it.

    Attributes
    ----------
    selected
        One a class: (M,) int64, ascending indices into the proposals. No index is in two of them.
    masks
        (C, H, W) bool, image frame: the annotation, the union of each class's proposals; classes may overlap
        where their proposals do.
    scores
        (C,) float64: the IoU of each class's map with its mask; 0 for a class that is not present.
    present
        (C,) bool: the classes that are matched and averaged. One whose lower bound is 0 and whose map stays
        below 0.5 is absent: it gets no proposal and counts nowhere (unless `count_absent`).
    value
        The sum of the scores, which was maximised.
    upper_bound
        No choice within the bounds has a greater value; this is proven whatever the status says.
    ceilings
        (C,) float64: the greatest IoU that any mask whatever, not only a union of proposals, has with each
        map. Soft maps that are unsure, or whose object is small, keep even a perfect mask far below 1.
    status
        `optimal`: value equals upper_bound, but for rounding. `feasible`: a limit ended the search; see
        `gap`. `infeasible`: nothing was chosen, see `reason`.
    reason
        Why the bounds cannot be met, or which were used instead; empty where they were met as given.
    lower, upper
        The bounds of each class that were used; 0 and 0 for an absent class.
    nodes
        How far the search went.
    stopped
        Which limit ended it: `nodes` repeats exactly on any machine, `time` does not; empty where none did.
    """

    selected: tuple[Indices, ...]
    masks: Masks
    scores: Values
    present: npt.NDArray[np.bool_]
    value: float
    upper_bound: float
    ceilings: Values
    status: Status
    reason: str
    lower: tuple[int, ...]
    upper: tuple[int, ...]
    nodes: int
    stopped: Literal["", "nodes", "time"]

    @property
    def beta(self) -> float:
        """The mean score of the classes that are present (equation 4); NaN where none is."""
        return self._mean(self.scores)

    @property
    def ceiling(self) -> float:
        """The mean ceiling of the classes that are present: beta cannot exceed it. NaN where none is."""
        return self._mean(self.ceilings)

    @property
    def gap(self) -> float:
        """How far the value may be from the best there is, relative to it: 0 where it is optimal."""
        return max(0.0, self.upper_bound - self.value) / max(self.value, 1e-12)

    def _mean(self, numbers: Values) -> float:
        return float(numbers[self.present].mean()) if self.present.any() else float("nan")


def assign(
    weights: npt.ArrayLike, *, maximize: bool = True
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Choose min(R, C) entries, no two in one row or column, of greatest sum (Crouse 2016).

    The contract of `scipy.optimize.linear_sum_assignment`, but for the default of `maximize`. Among equally
    good assignments the choice is fixed, though not scipy's.

    Parameters
    ----------
    weights
        (R, C) numbers or bools; -inf forbids an entry (+inf when minimizing). Anything but C-contiguous
        float64 is copied once.
    maximize
        False for the least sum.

    Returns
    -------
    rows, columns
        (min(R, C),) int64 each, sorted by row.

    Raises
    ------
    ValueError
        When `weights` is no matrix of numbers, has NaN or the infinity that would always win, or when every
        assignment uses a forbidden entry.
    """
    matrix = np.asarray(weights)
    if matrix.ndim != 2 or matrix.dtype.kind not in "biuf":
        raise ValueError(f"weights must be a matrix (R, C) of numbers or bools, not {describe(matrix)}.")
    status, rows, columns = _core.assign(np.ascontiguousarray(matrix, dtype=np.float64), maximize)
    if status == 1:
        forbidden = "-inf" if maximize else "inf"
        raise ValueError(
            f"weights must be numbers, or {forbidden} where an entry is forbidden, not NaN or "
            f"{'inf' if maximize else '-inf'}."
        )
    if status == 2:
        raise ValueError("weights must allow an assignment, not forbid entries until none is feasible.")
    return rows, columns


def match(
    probability_maps: ProbabilityMaps,
    proposals: Proposals | Masks,
    *,
    lower: int | Sequence[int],
    upper: int | Sequence[int],
    iou: Overlap = "soft",
    counted: Counted = "proposals",
    max_proposals: int | Sequence[int] | None = None,
    count_absent: bool = False,
    on_infeasible: OnInfeasible = "reject",
    time_limit_s: float | None = 1.0,
    node_limit: int | None = NODE_LIMIT,
) -> Match:
    """Give each class the proposals whose union fits its map best, so many as are known to be there.

    Maximises the sum over classes of IoU(map, union of the class's proposals), where each proposal goes to
    one class at most and lower <= number of proposals <= upper in each class. Proposals are neither merged
    nor dropped: part and whole of one object meet a lower bound of 2, so thin near-duplicates out first
    (`proposals.mask_nms(masks, scores, 0.9)`), or count components.

    Parameters
    ----------
    probability_maps
        (C, H, W) float32 in [0, 1], without NaN, image frame, uncalibrated.
    proposals
        `Proposals`, or their masks: (K, H, W) bool or uint8, image frame, none empty. K may be 0.
    lower, upper
        How many proposals each class has in this image: 0 <= lower <= upper, a number or one a class.
    iou
        `soft`: sum of p inside / (sum of p + sum of 1 - p inside). `hard`: of the masks p > 0.5.
    counted
        `proposals`, or `components`: the bounds then hold for the 8-connected components of each class's
        union.
    max_proposals
        With `components`, the most proposals of a class, a number or one a class; `upper` if None.
    count_absent
        Match and average every class, also one whose lower bound is 0 and whose map stays below 0.5 (the
        paper to the letter).
    on_infeasible
        What to do where no choice is within the bounds. `reject`: choose nothing and say why. `relax`: take 1
        off the greatest lower bound (of equal ones, the last class's) until there is one. `raise`:
        InputRejected.
    time_limit_s
        Wall-clock limit of the search; None: none. What it ends depends on the machine; a smaller
        `node_limit` makes the answer the same everywhere.
    node_limit
        The most nodes of the search; None: no limit.

    Returns
    -------
    Match
        Of equally good choices the one found first, always the same for the same input (unless time ends it).

    Raises
    ------
    ValueError, TypeError
        For arrays and bounds that are not what they must be, also lower > upper.
    InputRejected
        Where no choice is within the bounds and `on_infeasible` is `raise`.
    """
    maps = check_probability_maps(probability_maps)
    masks = check_masks(proposals.masks if isinstance(proposals, Proposals) else proposals, name="proposals")
    _check_choices(iou=iou, counted=counted, on_infeasible=on_infeasible)
    if time_limit_s is not None and not time_limit_s > 0:
        raise ValueError(f"time_limit_s must be more than 0, or None, not {time_limit_s}.")
    if node_limit is not None and not node_limit >= 1:
        raise ValueError(f"node_limit must be 1 or more, or None, not {node_limit}.")
    least, most, limit = _check_bounds(lower, upper, max_proposals, counted, len(maps))
    peaks = _check_pixels(masks, maps)
    maps = maps if iou == "soft" else (maps > 0.5).astype(np.float32)

    overlap = kernels.soft_overlap(masks, maps, threads=1)
    if len(masks) and overlap.area_px.min() == 0:
        raise ValueError(
            f"proposals must all have a pixel, not none at index {int(overlap.area_px.argmin())}. "
            "Leave empty masks out."
        )
    present = np.array([count_absent or n > 0 or peak >= 0.5 for n, peak in zip(least, peaks, strict=True)])
    most, limit = (tuple(int(n) for n in np.where(present, bound, 0)) for bound in (most, limit))
    reason, why = "", ""
    while True:
        found = _search(
            masks, maps, least, most, limit if counted == "components" else None, time_limit_s, node_limit
        )
        if found.chosen is not None or on_infeasible == "reject":
            break
        if on_infeasible == "raise":
            raise InputRejected(f"lower and upper must allow a choice among the proposals: {found.why}.")
        c = max(range(len(least)), key=lambda i: (least[i], i))
        least = (*least[:c], least[c] - 1, *least[c + 1 :])
        why = why or found.why
        reason = f"lower was relaxed to {list(least)}: {why}"
    chosen = found.chosen if found.chosen is not None else [[] for _ in maps]
    selected = tuple(np.array(sorted(indices), np.int64) for indices in chosen)
    annotation = np.array([masks[indices].any(axis=0) for indices in selected])
    scores = np.array([_iou(plane, mask) for plane, mask in zip(maps, annotation, strict=True)])
    value = float(scores.sum())
    return Match(
        selected=selected,
        masks=annotation,
        scores=scores,
        present=present,
        value=value,
        upper_bound=max(value, found.upper_bound),
        ceilings=np.array([kernels.best_iou(plane) for plane in maps]),
        status="infeasible" if found.chosen is None else "feasible" if found.stopped else "optimal",
        reason=reason if found.chosen is not None else found.why,
        lower=least,
        upper=most,
        nodes=found.nodes,
        stopped=found.stopped,
    )


def _iou(plane: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_]) -> float:
    inside = float(plane[mask].sum(dtype=np.float64))
    either = float(plane.sum(dtype=np.float64)) + float(np.count_nonzero(mask)) - inside
    return inside / either if either > 0 else 0.0


def _check_choices(*, iou: str, counted: str, on_infeasible: str) -> None:
    for name, value, choices in (
        ("iou", iou, ("soft", "hard")),
        ("counted", counted, ("proposals", "components")),
        ("on_infeasible", on_infeasible, ("reject", "relax", "raise")),
    ):
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}.")


def _check_bounds(
    lower: int | Sequence[int],
    upper: int | Sequence[int],
    max_proposals: int | Sequence[int] | None,
    counted: Counted,
    classes: int,
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    if max_proposals is not None and counted == "proposals":
        raise ValueError("max_proposals must be None where proposals are counted; upper limits them.")
    least, most = _per_class(lower, classes, "lower"), _per_class(upper, classes, "upper")
    for c in range(classes):
        if least[c] > most[c]:
            raise ValueError(
                f"lower must be at most upper, not {least[c]} where upper is {most[c]}, in class {c + 1}. "
                "Bounds that contradict each other match no image."
            )
    return least, most, most if max_proposals is None else _per_class(max_proposals, classes, "max_proposals")


def _per_class(numbers: int | Sequence[int], classes: int, name: str) -> tuple[int, ...]:
    array = np.asarray(numbers)
    if array.dtype.kind not in "iu" or array.shape not in ((), (classes,)):
        raise ValueError(
            f"{name} must be a whole number, or {classes} of them, one a class, not {numbers!r}."
        )
    if (array < 0).any():
        raise ValueError(f"{name} must be 0 or more, not {numbers!r}.")
    return tuple(int(n) for n in np.broadcast_to(array, classes))


def _check_pixels(masks: Masks, maps: ProbabilityMaps) -> Values:
    """Return the peak of each map."""
    if maps.size == 0:
        raise ValueError(f"probability_maps must have a class and a pixel, not the shape {maps.shape}.")
    if masks.shape[1:] != maps.shape[1:]:
        raise ValueError(
            f"proposals must have the size of the maps, {maps.shape[1:]}, not {masks.shape[1:]}."
        )
    lows, peaks = maps.min(axis=(1, 2)), maps.max(axis=(1, 2))
    good = (lows >= 0) & (peaks <= 1)  # not so for NaN either
    if not good.all():
        c = int(np.argmin(good))
        raise ValueError(
            f"probability_maps must be in [0, 1] and no NaN, not {lows[c]} to {peaks[c]} in channel {c}. "
            "Logits need the sigmoid first."
        )
    return np.asarray(peaks, np.float64)


@dataclass(frozen=True)
class _Found:
    chosen: list[list[int]] | None
    upper_bound: float
    nodes: int
    stopped: Literal["", "nodes", "time"]
    why: str


def _search(
    masks: Masks,
    maps: ProbabilityMaps,
    least: tuple[int, ...],
    most: tuple[int, ...],
    limit: tuple[int, ...] | None,
    time_limit_s: float | None,
    node_limit: int | None,
) -> _Found:
    if limit is None and sum(least) > len(masks):
        why = f"{sum(least)} proposals are needed and there are {len(masks)}"
        return _Found(None, 0.0, 0, "", why)
    atoms = kernels.atoms(masks, maps, threads=1)
    end = time.monotonic() + (time_limit_s or float("inf"))
    best: tuple[float, list[list[int]]] = (-1.0, [])
    nodes = 0
    stopped: Literal["", "nodes", "time"] = ""

    def go(c: int, taken: frozenset[int], value: float, chosen: list[list[int]]) -> None:
        nonlocal best, nodes, stopped
        if c == len(maps):
            if value > best[0]:
                best = (value, chosen)
            return
        free = [k for k in range(len(masks)) if k not in taken]
        for count in range(least[c] if limit is None else 0, min((limit or most)[c], len(free)) + 1):
            for some in combinations(free, count):
                if limit is not None:
                    found = len(components.label(np.asarray(masks[list(some)].any(axis=0))))
                    if not least[c] <= found <= most[c]:
                        continue
                nodes += 1
                if best[0] >= 0 and node_limit is not None and nodes > node_limit:
                    stopped = "nodes"
                if best[0] >= 0 and time.monotonic() > end:
                    stopped = "time"
                if stopped:
                    return
                covered = atoms.covered_by[:, list(some)].any(axis=1)
                either = atoms.total[c] + atoms.outside[covered, c].sum()
                score = atoms.inside[covered, c].sum() / either if either > 0 else 0.0
                go(c + 1, taken | set(some), value + float(score), [*chosen, list(some)])

    go(0, frozenset(), 0.0, [])
    if best[0] < 0:
        return _Found(None, 0.0, nodes, "", "no union has so many components")
    bound = float(sum(m > 0 for m in most)) if stopped else best[0]
    return _Found(best[1], bound, nodes, stopped, "")
