"""`samdistill report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from samdistill.report.document import Section


def report(
    folder: Annotated[Path, typer.Argument(help="Folder of `infer`, a run, or a folder of `pseudo-label`.")],
    images: Annotated[
        Path | None,
        typer.Option(help="Where the pictures are: of infer (else overlays are shown), or a run's data."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="HTML file; default: FOLDER/report.html.")] = None,
) -> None:
    """Make one HTML file: of a folder of masks, of a run, or of pseudo labels to correct."""
    from samdistill.report.document import check_report_place, write_report

    path = out or folder / "report.html"
    check_report_place(path)
    # The folder's whole path could name a patient or a site; its last part is what people know it by.
    title, sections = _sections(folder, images)
    write_report(path, f"{title} {folder.resolve().name}", sections)
    print(path)


def _sections(folder: Path, images: Path | None) -> tuple[str, list[Section]]:
    if (folder / "run.json").is_file():
        from samdistill.train.pseudo_report import run_report

        return "Run", run_report(folder, images)
    if (folder / "pseudo.json").is_file():
        from samdistill.train.pseudo_report import folder_report

        return "Pseudo labels", folder_report(folder)
    from samdistill.report.folder import folder_sections

    return "Segmentation of", folder_sections(folder, images)
