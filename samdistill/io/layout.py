"""What lies in a data folder: image files, mask files, groups, parts, and what is wrong with them.

Reads names, tables and the headers of files that may hold several images, never a pixel.
"""

from __future__ import annotations

import csv
import errno
import io
import os
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from samdistill.config import decode
from samdistill.errors import InputRejected
from samdistill.io.dataset_toml import DATASET_TOML, CaseTable, DatasetConfig, read_config
from samdistill.io.files import walk_visible
from samdistill.io.stack import ALL_SUFFIXES, format_of, open_stack, stem
from samdistill.manifest_records import CLASS_NAMES, is_class_name

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Problem:
    """Something wrong with a data folder.

    Parameters
    ----------
    severity
        "error": it cannot be trained on; "warning": it can.
    where
        The file, relative to the data folder; "." for the whole.
    what, cure
        A sentence each.
    """

    severity: str
    where: str
    what: str
    cure: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what} {self.cure}"


@dataclass
class Layout:
    """The files of a data folder, before any is opened.

    Attributes
    ----------
    root, config
        The folder and its dataset.toml.
    per_class
        Whether masks lie in masks/<class>/; `class_folders` are then their names, in class order.
    images
        Case id (path below images/ without suffix, posix) to file, sorted by id. Of a file with several
        images each is a case, with its number in the id: "scan_0012".
    indices
        Case id to the number of the image in its file, for those cases.
    scans
        Id of a file with several images to its case ids.
    masks
        Case id to its mask files: one for index masks; one a class, None where missing, for per-class masks.
    groups, parts
        Case id to group (the id itself where nothing groups) and to train, validation or test (where told).
    problems
        What is wrong, in the order found.
    """

    root: Path
    config: DatasetConfig
    per_class: bool = False
    class_folders: tuple[str, ...] = ()
    images: dict[str, Path] = field(default_factory=dict)
    indices: dict[str, int] = field(default_factory=dict)
    scans: dict[str, list[str]] = field(default_factory=dict)
    masks: dict[str, tuple[Path | None, ...]] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
    parts: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def error(self, where: Path | str, what: str, cure: str) -> None:
        self.problems.append(Problem("error", self.relative(where), what, cure))

    def warn(self, where: Path | str, what: str, cure: str) -> None:
        self.problems.append(Problem("warning", self.relative(where), what, cure))

    def relative(self, path: Path | str) -> str:
        return path.relative_to(self.root).as_posix() if isinstance(path, Path) else path


def read_layout(root: Path) -> Layout:
    """Survey a data folder.

    Returns
    -------
    Layout
        With every problem that names alone can show.

    Raises
    ------
    InputRejected
        When there is no such folder, it has no images/, or dataset.toml cannot be used: nothing else can be
        said then.
    """
    if not root.is_dir():
        raise InputRejected(f"{root} must be a data folder, and is no folder. See docs/data.md.")
    if not (root / "images").is_dir():
        raise InputRejected(f"{root} must hold a folder images/ and, for labels, masks/. See docs/data.md.")
    layout = Layout(root, read_config(root))
    files = _by_id(layout, root / "images", "image")
    if not files:
        layout.error("images", "the folder holds no image.", f"Put {', '.join(ALL_SUFFIXES)} files there.")
    _find_images(layout, files)
    _find_masks(layout)
    _find_groups_and_parts(layout)
    return layout


def _by_id(layout: Layout, folder: Path, kind: str) -> dict[str, Path]:
    """Find the picture files below a folder, by case id; hidden files and folders are passed over."""
    found: dict[str, Path] = {}
    others: list[Path] = []

    def cannot(error: OSError) -> None:
        layout.error(
            Path(error.filename), f"it cannot be read: {error.strerror}.", "Give access, or move it out."
        )

    below = walk_visible(folder, cannot)
    for path in sorted(base / name for base, folders, files in below for name in (*folders, *files)):
        inner = path.relative_to(folder)
        if not os.path.isfile(path):  # noqa: PTH113  # pathlib raises where a folder may not be entered
            if path.is_symlink():
                layout.error(
                    path,
                    "it is a link to a folder or to nothing; only links to files are followed.",
                    "Put the files there, or link them one by one.",
                )
            elif not os.access(path.parent, os.X_OK):
                cannot(PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path)))
            continue
        if format_of(path) is None:
            others.append(path)
            continue
        case_id = stem(inner.as_posix())
        if case_id in found:
            layout.error(
                path,
                f"{layout.relative(found[case_id])} has the same stem.",
                f"Keep one {kind} for each stem, or rename one.",
            )
            continue
        found[case_id] = path
    if others:
        layout.warn(
            others[0],
            f"{len(others)} file(s) of other types lie in {folder.name}/ and are passed over.",
            f"Convert them to {', '.join(ALL_SUFFIXES)}, or move them out.",
        )
    return dict(sorted(found.items()))


def _find_images(layout: Layout, files: dict[str, Path]) -> None:
    """Make cases of image files; each image of a file with several is one."""
    for file_id, path in files.items():
        count = _count(path)
        if count == 1:
            cases = [file_id]
        else:
            cases = [f"{file_id}_{index:04d}" for index in range(count)]
            layout.scans[file_id] = cases
        for index, case_id in enumerate(cases):
            if case_id in layout.images:
                layout.error(
                    path, f"its image {index} and another file are both called {case_id!r}.", "Rename one."
                )
                continue
            layout.images[case_id] = path
            if count > 1:
                layout.indices[case_id] = index


def _count(path: Path) -> int:
    """How many images a file holds; one that cannot be opened is a single case, which says why when read."""
    if format_of(path) == "picture":
        return 1
    try:
        return len(open_stack(path))
    except InputRejected:
        return 1


def _find_masks(layout: Layout) -> None:
    folder = layout.root / "masks"
    if not folder.is_dir():
        return
    # What is no folder and no picture (Thumbs.db, notes) says nothing about how masks are kept.
    entries = [p for p in folder.iterdir() if p.is_dir() or p.name.lower().endswith(ALL_SUFFIXES)]
    names = sorted(p.name for p in entries if not p.name.startswith("."))
    # A folder in masks/ is a class, unless images/ is divided into folders of the same names.
    layout.per_class = bool(names) and all(
        (folder / name).is_dir() and not (layout.root / "images" / name).is_dir() for name in names
    )
    if not layout.per_class:
        for case_id, path in _mask_files(layout, folder).items():
            layout.masks[case_id] = (path,)
        if layout.config.mask_threshold is not None and len(layout.config.classes) > 1:
            layout.error(
                DATASET_TOML,
                "mask_threshold does not go with index masks of several classes.",
                "Remove the key, or save one file a class in masks/<class>/.",
            )
        config, ignored = layout.config, layout.config.ignore_index or 0
        numbered = not config.class_values and config.mask_threshold is None
        if numbered and 0 < ignored <= len(config.classes):
            layout.error(
                DATASET_TOML,
                f"ignore_index {ignored} is the value of the class {config.classes[ignored - 1]!r}.",
                "Ignore another value, or say with class_values which ones the classes have.",
            )
    else:
        config = layout.config
        layout.class_folders = config.classes or tuple(names)
        for name in () if config.classes else names:
            if not is_class_name(name) or sum(name.casefold() == other.casefold() for other in names) > 1:
                layout.error(
                    folder / name,
                    "a bundle's classes cannot be called so.",
                    f"Rename it: {CLASS_NAMES}, and not another class's name but for its case.",
                )
        for name in names:
            if name not in layout.class_folders:
                layout.error(
                    folder / name,
                    f"{name!r} is none of the classes of {DATASET_TOML}.",
                    f"Add it to `classes` ({', '.join(config.classes)}), or move the folder out.",
                )
        for name in layout.class_folders:
            if name not in names:
                layout.error(
                    "masks",
                    f"there is no folder masks/{name}/.",
                    "Add it, or take the class out of `classes`.",
                )
        if config.class_values:
            layout.error(DATASET_TOML, "class_values do not go with masks/<class>/.", "Remove the key.")
        by_class = [
            _mask_files(layout, folder / name) if name in names else {} for name in layout.class_folders
        ]
        for case_id in sorted(set().union(*by_class)):
            layout.masks[case_id] = tuple(files.get(case_id) for files in by_class)
    strays = [case_id for case_id in layout.masks if case_id not in layout.images]
    twins = _refuse_other_spelling(layout, "masks", strays)
    for case_id in strays:
        path = next(path for path in layout.masks.pop(case_id) if path is not None)
        if case_id not in twins:
            layout.warn(path, "there is no image of this name.", f"Give image and mask one stem: {case_id}.")
    if strays and not layout.masks and not twins:
        layout.error(
            "masks",
            "no mask has the name of an image.",
            f"Masks are named as their images, without additions such as _mask; the first is {strays[0]}.",
        )


def _refuse_other_spelling(layout: Layout, where: str, strays: list[str]) -> set[str]:
    """Refuse names that read like an image's and are other characters; which of `strays` are such.

    Unicode spells an accented letter as one character (NFC) or as two (NFD, as Macs write file names).
    """
    images = {unicodedata.normalize("NFC", name): name for name in (*layout.scans, *layout.images)}
    twins = {one: image for one in strays if (image := images.get(unicodedata.normalize("NFC", one)))}
    if twins:
        name, image = next(iter(twins.items()))
        layout.error(
            where,
            f"{len(twins)} name(s) differ from an image's only in how Unicode spells accented letters; the "
            f"first is {name!a}, its image {image!a}.",
            "Spell all alike: convmv -r -f utf-8 -t utf-8 --nfc --notest renames the files of a folder.",
        )
    return set(twins)


def _mask_files(layout: Layout, folder: Path) -> dict[str, Path]:
    """Mask files by case id; one that lies for a whole scan serves each of its slices."""
    files: dict[str, Path] = {}
    for mask_id, path in _by_id(layout, folder, "mask").items():
        cases = layout.scans.get(mask_id, [mask_id])
        if mask_id in layout.scans and _count(path) != len(cases):
            layout.error(
                path, f"its image has {len(cases)} slices, it has {_count(path)}.", "Export it again."
            )
            continue
        files.update(dict.fromkeys(cases, path))
    return files


def _find_groups_and_parts(layout: Layout) -> None:
    config, ids = layout.config, list(layout.images)
    layout.groups = {case_id: case_id for case_id in ids}
    for scan, cases in layout.scans.items():
        layout.groups.update(dict.fromkeys(cases, scan))
    if config.group_pattern is not None:
        pattern = re.compile(config.group_pattern)
        for case_id in ids:
            match = pattern.search(case_id)
            if match is None:
                layout.error(
                    layout.images[case_id],
                    f"group_pattern {config.group_pattern!r} does not match {case_id!r}.",
                    "Change group_pattern so that it finds every case's group.",
                )
                continue
            layout.groups[case_id] = (match.group(1) if pattern.groups else match.group(0)) or case_id
    if config.table is not None:
        _read_table(layout, config.table)
    if config.split is not None:
        for part in PARTS:
            for wanted in getattr(config.split, part):
                hits = [case_id for case_id in ids if fnmatchcase(case_id, wanted)]
                if not hits:
                    layout.error(
                        DATASET_TOML, f"split.{part}: {wanted!r} matches no case.", "Correct or remove it."
                    )
                for case_id in hits:
                    _assign(layout, case_id, part)
    by_group: dict[str, dict[str, str]] = {}
    for case_id, part in layout.parts.items():
        by_group.setdefault(layout.groups[case_id], {}).setdefault(part, case_id)
    for group, parts in by_group.items():
        if len(parts) > 1:
            told = " and ".join(f"{case_id} in {part}" for part, case_id in sorted(parts.items()))
            layout.error(
                DATASET_TOML, f"the split cuts through the group {group!r}: {told}.", "Put it in one part."
            )


def _assign(layout: Layout, case_id: str, part: str) -> None:
    before = layout.parts.setdefault(case_id, part)
    if before != part:
        layout.error(
            layout.images[case_id],
            f"the split puts it in {before} and in {part}.",
            "Name it in one part alone.",
        )


def _read_table(layout: Layout, table: CaseTable) -> None:
    path = layout.root / table.file
    try:
        reader = csv.DictReader(io.StringIO(decode(path.read_bytes()), newline=""))
        rows, columns = list(reader), reader.fieldnames or []
    except (OSError, csv.Error) as error:
        layout.error(table.file, f"the table cannot be read: {error}.", "See [table] in docs/data.md.")
        return
    except ValueError as error:
        what, _, cure = str(error).partition(". ")
        layout.error(table.file, f"{what}.", cure)
        return
    for column in (table.case, table.group, table.split):
        if column is not None and column not in columns:
            layout.error(
                table.file, f"the table has no column {column!r}.", f"Its columns are {', '.join(columns)}."
            )
            return
    seen = Counter(_stem(row[table.case]) for row in rows)
    for case_id, count in seen.items():
        if count > 1:
            layout.error(table.file, f"{count} rows name {case_id!r}.", "Keep one row a case.")
    named = [
        (case_id, row)
        for row in rows
        for case_id in layout.scans.get(_stem(row[table.case]), [_stem(row[table.case])])
        if case_id in layout.images
    ]
    unknown = [case_id for case_id in seen if case_id not in layout.images and case_id not in layout.scans]
    twins = _refuse_other_spelling(layout, table.file, unknown)
    unknown = [case_id for case_id in unknown if case_id not in twins]
    if unknown:
        tell = layout.warn if named else layout.error
        told = f"{len(unknown)} row(s) name no image; the first is {unknown[0]!r}."
        tell(table.file, told, "Write ids as the path below images/ without suffix, or remove the rows.")
    for case_id, row in named:
        if table.group is not None and (row[table.group] or "").strip():
            layout.groups[case_id] = row[table.group].strip()
        part = (row[table.split] or "").strip().lower() if table.split is not None else ""
        if part and part not in PARTS:
            layout.error(
                table.file, f"{case_id!r} is in the split {part!r}.", f"Write {', '.join(PARTS)} or nothing."
            )
        elif part:
            _assign(layout, case_id, part)
    with_row = {case_id for case_id, _ in named}
    unnamed = [case_id for case_id in layout.images if case_id not in with_row]
    if unnamed and table.group is not None:
        layout.error(
            table.file,
            f"{len(unnamed)} image(s) have no row, so no group; the first is {unnamed[0]!r}.",
            f"Add a row with {table.case} and {table.group} for each.",
        )


def _stem(cell: str | None) -> str:
    """Accept a case id with or without an image suffix."""
    text = (cell or "").strip()
    return stem(PurePosixPath(text).as_posix()) if text.lower().endswith(ALL_SUFFIXES) else text
