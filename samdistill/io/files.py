"""Files that are either whole or not there: atomic writing, locks and hashes. Knows no format."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from samdistill.errors import UsageError


@contextmanager
def atomic_write(path: Path, *, settle_folder: bool = True) -> Iterator[Path]:
    """Write a file through a temporary one beside it, so that nobody ever sees half of it.

    Yields the temporary path to write to. When the block ends well it is flushed to disk and renamed to
    `path`, replacing what was there; when the block raises it is removed and `path` stays as it was. A
    process killed in between leaves `path` as it was and a hidden `.<name>.<random>.tmp`.

    Parameters
    ----------
    path
        The file to write; its folder must exist.
    settle_folder
        Flush the folder's entry too, so that a power cut cannot take the name back. Whoever writes many files
        calls `sync_folder` once for all.
    """
    temporary = hidden_beside(path)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if settle_folder:
        sync_folder(path.parent)


def write_bytes(path: Path, content: bytes, *, settle_folder: bool = True) -> None:
    """Write a whole file atomically; see `atomic_write`."""
    temporary = hidden_beside(path)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if settle_folder:
        sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 file atomically; see `atomic_write`."""
    write_bytes(path, text.encode())


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Fill a folder through a temporary one beside it; it appears under its name only when it is complete.

    Yields the temporary folder, which exists and is empty. When the block ends well every file in it is
    flushed to disk and it is renamed to `path`; when the block raises it is removed.

    Parameters
    ----------
    path
        The folder to make; missing, or empty.

    Raises
    ------
    FileExistsError
        When `path` is there and not an empty folder, before anything is written.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} must be a new or empty folder. Remove it or name another.")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = hidden_beside(path)
    temporary.mkdir()
    try:
        yield temporary
        for folder, _, names in os.walk(temporary):
            for name in names:
                with Path(folder, name).open("rb") as file:
                    os.fsync(file.fileno())
            sync_folder(Path(folder))
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_folder(path.parent)


def check_folder_place(path: Path) -> None:
    """Refuse a place where `atomic_folder` could not put a finished folder, before the work is done.

    Raises
    ------
    UsageError
        When it is a mount point, which cannot be renamed onto, or nothing can be written beside it.
    """
    if os.path.ismount(path):
        raise UsageError(
            f"{path} must be no mount point: what is finished is renamed into place. Name one inside it."
        )
    probe = hidden_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise UsageError(
            f"{path.parent} must allow writing, since {path.name} is made beside its place: {error.strerror}."
        ) from error


@contextmanager
def locked(path: Path, refusal: str, *, shared: bool = False) -> Iterator[bool]:
    """Hold a folder or a file against other processes until the block ends, however the process ends.

    Yields whether it is held: some file systems have no locks.

    Parameters
    ----------
    path
        A folder that is there, or a file, which is made where it is missing.
    refusal
        What to say when another process holds it.
    shared
        Whether others that share may hold it at the same time.

    Raises
    ------
    UsageError
        When another process holds it.
    """
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        held = True
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(refusal) from error
        except OSError:
            held = False
        yield held
    finally:
        os.close(handle)


def remove_leftovers(folder: Path, names: Collection[str]) -> None:
    """Remove the temporary files and folders that killed processes left of outputs of these names."""
    known = {_fitting(name) for name in names}
    for path in folder.glob(".*.tmp*"):
        match = _LEFTOVER.fullmatch(path.name)
        if match is None or match["name"] not in known:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def walk_visible(
    folder: Path, cannot: Callable[[OSError], object]
) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Go through a folder as `os.walk` does, sorted, hidden files and folders left out.

    Parameters
    ----------
    folder
        Links to folders in it are among the folders, and not followed.
    cannot
        Gets the error of each folder that cannot be listed, which pathlib's `rglob` passes over.
    """
    for base, folders, files in os.walk(folder, onerror=cannot):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield Path(base), folders, sorted(name for name in files if not name.startswith("."))


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_LEFTOVER = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.tmp(\.\w+)?")  # or put beside a temporary file


_LONGEST = 255 - len("..12345678.tmp")  # bytes of a name that leave room for a temporary one


def hidden_beside(path: Path, end: str = "tmp") -> Path:
    """A new hidden name in the same folder, never too long for it."""
    return path.with_name(f".{_fitting(path.name)}.{secrets.token_hex(4)}.{end}")


def _fitting(name: str) -> str:
    """The name itself, or its hash where a longer one could not be written."""
    encoded = os.fsencode(name)
    return name if len(encoded) <= _LONGEST else hashlib.sha256(encoded).hexdigest()


def sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut; the folder's own entry has to reach the disk too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
