"""What dataset.toml may say about a data folder; docs/data.md explains it with examples."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from samdistill.config import build, load_toml
from samdistill.errors import InputRejected, UsageError
from samdistill.manifest_records import CLASS_NAMES, is_class_name

DATASET_TOML = "dataset.toml"


@dataclass(frozen=True)
class SplitPatterns:
    """`[split]` of dataset.toml: which cases belong to which part, as shell patterns over case ids."""

    train: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()


@dataclass(frozen=True)
class CaseTable:
    """`[table]` of dataset.toml: a CSV file with one row a case.

    Parameters
    ----------
    file
        Path relative to the data folder.
    case, group, split
        Names of its columns: the case id; optionally group or patient; optionally train, validation or test.
    """

    file: str
    case: str = "case"
    group: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class DatasetConfig:
    """The contents of dataset.toml; every key is optional.

    Parameters
    ----------
    classes
        Names of the foreground classes; class_id 1 comes first.
    class_values
        The value each class has in index masks, where it is not 1, 2, 3...
    ignore_index
        The mask value of pixels that count neither in training nor in evaluation.
    mask_threshold
        Grey masks of a single class, or of one file a class: foreground is above it.
    group_pattern
        Regular expression searched in the case id; its first parenthesis, else the whole match, is the group.
    table, split
        See CaseTable and SplitPatterns.
    """

    classes: tuple[str, ...] = ()
    class_values: tuple[int, ...] = ()
    ignore_index: int | None = None
    mask_threshold: int | None = None
    group_pattern: str | None = None
    table: CaseTable | None = None
    split: SplitPatterns | None = None

    def __post_init__(self) -> None:
        if len({name.casefold() for name in self.classes}) != len(self.classes):
            raise ValueError(f"classes must be distinct names, case aside, not {list(self.classes)}.")
        for name in self.classes:
            if not is_class_name(name):
                raise ValueError(
                    f"classes must be names that a folder can bear, {CLASS_NAMES}, not {name!r}."
                )
        if self.class_values and len(self.class_values) != len(self.classes):
            raise ValueError(f"class_values must hold one value a class, not {list(self.class_values)}.")
        if len({0, *self.class_values}) != 1 + len(self.class_values):
            raise ValueError(f"class_values must be distinct and not 0, not {list(self.class_values)}.")
        if self.ignore_index is not None and self.ignore_index in (0, *self.class_values):
            raise ValueError(f"ignore_index must differ from 0 and class_values, not {self.ignore_index}.")
        if self.mask_threshold is not None and self.class_values:
            raise ValueError("mask_threshold and class_values must not both be given.")
        if self.group_pattern is not None:
            if self.table is not None and self.table.group is not None:
                raise ValueError("group_pattern and table.group must not both be given.")
            try:
                re.compile(self.group_pattern)
            except re.error as error:
                raise ValueError(f"group_pattern must be a regular expression: {error}.") from error
        if self.split is not None and self.table is not None and self.table.split is not None:
            raise ValueError("[split] and table.split must not both be given.")


def read_config(root: Path) -> DatasetConfig:
    """Read a data folder's dataset.toml; the defaults where it has none.

    Raises
    ------
    InputRejected
        When it is no TOML, or has an unknown key, a wrong type or values that contradict each other.
    """
    path = root / DATASET_TOML
    if not path.exists():
        return DatasetConfig()
    try:
        return build(DatasetConfig, load_toml(path), where=DATASET_TOML)
    except UsageError as error:
        raise InputRejected(f"{root}: {error}") from error
