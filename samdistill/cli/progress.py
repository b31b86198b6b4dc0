"""Progress on standard error: bars on a terminal, now and then a line elsewhere (a log file, CI)."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_EVERY_S = 10.0


class TrainingProgress:
    """Watches a training run: loss, validation Dice and the time left; a context manager."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._reading = self._bars.add_task("reading images", note="", visible=False)
        self._steps = self._bars.add_task("training", note="", visible=False)
        self._dice = ""
        self._first = self._step = self._total = 0
        self._started = self._told = time.monotonic()

    def __enter__(self) -> TrainingProgress:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def on_message(self, text: str) -> None:
        """Print a line."""
        if self._console.is_terminal:
            self._console.print(text, highlight=False, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def on_prepare(self, what: str, done: int, total: int) -> None:
        """Images that were read, embedded, pseudo-labelled so far."""
        self._bars.update(self._reading, description=what, completed=done, total=total, visible=True)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._told > LINE_EVERY_S:
            self._told = now
            self.on_message(f"{what}: {done} of {total}")

    def on_start(self, phase: str, first_step: int, total_steps: int) -> None:
        """A phase begins."""
        self._first, self._step, self._total = first_step, first_step, total_steps
        self._started = self._told = time.monotonic()
        self._bars.update(
            self._steps, description=phase, completed=first_step, total=total_steps, visible=True
        )

    def on_step(self, step: int, loss: float) -> None:
        """A step of the phase is done."""
        self._step = step
        self._bars.update(self._steps, completed=step, note=f"loss {loss:.3f}{self._dice}")
        now = time.monotonic()
        if not self._console.is_terminal and now - self._told > LINE_EVERY_S:
            self._told = now
            left = (self._total - step) * (now - self._started) / max(1, step - self._first)
            self.on_message(
                f"step {step}/{self._total}  loss {loss:.3f}{self._dice}  about {left:.0f} s left"
            )

    def on_epoch(self, record: dict[str, Any]) -> None:
        """An epoch is done and validated."""
        self._dice = f"  Dice {record['val_dice']:.3f}"
        if not self._console.is_terminal:
            self._told = time.monotonic()
            self.on_message(
                f"epoch {record['epoch']}  step {self._step}/{self._total}  "
                f"loss {record['train_loss']:.3f}  validation Dice {record['val_dice']:.3f}"
            )
