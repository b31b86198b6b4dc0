"""`samdistill evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from samdistill.evaluation import Evaluation
    from samdistill.io.dataset import Case, Dataset
    from samdistill.predictor import Mode, Predictor
    from samdistill.report.document import Section
    from samdistill.statistics import Estimate


def evaluate(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    data: Annotated[Path, typer.Argument(help="Data folder with masks (docs/data.md).")],
    mode: Annotated[
        str, typer.Option(help="fast, refine or auto; several, as in fast,auto, are compared with the first.")
    ] = "fast",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    runtime: Annotated[str, typer.Option(help="auto, or a runtime of docs/engines.md.")] = "auto",
    precision: Annotated[
        str | None, typer.Option(help="fp32, fp16, ..., of docs/engines.md; default: the fastest.")
    ] = None,
    include_trained: Annotated[
        bool, typer.Option("--include-trained", help="Score images the bundle was trained on, too.")
    ] = False,
    against: Annotated[
        Path | None, typer.Option(help="Another bundle of the same classes to compare with, image by image.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Also write a report, one HTML file.")] = None,
    run: Annotated[
        Path | None, typer.Option(help="Run folder whose learning curves the report shows.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap intervals.")] = 0,
    expect_sha256: Annotated[
        str | None, typer.Option(help="Refuse any bundle but the one with this hash.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Dice, IoU, HD95 and ASD of a bundle on labelled images, with confidence intervals.

    Images that the bundle was trained on, and others of the same group, are left out.
    """
    import json
    import sys
    from dataclasses import asdict
    from itertools import count

    from samdistill.cli.case_progress import CaseProgress
    from samdistill.errors import UsageError
    from samdistill.evaluation import compare, nan_to_none
    from samdistill.evaluation import evaluate as score
    from samdistill.io.dataset import open_dataset
    from samdistill.predictor import Predictor, parse_mode

    modes = [parse_mode(one) for one in dict.fromkeys(mode.split(","))]
    if run is not None and report is None:
        raise UsageError("--run adds to a report; say where it goes with --report FILE.")
    training = [] if report is None else _begin_report(report, run)
    predictor = Predictor.load(bundle, device, runtime, precision=precision, expect_sha256=expect_sha256)
    dataset = open_dataset(data, class_names=predictor.class_names)
    other = None if against is None else Predictor.load(against, device, runtime, precision=precision)
    if other is not None and set(other.class_names) != set(predictor.class_names):
        raise UsageError(
            f"--against must have the classes {', '.join(predictor.class_names)}, "
            f"not {', '.join(other.class_names)}."
        )
    cases = _choose(dataset, predictor, include_trained)
    if other is not None:
        fair = {case.id for case in _choose(dataset, other, include_trained)}
        cases = tuple(case for case in cases if case.id in fair)
    if not dataset.declared and len(dataset.class_names) > 1:  # one class has no other to be taken for
        read = ", ".join(f"{number} is read as {name}" for number, name in enumerate(dataset.class_names, 1))
        print(
            f"{data} declares no classes: {read}. If that is wrong, name them in dataset.toml (`classes`).",
            file=sys.stderr,
        )
    contestants = [(predictor, one) for one in modes]
    if other is not None:
        contestants.append((other, modes[0]))
    for contestant, chosen in contestants:
        contestant.require_mode(chosen)
    done, total = count(1), len(cases) * len(contestants)
    with CaseProgress("evaluating") as progress:
        result, *rest = [
            score(one, cases, chosen, seed=seed, on_case=lambda _: progress.on_case(next(done), total))
            for one, chosen in contestants
        ]
    for name, summary in zip(result.class_names, result.classes, strict=True):
        if not summary.present:
            print(
                f"warning: no scored image shows {name!r}: its figures tell of false alarms alone.",
                file=sys.stderr,
            )
    names = _names(bundle, against, [result, *rest])
    differences = {
        name: compare(one, result, seed=seed)
        for name, one in zip(modes[1:], rest[: len(modes) - 1], strict=True)
    }
    difference = compare(result, rest[-1], seed=seed) if other is not None else None
    told = {
        "bundle": {"name": predictor.manifest.name, "sha256": predictor.bundle_sha256},
        "data": {
            "fingerprint": dataset.fingerprint(),
            "labelled": len(dataset.labelled),
            "evaluated": len(cases),
            "trained_on_included": include_trained,
            "classes_declared": dataset.declared,
        },
        "device": _device(predictor, modes),
    }
    if differences:
        told["modes"] = {
            name: {
                **one.to_dict(),
                "difference": {metric: asdict(each) for metric, each in differences[name].items()},
            }
            for name, one in zip(modes[1:], rest[: len(modes) - 1], strict=True)
        }
    if other is not None and difference is not None:
        told["against"] = {
            "bundle": {"name": other.manifest.name, "sha256": other.bundle_sha256},
            "device": _device(other, modes[:1]),
            "dice": rest[-1].metrics["dice"].mean,
            "difference": {metric: asdict(one) for metric, one in difference.items()},
        }
    if as_json:
        print(json.dumps(nan_to_none({**result.to_dict(), **told}), allow_nan=False))
    else:
        _show([result, *rest], names)
        for place, (_, one) in enumerate(differences.items(), 1):
            print(f"\n{_told([names[place], names[0]], one['dice'])}")
        if difference is not None:
            print(f"\n{_told([names[0], names[-1]], difference['dice'])}")
    if report is not None:  # last: what cannot be written takes no figures with it
        _write_report(report, [result, *rest], names, predictor, cases, training)


def _begin_report(report: Path, run: Path | None) -> list[Section]:
    """Refuse what would be refused after hours of work, and read what is told of the training run."""
    from samdistill.report.document import check_report_place
    from samdistill.report.pages import run_sections

    check_report_place(report)
    return [] if run is None else run_sections(run)


def _device(predictor: Predictor, modes: list[Mode]) -> dict[str, object]:
    """What computed: an int8 engine's figures are not fp32's."""
    from samdistill.inference.outputs import engines_of

    mode = next((mode for mode in modes if predictor.asks_teacher(mode)), modes[0])
    engines = engines_of(predictor, mode)
    return {"provider": predictor.provider, "runtime": predictor.runtime, "engines": engines}


def _names(bundle: Path, against: Path | None, results: list[Evaluation]) -> list[str]:
    """What to call each result: its bundle, its mode where there are several, both where there are both."""
    own = results if against is None else results[:-1]
    modes = []
    for one in own:
        routes = [case.route for case in one.cases if case.route is not None]
        refined = f" ({sum(route.refine for route in routes)} refined)" if routes else ""
        modes.append(f"{one.mode}{refined}")
    if against is None:
        return [bundle.name] if len(own) == 1 else modes
    # Bundles of two runs are often called the same.
    other = against.name if against.name != bundle.name else f"{against.name} of --against"
    return [bundle.name if len(own) == 1 else f"{bundle.name}, {mode}" for mode in modes] + [other]


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


def _told(names: list[str], dice: Estimate) -> str:
    """What the comparison comes to, as a sentence."""
    verdict = "no difference can be told"
    if dice.low > 0:
        verdict = f"{names[0]} is better"
    elif dice.high < 0:
        verdict = f"{names[1]} is better"
    interval = f"({dice.low:+.3f} to {dice.high:+.3f})"
    if dice.low != dice.low:  # NaN
        interval = "(one group alone has no interval)"
    return (
        f"Dice, {names[0]} less {names[1]}: {dice.mean:+.3f} {interval}, "
        f"paired over {dice.count} images: {verdict}."
    )


def _show(results: list[Evaluation], names: list[str]) -> None:
    """The summary with classes as columns, so that it fits a narrow terminal; many take several tables."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from samdistill.report.pages import summary_rows

    console = Console(highlight=False)
    result = results[0]
    headers, rows = summary_rows(results, names)
    label_width, cell_width = 17, 22
    columns = max(1, (console.width - label_width) // cell_width)
    print(f"{len(result.cases)} images, mode {result.mode}; means with 95 % intervals")
    for start in range(0, len(rows), columns):
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        table.add_column("")
        for row in rows[start : start + columns]:
            table.add_column(escape(row[0]), justify="right")
        for index, header in enumerate(headers[1:], 1):
            table.add_row(header, *(row[index].replace("\n", " ") for row in rows[start : start + columns]))
        print()
        console.print(table)
    _show_trust(results, names)


def _show_trust(results: list[Evaluation], names: list[str]) -> None:
    """Calibration, and for each result what its flags are worth; a line each."""
    from samdistill.report.document import number

    print()
    result = results[0]
    for name, one in zip(result.class_names, result.trust or (), strict=False):
        after = "no temperature" if one.calibrated is None else f"calibrated {one.calibrated.ece:.4f}"
        print(f"{name}: expected calibration error {one.uncalibrated.ece:.4f}, {after}")
    for title, evaluation in zip(names, results, strict=True):
        told = evaluation.judged()
        if told is None:
            continue
        flags = [
            f"{one['cases']} {flag} (mean Dice {number(one['dice'])}, {one['bad']} bad)"
            for flag, one in told["flags"].items()
        ]
        if told["unscored"]:
            flags.append(f"{told['unscored']} without a score")
        area = number(told["auroc"])
        print(f"{title}: {', '.join(flags)}; bad is below {told['least_dice']:g}, AUROC of the score {area}")


def _write_report(
    path: Path,
    results: list[Evaluation],
    names: list[str],
    predictor: Predictor,
    cases: tuple[Case, ...],
    training: list[Section],
) -> None:
    from samdistill.report.document import write_report
    from samdistill.report.pages import bundle_section, evaluation_sections

    manifest = predictor.manifest
    colours = [(one.colour[0], one.colour[1], one.colour[2]) for one in manifest.classes]
    result = results[0]
    sections = evaluation_sections(
        result,
        predictor,
        cases,
        intensity=manifest.intensity,
        colours=colours,
        against=dict(zip(names, results, strict=True)) if len(results) > 1 else None,
    )
    write_report(
        path,
        f"Evaluation of {manifest.name}",
        [*sections, *training, bundle_section(manifest, predictor.bundle_sha256)],
        subtitle=f"{len(cases)} images, mode {result.mode}, {predictor.engine}",
    )
