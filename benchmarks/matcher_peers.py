"""What else one could do than match exactly; each gives the sum of soft IoUs of its choice.

All of them choose one to `upper` proposals a class, each for one class alone; they work on the same
sums and atoms as the matcher.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from samdistill import kernels

Masks = npt.NDArray[np.bool_]
Maps = npt.NDArray[np.float32]
Values = npt.NDArray[np.float64]


class Unions:
    """Soft IoUs of unions, on atoms."""

    def __init__(self, maps: Maps, masks: Masks) -> None:
        atoms = kernels.atoms(masks, maps, threads=1)
        self.covers = np.ascontiguousarray(atoms.covered_by.T).astype(np.float64)  # (K, A)
        self.atoms, self.total = atoms, atoms.total
        self.classes = len(maps)

    def value(self, c: int, chosen: list[int]) -> float:
        covered = self.atoms.covered_by[:, chosen].any(axis=1)
        inside, outside = self.atoms.inside[covered, c].sum(), self.atoms.outside[covered, c].sum()
        return float(inside / (self.total[c] + outside))

    def values_with(self, c: int, chosen: list[int]) -> Values:
        """(K,) the value when each proposal is added."""
        covered = self.atoms.covered_by[:, chosen].any(axis=1)
        inside, outside = self.atoms.inside[:, c], self.atoms.outside[:, c]
        with_inside = inside[covered].sum() + self.covers @ np.where(covered, 0, inside)
        with_outside = outside[covered].sum() + self.covers @ np.where(covered, 0, outside)
        return np.asarray(with_inside / (self.total[c] + with_outside))


def plain_hungarian(maps: Maps, masks: Masks, upper: int) -> float:
    """Give each class `upper` rows of its scores; what is greatest is the sum of single scores."""
    scores = kernels.soft_overlap(masks, maps, threads=1).soft_iou().T
    rows, columns = linear_sum_assignment(np.repeat(scores, upper, axis=0), maximize=True)
    unions = Unions(maps, masks)
    return sum(unions.value(c, columns[rows // upper == c].tolist()) for c in range(len(maps)))


def best_singles(maps: Maps, masks: Masks, upper: int) -> float:
    """Take the `upper` best single proposals of each class that are free; the best pair chooses first."""
    scores = kernels.soft_overlap(masks, maps, threads=1).soft_iou()
    chosen: list[list[int]] = [[] for _ in maps]
    taken: set[int] = set()
    for flat in np.argsort(-scores, axis=None, kind="stable"):
        k, c = divmod(int(flat), len(maps))
        if k not in taken and len(chosen[c]) < upper:
            chosen[c].append(k)
            taken.add(k)
    unions = Unions(maps, masks)
    return sum(unions.value(c, some) for c, some in enumerate(chosen))


def _greedily(unions: Unions, upper: int) -> list[list[int]]:
    chosen: list[list[int]] = [[] for _ in range(unions.classes)]
    now = [0.0] * unions.classes
    taken: list[int] = []
    while True:
        best = (0.0, -1, -1)
        for c in range(unions.classes):
            if len(chosen[c]) == upper:
                continue
            values = unions.values_with(c, chosen[c])
            values[taken] = -1
            k = int(np.argmax(values))
            gain = values[k] - now[c] + (2 if not chosen[c] else 0)  # everybody has one first
            if gain > max(best[0], 1e-12):
                best = (gain, c, k)
        if best[1] < 0:
            return chosen
        chosen[best[1]].append(best[2])
        taken.append(best[2])
        now[best[1]] = unions.value(best[1], chosen[best[1]])


def greedy(maps: Maps, masks: Masks, upper: int) -> float:
    """The best addition to any class, again and again."""
    unions = Unions(maps, masks)
    return sum(unions.value(c, some) for c, some in enumerate(_greedily(unions, upper)))


def greedy_and_swap(maps: Maps, masks: Masks, upper: int) -> float:
    """Greedy, then one proposal out and another in, within a class, as long as that helps."""
    unions = Unions(maps, masks)
    chosen = _greedily(unions, upper)
    better = True
    while better:
        better = False
        taken = [k for some in chosen for k in some]
        for c, some in enumerate(chosen):
            now = unions.value(c, some)
            for out in some:
                rest = [k for k in some if k != out]
                values = unions.values_with(c, rest)
                values[taken] = -1
                k = int(np.argmax(values))
                if len(rest) and unions.value(c, rest) > max(now, values[k]) + 1e-12:
                    chosen[c], better = rest, True
                elif values[k] > now + 1e-12:
                    chosen[c], better = [*rest, k], True
                if better:
                    break
            if better:
                break
    return sum(unions.value(c, some) for c, some in enumerate(chosen))


def enumerate_atoms(maps: Maps, masks: Masks, lower: int, upper: int) -> float:
    """Every subset of every class, in bulk on atoms, then the best combination without a proposal twice."""
    unions = Unions(maps, masks)
    count = len(masks)
    choices = []
    for c in range(len(maps)):
        values, subsets = [], []
        for size in range(lower, upper + 1):
            for fixed in combinations(range(count), size - 1):
                first = fixed[-1] + 1 if fixed else 0
                values.append(unions.values_with(c, list(fixed))[first:])
                subsets.extend((*fixed, k) for k in range(first, count))
        scores = np.concatenate(values)
        order = np.argsort(-scores, kind="stable")
        choices.append([(float(scores[i]), frozenset(subsets[i])) for i in order])
    best = -1.0

    def go(c: int, taken: frozenset[int], value: float) -> None:
        nonlocal best
        if c == len(choices):
            best = max(best, value)
            return
        hope = sum(rest[0][0] for rest in choices[c + 1 :])
        for score, some in choices[c]:
            if value + score + hope <= best:
                return
            if not some & taken:
                go(c + 1, taken | some, value + score)

    go(0, frozenset(), 0.0)
    return best


PEERS = {
    "plain Hungarian": plain_hungarian,
    "greedy": greedy,
    "greedy + swap": greedy_and_swap,
    "top-v singles": best_singles,
}
