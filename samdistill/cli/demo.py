"""`samdistill demo`: the whole way, by the commands a user would type, each shown before it runs."""

from __future__ import annotations

import shlex
import shutil
import time
from pathlib import Path
from typing import Annotated

import typer

from samdistill.cli.phantoms import Kind
from samdistill.errors import UsageError

MARKER = ".samdistill-demo"


def demo(
    out: Annotated[Path, typer.Argument(help="Folder to make; a demo that is there is replaced.")],
    kind: Annotated[Kind, typer.Option(help="What the phantoms look like.")] = Kind.endoscopy,
    labels: Annotated[int, typer.Option(min=8, max=180, help="Images whose labels training may see.")] = 32,
    steps: Annotated[int, typer.Option(min=2, help="Optimiser steps of either student.")] = 800,
) -> None:
    """From phantoms to a deployed student with a report to look at, in a few minutes on a CPU."""
    from samdistill.cli.app import app

    if out.exists() and any(out.iterdir()):
        if not (out / MARKER).is_file():
            raise UsageError(f"{out} is not empty and no demo; choose another folder.")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).touch()
    data, unseen = out / "data", out / "unseen"
    runs = {name: out / "runs" / name for name in ("supervised", "mine")}
    supervised, mined = out / "supervised", out / "mined"
    predictions, report = out / "predictions", out / "report.html"
    # Four validation images are too few to choose a student by (docs/training.md).
    budget = ["--preset", "light", "--size", 64, "--labels", labels, "--max-steps", steps, "--keep", "last"]
    # What benchmarks/mining.py found to help: one component, only pseudo labels the teacher thinks well of.
    # Half the steps come before mining, since of a hasty student few pseudo labels pass (docs/mining.md).
    mining = ["--strategy", "mine", "--components", "largest", "--min-iou", 0.75, "--pseudo-weight", 1]
    mining += [
        "--supervised-share",
        0.5,
        "--labelled-share",
        0.25,
        "--audit-labels",
        "--cache",
        out / "cache",
    ]
    compared = ["--against", supervised, "--run", runs["mine"], "--report", report]
    commands = [
        ["phantoms", data, "--kind", kind, "--count", 200, "--seed", 1],
        ["phantoms", unseen, "--kind", kind, "--count", 60, "--seed", 2],
        ["data", "check", data],
        ["train", data, "--out", runs["supervised"], *budget],
        ["train", data, "--out", runs["mine"], *budget, *mining],
        ["export", runs["supervised"], "--out", supervised, "--no-teacher", "--licence", "Apache-2.0"],
        ["export", runs["mine"], "--out", mined, "--prompts", "box", "--licence", "Apache-2.0"],
        ["verify", mined],
        ["infer", mined, unseen / "images", "--out", predictions, "--overlay", "--mode", "auto"],
        ["evaluate", mined, unseen, "--mode", "fast,refine,auto", *compared],
    ]
    started = time.monotonic()
    for words in commands:
        arguments = [str(word) for word in words]
        print(f"\n$ samdistill {shlex.join(arguments)}", flush=True)
        # Not standalone: an error comes back here and ends the demo with its own exit code.
        if code := app(arguments, standalone_mode=False):  # an interruption is returned, not raised
            raise typer.Exit(code)
    print(f"\nDone in {time.monotonic() - started:.0f} s. Look at {report} and {predictions / 'overlays'}.")
