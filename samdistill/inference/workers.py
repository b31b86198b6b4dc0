"""How the machine's cores are shared between files and the network's own threads, and its memory kept."""

from __future__ import annotations

import contextlib
import ctypes
import os

from samdistill.errors import UsageError

MOST_WORKERS = 8
GPU_WORKERS = 4
GPU_BATCH = 8
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's names, see <malloc.h>


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


def keep_freed_memory() -> None:
    """Let this process keep what it frees for the next image, rather than give it back in between.

    The system clears each page that it gives again, which costs more than what is computed on it: half a
    millisecond for a picture of 512 x 512. It holds for the whole process, so it is for commands, not for
    libraries. glibc alone has it; elsewhere nothing changes.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_MMAP_THRESHOLD, 1 << 25)
        libc.mallopt(_TRIM_THRESHOLD, 1 << 28)
