"""A training's watcher that collects what it hears and can stop the run."""

from __future__ import annotations

from typing import Any


class Interrupted(Exception):
    """What stops a run in these tests."""


class Watcher:
    """Collects, and stops the run at the n-th of something when told to."""

    def __init__(self, stop: tuple[str, int] | None = None) -> None:
        self.stop, self.records, self.messages = stop, list[dict[str, Any]](), list[str]()
        self._seen = dict[str, int]()

    def _at(self, what: str) -> None:
        self._seen[what] = self._seen.get(what, 0) + 1
        if self.stop == (what, self._seen[what]):
            raise Interrupted

    def on_message(self, text: str) -> None:
        self.messages.append(text)

    def on_prepare(self, what: str, done: int, total: int) -> None:
        self._at(what)

    def on_start(self, phase: str, first_step: int, total_steps: int) -> None:
        self._phase = phase

    def on_step(self, step: int, loss: float) -> None:
        self._at(self._phase)

    def on_epoch(self, record: dict[str, Any]) -> None:
        self.records.append(record)
