"""The picture of one line of results.jsonl, whatever the format: an overlay, or an image and its masks.

Of several images it shows the one where most was found.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np

from samdistill.arrays import Image, Masks
from samdistill.errors import InputRejected
from samdistill.inference import RESULTS
from samdistill.intensity import IntensityRule
from samdistill.io.files import sha256_file
from samdistill.io.images import Pixels, read_image
from samdistill.io.stack import format_of, open_stack, read_mask
from samdistill.io.video import is_video
from samdistill.report.gallery import PREDICTION, Picture, draw_picture
from samdistill.report.results import Record

DEEP_PIXELS = IntensityRule("percentiles", 1.0, 99.0)  # how pixels deeper than 8 bits are shown


def picture_of(record: Record, out: Path, images: Path | None) -> tuple[Picture, int | None] | None:
    """Draw what was found in a file.

    Parameters
    ----------
    record
        A line of results.jsonl whose status is "ok".
    out
        The folder it lies in.
    images
        The folder that the inputs' names are below, or None.

    Returns
    -------
    tuple
        A picture, and the index of the image it shows. Made of image and masks where `images` is given; the
        overlay, with None since no record tells of which image it is, where it is not, for videos, and where
        the teacher was asked, since its prompts are drawn there alone. None where there is neither.

    Raises
    ------
    InputRejected
        When a file is missing or not what it should be, such as another image than was segmented.
    """
    # All of them, also those that are not drawn: the record's figures stand beside the picture.
    _check_written(record, out)
    source = None if images is None else _input(images, record)
    if source is not None and is_video(source):
        source = None
    overlay = record.get("overlay")
    if overlay is not None and (source is None or record.get("refined")):
        return draw_picture(_shown(read_image(_inside(out, overlay))), {}), None
    if source is None:
        return None
    index, masks = _masks(record, out)
    stack = open_stack(source)
    if index >= len(stack) or masks.shape[1:] != stack.size:
        raise InputRejected(
            f"{source} must have the size of its mask, {masks.shape[2]} x {masks.shape[1]}, not "
            f"{stack.size[1]} x {stack.size[0]}. Give the folder that was segmented."
        )
    return draw_picture(_shown(stack.image(index)), {PREDICTION: masks}), index


def _masks(record: Record, out: Path) -> tuple[int, Masks]:
    """Which image has the most foreground, and its (C, H, W) masks."""
    names = list(record["classes"])
    paths = {name: _inside(out, path) for name, path in record["masks"].items()}
    first = next(iter(paths.values()))
    kind = format_of(first)
    if kind == "dicom":
        from samdistill.io.dicom_seg import read_masks

        found = read_masks(first)
        if found.shape[1] != len(names):
            raise InputRejected(f"{first} must hold {len(names)} segments, not {found.shape[1]}.")
        index = int(np.count_nonzero(found, axis=(1, 2, 3)).argmax())
        return index, found[index]
    count = len(open_stack(first)) if kind == "nifti" else 1
    if count == 1:
        index = 0
    else:
        stacks = [open_stack(path) for path in paths.values()]
        index = max(range(count), key=lambda k: sum(int(np.count_nonzero(s.image(k))) for s in stacks))
    files = {name: read_mask(path, index) for name, path in paths.items()}
    if list(files) == ["labels"] and names != ["labels"]:
        return index, np.stack([files["labels"] == class_id for class_id in range(1, len(names) + 1)])
    return index, np.stack([files[name] != 0 for name in names])


def _check_written(record: Record, out: Path) -> None:
    """The record's own files: one that was changed since would stand beside figures of another."""
    for relative, sha256 in (record.get("files") or {}).items():
        path = _inside(out, relative)
        if path.is_file() and sha256_file(path) != sha256:
            raise InputRejected(
                f"{path} must be what infer wrote, and was changed since; {RESULTS} tells of the old one. "
                "Run infer again, or put it back."
            )


def _input(folder: Path, record: Record) -> Path:
    """The file that was segmented; it may be a link, and its bytes are compared anyhow."""
    relative: str = record["input"]
    if PurePosixPath(relative).is_absolute() or ".." in PurePosixPath(relative).parts:
        raise InputRejected(f"{RESULTS} must name files inside {folder}, not {relative}.")
    path = folder / relative
    if not path.is_file():
        raise InputRejected(
            f"{path} must be the file that was segmented, and is missing. Give the folder that was segmented."
        )
    # Another picture of the same name and size would go unnoticed under these outlines.
    if record.get("input_sha256") not in (None, sha256_file(path)):
        raise InputRejected(
            f"{path} must be the file that was segmented, and is another by now. Give the folder that was "
            "segmented, or run infer again."
        )
    return path


def _inside(root: Path, relative: str) -> Path:
    """A file that a record names must lie in its folder: results.jsonl may come from anywhere."""
    path = root / relative
    if not path.resolve().is_relative_to(root.resolve()):
        raise InputRejected(f"{RESULTS} must name files inside {root}, not {relative}.")
    return path


def _shown(pixels: Pixels) -> Image:
    is_shown = pixels.dtype == np.uint8 or getattr(pixels, "shown", None) is not None
    return (IntensityRule() if is_shown else DEEP_PIXELS).apply(pixels)
