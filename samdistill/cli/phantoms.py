"""`samdistill phantoms`: write a data folder of pictures made by code."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Kind(StrEnum):
    endoscopy = "endoscopy"
    ultrasound = "ultrasound"
    xray = "xray"
    breast = "breast"


def phantoms(
    out: Annotated[Path, typer.Argument(help="Folder to make; must be new or empty.", show_default=False)],
    kind: Annotated[Kind, typer.Option(help="What the pictures look like.")] = Kind.endoscopy,
    count: Annotated[int, typer.Option(min=1, help="How many images.")] = 240,
    seed: Annotated[int, typer.Option(min=0, help="Names the series.")] = 0,
    size: Annotated[int, typer.Option(min=32, max=4096, help="Side of the square images in pixels.")] = 256,
    unlabelled: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of the images, the last ones, that get no mask.")
    ] = 0.0,
    contact_sheet: Annotated[
        bool, typer.Option("--contact-sheet", help="Also write OUT/contact_sheet.jpg to look at.")
    ] = False,
) -> None:
    """Write images and masks made by code, as a data folder to train on and to try things with."""
    from rich.console import Console
    from rich.progress import Progress

    from samdistill.errors import UsageError
    from samdistill.phantoms.folder import write, write_contact_sheet

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"{kind.value} phantoms", total=count)
        try:
            write(
                out,
                kind.value,
                count,
                seed=seed,
                size=(size, size),
                unlabelled=unlabelled,
                progress=lambda done: progress.update(task, completed=done),
            )
        except FileExistsError as error:
            if error.filename is None:
                raise UsageError(str(error)) from error
            raise UsageError(f"{error.filename} must be a folder to make {out} in, not a file.") from error
    if contact_sheet:
        write_contact_sheet(out / "contact_sheet.jpg", kind.value, seed=seed)
    print(f"wrote {count} {kind.value} phantoms to {out}")
