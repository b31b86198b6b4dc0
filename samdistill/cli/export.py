"""`samdistill export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    run: Annotated[Path, typer.Argument(help="Run folder that `samdistill train` left.")],
    out: Annotated[Path, typer.Option(help="Bundle folder to make.")],
    data: Annotated[
        Path | None, typer.Option(help="The run's data folder, where it has moved since training.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The bundle's name; default: its folder's.")] = None,
    licence: Annotated[str, typer.Option(help="Under which the weights may be used.")] = "not stated",
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that is there.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Publish a run's student as a bundle that has proved itself equal to the original."""
    from samdistill.cli.case_progress import CaseProgress
    from samdistill.export.bundle import export_run

    with CaseProgress("comparing") as progress:
        made = export_run(run, out, data=data, force=force, name=name, licence=licence, progress=progress)
    if json:
        import json as json_

        plain = {"path": str(made.path), "sha256": made.sha256, "bytes": made.bytes}
        print(json_.dumps({**plain, "parity": made.parity.to_dict()}))
        return
    parity = made.parity
    print(f"{made.path}: {made.bytes / 1e6:.1f} MB, sha256 {made.sha256}")
    print(
        f"equal to PyTorch on {parity.images} validation images: mean mask Dice {parity.mean_dice:.5f}, "
        f"logits differ by at most {parity.max_logit_difference:.2g}"
    )
