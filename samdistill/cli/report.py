"""`samdistill report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    folder: Annotated[Path, typer.Argument(help="Folder written by `samdistill infer`.")],
    images: Annotated[
        Path | None, typer.Option(help="Folder the pictures came from; else the overlays are shown.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="HTML file; default: FOLDER/report.html.")] = None,
) -> None:
    """Make one HTML file out of a folder of masks: pictures to enlarge, a histogram, what failed."""
    from samdistill.report.document import write_report
    from samdistill.report.folder import folder_sections

    path = out or folder / "report.html"
    # The folder's whole path could name a patient or a site; its last part is what people know it by.
    write_report(path, f"Segmentation of {folder.resolve().name}", folder_sections(folder, images))
    print(path)
