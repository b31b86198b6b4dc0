"""`samdistill train`."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from samdistill.errors import UsageError


def train(
    data: Annotated[Path | None, typer.Argument(help="Data folder: images/, masks/, dataset.toml.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder to write.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file; options given here override it.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="paper (the default), or light: fast on a CPU.", show_default=False)
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            help="supervised; with a teacher mine, burden, samdsk, semisam, semisam-ua-mt; without "
            "pseudo-label, ups, bcp, mean-teacher, ua-mt, cps, fixmatch."
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(help="Label budget: a share such as 0.25, or a number of images. Default: all."),
    ] = None,
    encoder: Annotated[str | None, typer.Option(help="Encoder, for example resnet34.")] = None,
    size: Annotated[int | None, typer.Option(help="Shortest side in the model frame, px.")] = None,
    max_steps: Annotated[
        int | None, typer.Option(help="Optimiser steps of the whole run, exactly; no early stop.")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Images a step.")] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            help="The student that is kept: best on the validation images, or last; a handful of these "
            "choose badly."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of split, weights, batches and views.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32, bf16 or fp16.")] = None,
    teacher: Annotated[
        str | None, typer.Option(help="As for `teacher check`: tiny, sam_vit_b, medsam, NAME:PATH.")
    ] = None,
    schedule: Annotated[str | None, typer.Option(help="Pseudo labels once or continuous.")] = None,
    refiner: Annotated[str | None, typer.Option(help="Of pseudo labels: teacher or random-walker.")] = None,
    pseudo_weight: Annotated[float | None, typer.Option(help="lambda of the pseudo-labelled part.")] = None,
    supervised_share: Annotated[
        float | None, typer.Option(help="Of the steps, what the supervised phase takes.")
    ] = None,
    labelled_share: Annotated[
        float | None, typer.Option(help="Of a batch, what is labelled in the second phase.")
    ] = None,
    min_iou: Annotated[
        float | None, typer.Option(help="Least predicted IoU of a pseudo label that counts.")
    ] = None,
    min_agreement: Annotated[
        float | None, typer.Option(help="Least Dice of student and teacher for a pseudo label to count.")
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(help="mine, burden, box, or a TOML file as `samdistill tune` writes it.")
    ] = None,
    points: Annotated[int | None, typer.Option(help="Point prompts a set; 0 for none.")] = None,
    spread: Annotated[float | None, typer.Option(help="Least distance between point prompts, px.")] = None,
    box: Annotated[bool | None, typer.Option("--box/--no-box", help="Box prompts.")] = None,
    components: Annotated[
        str | None, typer.Option(help="Of a class's mask, what is prompted with: all, likeliest or largest.")
    ] = None,
    per_component: Annotated[
        bool | None, typer.Option("--per-component", help="A prompt set for each component.")
    ] = None,
    mask_prompt: Annotated[
        bool | None, typer.Option("--mask-prompt", help="The student's logits as a prompt, too.")
    ] = None,
    literal_views: Annotated[
        bool | None,
        typer.Option("--literal-views", help="The teacher sees the augmented view: its encoder runs always."),
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="samdsk, ups: at most so many rounds.")] = None,
    lower: Annotated[
        str | None, typer.Option(help="samdsk: least objects of a class in an image; 1, or 1,1,2 by round.")
    ] = None,
    upper: Annotated[
        str | None, typer.Option(help="samdsk: most objects of a class in an image; 1, or 1,2,3 by round.")
    ] = None,
    beta: Annotated[float | None, typer.Option(help="samdsk: images that match better are admitted.")] = None,
    iou: Annotated[
        str | None, typer.Option(help="samdsk: soft (probabilities) or hard (masks) matching.")
    ] = None,
    min_proposals: Annotated[
        int | None, typer.Option(help="samdsk: images with fewer proposals are not matched.")
    ] = None,
    counts: Annotated[
        Path | None, typer.Option(help="samdsk: CSV of known counts: image,class,count or image,count.")
    ] = None,
    pretrain: Annotated[
        str | None, typer.Option(help="simclr: the encoder first, on all images without labels.")
    ] = None,
    audit_labels: Annotated[
        bool,
        typer.Option("--audit-labels", help="Log pseudo labels against hidden labels; training sees none."),
    ] = False,
    cache: Annotated[Path | None, typer.Option(help="Folder of the teacher's embeddings.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    fetch_encoder: Annotated[
        str | None,
        typer.Option(help="Download an encoder's ImageNet weights into the cache, and do nothing else."),
    ] = None,
) -> None:
    """Train a student on a data folder and leave a run folder."""
    if fetch_encoder is not None:
        from samdistill.train.student import fetch_encoder as fetch

        fetch(fetch_encoder)
        return
    if data is None or out is None:
        raise UsageError("train needs DATA and --out RUN, for example: samdistill train data --out run.")
    from samdistill.cli.progress import TrainingProgress
    from samdistill.config import to_dict
    from samdistill.refine import load_prompts
    from samdistill.train.config import load_config

    overrides = {
        "strategy": strategy,
        "labels": _budget(labels),
        "student.encoder": encoder,
        "student.size": size,
        "max_steps": max_steps,
        "batch": batch,
        "keep": keep,
        "seed": seed,
        "precision": precision,
        "teacher": teacher,
        "pretrain": pretrain,
        "pseudo.schedule": schedule,
        "pseudo.refiner": refiner,
        "pseudo.weight": pseudo_weight,
        "pseudo.supervised_share": supervised_share,
        "pseudo.labelled_share": labelled_share,
        "pseudo.min_iou": min_iou,
        "pseudo.min_agreement": min_agreement,
        "pseudo.literal_views": literal_views,
        "samdsk.rounds": rounds,
        "samdsk.lower": _by_round(lower, "--lower"),
        "samdsk.upper": _by_round(upper, "--upper"),
        "samdsk.beta": beta,
        "samdsk.iou": iou,
        "samdsk.min_proposals": min_proposals,
        "samdsk.counts": None if counts is None else str(counts),
        "refine": None if prompts is None else to_dict(load_prompts(prompts)),
        "refine.prompts.points": "none" if points == 0 else None,
        "refine.prompts.count": points or None,
        "refine.prompts.spread_px": spread,
        "refine.prompts.box": box,
        # Asked about each component, a class must keep them all.
        "refine.prompts.keep": components or ("all" if per_component else None),
        "refine.prompts.per_component": per_component,
        "refine.prompts.mask_logits": mask_prompt,
    }
    given = [option for option in (config, preset, *overrides.values()) if option is not None]
    # A resumed run needs none of its options again.
    chosen = None if resume and not given else load_config(config, preset=preset, overrides=overrides)
    rule = "likeliest" if chosen is None else chosen.refine_or_default.prompts.points
    if (points or spread is not None) and rule != "likeliest":
        raise UsageError(
            f"--points and --spread must go with the likeliest points, and these prompts have {rule!r}. Set "
            "refine.prompts.points in --config."
        )
    from samdistill.train.launch import train as launch

    # Our first line says device and precision.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    try:
        with TrainingProgress() as progress:
            run = launch(
                data, out, chosen, progress, device=device, resume=resume, cache=cache, audit=audit_labels
            )
    except KeyboardInterrupt:
        print(f"samdistill: interrupted; the same command with --resume continues {out}.", file=sys.stderr)
        sys.exit(130)
    if os.environ.get("RANK", "0") != "0":  # under torchrun one process speaks
        return
    result = run.record.result
    print(
        f"{out}: {result['steps']} steps in {result['seconds']:.0f} s, "
        f"kept: epoch {result['best']['epoch']} ({run.config.keep}), "
        f"validation Dice {result['best']['val_dice']:.3f}"
    )


def _by_round(text: str | None, option: str) -> list[int] | None:
    """`1` for all rounds, or `1,2,3`, one number a round."""
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"{option} must be a number, or one a round as 1,2,3, not {text!r}.") from error


def _budget(text: str | None) -> int | float | None:
    """`0.25` and `1.0` are shares, `25` is a number of images."""
    if text is None:
        return None
    try:
        return float(text) if "." in text else int(text)
    except ValueError as error:
        raise UsageError(
            f"--labels must be a share such as 0.25 or a number of images, not {text!r}."
        ) from error
