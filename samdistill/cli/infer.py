"""`samdistill infer`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def infer(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    inputs: Annotated[list[str], typer.Argument(help="Files, folders of files, or patterns in quotes.")],
    out: Annotated[Path, typer.Option(help="Folder for masks and results.jsonl.")],
    mode: Annotated[
        str, typer.Option(help="fast: the student; refine: the teacher, asked by it; auto: where that helps.")
    ] = "fast",
    budget: Annotated[
        str | None,
        typer.Option(
            help="auto: refine at most this share (0.4, 40%) of images like the validation images, or so "
            "many as take 0.2s an image."
        ),
    ] = None,
    abstain: Annotated[
        float | None,
        typer.Option(help="Flag images of a lower score (estimated Dice), or none, as rejected."),
    ] = None,
    stability: Annotated[
        bool, typer.Option("--stability", help="Ask the teacher once more, with prompts moved a little.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    runtime: Annotated[str, typer.Option(help="auto, or a runtime of docs/engines.md.")] = "auto",
    precision: Annotated[
        str | None, typer.Option(help="fp32, fp16, ..., of docs/engines.md; default: the fastest.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads in all; default: all cores.")] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Images in one call of the network; default: 4, on a GPU 8.")
    ] = None,
    overlay: Annotated[bool, typer.Option("--overlay", help="Draw the masks into OUT/overlays/.")] = False,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Probability maps into OUT/probabilities/.")
    ] = False,
    contours: Annotated[
        bool, typer.Option("--contours", help="GeoJSON into OUT/contours/, and OUT/coco.json.")
    ] = False,
    measurements: Annotated[
        bool, typer.Option("--measurements", help="Areas and diameters into OUT/measurements.csv.")
    ] = False,
    png: Annotated[bool, typer.Option("--png", help="Masks as PNG whatever the input.")] = False,
    tile: Annotated[
        int | None, typer.Option(help="Cut images with a longer side into tiles of so many px.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep what is there of the same files, bundle and options.")
    ] = False,
    shard: Annotated[str | None, typer.Option(help="i/n: every n-th file, from the i-th.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON line a file on standard output.")] = False,
    expect_sha256: Annotated[
        str | None, typer.Option(help="Refuse any bundle but the one with this hash.")
    ] = None,
) -> None:
    """Segment files into masks of their own size and format.

    Messages call a file by its place in the run, "input 3": names stay in OUT/results.jsonl.
    """
    from samdistill.cli.case_progress import CaseProgress
    from samdistill.errors import UsageError
    from samdistill.inference import (
        RESULTS,
        Options,
        Outcome,
        Shard,
        gather,
        raise_for_failures,
        segment_files,
    )
    from samdistill.inference.jobs import BATCH
    from samdistill.inference.workers import GPU_BATCH, keep_freed_memory, share_threads
    from samdistill.predictor import Predictor, parse_mode

    options = Options(
        parse_mode(mode),
        overlay,
        probabilities,
        contours,
        measurements,
        png,
        tile,
        budget=budget,
        abstain=abstain,
        stability=stability,
    )
    keep_freed_memory()
    if out.resolve().is_relative_to(bundle.resolve()):
        raise UsageError(
            f"--out must lie outside the bundle {bundle}, which holds its own files alone. Name another."
        )
    part = None if shard is None else Shard.parse(shard)
    sources = gather(inputs, out)
    count = len(sources) if part is None else len(part.of(sources))
    workers, threads_each = share_threads(count, device, threads)
    predictor = Predictor.load(
        bundle, device, runtime, threads=threads_each, precision=precision, expect_sha256=expect_sha256
    )
    done = 0
    with CaseProgress("segmenting") as progress:

        def tell(outcome: Outcome) -> None:
            nonlocal done
            done += 1
            if json:
                print(outcome.record.to_json(), flush=True)
            if outcome.reason is not None and count > 1:
                progress.on_message(f"failed: {outcome.reason}")
            fresh = outcome.exit != "kept" and outcome.record.status == "ok"
            progress.on_case(done, count, (outcome.record.images or 1) if fresh else 0)

        try:
            summary = segment_files(
                predictor,
                sources,
                out,
                options=options,
                shard=part,
                resume=resume,
                workers=workers,
                batch=batch or (BATCH if device == "cpu" else GPU_BATCH),
                tell=tell,
            )
        except KeyboardInterrupt:
            progress.on_message(f"samdistill: interrupted; {done} of {count} files are done, see --resume.")
            sys.exit(130)
    segmented = summary.done + summary.kept
    if segmented and not json:
        meaning = ", ".join(f"{i} {name}" for i, name in enumerate(predictor.class_names, 1))
        how = "one mask a class" if predictor.manifest.multi_label else f"values: {meaning}"
        kept = f", {summary.kept} of them by an earlier run" if summary.kept else ""
        rate = f", {progress.rate}" if progress.rate and count > 1 else ""
        print(f"{out}: {segmented} of {count} files segmented{kept} ({how}){rate}, see {RESULTS}")
    raise_for_failures(summary)
