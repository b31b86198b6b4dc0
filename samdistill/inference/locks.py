"""Keeps two runs apart that would write into one folder: each would remove and list what the other wrote."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from samdistill.errors import UsageError


@contextmanager
def alone(out: Path, audit: Path, *, shard: bool) -> Iterator[None]:
    """Hold an output folder until the block ends, however the process ends.

    Parameters
    ----------
    out
        The folder. A run over all inputs has it for itself; shards share it among each other.
    audit
        The run's own audit, by which two shards of one number are told; made where it is missing.
    shard
        Whether this run is one of several shards.

    Raises
    ------
    UsageError
        When another run holds it. File systems without locks hold nothing.
    """
    with contextlib.ExitStack() as opened:
        for path, flags, shared in ((out, os.O_RDONLY, shard), (audit, os.O_WRONLY | os.O_CREAT, False)):
            handle = os.open(path, flags, 0o666)
            opened.callback(os.close, handle)
            try:
                fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UsageError(
                    f"--out must not be written to by two runs at once: another one is writing to {out}. "
                    "Wait for it, or name another folder."
                ) from error
            except OSError:
                continue
        yield
