"""`samdistill data check`: what a data folder holds and what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from samdistill.io.check import DataReport

app = typer.Typer(no_args_is_help=True)
SHOWN = 50
WIDEST = 1000  # characters that a table may want


@app.callback()
def _data() -> None:
    """Look at a data set before anything is trained."""


@app.command("check")
def check(
    data: Annotated[
        Path, typer.Argument(help="Folder with images/, masks/ and dataset.toml (docs/data.md).")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Read every image and mask; say what is there and what is wrong. Exit 0 when usable, 4 when not."""
    import json

    from rich.console import Console
    from rich.progress import Progress

    from samdistill.errors import InputRejected
    from samdistill.io.check import check_data

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("reading", total=None)
        report = check_data(
            data, progress=lambda done, total: progress.update(task, completed=done, total=total)
        )
    if as_json:
        print(json.dumps(report.to_dict(), allow_nan=False))
    else:
        _show(report)
    if not report.usable:
        raise InputRejected(f"{data} cannot be trained on as it is: {len(report.errors)} error(s).")


def _show(report: DataReport) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    facts = Table(show_header=False, box=None, pad_edge=False)
    facts.add_row("images", f"{report.images}: {report.labelled} labelled, {report.unlabelled} unlabelled")
    facts.add_row(
        "groups", "none: every image counts alone" if report.groups == report.images else str(report.groups)
    )
    if report.parts:
        facts.add_row("split", ", ".join(f"{count} {part}" for part, count in report.parts.items()))
    sizes = [f"{width} x {height} ({count})" for (height, width), count in report.sizes.items()]
    more = f" and {len(sizes) - 5} more" if len(sizes) > 5 else ""
    facts.add_row("sizes", ", ".join(sizes[:5]) + more)
    facts.add_row("depth", ", ".join(f"{depth} ({count})" for depth, count in report.depths.items()))
    if report.ignore_index is not None:
        facts.add_row("ignored", f"{report.ignored:.2%} of the pixels (value {report.ignore_index})")
    facts.add_row("alike", f"{len(report.near_duplicates)} near-duplicate pair(s) across groups")
    console.print(facts)
    if report.classes:
        headers = ("id", "class", "images", "of pixels", "where present", "smallest")
        rows = [
            (
                str(number),
                escape(each.name),
                str(each.images),
                f"{each.prevalence:.2%}",
                "-" if not each.images else f"{each.prevalence_present:.2%}",
                f"{each.smallest_px} px",
            )
            for number, each in enumerate(report.classes, start=1)
        ]
        table = Table(*headers)
        for row in rows:
            table.add_row(*row)
        if console.measure(table, options=console.options.update(width=WIDEST)).maximum > console.width:
            table = Table(show_header=False, box=None, pad_edge=False)  # else numbers would be cut
            table.add_column()
            table.add_column(overflow="fold")
            for row in rows:
                for header, cell in zip(headers, row, strict=True):
                    table.add_row(header, cell)
        console.print(table)
        if report.multi_label:
            console.print("classes may overlap: one mask file a class")
    for problem in report.problems[:SHOWN]:
        colour = "red" if problem.severity == "error" else "yellow"
        console.print(f"[{colour}]{problem.severity}[/] {escape(str(problem))}", soft_wrap=True)
    if len(report.problems) > SHOWN:
        console.print(f"and {len(report.problems) - SHOWN} more; --json has them all", soft_wrap=True)
    if report.usable:
        console.print("[green]usable[/]: samdistill train will accept it")
