"""Writing phantoms to disk: a data folder as docs/data.md describes it, and contact sheets to look at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage

from samdistill.arrays import Image, Mask
from samdistill.io.files import atomic_folder, atomic_write, write_text
from samdistill.io.images import write_mask, write_png
from samdistill.phantoms import CLASS_NAMES, MULTI_LABEL, Phantom, check_kind, make

# Outline colours of the classes on a contact sheet.
COLOURS = ((60, 255, 90), (255, 80, 70), (80, 150, 255), (255, 215, 0), (255, 90, 255), (0, 235, 235))
TILE_PX = 144


def write(
    out: Path,
    kind: str,
    count: int,
    *,
    seed: int = 0,
    size: tuple[int, int] = (256, 256),
    unlabelled: float = 0.0,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write a data folder of phantoms; it appears under its name only when it is complete.

    Parameters
    ----------
    out
        A new or empty folder.
    kind
        One of `phantoms.KINDS`; "xray" gets masks/<class>/, the others index masks.
    count
        How many, >= 1: indices 0 .. count - 1 of the series.
    seed, size
        As in `make`.
    unlabelled
        Share of the images, the last ones, that get no mask; in [0, 1].
    progress
        Called with the number written so far.

    Raises
    ------
    ValueError
        When an argument is out of its range.
    FileExistsError
        When `out` is not empty.
    """
    check_kind(kind)
    if count < 1:
        raise ValueError(f"count must be at least 1, not {count}.")
    if not 0 <= unlabelled <= 1:
        raise ValueError(f"unlabelled must be a share in [0, 1], not {unlabelled}.")
    labelled = count - round(unlabelled * count)
    digits = max(4, len(str(count - 1)))
    with atomic_folder(out) as folder:
        (folder / "images").mkdir()
        mask_folders = [f"masks/{name}" for name in CLASS_NAMES[kind]] if MULTI_LABEL[kind] else ["masks"]
        for name in mask_folders:
            (folder / name).mkdir(parents=True)
        for index in range(count):
            phantom = make(kind, seed=seed, index=index, size=size)
            stem = f"{index:0{digits}d}.png"
            write_png(folder / "images" / stem, _as_stored(phantom, kind))
            if index < labelled and phantom.multi_label:
                for name, mask in zip(mask_folders, phantom.masks, strict=True):
                    write_mask(folder / name / stem, mask)
            elif index < labelled:
                write_mask(folder / "masks" / stem, index_mask(phantom))
            if progress is not None:
                progress(index + 1)
        names = ", ".join(f'"{name}"' for name in CLASS_NAMES[kind])
        made = (
            f"# Phantoms made by code, free of real images: {kind}, seed {seed}, {size[0]} x {size[1]} px.\n"
        )
        write_text(folder / "dataset.toml", f"{made}classes = [{names}]\n")


def index_mask(phantom: Phantom) -> npt.NDArray[np.uint8]:
    """(H, W) uint8: 0 background, else class_id; for classes that do not overlap."""
    mask = np.zeros(phantom.masks.shape[1:], np.uint8)
    for class_id, pixels in enumerate(phantom.masks, start=1):
        mask[pixels] = class_id
    return mask


def write_contact_sheet(path: Path, kind: str, *, seed: int = 0, columns: int = 7, rows: int = 3) -> None:
    """Write a sheet of the first phantoms of a series; below each row the same with the masks' outlines.

    Parameters
    ----------
    path
        PNG or JPEG, by its suffix; its folder must exist.
    kind, seed
        As in `make`.
    columns, rows
        How many phantoms.
    """
    bands: list[Image] = []
    for row in range(rows):
        phantoms = [make(kind, seed=seed, index=row * columns + column) for column in range(columns)]
        bands.append(np.concatenate([_tile(phantom.image) for phantom in phantoms], axis=1))
        bands.append(np.concatenate([_tile(_outlined(phantom)) for phantom in phantoms], axis=1))
    sheet = PillowImage.fromarray(np.concatenate(bands))
    with atomic_write(path) as temporary:
        sheet.save(temporary, format="PNG" if path.suffix.lower() == ".png" else "JPEG", quality=85)


def _as_stored(phantom: Phantom, kind: str) -> Image:
    """Grey kinds are stored as grey files, (H, W)."""
    return phantom.image if kind == "endoscopy" else np.ascontiguousarray(phantom.image[:, :, 0])


def _outlined(phantom: Phantom) -> Image:
    picture = phantom.image.copy()
    for mask, colour in zip(phantom.masks, COLOURS, strict=False):
        picture[_outline(mask)] = colour
    return picture


def _outline(mask: Mask) -> Mask:
    """Two pixels wide: what is in the mask and not two pixels inside it."""
    inner = mask
    for _ in range(2):
        padded = np.pad(inner, 1)
        inner = (
            padded[1:-1, 1:-1] & padded[2:, 1:-1] & padded[:-2, 1:-1] & padded[1:-1, 2:] & padded[1:-1, :-2]
        )
    return mask & ~inner


def _tile(picture: Image) -> Image:
    small = PillowImage.fromarray(picture).resize((TILE_PX, TILE_PX), PillowImage.Resampling.BOX)
    return np.pad(np.asarray(small), ((0, 2), (0, 2), (0, 0)), constant_values=255)
