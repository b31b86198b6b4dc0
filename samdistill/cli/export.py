"""`samdistill export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    run: Annotated[Path, typer.Argument(help="Run folder that `samdistill train` left.")],
    out: Annotated[Path, typer.Option(help="Bundle folder to make.")],
    teacher: Annotated[
        str | None,
        typer.Option(
            help="Teacher that goes in: tiny, sam_vit_b, ..., NAME:PATH or a path; default: the run's."
        ),
    ] = None,
    no_teacher: Annotated[bool, typer.Option("--no-teacher", help="Leave the teacher out.")] = False,
    triton: Annotated[
        Path | None, typer.Option(help="Write a model repository for Triton Inference Server there too.")
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(help="How the student prompts the teacher: mine, burden, box, a TOML file.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="The run's data folder, where it has moved since training.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The bundle's name; default: its folder's.")] = None,
    licence: Annotated[
        str, typer.Option(help="Under which the student's weights may be used.")
    ] = "not stated",
    precision: Annotated[
        list[str] | None,
        typer.Option(help="Also int8, fp16, bf16 or mixed, or the next that passes; repeatable."),
    ] = None,
    openvino: Annotated[bool, typer.Option("--openvino", help="OpenVINO's engines too.")] = False,
    trt: Annotated[
        bool, typer.Option("--trt", help="Engines of TensorRT or TensorRT-RTX too, whichever is installed.")
    ] = False,
    trt_flavor: Annotated[
        str | None, typer.Option(help="standard (TensorRT) or rtx (TensorRT-RTX).", show_default=False)
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            help="Generations that TensorRT-RTX builds for: turing, ampere, ada, blackwell; commas between."
        ),
    ] = None,
    include_images: Annotated[
        bool,
        typer.Option("--include-images", help="Put a few validation images into the bundle as golden cases."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that is there.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Publish a run's student, and a teacher beside it, as a bundle that has proved itself."""
    from samdistill.cli.case_progress import CaseProgress
    from samdistill.errors import UsageError
    from samdistill.export.bundle import export_run
    from samdistill.export.ladder import LADDER
    from samdistill.export.pieces import Engines
    from samdistill.export.plans import wanted as plans_wanted
    from samdistill.export.triton import check_place, write_repository
    from samdistill.refine import load_prompts
    from samdistill.train.run import Run

    wanted = [step for step in LADDER if step in (precision or [])]
    unknown = sorted(set(precision or []) - set(LADDER))
    if unknown:
        raise UsageError(f"precision must be one of {', '.join(LADDER)}, not {unknown[0]!r}.")
    if no_teacher and (teacher is not None or prompts is not None):
        raise UsageError("no-teacher must not be given with teacher or prompts: there is none to ask.")
    if not trt and (trt_flavor is not None or gpu is not None):
        raise UsageError("trt-flavor and gpu must be given with --trt.")
    planned = plans_wanted(trt_flavor, gpu) if trt else None
    if triton is not None:
        check_place(triton, out)
    engines = Engines(tuple(wanted), openvino=openvino, planned=planned)
    with CaseProgress("comparing") as progress:
        made = export_run(
            run,
            out,
            teacher=None if no_teacher else teacher or Run.load(run).config.teacher,
            prompts=None if prompts is None else load_prompts(prompts),
            data=data,
            force=force,
            name=name,
            licence=licence,
            engines=engines,
            include_images=include_images,
            progress=progress,
        )
    if json:
        import json as json_

        plain = {"path": str(made.path), "sha256": made.sha256, "bytes": made.bytes}
        print(json_.dumps({**plain, "parity": [report.to_dict() for report in made.parity]}))
        if triton is not None:
            write_repository(made.path, triton, expect_sha256=made.sha256)
        return
    print(f"{made.path}: {made.bytes / 1e6:.1f} MB, sha256 {made.sha256}")
    for report in made.parity:
        judged = "equal to PyTorch"
        if report.failures():
            judged = "left out"
        elif not report.verified:
            judged = "unverified, since PyTorch's own masks tell nothing,"
        print(
            f"{report.model} {report.precision} in {report.runtime}: {judged} on {report.images} "
            f"validation images, mean mask Dice {report.mean_dice:.5f} (worst {report.worst_dice:.5f})"
        )
    for engine in made.unverified:
        print(
            f"{engine.model} {engine.precision} in {engine.runtime} for {', '.join(engine.plan_gpus)}: "
            "unverified, since no such GPU is here; `samdistill verify --device cuda` proves it where one is"
        )
    if triton is not None:  # the bundle is there, and told, whatever becomes of these
        served = write_repository(made.path, triton, expect_sha256=made.sha256)
        print(f"{triton}: Triton models {', '.join(served)}")
