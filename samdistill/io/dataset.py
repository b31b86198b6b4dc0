"""A data folder as cases: image, masks, group. Training and evaluation read it through here alike.

Knows no model and no split; how masks code classes is `masks`' matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from samdistill.arrays import Mask, Masks
from samdistill.errors import InputRejected
from samdistill.io.images import Pixels
from samdistill.io.layout import Layout, read_layout
from samdistill.io.masks import MaskCode, infer_class_names
from samdistill.io.stack import Stack, open_stack, opened

END_BYTES = 1 << 16


@dataclass(frozen=True)
class Case:
    """One image and, where it is labelled, its masks; nothing is read before it is asked for.

    Parameters
    ----------
    id
        Path below images/ without the suffix, posix: "0001" or "site_a/0001".
    image_path
        The image file.
    mask_paths
        One index mask, or one file a class (None: the class is absent); None when the case is unlabelled.
    group
        What splits never cut through: a patient, a video. The id itself where nothing groups.
    code
        How its masks are to be read.
    index
        Which image of it; None where it holds just one.
    """

    id: str
    image_path: Path
    mask_paths: tuple[Path | None, ...] | None
    group: str
    code: MaskCode
    index: int | None = None

    @property
    def labelled(self) -> bool:
        return self.mask_paths is not None

    def read_image(self) -> Pixels:
        """Read the raw pixels, (H, W) or (H, W, 3), as deep as the file; see `stack.read_image`."""
        return self._stack().image(self.index or 0)

    def _stack(self) -> Stack:
        return open_stack(self.image_path) if self.index is None else opened(self.image_path)

    def read_masks(self) -> Masks:
        """Read the masks, (C, H, W) bool at the image's size; ignored pixels are in none of them."""
        return self.read_labels()[0]

    def read_labels(self) -> tuple[Masks, Mask]:
        """Read masks and ignored pixels.

        Returns
        -------
        masks
            (C, H, W) bool at the image's size.
        ignored
            (H, W) bool: pixels of no known class, which must count neither in a loss nor in a metric.

        Raises
        ------
        InputRejected
            When a file cannot be read, has another size than the image, lies in the patient in another way,
            or has a value that is no class.
        ValueError
            When the case is unlabelled, or its class names are not known yet.
        """
        if self.mask_paths is None:
            raise ValueError(f"case {self.id} must be labelled for its masks to be read, and is not.")
        if not self.code.class_names:
            raise ValueError("class names must be known before masks are read. Call Dataset.with_classes().")
        return self.code.decode(self.mask_paths, self._stack(), self.index)

    def without_labels(self) -> Case:
        """The same case with no way left to its masks."""
        return replace(self, mask_paths=None)


@dataclass(frozen=True)
class Dataset:
    """A data folder.

    Parameters
    ----------
    root
        The folder.
    cases
        Sorted by id.
    code
        Class names and how masks code them; the names are empty while they are not known.
    parts
        Case id to "train", "validation" or "test", for the cases of which dataset.toml tells.
    declared
        Whether the folder itself names the classes; else they are the caller's, or counted.
    """

    root: Path
    cases: tuple[Case, ...]
    code: MaskCode
    parts: dict[str, str]
    declared: bool = False

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.code.class_names

    @property
    def multi_label(self) -> bool:
        """Whether classes may overlap (one mask file a class)."""
        return self.code.per_class

    @property
    def ignore_index(self) -> int | None:
        return self.code.ignore_index

    @property
    def mask_threshold(self) -> int | None:
        return self.code.threshold

    @property
    def labelled(self) -> tuple[Case, ...]:
        return tuple(case for case in self.cases if case.labelled)

    @property
    def unlabelled(self) -> tuple[Case, ...]:
        return tuple(case for case in self.cases if not case.labelled)

    def with_classes(self, looked_at: Iterable[Case] | None = None) -> Dataset:
        """Make sure that class names are known.

        Where nothing declares them, the highest value of the index masks is the number of classes; black and
        white masks are one class. The masks of `looked_at` (default: all labelled cases) are read for it.

        Raises
        ------
        InputRejected
            When the masks' values do not look like class numbers.
        """
        if self.class_names:
            return self
        cases = self.labelled if looked_at is None else looked_at
        paths = [path for case in cases for path in case.mask_paths or () if path is not None]
        code = replace(self.code, class_names=infer_class_names(paths, self.code.ignore_index))
        return replace(self, code=code, cases=tuple(replace(case, code=code) for case in self.cases))

    def fingerprint(self) -> str:
        """Tell this data set from another: see the function `fingerprint`."""
        return fingerprint(self.cases, self.class_names)


def open_dataset(
    path: Path | str, *, class_names: Sequence[str] | None = None, infer_classes: bool = True
) -> Dataset:
    """Open a data folder; see docs/data.md for what it may look like. No picture is decoded.

    Parameters
    ----------
    path
        The folder with images/ and, for labels, masks/.
    class_names
        The classes expected, as a bundle names them; they stand in where the folder declares none.
    infer_classes
        Where nothing declares classes, look at the masks of all labelled cases to count them. Training passes
        False and lets `make_split` look at the labels within its budget alone.

    Raises
    ------
    InputRejected
        For the first thing that makes the folder unusable; `samdistill data check` lists them all.
    """
    layout = read_layout(Path(path))
    for problem in layout.problems:
        if problem.severity == "error":
            raise InputRejected(f"{path}: {problem}")
    dataset = from_layout(layout, tuple(class_names) if class_names is not None else None)
    return dataset.with_classes() if infer_classes and dataset.labelled else dataset


def from_layout(layout: Layout, expected: tuple[str, ...] | None = None) -> Dataset:
    """Make a data set of a surveyed folder, class names still empty where nothing declares them."""
    config = layout.config
    declared = layout.class_folders if layout.per_class else config.classes
    if expected is not None and declared and set(declared) != set(expected):
        raise InputRejected(
            f"{layout.root} must have the classes {', '.join(expected)}, not {', '.join(declared)}."
        )
    code = MaskCode(
        class_names=declared or expected or (),
        values=config.class_values,
        per_class=layout.per_class,
        ignore_index=config.ignore_index,
        threshold=config.mask_threshold,
    )
    if config.mask_threshold is not None and not code.class_names:
        code = replace(code, class_names=("foreground",))
    cases = tuple(
        Case(
            case_id,
            path,
            layout.masks.get(case_id),
            layout.groups[case_id],
            code,
            layout.indices.get(case_id),
        )
        for case_id, path in layout.images.items()
    )
    return Dataset(layout.root, cases, code, dict(layout.parts), bool(declared))


def fingerprint(cases: Iterable[Case], class_names: Sequence[str] = ()) -> str:
    """Hash what a training or an evaluation saw, so that another data set is told from it.

    SHA-256 over class names and, case by case in order of id: id, group, and each file's size and its first
    and last 64 KiB. Quick on any size of file; a change in the middle of a file that keeps its size escapes
    it, which image compression all but rules out. Masks enter only where the case is labelled, and what
    dataset.toml says of their values only where it says something.

    Returns
    -------
    str
        64 hexadecimal digits; the same wherever the folder lies.
    """
    digest = hashlib.sha256("\0".join(class_names).encode())
    for case in sorted(cases, key=lambda case: case.id):
        digest.update(f"\1{case.id}\0{case.group}".encode(errors="surrogateescape"))
        if case.index is not None:
            digest.update(f"\0{case.index}".encode())
        told = (case.code.values, case.code.ignore_index, case.code.threshold)
        if case.labelled and told != ((), None, None):
            digest.update(f"\0values {told}".encode())
        for path in (case.image_path, *(case.mask_paths or ())):
            if path is None:
                digest.update(b"\0absent")
                continue
            with path.open("rb") as file:
                size = file.seek(0, 2)
                file.seek(0)
                digest.update(f"\0{size}\0".encode() + file.read(END_BYTES))
                if size > END_BYTES:
                    file.seek(max(END_BYTES, size - END_BYTES))
                    digest.update(file.read(END_BYTES))
    return digest.hexdigest()
