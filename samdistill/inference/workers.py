"""How the machine's cores are shared between files and the network's own threads."""

from __future__ import annotations

import os

from samdistill.errors import UsageError

MOST_WORKERS = 8
GPU_WORKERS = 4


def share_threads(files: int, device: str, threads: int | None) -> tuple[int, int | None]:
    """Choose workers, and threads for each call of the network.

    Many small calls side by side use cores better than one call on all of them, and leave none idle while
    files are read and written.

    Parameters
    ----------
    files
        How many there are.
    device
        "cpu", or a GPU, which wants readers and writers beside it.
    threads
        CPU threads in all; None: every core this process may use.

    Returns
    -------
    tuple
        Workers, and threads of one call; None lets the runtime choose.

    Raises
    ------
    UsageError
        When there are fewer than one thread.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"threads must be at least 1, not {threads}.")
    cores = threads or len(os.sched_getaffinity(0))
    if device != "cpu":
        return max(1, min(GPU_WORKERS, cores, files)), threads
    workers = max(1, min(cores, MOST_WORKERS, files))
    return workers, max(1, cores // workers)
