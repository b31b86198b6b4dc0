"""`samdistill tune`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from samdistill.errors import UsageError

if TYPE_CHECKING:
    from samdistill.train.tune import Tuning


def tune(
    run: Annotated[Path, typer.Argument(help="Run folder; its student prompts.")],
    data: Annotated[
        Path | None, typer.Argument(help="The run's data folder, where it has moved.", show_default=False)
    ] = None,
    refiner: Annotated[str, typer.Option(help="What is tuned: teacher or random-walker.")] = "teacher",
    teacher: Annotated[str | None, typer.Option(help="As for `teacher check`. Default: the run's.")] = None,
    prompts: Annotated[
        str, typer.Option(help="Everything that is not searched: mine, burden, box or a TOML file.")
    ] = "burden",
    trials: Annotated[int, typer.Option(help="How many in all; those of an interrupted search count.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the search.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    cache: Annotated[Path | None, typer.Option(help="Folder of the teacher's embeddings.")] = None,
) -> None:
    """Search prompts and morphology on a run's validation images; writes RUN/tune/prompts.toml.

    `train --prompts` and `export --prompts` take that file.
    """
    if refiner not in ("teacher", "random-walker"):
        raise UsageError(f"--refiner must be teacher or random-walker, not {refiner!r}.")
    if trials < 1:
        raise UsageError(f"--trials must be at least 1, not {trials}.")
    if seed < 0:
        raise UsageError(f"--seed must be at least 0, not {seed}.")
    from samdistill.cli.steps import Steps
    from samdistill.refine import load_prompts
    from samdistill.teacher import load_teacher
    from samdistill.teacher.cache import EmbeddingCache, default_folder
    from samdistill.teacher.sam import parse_device
    from samdistill.train.run import Run, alone_in
    from samdistill.train.tune import FOLDER, TUNED
    from samdistill.train.tune import tune as search

    parse_device(device)  # the student's, too, where no teacher is loaded
    start = load_prompts(prompts)
    opened = Run.load(run)
    opened.load_state("student")  # before anything dear: a run without student is told at once
    opened.tell_if_unfinished(lambda text: print(text, file=sys.stderr))
    cases = opened.validation_cases(data)
    loaded = load_teacher(teacher or opened.config.teacher, device) if refiner == "teacher" else None
    folder = opened.path / FOLDER
    folder.mkdir(exist_ok=True)
    try:
        with alone_in(folder, lambda text: print(text, file=sys.stderr)), Steps() as steps:
            found = search(
                opened,
                cases,
                loaded,
                start=start,
                trials=trials,
                seed=seed,
                device=device,
                cache=EmbeddingCache(cache or default_folder()) if loaded else None,
                tell=steps.tell,
            )
    except KeyboardInterrupt:
        print("samdistill: interrupted; the same command continues the search.", file=sys.stderr)
        sys.exit(130)
    _show(found, len(cases))
    if found.chosen != TUNED:
        print(f"\nNo trial was better than {found.chosen!r}: the file has these prompts.")
    if found.replaced is not None:
        print(
            f"samdistill: warning: {found.file} held the result of another search, with a higher Dice of "
            f"{found.replaced:.4f}; the same command as then brings it back without a new trial.",
            file=sys.stderr,
        )
    option = "--prompts" if loaded else "--config"
    print(f"\n{found.file}: for `samdistill train {option}`" + (" and `export --prompts`" if loaded else ""))


def _show(found: Tuning, images: int) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    print(f"{images} validation images, {found.trials} trials; 95 % intervals over images")
    table = Table("", "Dice", "gain over the student's cleaned mask", box=None, padding=(0, 2, 0, 0))
    for row in found.rows:
        interval = "" if row.gain.low != row.gain.low else f"  ({row.gain.low:+.4f} to {row.gain.high:+.4f})"
        table.add_row(row.name, f"{row.dice.mean:.4f}", f"{row.gain.mean:+.4f}{interval}")
    console.print(table)
    print("The tuned row was chosen on these images: expect less on others.\n")
    table = Table("parameter", "best", "importance", box=None, padding=(0, 2, 0, 0))
    names = [*found.importance, *(name for name in found.params if name not in found.importance)]
    for name in names:
        value, weight = found.params[name], found.importance.get(name)
        told = f"{value:.4g}" if isinstance(value, float) else str(value)
        table.add_row(name.replace("_", " "), told, "–" if weight is None else f"{weight:.2f}")
    console.print(table)
