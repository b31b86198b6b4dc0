"""`samdistill infer`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def infer(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    inputs: Annotated[list[str], typer.Argument(help="Images, folders of images, or patterns in quotes.")],
    out: Annotated[Path, typer.Option(help="Folder for masks and results.jsonl.")],
    mode: Annotated[str, typer.Option(help="fast: the student alone.")] = "fast",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    runtime: Annotated[str, typer.Option(help="auto or onnxruntime.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads; default: all cores.")] = None,
    overlay: Annotated[bool, typer.Option("--overlay", help="Draw the masks into OUT/overlays/.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON line a case on standard output.")] = False,
    expect_sha256: Annotated[
        str | None, typer.Option(help="Refuse any bundle but the one with this hash.")
    ] = None,
) -> None:
    """Segment images into masks of their own size."""
    from samdistill.cli.case_progress import CaseProgress
    from samdistill.inference import RESULTS, Record, gather, raise_for_failures, segment_files
    from samdistill.predictor import Predictor, parse_mode

    chosen = parse_mode(mode)
    predictor = Predictor.load(bundle, device, runtime, threads=threads, expect_sha256=expect_sha256)
    sources = gather(inputs, out)
    done = 0
    with CaseProgress("segmenting") as progress:

        def tell(record: Record) -> None:
            nonlocal done
            done += 1
            if json:
                print(record.to_json(), flush=True)
            if record.status != "ok" and len(sources) > 1:
                progress.on_message(f"failed: {record.error}")
            progress.on_case(done, len(sources))

        records = segment_files(predictor, sources, out, mode=chosen, overlay=overlay, tell=tell)
    segmented = sum(record.status == "ok" for record in records)
    if segmented and not json:
        meaning = ", ".join(f"{i} {name}" for i, name in enumerate(predictor.class_names, 1))
        how = "one mask a class" if predictor.manifest.multi_label else f"pixel values: {meaning}"
        print(f"{out}: {segmented} of {len(records)} images segmented ({how}), see {RESULTS}")
    raise_for_failures(records)
