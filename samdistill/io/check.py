"""What a data folder holds and what is wrong with it, before anything is trained. Opens every file once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from samdistill.errors import InputRejected
from samdistill.io.dataset import Case, Dataset, from_layout
from samdistill.io.duplicates import difference_hash, near_pairs
from samdistill.io.images import Pixels
from samdistill.io.layout import Problem, read_layout
from samdistill.io.masks import UnlikelyClasses
from samdistill.io.splits import make_split

SMALLEST_PX = 32
FEW_LABELS = 10


@dataclass
class ClassFacts:
    """One class over the labelled cases that could be read.

    Attributes
    ----------
    name
        As dataset.toml has it.
    images
        Cases in which it is present.
    prevalence
        Share of pixels, mean over all labelled cases; `prevalence_present` over those where it is present
        (NaN when there is none).
    smallest_px
        Its smallest area in a case where it is present, 0 when there is none.
    """

    name: str
    images: int = 0
    prevalence: float = 0.0
    prevalence_present: float = float("nan")
    smallest_px: int = 0


@dataclass
class DataReport:
    """What `samdistill data check` found.

    Attributes
    ----------
    images, labelled, unlabelled, readable
        Counts; `readable` of all images.
    groups
        Distinct groups; equal to `images` where nothing groups.
    sizes
        (height, width) px to number of images, most frequent first.
    depths
        "8-bit RGB" and the like to number of images.
    classes
        Facts by class, in class order.
    multi_label, ignore_index
        As in Dataset.
    ignored
        Mean share of ignored pixels over labelled cases.
    parts
        Cases by part, where dataset.toml tells a split.
    near_duplicates
        Pairs of case ids whose pictures look the same though their groups differ.
    problems
        Errors first.
    """

    images: int = 0
    labelled: int = 0
    unlabelled: int = 0
    readable: int = 0
    groups: int = 0
    sizes: dict[tuple[int, int], int] = field(default_factory=dict)
    depths: dict[str, int] = field(default_factory=dict)
    classes: list[ClassFacts] = field(default_factory=list)
    multi_label: bool = False
    ignore_index: int | None = None
    ignored: float = 0.0
    parts: dict[str, int] = field(default_factory=dict)
    near_duplicates: list[tuple[str, str]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def errors(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.severity == "error"]

    @property
    def usable(self) -> bool:
        """Whether training would accept the folder."""
        return not self.errors

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a number that does not exist is null."""
        plain = asdict(self)
        plain["sizes"] = [
            {"height": height, "width": width, "images": count}
            for (height, width), count in self.sizes.items()
        ]
        for facts in plain["classes"]:
            if np.isnan(facts["prevalence_present"]):
                facts["prevalence_present"] = None
        return {"schema": 1, "usable": self.usable, **plain}


def check_data(root: Path | str, *, progress: Callable[[int, int], None] | None = None) -> DataReport:
    """Read every image and mask of a data folder and judge it.

    Parameters
    ----------
    root
        The folder.
    progress
        Called with the number of cases read and of all cases.

    Returns
    -------
    DataReport
        With every problem, each with its file and its cure.

    Raises
    ------
    InputRejected
        When there is no such folder, no images/ in it, or an unusable dataset.toml.
    """
    layout = read_layout(Path(root))
    report = DataReport(problems=layout.problems, multi_label=layout.per_class)
    dataset = from_layout(layout)
    if not dataset.class_names and dataset.labelled:
        dataset = _count_classes(dataset, report)
    report.images, report.groups = len(dataset.cases), len({case.group for case in dataset.cases})
    report.labelled, report.unlabelled = len(dataset.labelled), len(dataset.unlabelled)
    report.ignore_index = dataset.ignore_index
    report.parts = dict(Counter(dataset.parts.values()))
    tally = _Tally(dataset, report)
    for number, case in enumerate(dataset.cases, start=1):
        tally.take(case)
        if progress is not None:
            progress(number, len(dataset.cases))
    tally.finish()
    _judge(dataset, report)
    report.problems.sort(key=lambda problem: problem.severity != "error")
    return report


def _count_classes(dataset: Dataset, report: DataReport) -> Dataset:
    """Infer class names from the masks that can be read; the others are reported when their turn comes.

    Where values are no likely class numbers that is told once, and no mask is held against a guess.
    """
    readable = []
    for case in dataset.labelled:
        try:
            dataset.with_classes([case])
        except UnlikelyClasses as error:
            path = next(path for path in case.mask_paths or () if path is not None)
            report.problems.append(_rejected(dataset.root, path, error))
            return dataset
        except InputRejected:
            continue
        readable.append(case)
    known = dataset.with_classes(readable)
    if len(known.class_names) > 1:
        report.problems.append(
            Problem(
                "warning",
                "masks",
                f"no classes are declared; the masks' values look like {len(known.class_names)} classes.",
                'Write classes = ["...", "..."] into dataset.toml.',
            )
        )
    return known


class _Tally:
    """Adds up case after case."""

    def __init__(self, dataset: Dataset, report: DataReport) -> None:
        self.report, self.root = report, dataset.root
        self.sizes: Counter[tuple[int, int]] = Counter()
        self.depths: Counter[str] = Counter()
        self.hashes: list[tuple[Case, np.ndarray[Any, np.dtype[np.uint8]]]] = []
        self.classes = [ClassFacts(name) for name in dataset.class_names]
        self.shares: list[list[float]] = [[] for _ in self.classes]
        self.ignored: list[float] = []

    def take(self, case: Case) -> None:
        try:
            pixels = case.read_image()
        except InputRejected as error:
            self._reject(case.image_path, error)
            return
        height, width = pixels.shape[:2]
        self.report.readable += 1
        self.sizes[(height, width)] += 1
        self.depths[_depth(pixels)] += 1
        self.hashes.append((case, difference_hash(pixels)))
        where = case.image_path.relative_to(self.root).as_posix()
        if min(height, width) < SMALLEST_PX:
            self._add("warning", where, f"the image is only {width} x {height} px.", "Use larger images.")
        if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
            self._add("error", where, "it has values that are not finite.", "Replace NaN and infinity.")
        elif pixels.min() == pixels.max():
            self._add("warning", where, "every pixel has the same value.", "Check the export, or remove it.")
        if case.mask_paths is not None and self.classes:
            self._take_masks(case)

    def _take_masks(self, case: Case) -> None:
        for name, path in zip(case.code.class_names, case.mask_paths or (), strict=False):
            if path is None:
                where = case.image_path.relative_to(self.root).as_posix()
                self._add(
                    "warning",
                    where,
                    f"it has masks, but none in masks/{name}/: the class counts as absent.",
                    "Add an empty mask if it is, or the missing one.",
                )
        try:
            masks, ignored = case.read_labels()
        except InputRejected as error:
            paths = [path for path in case.mask_paths or () if path is not None]
            named = next((path for path in paths if str(path) in str(error)), paths[0])
            self._reject(named, error)
            return
        self.ignored.append(float(ignored.mean()))
        for facts, shares, mask in zip(self.classes, self.shares, masks, strict=True):
            area = int(np.count_nonzero(mask))
            shares.append(area / mask.size)
            if area:
                facts.images += 1
                facts.smallest_px = min(facts.smallest_px or area, area)

    def finish(self) -> None:
        report = self.report
        report.sizes = dict(self.sizes.most_common())
        report.depths = dict(self.depths.most_common())
        report.ignored = float(np.mean(self.ignored)) if self.ignored else 0.0
        for facts, shares in zip(self.classes, self.shares, strict=True):
            present = [share for share in shares if share > 0]
            facts.prevalence = float(np.mean(shares)) if shares else 0.0
            facts.prevalence_present = float(np.mean(present)) if present else float("nan")
        report.classes = self.classes
        cases = [case for case, _ in self.hashes]
        for first, second in near_pairs([bits for _, bits in self.hashes]):
            a, b = cases[first], cases[second]
            if a.group == b.group:
                continue
            report.near_duplicates.append((a.id, b.id))
            self._add(
                "warning",
                a.image_path.relative_to(self.root).as_posix(),
                f"it looks the same as {b.id!r}: one of them in training and one in test would flatter.",
                "Remove one, or put both into one group (group_pattern or table in dataset.toml).",
            )

    def _reject(self, path: Path, error: InputRejected) -> None:
        self.report.problems.append(_rejected(self.root, path, error))

    def _add(self, severity: str, where: str, what: str, cure: str) -> None:
        self.report.problems.append(Problem(severity, where, what, cure))


def _rejected(root: Path, path: Path, error: InputRejected) -> Problem:
    """Take over a reader's message, without the path it begins with."""
    what, _, cure = str(error).removeprefix(f"{path} ").partition(". ")
    return Problem("error", path.relative_to(root).as_posix(), f"it {what}.".replace("..", "."), cure)


def _judge(dataset: Dataset, report: DataReport) -> None:
    """What only the whole shows."""

    def add(severity: str, where: str, what: str, cure: str) -> None:
        report.problems.append(Problem(severity, where, what, cure))

    if report.images and not report.labelled:
        add("error", "masks", "no image has a mask.", "Label some images: masks/<stem>.png.")
    if not report.errors:
        try:
            make_split(dataset)
        except InputRejected as error:
            what, _, cure = str(error).removeprefix(f"{dataset.root} ").partition(". ")
            add("error", ".", f"it {what}.", cure)
    if 0 < report.labelled < FEW_LABELS:
        add("warning", ".", f"only {report.labelled} images are labelled.", "Label more to trust results.")
    for facts in report.classes:
        if report.labelled and not facts.images:
            add(
                "warning",
                "masks",
                f"the class {facts.name!r} is in no readable mask.",
                "Check the masks' values, or take it out of `classes`.",
            )
    kinds = {depth.split()[0] for depth in report.depths}
    if len(kinds) > 1:
        told = ", ".join(f"{count} {depth}" for depth, count in report.depths.items())
        add(
            "warning",
            "images",
            f"depths are mixed: {told}.",
            "One intensity rule serves all images; export them alike.",
        )


def _depth(pixels: Pixels) -> str:
    bits = pixels.dtype.itemsize * 8
    kind = "float" if pixels.dtype.kind == "f" else "bit"
    return f"{bits}-{kind} {'RGB' if pixels.ndim == 3 else 'grey'}"
