"""`samdistill evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from samdistill.evaluation import Evaluation
    from samdistill.io.dataset import Case, Dataset
    from samdistill.predictor import Predictor


def evaluate(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    data: Annotated[Path, typer.Argument(help="Data folder with masks (docs/data.md).")],
    mode: Annotated[str, typer.Option(help="fast, refine or auto.")] = "fast",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    runtime: Annotated[str, typer.Option(help="auto or onnxruntime.")] = "auto",
    include_trained: Annotated[
        bool, typer.Option("--include-trained", help="Score images the bundle was trained on, too.")
    ] = False,
    report: Annotated[Path | None, typer.Option(help="Also write a report, one HTML file.")] = None,
    seed: Annotated[int, typer.Option(help="Of the bootstrap intervals.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Dice, IoU, HD95 and ASD of a bundle on labelled images, with confidence intervals.

    Images that the bundle was trained on, and others of the same group, are left out.
    """
    import json
    import sys
    from typing import cast

    from rich.console import Console
    from rich.progress import Progress

    from samdistill.evaluation import evaluate as score
    from samdistill.io.dataset import open_dataset
    from samdistill.predictor import Mode, Predictor

    predictor = Predictor.load(bundle, device, runtime)
    dataset = open_dataset(data, class_names=predictor.class_names)
    cases = _choose(dataset, predictor, include_trained)
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("evaluating", total=len(cases))
        # The predictor judges the mode: it knows what its bundle can do.
        result = score(
            predictor, cases, cast("Mode", mode), seed=seed, on_case=lambda _: progress.advance(task)
        )
    told = {
        "bundle": {"name": predictor.manifest.name, "sha256": predictor.bundle_sha256},
        "data": {
            "fingerprint": dataset.fingerprint(),
            "labelled": len(dataset.labelled),
            "evaluated": len(cases),
            "trained_on_included": include_trained,
        },
        "device": {"provider": predictor.provider, "runtime": predictor.runtime},
    }
    if report is not None:
        _write_report(report, result, predictor, cases, told)
    if as_json:
        print(json.dumps({**result.to_dict(), **told}, allow_nan=False))
    else:
        _show(result)


def _choose(dataset: Dataset, predictor: Predictor, include_trained: bool) -> tuple[Case, ...]:
    """The cases to score; what is left out, and what cannot be known, is said on standard error."""
    import sys

    from samdistill.errors import InputRejected
    from samdistill.evaluation import unseen

    labelled = dataset.labelled
    if not labelled:
        raise InputRejected(f"{dataset.root} must have masks to evaluate with, and has none.")
    trained_on = predictor.manifest.provenance.get("trained_on")
    if trained_on is None:
        print("The bundle does not say which images it was trained on: some may be here.", file=sys.stderr)
        return labelled
    fair = unseen(dataset.cases, trained_on)
    seen = len(labelled) - len(fair)
    if seen and include_trained:
        print(
            f"Of {len(labelled)} labelled images {seen} were trained on, or share a group with one that was: "
            "these numbers flatter the bundle.",
            file=sys.stderr,
        )
        return labelled
    if not fair:
        raise InputRejected(
            f"{dataset.root} must have labelled images the bundle was not trained on; all {seen} were, or "
            "share a group with one that was. Give other data, or --include-trained."
        )
    if seen:
        print(
            f"Of {len(labelled)} labelled images {seen} are left out: the bundle was trained on them or on "
            "others of their group. --include-trained scores them too.",
            file=sys.stderr,
        )
    return fair


def _show(result: Evaluation) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from samdistill.report.pages import summary_rows

    headers, rows = summary_rows([result])
    table = Table(title=f"{len(result.cases)} images, mode {result.mode}", title_justify="left")
    for index, header in enumerate(headers):
        table.add_column(header, justify="right" if index else "left")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    Console(highlight=False).print(table)


def _write_report(
    path: Path, result: Evaluation, predictor: Predictor, cases: tuple[Case, ...], told: dict[str, Any]
) -> None:
    from samdistill.report.document import write_report
    from samdistill.report.pages import bundle_section, evaluation_sections

    manifest = predictor.manifest
    colours = [(one.colour[0], one.colour[1], one.colour[2]) for one in manifest.classes]
    sections = evaluation_sections(result, predictor, cases, intensity=manifest.intensity, colours=colours)
    write_report(
        path,
        f"Evaluation of {manifest.name}",
        [*sections, bundle_section(manifest, predictor.bundle_sha256)],
        subtitle=f"{len(cases)} images, mode {result.mode}, {told['device']['provider']}",
    )
