"""From a data folder to a finished run folder: split, student, strategy, loop, curves.

What `samdistill train` calls. Knows no command line.
"""

from __future__ import annotations

import importlib.metadata
import os
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from samdistill._version import __version__
from samdistill.config import build, to_dict
from samdistill.errors import DeviceUnavailable, InputRejected, UsageError
from samdistill.intensity import IntensityRule
from samdistill.io.dataset import open_dataset
from samdistill.io.files import remove_leftovers
from samdistill.io.splits import Split, make_split
from samdistill.io.stack import open_stack
from samdistill.refine import check_thresholds
from samdistill.teacher.load import located
from samdistill.train.config import TrainConfig
from samdistill.train.curves import draw_curves
from samdistill.train.run import SCHEMA, Run, RunRecord, alone_in
from samdistill.train.strategies import RUNNERS
from samdistill.train.student import build_student, check_encoder
from samdistill.train.training import Training, Watcher


class _Nobody:
    """The watcher of every process but the first."""

    def on_message(self, text: str) -> None: ...
    def on_prepare(self, what: str, done: int, total: int) -> None: ...
    def on_start(self, phase: str, first_step: int, total_steps: int) -> None: ...
    def on_step(self, step: int, loss: float) -> None: ...
    def on_epoch(self, record: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Devices:
    """Where a run computes: the kind of device, and the precision that `auto` became."""

    kind: str
    precision: str


def train(
    data: Path,
    out: Path,
    config: TrainConfig | None,
    watcher: Watcher,
    *,
    device: str = "auto",
    resume: bool = False,
    cache: Path | None = None,
    audit: bool = False,
) -> Run:
    """Train a student and leave a run folder.

    Parameters
    ----------
    data
        A data folder, see docs/data.md.
    out
        The run folder to make, or, with `resume`, to continue.
    config
        None takes the defaults or, with `resume`, what the run was started with, which must not differ.
    watcher
        Hears of every step.
    device
        "auto" (a GPU where there is one), "cpu" or "cuda".
    resume
        Continue a run that was interrupted; a finished one is returned as it is.
    cache
        Folder of the teacher's embeddings; None: `teacher.cache.default_folder`.
    audit
        Measure pseudo labels against the labels of the unlabelled part where there are any, for analysis: the
        log gets more numbers, training sees none of it.

    Raises
    ------
    UsageError
        When the folder holds a run already or parts of one, or none to resume and no configuration is given,
        the configuration changed, its prompts have thresholds of other classes, or another process trains
        there.
    InputRejected
        When the data cannot be used.
    DeviceUnavailable
        When "cuda" is asked for and there is none.
    """
    started_before = (out / "run.json").is_file() and (out / "last.safetensors").is_file()
    if started_before and not resume:
        raise UsageError(f"{out} holds a run already; continue it with --resume or choose another folder.")
    begun = None if started_before else _begun(out)
    if config is not None:
        config = _located(config)
    recorded = Run.load(out) if started_before else None
    if recorded is not None:
        config = config or recorded.config
        _check_same(recorded, config)
        if recorded.record.result:
            watcher.on_message(f"{out} is finished; nothing to resume.")
            return recorded
    elif config is None and resume:
        if begun is None:
            raise UsageError(f"{out} holds no run to resume. Name a run's folder, or leave out --resume.")
        config = begun.config  # no checkpoint yet, but it is known what was wanted
    config = config or TrainConfig()
    devices = choose_devices(device, config.precision)
    if recorded is not None and vars(devices) != recorded.record.devices:
        raise UsageError(
            f"{out} was started on {recorded.record.devices} and would go on with {vars(devices)}; resume "
            "where it was started, or with --device and --precision as they were there."
        )
    fabric = Fabric(
        accelerator=devices.kind,
        devices=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        num_nodes=int(os.environ.get("GROUP_WORLD_SIZE", "1")),
        precision=_FABRIC_PRECISION[devices.precision],
    )
    fabric.launch()
    if fabric.global_rank > 0:
        watcher = _Nobody()
    if resume and recorded is None:
        watcher.on_message(f"{out} holds no checkpoint to resume from: the run begins")
    torch.manual_seed(config.seed)
    if config.batch < 2 * fabric.world_size:
        raise UsageError(
            f"batch must be at least 2 for each of {fabric.world_size} processes, not {config.batch}."
        )
    fabric.barrier()  # every process has looked for a run before one of them makes it
    split = make_split(open_dataset(data, infer_classes=False), seed=config.seed, labels=config.labels)
    check_thresholds(config.refine_or_default, len(split.class_names))
    student, encoder_weights = build_student(config.student, len(split.class_names))
    check_encoder(student, config.student.encoder)
    with ExitStack() as held:
        if fabric.global_rank == 0:
            out.mkdir(parents=True, exist_ok=True)
            held.enter_context(alone_in(out, watcher.on_message))
            remove_leftovers(out, _names(config))
        run = recorded
        if run is None:
            run = _new_run(split, data, out, config, devices, encoder_weights)
            if fabric.global_rank == 0:
                run.write_record()
        elif split.ids() != run.record.split or split.fingerprint() != run.record.data["fingerprint"]:
            raise InputRejected(f"{data} has changed since the run began; start a new run.")
        elif encoder_weights != run.record.encoder_weights:
            raise InputRejected(
                f"the run began with encoder weights {run.record.encoder_weights!r}, which are "
                f"{encoder_weights!r} now; restore the weights' cache or start a new run."
            )
        else:  # the same data, perhaps in another place
            run.record.data["path"] = str(data.resolve())
            if fabric.global_rank == 0:
                run.write_record()
        fabric.barrier()
        watcher.on_message(_first_line(run, devices))
        if isinstance(config.labels, int) and split.budget != config.labels:
            watcher.on_message(
                f"the label budget of {config.labels} became {split.budget} images (docs/data.md)"
            )

        started = time.perf_counter()
        training = Training(run, fabric, split, watcher, cache=cache, audit=audit)
        training.check_needs()
        RUNNERS[config.strategy](training)
        if fabric.global_rank == 0:
            _finish(run, time.perf_counter() - started)
        fabric.barrier()
    return Run.load(out)


def _begun(out: Path) -> Run | None:
    """The run that was stopped before its first checkpoint, to be started anew; None where none was begun.

    Raises
    ------
    UsageError
        When the folder holds anything else that a run would write over or go on from.
    """
    run = Run.load(out) if (out / "run.json").is_file() else None
    log = out / "log.jsonl"
    # The first student is written just before the first checkpoint, and the log has its first line after it.
    early = run is not None and not run.record.result and not (log.is_file() and log.stat().st_size)
    parts = ["last.safetensors", "phase-*.safetensors", "pseudo/[0-9]*", "curves.png"]
    if not early:
        parts += ["student.safetensors", "log.jsonl", "log.csv", "run.json"]
    if left := [path.name for part in parts for path in out.glob(part)]:
        raise UsageError(
            f"{out} must hold a whole run or none, not {left[0]} of one whose record or last checkpoint is "
            "gone: it would be gone on from, or written over. Choose another folder."
        )
    return run


def _located(config: TrainConfig) -> TrainConfig:
    """The configuration with its paths made absolute: the record is read from other folders too."""
    counts = config.samdsk.counts
    if counts is not None:
        config = replace(config, samdsk=replace(config.samdsk, counts=str(Path(counts).resolve())))
    return replace(config, teacher=located(config.teacher))


def _names(config: TrainConfig) -> set[str]:
    """What a run writes into its folder's top."""
    weights = {"student", "last", *(f"phase-{number}" for number in range(config.samdsk.rounds + 2))}
    return {"run.json", "log.jsonl", "log.csv", "curves.png", *(f"{name}.safetensors" for name in weights)}


_FABRIC_PRECISION: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def choose_devices(device: str, precision: str) -> Devices:
    """Resolve "auto" for device and precision; nothing falls back from what was named."""
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"device must be auto, cpu or cuda, not {device!r}.")
    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceUnavailable(
            "device cuda cannot be had: "
            + (
                "this torch is built without CUDA; install a CUDA build of torch"
                if torch.version.cuda is None
                else "torch sees no GPU; look at the driver with nvidia-smi"
            )
            + ", or train with --device cpu."
        )
    kind = "cuda" if device == "cuda" or (device == "auto" and torch.cuda.is_available()) else "cpu"
    if precision == "auto":
        if kind == "cuda":
            precision = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
        else:
            precision = "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "fp32"
    if kind == "cpu" and precision == "fp16":
        raise UsageError("precision fp16 needs a GPU; use bf16 or fp32 on a CPU.")
    return Devices(kind, precision)


def choose_intensity(paths: list[Path]) -> IntensityRule:
    """Identity where every image is uint8, else the percentiles 0.5 to 99.5 of each image."""
    if all(open_stack(path).image().dtype == np.uint8 for path in dict.fromkeys(paths)):
        return IntensityRule()
    return IntensityRule("percentiles", 0.5, 99.5)


def _new_run(
    split: Split, data: Path, out: Path, config: TrainConfig, devices: Devices, encoder_weights: str
) -> Run:
    cases = (*split.train_labelled, *split.validation)
    intensity = config.intensity or choose_intensity([case.image_path for case in cases])
    record = RunRecord(
        schema=SCHEMA,
        config=to_dict(config),
        data={
            "path": str(data.resolve()),
            "fingerprint": split.fingerprint(),
        },
        split=split.ids(),
        class_names=list(split.class_names),
        multi_label=split.multi_label,
        intensity=intensity.to_dict(),
        encoder_weights=encoder_weights,
        versions={
            "samdistill": __version__,
            **{
                name: importlib.metadata.version(name)
                for name in (
                    "torch",
                    "segmentation-models-pytorch",
                    "timm",
                    "lightning-fabric",
                    "numpy",
                    "pillow",
                )
            },
        },
        devices={"kind": devices.kind, "precision": devices.precision},
        result={},
    )
    return Run(out, record)


def _check_same(run: Run, config: TrainConfig) -> None:
    # Built anew, so that an integer where a float belongs is one, as in what was read from the record.
    recorded, wanted = (_flat(to_dict(one)) for one in (run.config, build(TrainConfig, to_dict(config))))
    for key in sorted(recorded.keys() | wanted.keys()):
        before, now = recorded.get(key), wanted.get(key)
        if before != now or type(before) is not type(now):  # a budget of 1 is an image, of 1.0 every label
            raise UsageError(
                f"{key} was {before!r} when {run.path} was started, not {now!r}; "
                "resume with the options of the start or with none, or train into another folder."
            )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat


def _first_line(run: Run, devices: Devices) -> str:
    student, split = run.config.student, run.record.split
    weights = {
        "imagenet": "ImageNet weights",
        "none": "random weights"
        + (" (its ImageNet weights are not in the cache)" if student.encoder_weights == "auto" else ""),
    }[run.record.encoder_weights]
    return (
        f"U-Net++ / {student.encoder}, {weights}; {devices.kind}, {devices.precision}; "
        f"{len(split['train_labelled'])} labelled, {len(split['train_unlabelled'])} unlabelled, "
        f"{len(split['validation'])} validation, {len(split['test'])} test images; "
        f"intensity {run.intensity.kind}"
    )


def _finish(run: Run, seconds: float) -> None:
    _, state = run.load_tensors("last")
    history = state["history"]
    draw_curves(history, run.path / "curves.png")
    best = history[state["best_epoch"] - 1]
    before = sum(record["seconds"] for record in history)
    run.write_record(
        result={
            "steps": state["before"] + state["step"],
            "seconds": round(max(seconds, before), 1),
            "best": best,
            **_switched_off(history),
        }
    )


def _switched_off(history: list[dict[str, Any]]) -> dict[str, int]:
    """After how many steps the teacher was asked no more; nothing where it was asked to the end."""
    steps = [record["step"] for record in history if "teacher_switched_off" in record]
    return {"teacher_switched_off_step": steps[0]} if steps else {}
