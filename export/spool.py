"""Things that are kept on disk and read back one at a time, so that many large ones fit into little memory.

Knows nothing of what they are.
"""

from __future__ import annotations

import gzip
import pickle
import tempfile
import weakref
from collections.abc import Iterator
from typing import Generic, TypeVar

from samdistill.errors import UsageError

T = TypeVar("T")


class Spool(Generic[T]):
    """A list that holds none of its things: they lie in a file without a name, which goes with the list.

    They are pickled, since nobody else can write into that file, and compressed, since masks are large and
    nearly empty.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._places: list[int] = []

    def append(self, thing: T) -> None:
        """Put a thing at the end.

        Raises
        ------
        UsageError
            When the disk is full.
        """
        place = self._file.seek(0, 2)
        try:
            with gzip.GzipFile(fileobj=self._file, mode="wb", compresslevel=1) as file:
                pickle.dump(thing, file, protocol=5)
            self._file.flush()
        except OSError as error:
            raise UsageError(
                f"{tempfile.gettempdir()} cannot hold what is compared: {error.strerror}. Free space, or "
                "name another folder with TMPDIR."
            ) from error
        self._places.append(place)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> T:
        self._file.seek(self._places[index])
        with gzip.GzipFile(fileobj=self._file, mode="rb") as file:
            thing: T = pickle.load(file)
        return thing

    def __iter__(self) -> Iterator[T]:
        return (self[index] for index in range(len(self)))
