"""`samdistill pseudo-label`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from samdistill.errors import InputRejected, SomeInputsFailed, UsageError


def pseudo_label(
    run: Annotated[Path, typer.Argument(help="Run folder; its student prompts.")],
    images: Annotated[
        Path, typer.Argument(help="Folder of images; of a data folder those without masks are taken.")
    ],
    out: Annotated[Path, typer.Option(help="Data folder to write, or to continue.")],
    refiner: Annotated[str, typer.Option(help="teacher or random-walker.")] = "teacher",
    teacher: Annotated[str | None, typer.Option(help="As for `teacher check`. Default: the run's.")] = None,
    prompts: Annotated[
        str | None,
        typer.Option(help="mine, burden, box, or a TOML file as `tune` writes it. Default: the run's."),
    ] = None,
    min_iou: Annotated[float, typer.Option(help="Least predicted IoU of a mask that is kept.")] = 0.0,
    min_agreement: Annotated[
        float, typer.Option(help="Least Dice of student and teacher for a mask to be kept.")
    ] = 0.0,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    cache: Annotated[Path | None, typer.Option(help="Folder of the teacher's embeddings.")] = None,
) -> None:
    """Label images by student and teacher, as a data folder to correct by hand and to train on."""
    if refiner not in ("teacher", "random-walker"):
        raise UsageError(f"--refiner must be teacher or random-walker, not {refiner!r}.")
    for option, value in (("--min-iou", min_iou), ("--min-agreement", min_agreement)):
        if not 0 <= value <= 1:
            raise UsageError(f"{option} must be in [0, 1], not {value}.")
    if refiner == "random-walker" and min_iou > 0:
        raise UsageError(
            f"--min-iou must be left out with the random walker, which predicts no IoU, not {min_iou:g}. Use "
            "--min-agreement."
        )
    from dataclasses import replace

    from samdistill.cli.steps import Steps
    from samdistill.refine import load_prompts
    from samdistill.teacher import load_teacher
    from samdistill.teacher.cache import EmbeddingCache, default_folder
    from samdistill.teacher.sam import parse_device
    from samdistill.train.pseudo_folder import find_images, write_folder
    from samdistill.train.run import Run

    parse_device(device)  # the student's, too, where no teacher is loaded
    opened = Run.load(run)
    opened.load_state("student")
    opened.tell_if_unfinished(lambda text: print(text, file=sys.stderr))
    config = load_prompts(prompts) if prompts else opened.config.refine_or_default
    root, cases = find_images(images, out)
    loaded = load_teacher(teacher or opened.config.teacher, device) if refiner == "teacher" else None
    try:
        with Steps() as steps:
            counts = write_folder(
                opened,
                root,
                cases,
                out,
                loaded,
                config=config,
                filters=replace(
                    opened.config.pseudo, refiner=refiner, min_iou=min_iou, min_agreement=min_agreement
                ),
                cache=EmbeddingCache(cache or default_folder()) if loaded else None,
                device=device,
                tell=steps.tell,
            )
    except KeyboardInterrupt:
        print(f"samdistill: interrupted; the same command continues {out}.", file=sys.stderr)
        sys.exit(130)
    print(f"{out}: {counts.labelled} of {len(cases)} images labelled")
    for reason, number in sorted(counts.unlabelled.items()):
        print(f"  {number} left without a mask, not with an empty one: {reason}")
    if counts.failed:
        first = next(iter(counts.failed.values()))
        told = f"{len(counts.failed)} of {len(cases)} images failed; the first: {first}"
        raise SomeInputsFailed(told) if len(counts.failed) < len(cases) else InputRejected(told)
