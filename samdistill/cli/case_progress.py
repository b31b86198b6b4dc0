"""Progress over cases on standard error: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

LINE_EVERY_S = 10.0


class CaseProgress:
    """Counts cases and passes messages on; a context manager.

    Parameters
    ----------
    what
        What is being done, for the bar.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._bar: object | None = None
        self._started = self._told = time.monotonic()
        self._images = 0

    def __enter__(self) -> CaseProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()

    def on_message(self, text: str) -> None:
        """Print a line, above the bar where there is one."""
        from rich.progress import Progress

        if isinstance(self._bar, Progress):
            self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)

    @property
    def rate(self) -> str:
        """Images a second since the beginning, for people; "" before the first."""
        per_second = self._images / max(1e-3, time.monotonic() - self._started)
        return f"{per_second:.1f} images/s" if self._images else ""

    def on_case(self, done: int, total: int, images: int = 0) -> None:
        """Cases done so far; `images` of the last one, where a rate is wanted. A single case needs no bar."""
        self._images += images
        if total < 2:
            return
        if sys.stderr.isatty():
            self._draw(done, total)
        elif time.monotonic() - self._told > LINE_EVERY_S:
            self._told = time.monotonic()
            left = (total - done) * (self._told - self._started) / max(1, done)
            said = "  ".join([f"{self._what} {done}/{total}", *filter(None, [self.rate])])
            print(f"{said}  about {left:.0f} s left", file=sys.stderr, flush=True)

    def _draw(self, done: int, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        if self._bar is None:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._bar.add_task(self._what, total=total, rate="")
            self._bar.start()
        assert isinstance(self._bar, Progress)
        self._bar.update(self._bar.task_ids[0], completed=done, rate=self.rate)
        if done == total:
            self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()  # type: ignore[attr-defined]
            self._bar = None
