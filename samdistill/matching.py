"""Who gets what: linear assignment, and the matching of proposals to probability maps under known counts.

`match` is the constrained matcher of SamDSK (Zhang et al., "SamDSK: Combining Segment Anything Model with
Domain-Specific Knowledge for Semi-Supervised Learning in Medical Image Segmentation", 2023, equations 1, 3
and 4). Knows weights, masks, maps and counts; knows not where they came from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from numbers import Integral, Real
from typing import Literal

import numpy as np
import numpy.typing as npt

from samdistill import _core, components, kernels
from samdistill.arrays import Mask, Masks, ProbabilityMaps, check_masks, describe
from samdistill.components import check_probability_maps
from samdistill.errors import InputRejected
from samdistill.proposals import MaskRuns, Proposals

Indices = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]
Overlap = Literal["soft", "hard"]
Counted = Literal["proposals", "components"]
OnInfeasible = Literal["reject", "relax", "raise"]
Status = Literal["optimal", "feasible", "infeasible"]

NODE_LIMIT = 200_000
MOST = 2**63 - 1  # what the core counts to


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
    proposals: Proposals | Masks | MaskRuns,
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
        `Proposals`, or their masks: (K, H, W) bool or uint8, or `MaskRuns`; image frame, none empty. K may
        be 0.
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
        Wall-clock limit of the search, all relaxations together, once the masks are read; None: none. What it
        ends depends on the machine; a smaller `node_limit` makes the answer the same everywhere.
    node_limit
        The most nodes of the search, each of which may keep about a kilobyte; None: no limit.

    Returns
    -------
    Match
        Of equally good choices the one found first, always the same for the same input (unless time ends it);
        a class whose best IoU is 0 gets nothing where its lower bound allows it.

    Raises
    ------
    ValueError, TypeError
        For arrays and bounds that are not what they must be, also lower > upper.
    InputRejected
        Where no choice is within the bounds and `on_infeasible` is `raise`.
    """
    maps = check_probability_maps(probability_maps)
    if isinstance(proposals, MaskRuns):
        masks = proposals.to_masks()
    else:
        given = proposals.masks if isinstance(proposals, Proposals) else proposals
        masks = check_masks(given, name="proposals")
    _check_choices(iou=iou, counted=counted, on_infeasible=on_infeasible)
    if time_limit_s is not None and not (isinstance(time_limit_s, Real) and time_limit_s > 0):
        raise ValueError(f"time_limit_s must be more than 0, or None, not {time_limit_s!r}.")
    if node_limit is not None and not (isinstance(node_limit, Integral) and 1 <= node_limit <= MOST):
        raise ValueError(f"node_limit must be a whole number, 1 or more, or None, not {node_limit!r}.")
    peaks = _check_pixels(masks, maps)
    bounds = _check_bounds(lower, upper, max_proposals, counted, len(maps))
    maps = maps if iou == "soft" else (maps > 0.5).astype(np.float32)
    overlap = kernels.soft_overlap(masks, maps, threads=1)
    if len(masks) and overlap.area_px.min() == 0:
        raise ValueError(
            f"proposals must all have a pixel, not none at index {int(overlap.area_px.argmin())}. "
            "Leave empty masks out."
        )
    present = (peaks >= 0.5) | (np.array(bounds.lower) > 0) | count_absent
    bounds = bounds.of(present)
    pieces = _pieces(masks) if bounds.components else None
    atoms = cache(lambda: kernels.atoms(masks, maps, threads=1))
    reason, why, began = "", "", time.monotonic()
    while True:
        left = None if time_limit_s is None else max(time_limit_s - (time.monotonic() - began), 1e-9)
        found = _search(overlap, atoms, bounds, pieces, left, node_limit)
        if found.chosen is not None or on_infeasible == "reject" or found.stopped:
            break
        if on_infeasible == "raise":
            raise InputRejected(f"lower and upper must allow a choice among the proposals: {found.why}.")
        bounds, why = bounds.relaxed(len(masks) if pieces is None else len(pieces[1])), why or found.why
        reason = f"lower was relaxed to {list(bounds.lower)}: {why}"
    none = np.empty(0, np.int64)
    chosen = [none] * len(maps) if found.chosen is None else found.chosen
    annotation = np.array([masks[indices].any(axis=0) for indices in chosen])
    scores = np.array([_iou(plane, mask) for plane, mask in zip(maps, annotation, strict=True)])
    # What overlaps with nothing of a class is worth no more than no proposal, and would be taught as it.
    for c in np.flatnonzero((scores == 0) & (np.array(bounds.lower) == 0)):
        chosen[c], annotation[c] = none, False
    ceilings = np.array([kernels.best_iou(plane) for plane in maps])
    value = float(scores.sum())
    return Match(
        selected=tuple(chosen),
        masks=annotation,
        scores=scores,
        present=present,
        value=value,
        upper_bound=max(value, min(found.upper_bound, float(ceilings[present].sum()))),
        ceilings=ceilings,
        status="infeasible" if found.chosen is None else "feasible" if found.stopped else "optimal",
        reason=found.why or reason,
        lower=bounds.lower,
        upper=bounds.upper,
        nodes=found.nodes,
        stopped=found.stopped,
    )


@dataclass(frozen=True)
class _Bounds:
    """What each class may have: `limit` proposals, and lower .. upper proposals or components."""

    lower: tuple[int, ...]
    upper: tuple[int, ...]
    limit: tuple[int, ...]
    components: bool

    def of(self, present: npt.NDArray[np.bool_]) -> _Bounds:
        """Give the classes that are absent nothing."""
        upper, limit = (tuple(np.where(present, bound, 0).tolist()) for bound in (self.upper, self.limit))
        return replace(self, upper=upper, limit=limit)

    def relaxed(self, most: int) -> _Bounds:
        """Take 1 off the greatest lower bound, or at once what it is above the most there can be."""
        c = max(range(len(self.lower)), key=lambda i: (self.lower[i], i))
        return replace(self, lower=(*self.lower[:c], min(self.lower[c] - 1, most), *self.lower[c + 1 :]))


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
) -> _Bounds:
    if max_proposals is not None and counted == "proposals":
        raise ValueError("max_proposals must be None where proposals are counted; upper limits them.")
    least, most = _per_class(lower, classes, "lower"), _per_class(upper, classes, "upper")
    for c in range(classes):
        if least[c] > most[c]:
            raise ValueError(
                f"lower must be at most upper, not {least[c]} where upper is {most[c]}, in class {c + 1}. "
                "Bounds that contradict each other match no image."
            )
    limit = most if max_proposals is None else _per_class(max_proposals, classes, "max_proposals")
    return _Bounds(least, most, limit, counted == "components")


def _per_class(numbers: int | Sequence[int], classes: int, name: str) -> tuple[int, ...]:
    try:
        array = np.asarray(numbers)
    except ValueError:  # lists in lists, of several lengths
        array = np.empty((0, 0), np.int64)
    if array.dtype.kind not in "iu" or array.shape not in ((), (classes,)) or (array > MOST).any():
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
    """What a search came to; `chosen` is None where there is no choice, or none was found, and `why` says
    so."""

    chosen: list[Indices] | None
    upper_bound: float = 0.0
    nodes: int = 0
    stopped: Literal["", "nodes", "time"] = ""
    why: str = ""


def _search(
    overlap: kernels.SoftOverlap,
    atoms: Callable[[], kernels.Atoms],
    bounds: _Bounds,
    pieces: tuple[Indices, npt.NDArray[np.bool_]] | None,
    time_limit_s: float | None,
    node_limit: int | None,
) -> _Found:
    if pieces is None:
        if sum(bounds.lower) > len(overlap.area_px):
            return _Found(
                None, why=f"{sum(bounds.lower)} proposals are needed and there are {len(overlap.area_px)}"
            )
        if max(bounds.upper) <= 1:
            return _assign_one_each(overlap.soft_iou(), bounds.lower, bounds.upper)
    whole = atoms()
    found, chosen, upper_bound, nodes, stop = _core.cover(
        whole.covered_by,
        whole.inside,
        whole.outside,
        whole.total,
        np.array(bounds.lower, np.int64),
        np.array(bounds.upper, np.int64),
        np.array(bounds.limit, np.int64),
        pieces,
        -1 if node_limit is None else node_limit,
        -1.0 if time_limit_s is None else time_limit_s,
    )
    stopped: Literal["", "nodes", "time"] = ("", "nodes", "time")[stop]
    if found:
        return _Found(chosen, upper_bound, nodes, stopped)
    none_fits = "no union of so few proposals has a number of components within the bounds"
    why = "no choice was found before the limit" if stopped else none_fits
    return _Found(None, upper_bound, nodes, stopped, why)


def _assign_one_each(scores: Values, lower: tuple[int, ...], upper: tuple[int, ...]) -> _Found:
    """Solve the case of one proposal a class at most: an assignment; a class may go without if lower is 0."""
    count, classes = scores.shape
    weights = np.full((classes, count + classes), -np.inf)
    for c in range(classes):
        if upper[c]:
            weights[c, :count] = scores[:, c]
        if not lower[c]:
            weights[c, count + c] = 0.0
    _, columns = assign(weights)
    chosen = [np.array([k] if k < count else [], np.int64) for k in columns]
    return _Found(chosen, float(weights[np.arange(classes), columns].sum()))


def _pieces(masks: Masks) -> tuple[Indices, npt.NDArray[np.bool_]]:
    """Return where each proposal's connected components begin in the list of all, and which of all touch.

    A component is held as its part of the image alone: there may be thousands of a few pixels each.
    """
    found = [components.label(np.asarray(mask)) for mask in masks]
    first = np.concatenate([[0], np.cumsum([len(one) for one in found])]).astype(np.int64)
    boxes = np.concatenate([one.boxes for one in found] or [np.empty((0, 4), np.int64)])
    pieces = [
        one.labels[y0:y1, x0:x1] == i for one in found for i, (x0, y0, x1, y1) in enumerate(one.boxes, 1)
    ]
    touching = np.eye(len(pieces), dtype=np.bool_)
    for p, (x0, y0, x1, y1) in enumerate(boxes - [1, 1, -1, -1]):  # grown by a pixel all around
        grown = _grown(pieces[p])
        later = boxes[p + 1 :]
        near = (later[:, 0] < x1) & (later[:, 2] > x0) & (later[:, 1] < y1) & (later[:, 3] > y0)
        for q in np.flatnonzero(near) + p + 1:
            left, top, right, bottom = boxes[q]
            rows, columns = slice(max(y0, top), min(y1, bottom)), slice(max(x0, left), min(x1, right))
            one = grown[rows.start - y0 : rows.stop - y0, columns.start - x0 : columns.stop - x0]
            other = pieces[q][rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
            touching[p, q] = touching[q, p] = bool((one & other).any())
    return first, touching


def _grown(mask: Mask) -> Mask:
    """(H, W) bool to (H + 2, W + 2): the mask and the eight neighbours of each of its pixels."""
    grown = np.pad(mask, 1)
    for line in (grown, grown.T):
        line[:-1] |= line[1:]
        line[1:] |= line[:-1]
    return grown
