"""Progress of several things one after the other on standard error; a context manager."""

from __future__ import annotations

from types import TracebackType

from samdistill.cli.case_progress import CaseProgress


class Steps:
    """Shows one `CaseProgress` at a time, by what is being done."""

    def __init__(self) -> None:
        self._what = ""
        self._progress = CaseProgress("")

    def __enter__(self) -> Steps:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.__exit__(kind, error, traceback)

    def tell(self, what: str, done: int, total: int) -> None:
        """So much of so much of this is done."""
        if what != self._what:
            self._progress.__exit__(None, None, None)
            self._what, self._progress = what, CaseProgress(what)
        self._progress.on_case(done, total)
