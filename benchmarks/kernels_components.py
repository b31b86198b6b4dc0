"""Benchmark cases of `samdistill.components`: label, summarize, clean."""

from __future__ import annotations

from collections.abc import Iterator

from harness import Case


def cases() -> Iterator[Case]:
    """The cases, made one at a time so that only one's inputs are in memory."""
    yield from ()
