"""The training loop: steps, schedule, validation, checkpoints, resume. Strategies give it what to minimise.

Everything random is a function of the seed and the step, so a run that was killed and resumed computes, on a
CPU, exactly what the uninterrupted one would have. Knows no strategy and no command line.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn

from samdistill.errors import UsageError
from samdistill.metrics import dice_per_class
from samdistill.train.config import OptimiserConfig, TrainConfig
from samdistill.train.data import FrameStore, whole_frames
from samdistill.train.losses import IGNORE, SegmentationLoss
from samdistill.train.run import Run

WARM_UP_SHARE = 0.05


@dataclass(frozen=True)
class Validation:
    """The student on the validation images: mean loss, and the mean Dice over classes, then images."""

    loss: float
    dice: float


class Objective(ABC):
    """What a strategy minimises in one phase of training; what it keeps of its own is in the checkpoint."""

    kept: ClassVar[tuple[str, ...]] = ()
    """Names of attributes with plain values that a resumed run needs again."""

    @abstractmethod
    def loss(self, student: nn.Module, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        """The scalar loss of a step, and numbers for the log, whose means over the epoch are recorded."""

    def networks(self) -> dict[str, nn.Module]:
        """Further networks by name, saved and restored; those that require gradients learn as well."""
        return {}

    def after_step(self, student: nn.Module, step: int) -> None:  # noqa: B027 - few have anything to do there
        """Called after each optimiser step."""

    def after_epoch(self, measured: Validation) -> dict[str, float]:
        """Called after each validation, in every process; numbers for the log."""
        return {}


class Listener(Protocol):
    """Who watches a run: the command line's progress, a test, nobody."""

    def on_start(self, phase: str, first_step: int, total_steps: int) -> None: ...
    def on_step(self, step: int, loss: float) -> None: ...
    def on_epoch(self, record: dict[str, Any]) -> None: ...


def validate(student: nn.Module, store: FrameStore, loss: SegmentationLoss, batch: int) -> Validation:
    """Measure a student on whole frames, in the model frame, mask threshold 0.5."""
    device = next(student.parameters()).device
    losses, scores = [], []
    student.eval()
    with torch.no_grad():
        for frames in whole_frames(store, batch):
            logits = student(frames.pixels.to(device)).cpu()
            losses.append(float(loss(logits, frames.targets)) * len(frames.indices))
            masks, targets = (logits > 0).numpy(), frames.targets.numpy()
            for mask, target in zip(masks, targets, strict=True):
                scores.append(dice_per_class(mask, target == 1, ignore=target[0] == IGNORE).mean())
    student.train()
    return Validation(sum(losses) / len(scores), float(np.mean(scores)))


@dataclass(frozen=True)
class Phase:
    """One stretch of training with one objective.

    Parameters
    ----------
    name
        For people: "supervised", "mine".
    number
        From 0; checkpoints of a later phase mean that this one is over.
    steps
        Optimiser steps; with `early_stop`, at most.
    epoch_steps
        Optimiser steps between two validations.
    early_stop
        Whether the phase may end before its last step, see TrainConfig.early_stop.
    rate_factor
        The learning rate over the configured one.
    carry_best
        The best student of the phase before stays the best until this phase beats it.
    """

    name: str
    number: int
    steps: int
    epoch_steps: int
    early_stop: bool = True
    rate_factor: float = 1.0
    carry_best: bool = False


def phase_reached(run: Run) -> int:
    """Number of the phase that the run's last checkpoint belongs to; -1 where there is none."""
    if not (run.path / "last.safetensors").is_file():
        return -1
    return int(run.load_state("last")["phase"])


def fit(
    run: Run,
    fabric: Fabric,
    student: nn.Module,
    objective: Objective,
    validation: FrameStore,
    phase: Phase,
    listener: Listener,
) -> None:
    """Minimise an objective; the run folder then holds the best student.

    Parameters
    ----------
    run
        Where checkpoints and log go; a checkpoint of the same phase there is continued, one of a later phase
        means that there is nothing to do.
    student
        Changed in place; holds the last weights when done, not the best; on the run's device in any case.

    Raises
    ------
    UsageError
        When the loss is no longer finite.
    """
    reached = phase_reached(run)
    if reached > phase.number:
        student.to(fabric.device)  # where it predicts afterwards, as if it had learned now
        return
    config = run.config
    optimiser_config = replace(
        config.optimiser,
        learning_rate=config.optimiser.learning_rate * phase.rate_factor,
        min_learning_rate=config.optimiser.min_learning_rate * phase.rate_factor,
    )
    networks = objective.networks()
    learning = [p for net in (student, *networks.values()) for p in net.parameters() if p.requires_grad]
    rate, decay = optimiser_config.learning_rate, optimiser_config.weight_decay
    optimiser: torch.optim.Optimizer = (
        torch.optim.SGD(learning, lr=rate, momentum=optimiser_config.momentum, weight_decay=decay)
        if optimiser_config.kind == "sgd"
        else torch.optim.AdamW(learning, lr=rate, weight_decay=decay)
    )
    model, optimiser_ = fabric.setup(student, optimiser)
    progress = _Progress(optimiser_config.learning_rate, phase.number)
    if reached >= 0:
        tensors, state = run.load_tensors("last")
        if reached == phase.number:
            _restore(student, networks, optimiser, tensors)
            for name, value in state.pop("kept").items():
                setattr(objective, name, value)
            progress = _Progress(**state)
        else:
            progress.go_on_from(state, phase.carry_best)
    loss_of = SegmentationLoss(config.bce_weight)
    run.write_log(progress.history)
    listener.on_start(phase.name, progress.step, phase.steps)
    while progress.step < phase.steps and not (phase.early_stop and progress.stale(config)):
        started, losses, numbers = time.perf_counter(), [], defaultdict[str, list[float]](list)
        model.train()
        for step in range(progress.step, min(progress.step + phase.epoch_steps, phase.steps)):
            rate = _rate(optimiser_config, step, phase.steps, progress.plateau_rate)
            for group in optimiser.param_groups:
                group["lr"] = rate
            torch.manual_seed(hash((config.seed, progress.before + step)) % 2**63)
            loss, told = objective.loss(model, step)
            value = float(loss.detach())
            _check_finite("loss", value, step, phase)
            optimiser_.zero_grad()
            fabric.backward(loss)
            optimiser_.step()
            objective.after_step(student, step)
            losses.append(value)
            for name, number in told.items():
                numbers[name].append(number)
            listener.on_step(step + 1, value)
        # One process measures for all: each has batch statistics of its own, and all must stop together.
        own = validate(student, validation, loss_of, config.batch) if fabric.global_rank == 0 else None
        measured = fabric.broadcast(own)
        assert measured is not None
        # A step can break the weights after its own loss was sound.
        _check_finite("validation loss", measured.loss, progress.step + len(losses), phase)
        progress.finish_epoch(measured, len(losses), optimiser_config, keep_last=config.keep == "last")
        record = {
            "phase": phase.name,
            "epoch": progress.epoch,
            "step": progress.before + progress.step,
            "train_loss": float(np.mean(losses)),
            "val_loss": measured.loss,
            "val_dice": measured.dice,
            "lr": rate,
            "seconds": round(time.perf_counter() - started, 3),
            **{name: float(np.nanmean(values)) for name, values in numbers.items() if _any_number(values)},
            **objective.after_epoch(measured),
        }
        progress.history.append(record)
        if fabric.global_rank == 0:
            _save(run, student, networks, optimiser, progress, objective)
        fabric.barrier()
        listener.on_epoch(record)


def _check_finite(name: str, value: float, step: int, phase: Phase) -> None:
    if not math.isfinite(value):
        raise UsageError(
            f"the {name} must stay finite, and became {value} at step {step} of {phase.name}. Start a new "
            "run with a lower optimiser.learning_rate, or in precision fp32."
        )


def _any_number(values: list[float]) -> bool:
    """Whether there is anything to take a mean of: NaN stands for "nothing to tell at this step"."""
    return not all(math.isnan(value) for value in values)


@dataclass
class _Progress:
    """Where a run stands: all of the loop's state but the tensors, as plain values."""

    plateau_rate: float
    phase: int = 0
    before: int = 0  # steps of the phases before
    step: int = 0
    epoch: int = 0
    best_epoch: int = 0
    best_dice: float = -1.0
    best_loss: float = math.inf
    lowest_loss: float = math.inf
    epochs_since_lowest: int = 0
    history: list[dict[str, Any]] | Any = None

    def __post_init__(self) -> None:
        self.history = [] if self.history is None else self.history

    def go_on_from(self, before: dict[str, Any], carry_best: bool) -> None:
        """Begin a phase after another one, whose state is given."""
        self.before, self.epoch = before["before"] + before["step"], before["epoch"]
        self.history = before["history"]
        if carry_best:
            self.best_epoch, self.best_dice = before["best_epoch"], before["best_dice"]
            self.best_loss = before["best_loss"]

    def finish_epoch(
        self, measured: Validation, steps: int, config: OptimiserConfig, *, keep_last: bool = False
    ) -> None:
        self.step += steps
        self.epoch += 1
        if keep_last or (measured.dice, -measured.loss) > (self.best_dice, -self.best_loss):
            self.best_epoch, self.best_dice, self.best_loss = self.epoch, measured.dice, measured.loss
        if measured.loss < self.lowest_loss:
            self.lowest_loss, self.epochs_since_lowest = measured.loss, 0
        else:
            self.epochs_since_lowest += 1
            if self.epochs_since_lowest % (config.plateau_patience + 1) == 0:
                self.plateau_rate = max(self.plateau_rate * 0.5, config.min_learning_rate)

    def stale(self, config: TrainConfig) -> bool:
        return self.epochs_since_lowest >= config.early_stop


def _rate(config: OptimiserConfig, step: int, total: int, plateau_rate: float) -> float:
    """The learning rate of a step."""
    if config.schedule == "plateau":
        return plateau_rate
    if config.schedule == "steps":
        tenths = 12 * step // (5 * total)
        return max(config.learning_rate / 10.0**tenths, config.min_learning_rate)
    warm = max(1, round(WARM_UP_SHARE * total))
    if step < warm:
        return config.learning_rate * (step + 1) / warm
    share = (step - warm) / max(1, total - warm)
    low = config.min_learning_rate
    return low + (config.learning_rate - low) * 0.5 * (1 + math.cos(math.pi * share))


def _save(
    run: Run,
    student: nn.Module,
    networks: dict[str, nn.Module],
    optimiser: torch.optim.Optimizer,
    progress: _Progress,
    objective: Objective,
) -> None:
    """Write the best student first: a kill between the two only makes the resumed run write it again."""
    weights = student.state_dict()
    if progress.best_epoch == progress.epoch:
        run.save("student", weights, {"epoch": progress.epoch, "val_dice": progress.best_dice})
    tensors = {f"student.{key}": value for key, value in weights.items()}
    for name, network in networks.items():
        tensors.update({f"network.{name}.{key}": value for key, value in network.state_dict().items()})
    for index, values in optimiser.state_dict()["state"].items():
        tensors.update({f"optimiser.{index}.{key}": value for key, value in values.items()})
    kept = {name: getattr(objective, name) for name in objective.kept}
    run.save("last", tensors, {**vars(progress), "kept": kept})
    run.write_log(progress.history)


def _restore(
    student: nn.Module,
    networks: dict[str, nn.Module],
    optimiser: torch.optim.Optimizer,
    tensors: dict[str, torch.Tensor],
) -> None:
    student.load_state_dict(_below("student.", tensors))
    for name, network in networks.items():
        network.load_state_dict(_below(f"network.{name}.", tensors))
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in _below("optimiser.", tensors).items():
        index, name = key.split(".")
        state.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})


def _below(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
