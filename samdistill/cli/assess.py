"""`samdistill teacher assess`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from samdistill.errors import UsageError

if TYPE_CHECKING:
    from samdistill.io.dataset import Case, Dataset
    from samdistill.train.assess import Assessment
    from samdistill.train.run import Run


def assess(
    data: Annotated[Path, typer.Argument(help="Data folder with masks (docs/data.md).")],
    out: Annotated[Path, typer.Option(help="Folder for assess.json and assess.png.")],
    teacher: Annotated[
        str | None, typer.Option(help="As for `teacher check`. Default: the run's, or tiny.")
    ] = None,
    run: Annotated[Path | None, typer.Option(help="Run folder: its student beside, and prompting.")] = None,
    prompts: Annotated[
        str | None,
        typer.Option(help="With --run: mine, burden, box, or a TOML file of `tune`. Default: the run's."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many images, drawn at random.")] = None,
    points_per_side: Annotated[
        int, typer.Option(help="Grid of the proposals; 0 leaves them out, the slowest part.")
    ] = 16,
    seed: Annotated[int, typer.Option(help="Of the draw, the points and the rough boxes.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    cache: Annotated[Path | None, typer.Option(help="Folder of the teacher's embeddings.")] = None,
) -> None:
    """Can this teacher help here? What it reaches from perfect and rough prompts, beside a student.

    On labelled images, before anybody spends hours; with --run on those the run was not trained on.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"--limit must be at least 1, not {limit}.")
    if points_per_side < 0:
        raise UsageError(f"--points-per-side must be 0 or more, not {points_per_side}.")
    if seed < 0:
        raise UsageError(f"--seed must be at least 0, not {seed}.")
    if prompts is not None and run is None:
        raise UsageError("--prompts says how a student prompts; say which with --run RUN.")
    import json
    import sys

    import numpy as np

    from samdistill.cli.steps import Steps
    from samdistill.io.dataset import open_dataset
    from samdistill.io.files import write_text
    from samdistill.refine import MINE, check_thresholds, load_prompts
    from samdistill.teacher import load_teacher
    from samdistill.teacher.cache import EmbeddingCache, default_folder
    from samdistill.train.assess import Answer, Assessor
    from samdistill.train.assess import assess as measure
    from samdistill.train.assess_picture import draw, examples
    from samdistill.train.data import read_uint8
    from samdistill.train.launch import choose_intensity
    from samdistill.train.run import Run

    opened = Run.load(run) if run is not None else None
    if opened is not None:
        opened.load_state("student")  # before anything dear: a run without student is told at once
        opened.tell_if_unfinished(lambda text: print(text, file=sys.stderr))
    dataset = open_dataset(data, class_names=opened.class_names if opened else None)
    cases = _choose(dataset, opened)
    found = len(cases)
    if limit is not None and limit < found:
        drawn = np.random.default_rng(seed).permutation(found)[:limit]
        cases = [cases[index] for index in sorted(drawn)]
    intensity = opened.intensity if opened else choose_intensity([case.image_path for case in cases])
    config = load_prompts(prompts) if prompts else opened.config.refine_or_default if opened else MINE
    if opened is not None:
        check_thresholds(config, len(opened.class_names))
    loaded = load_teacher(teacher or (opened.config.teacher if opened else "tiny"), device)
    assessor = Assessor(
        loaded,
        EmbeddingCache(cache or default_folder()),
        lambda case: read_uint8(case, intensity),
        student=opened.load_student().to(device) if opened else None,
        size=opened.config.student.size if opened else 0,
        classes=opened.class_names if opened else (),
        config=config,
        points_per_side=points_per_side,
        seed=seed,
    )
    out.mkdir(parents=True, exist_ok=True)  # before the work: a place that cannot be had is told at once
    with Steps() as steps:
        result = measure(assessor, cases, tell=steps.tell, seed=seed)
    by_id = {case.id: case for case in cases}
    answers = (assessor.answer(by_id[name]) for name in examples(result))
    shown = [answer for answer in answers if isinstance(answer, Answer)]
    record = {
        **_record(result),
        "teacher": loaded.name,
        "teacher_sha256": loaded.weights_sha256,
        "seed": seed,
    }
    write_text(out / "assess.json", json.dumps(record, indent=1, allow_nan=False) + "\n")
    draw(out / "assess.png", result, shown, title=f"Can {loaded.name} help here?")
    _show(result, found)
    print(f"\n{result.advice}\n\n{out / 'assess.json'}, {out / 'assess.png'}")


def _choose(dataset: Dataset, run: Run | None) -> list[Case]:
    """The cases to assess on: of the run's own data those of validation, of others what it has not seen."""
    import sys

    from samdistill.errors import InputRejected
    from samdistill.evaluation import unseen

    if not dataset.labelled:
        raise InputRejected(f"{dataset.root} must have masks to assess a teacher with, and has none.")
    if run is None:
        return list(dataset.labelled)
    if Path(run.record.data["path"]) == dataset.root.resolve():
        print("On the run's validation images.", file=sys.stderr)
        return run.validation_cases(dataset.root)
    try:
        fair = unseen(dataset.cases, run.provenance()["trained_on"])
    except InputRejected:
        print(
            "The run's own data are not at hand: some of these images may be among them, and flatter "
            "its student.",
            file=sys.stderr,
        )
        return list(dataset.labelled)
    if not fair:
        raise InputRejected(f"{dataset.root} must have labelled images the run was not trained on.")
    return list(fair)


def _record(result: Assessment) -> dict[str, Any]:
    """As JSON can hold it: None where there is no interval."""
    from dataclasses import asdict

    def plain(estimates: dict[str, Any]) -> dict[str, Any]:
        return {
            name: {key: None if value != value else value for key, value in asdict(one).items()}
            for name, one in estimates.items()
        }

    return {
        "dice": plain(result.dice),
        "iou": plain(result.iou),
        "differences": plain(result.differences),
        "images": len(result.cases),
        "images_without_object": result.empty,
        "images_with_small_objects_alone": result.small,
        "advice": result.advice,
        "cases": result.cases,
    }


def _show(result: Assessment, found: int) -> None:
    from rich.console import Console
    from rich.table import Table

    from samdistill.train.assess import MIN_AREA_PX, WAYS

    note = f", {result.empty} without an object left out" if result.empty else ""
    if result.small:
        note += f", {result.small} without one of at least {MIN_AREA_PX} px left out"
    print(f"{len(result.cases)} of {found} labelled images{note}; means with 95 % intervals")
    table = Table("prompt", "Dice", "IoU", box=None, padding=(0, 2, 0, 0))
    for way, dice in result.dice.items():
        interval = "" if dice.low != dice.low else f"  ({dice.low:.3f}–{dice.high:.3f})"
        table.add_row(WAYS[way], f"{dice.mean:.3f}{interval}", f"{result.iou[way].mean:.3f}")
    Console(highlight=False).print(table)
