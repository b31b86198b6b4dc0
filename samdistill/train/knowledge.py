"""Image-level knowledge: how many of each class an image holds, by round, by class, by image.

The last comes from a CSV file, for what a report tells ("two lesions"):

    image,class,count        or, where there is one class:        image,count
    0001,polyp,2                                                  0001,2
    site_b/0003,polyp,0-1                                         site_b/0003,0-1

Knows no pixels.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from samdistill.config import decode
from samdistill.errors import InputRejected, UsageError
from samdistill.io.files import write_bytes
from samdistill.io.splits import Split
from samdistill.io.stack import stem
from samdistill.train.config import TrainConfig
from samdistill.train.run import Run
from samdistill.train.samdsk_config import Bounds, ClassConfig, SamdskConfig, of_round

Counts = dict[str, dict[int, Bounds]]
"""Case id -> channel -> bounds."""
COPY = "counts.csv"


@dataclass(frozen=True)
class Knowledge:
    """Bounds of every class in every image.

    Parameters
    ----------
    class_names
        Of channel 0, 1, ...
    config
        Bounds of all classes, by round.
    classes
        Of a class, over those.
    counts
        Of an image, over both, in every round.
    """

    class_names: Sequence[str]
    config: SamdskConfig
    classes: Mapping[str, ClassConfig] = field(default_factory=dict)
    counts: Mapping[str, Mapping[int, Bounds]] = field(default_factory=dict)

    @classmethod
    def of(cls, run: Run, split: Split) -> Self:
        """What is known to a run.

        The CSV file is copied into the run and read from there when the run is resumed, which it can be from
        its first checkpoint on.

        Raises
        ------
        UsageError
            When the configuration names a class that there is not, or a file that cannot be read.
        InputRejected
            When the file is wrong, or has changed since the run began.
        """
        config: TrainConfig = run.config
        check_class_names(config.classes, run.class_names)
        counts: Counts = {}
        if config.samdsk.counts is not None:
            begun = (run.path / "last.safetensors").is_file()
            content = _kept(run.path / "pseudo" / COPY, Path(config.samdsk.counts), begun=begun)
            parts = (
                split.train_labelled,
                split.train_unlabelled,
                split.validation,
                split.test,
                split.left_out,
            )
            known = {case.id for part in parts for case in part}
            counts = read_counts(content, config.samdsk.counts, known, run.class_names)
        return cls(run.class_names, config.samdsk, config.classes, counts)

    def bounds(self, case_id: str, number: int) -> list[Bounds]:
        """Least and most of each class in an image, in a round counted from 1."""
        general = of_round(self.config.lower, number), of_round(self.config.upper, number)
        own = self.counts.get(case_id, {})
        return [
            own[channel]
            if channel in own
            else self.classes[name].bounds(number)
            if name in self.classes
            else general
            for channel, name in enumerate(self.class_names)
        ]


def check_class_names(names: Collection[str], class_names: Sequence[str]) -> None:
    """See that every class that something is said of is one of the data's."""
    for name in names:
        if name not in class_names:
            raise UsageError(f"classes must be named as in the data, {', '.join(class_names)}, not {name!r}.")


def read_counts(content: bytes, name: str, case_ids: Collection[str], class_names: Sequence[str]) -> Counts:
    """Read a CSV file of counts.

    Parameters
    ----------
    content
        UTF-8, with or without a byte order mark.
    name
        The file's, for messages.
    case_ids
        Of all images there are. A line may name an image with or without its suffix.
    class_names
        Of channel 0, 1, ...

    Raises
    ------
    InputRejected
        With the line, for anything that is not as it must be.
    """
    try:
        text = decode(content)
    except ValueError as error:
        raise InputRejected(f"{name}, {error}") from error
    rows = csv.reader(io.StringIO(text, newline=""))
    try:
        header = [cell.strip() for cell in next(rows, [])]
        with_class = _check_header(header, name, class_names)
        counts: Counts = {}
        for row in rows:
            if any(cell.strip() for cell in row):
                where = f"{name}, line {rows.line_num}"
                if len(row) != len(header):
                    raise InputRejected(f"{where}: must have {len(header)} cells, not {len(row)}.")
                cells = dict(zip(header, (cell.strip() for cell in row), strict=True))
                case_id = _case(cells["image"], case_ids, where)
                channel = _channel(cells["class"], class_names, where) if with_class else 0
                if channel in counts.setdefault(case_id, {}):
                    raise InputRejected(f"{where}: {case_id} already has a count of this class.")
                counts[case_id][channel] = _count(cells["count"], where)
    except csv.Error as error:
        raise InputRejected(f"{name}, line {rows.line_num}: {error}.") from error
    return counts


def _kept(copy: Path, source: Path, *, begun: bool) -> bytes:
    """The file's bytes, those of the run's own copy where a run that has begun has one."""
    kept = copy.read_bytes() if begun and copy.is_file() else None
    try:
        content = source.read_bytes()
    except OSError as error:
        if kept is None:
            raise UsageError(
                f"counts must be a CSV file: {source} cannot be read: {error.strerror}."
            ) from error
        return kept
    if kept is None:
        copy.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(copy, content)
    elif kept != content:
        raise InputRejected(f"{source} has changed since the run began; start a new run.")
    return content


def _check_header(header: Sequence[str], name: str, class_names: Sequence[str]) -> bool:
    """See that the columns are right; tell whether there is one of classes."""
    if sorted(header) == ["class", "count", "image"]:
        return True
    if sorted(header) != ["count", "image"]:
        raise InputRejected(
            f"{name}, line 1: must have the columns image, class and count, separated by commas, or image "
            f"and count where there is one class, not {', '.join(header) or 'nothing'}."
        )
    if len(class_names) > 1:
        raise InputRejected(
            f"{name}, line 1: must have a column class, since there are {len(class_names)}: "
            f"{', '.join(class_names)}."
        )
    return False


def _case(cell: str, case_ids: Collection[str], where: str) -> str:
    for name in (cell, stem(cell)):
        if name in case_ids:
            return name
    raise InputRejected(
        f"{where}: image must be one of the data folder, as 0001 or site_b/0003.png, not {cell!r}."
    )


def _channel(cell: str, class_names: Sequence[str], where: str) -> int:
    if cell not in class_names:
        raise InputRejected(f"{where}: class must be one of {', '.join(class_names)}, not {cell!r}.")
    return list(class_names).index(cell)


def _count(cell: str, where: str) -> Bounds:
    found = re.fullmatch(r"([0-9]{1,6})(?:\s*-\s*([0-9]{1,6}))?", cell)
    if found is None:
        raise InputRejected(
            f"{where}: count must be a whole number such as 2, or a range such as 1-3, not {cell!r}."
        )
    least, most = int(found[1]), int(found[2] or found[1])
    if least > most:
        raise InputRejected(f"{where}: count must not run from more to less, as {cell!r} does.")
    return least, most
