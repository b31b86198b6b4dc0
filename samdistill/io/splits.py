"""Dividing a data set into parts for training: deterministic, seeded, and never through a group.

Order comes from a hash of seed and group name, so a split is the same on every machine, and images added
later leave most of it as it was. For one seed the test part is the same whatever the label budget, and a
smaller budget's labelled cases are among a larger one's. No mask is opened but to count undeclared classes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from samdistill.errors import InputRejected
from samdistill.io.dataset import Case, Dataset, fingerprint

MINIMUM_LABELS = 4


@dataclass(frozen=True)
class Split:
    """The parts of a data set; no group lies in two of training, validation and test.

    Parameters
    ----------
    train_labelled, validation
        Together the label budget.
    train_unlabelled
        Cases whose masks are missing or out of budget; there is no way from them to a mask.
    test
        Labelled cases that training never sees.
    left_out
        Cases whose group is in validation or test, and that have no label within the budget: training on
        them would leak.
    class_names
        Declared, or counted on the masks of the label budget alone.
    multi_label
        Whether classes may overlap.
    """

    train_labelled: tuple[Case, ...]
    train_unlabelled: tuple[Case, ...]
    validation: tuple[Case, ...]
    test: tuple[Case, ...]
    left_out: tuple[Case, ...]
    class_names: tuple[str, ...]
    multi_label: bool

    @property
    def budget(self) -> int:
        """Labels that training may see: train_labelled and validation."""
        return len(self.train_labelled) + len(self.validation)

    def ids(self) -> dict[str, list[str]]:
        """Case ids by part, for run.json."""
        names = ("train_labelled", "train_unlabelled", "validation", "test")
        return {name: [case.id for case in getattr(self, name)] for name in names}

    def fingerprint(self) -> str:
        """Hash what training may see (`dataset.fingerprint`); labels out of budget do not enter it."""
        return fingerprint((*self.train_labelled, *self.train_unlabelled, *self.validation), self.class_names)


def make_split(
    dataset: Dataset,
    *,
    seed: int = 0,
    labels: float | int | None = None,
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
) -> Split:
    """Divide a data set.

    Parameters
    ----------
    dataset
        With labelled cases of at least three groups (two when nothing goes to the test part). Parts that its
        dataset.toml tells are kept; only cases it does not mention are divided.
    seed
        Names the split, >= 0.
    labels
        The label budget, validation included. An int counts images; a float in (0, 1] is a share of the
        labels that are not in the test part; None is all of them. Rounded up to whole groups, at least 4.
    fractions
        Shares of training, validation and test among labelled cases; sum 1. Of the budget, validation gets
        fractions[1] / (fractions[0] + fractions[1]), but four cases where that leaves twice as many to
        training; where dataset.toml tells the validation part, the share it has there.

    Returns
    -------
    Split
        Cases sorted by id in each part.

    Raises
    ------
    ValueError
        When an argument is out of its range.
    InputRejected
        When there are too few labelled groups to fill the parts.
    """
    _check(seed, labels, fractions)
    told = dataset.parts
    groups = _Groups(dataset, seed)

    test = groups.told("test")
    labelled = [g for g in groups.order if groups.labelled(g)]
    loose = [g for g in labelled if all(case.id not in told for case in groups.members[g])]
    drawn = "test" not in told.values() and fractions[2] > 0 and (bool(loose) or not labelled)
    if drawn:
        goal = max(1, round(fractions[2] * len(dataset.labelled)))
        test = groups.draw(loose, goal, spare=max(0, 2 - (len(labelled) - len(loose))))
    pool = [g for g in labelled if g not in test]
    if len(pool) < 2 or (drawn and not test):
        raise InputRejected(
            f"{dataset.root} must have labelled images of at least {2 + drawn} groups to be divided, "
            f"not of {len(labelled)}. Label more, or correct the groups or the split in dataset.toml."
        )
    fixed = groups.told("validation")
    available, of_fixed = groups.size(pool), groups.size(fixed)
    wanted = min(available, max(MINIMUM_LABELS, _count(labels, available)))
    share = of_fixed / available if fixed else fractions[1] / (fractions[0] + fractions[1])
    goal = max(math.ceil(round(share * wanted, 6)), min(4, wanted // 3), 1)
    if fixed:
        candidates, apart = [g for g in pool if g in fixed], True
    else:
        # Cases told to be trained on give up validation images only where there are no others.
        kept = groups.told("train")
        unsaid = [g for g in pool if g not in kept]
        candidates, apart = unsaid or pool, bool(kept and unsaid)
    validation = groups.draw(candidates, goal, spare=0 if apart else 1)
    rest = [g for g in pool if g not in validation and g not in fixed]
    # Where training does not simply go on where validation ends: what validation was to have, not what its
    # last group brought, or a larger budget could train on fewer.
    spent = min(goal, groups.size(candidates)) if apart else groups.size(validation)
    train = groups.draw(rest, max(1, wanted - spent), spare=0)
    if not validation or not train:
        raise InputRejected(
            f"{dataset.root} must leave labelled images for both training and validation. "
            "Correct the split in dataset.toml."
        )
    return _assemble(dataset, groups, train=train, validation=validation, fixed=fixed, test=test)


class _Groups:
    """The groups of a data set in the split's own order."""

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self.members: dict[str, list[Case]] = {}
        for case in dataset.cases:
            self.members.setdefault(case.group, []).append(case)
        self.order = sorted(self.members, key=lambda group: _rank(seed, group))
        self._told = dataset.parts

    def labelled(self, group: str) -> list[Case]:
        return [case for case in self.members[group] if case.labelled]

    def size(self, groups: Iterable[str]) -> int:
        """Labelled cases of some groups."""
        return sum(len(self.labelled(group)) for group in groups)

    def told(self, part: str) -> set[str]:
        """The groups with labels of which dataset.toml puts any case, labelled or not, into a part."""
        return {
            group
            for group, cases in self.members.items()
            if self.labelled(group) and any(self._told.get(case.id) == part for case in cases)
        }

    def draw(self, candidates: Sequence[str], count: int, *, spare: int) -> set[str]:
        """Take groups from the front until they hold `count` labelled cases, but leave the last `spare`."""
        taken: set[str] = set()
        cases = 0
        for group in candidates[: max(0, len(candidates) - spare)]:
            if cases >= count:
                break
            taken.add(group)
            cases += len(self.labelled(group))
        return taken


def _assemble(
    dataset: Dataset,
    groups: _Groups,
    *,
    train: set[str],
    validation: set[str],
    fixed: set[str],
    test: set[str],
) -> Split:
    parts: dict[str, list[Case]] = {
        "train_labelled": [], "train_unlabelled": [], "validation": [], "test": [], "left_out": []
    }  # fmt: skip
    held_out = {case.group for case in dataset.cases if dataset.parts.get(case.id) in ("validation", "test")}
    for case in dataset.cases:
        if case.labelled and case.group in train:
            parts["train_labelled"].append(case)
        elif case.labelled and case.group in validation:
            parts["validation"].append(case)
        elif case.labelled and case.group in test:
            parts["test"].append(case)
        elif case.group in validation | fixed | test | held_out:
            parts["left_out"].append(case.without_labels())
        else:
            parts["train_unlabelled"].append(case.without_labels())
    known = dataset.with_classes(parts["train_labelled"] + parts["validation"])
    by_id = {case.id: case for case in known.cases}
    found = {
        name: tuple(by_id[c.id] if c.labelled else by_id[c.id].without_labels() for c in cases)
        for name, cases in parts.items()
    }
    return Split(**found, class_names=known.class_names, multi_label=known.multi_label)


def _rank(seed: int, group: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{group}".encode(errors="surrogateescape")).digest()


def _count(labels: float | int | None, available: int) -> int:
    if labels is None:
        return available
    # A share of 0.1 of 80 is 8, not 9: the product is rounded before it is rounded up.
    return labels if isinstance(labels, int) else math.ceil(round(labels * available, 6))


def _check(seed: int, labels: float | int | None, fractions: tuple[float, float, float]) -> None:
    if seed < 0:
        raise ValueError(f"seed must be at least 0, not {seed}.")
    if isinstance(labels, bool) or (isinstance(labels, int) and labels < 1):
        raise ValueError(f"labels must be a count of at least 1 or a share in (0, 1], not {labels}.")
    if isinstance(labels, float) and not 0 < labels <= 1:
        raise ValueError(f"labels must be a share in (0, 1] or a whole number of images, not {labels}.")
    if len(fractions) != 3 or abs(sum(fractions) - 1) > 1e-6 or min(fractions[:2]) <= 0 or fractions[2] < 0:
        raise ValueError(f"fractions must be three shares that sum to 1, test may be 0, not {fractions}.")
