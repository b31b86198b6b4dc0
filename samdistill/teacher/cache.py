"""Embeddings on disk, so that an image meets the encoder once.

Keyed by the image's pixels, the teacher's weights and its preprocessing; fp16. Any number of processes may
read and write one folder: an entry appears whole or not at all, and what a killed writer leaves behind is
swept up later. Knows no data set and no training.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from samdistill.arrays import Image, check_image
from samdistill.errors import InputRejected, UsageError
from samdistill.io.files import write_bytes
from samdistill.teacher.checkpoints import cache_folder
from samdistill.teacher.sam import Embedding, Teacher

MAGIC = b"samdistill-embedding-1\n"
HEADER = struct.Struct("<7I")  # channels, height, width; the image's height, width; the input's height, width
ABANDONED_S = 3600.0  # a temporary file older than this has no writer any more
LOOKS = 20  # how often a folder is looked through while as much is written as it may hold


@dataclass(frozen=True)
class CacheStatistics:
    """What a cache did since it was opened."""

    hits: int
    misses: int
    evicted: int


def default_folder() -> Path:
    """Where embeddings go when nobody says: `samdistill/embeddings` below XDG_CACHE_HOME or ~/.cache."""
    return cache_folder().parent / "embeddings"


class EmbeddingCache:
    """A folder of embeddings.

    Parameters
    ----------
    folder
        Made if it is missing.
    max_bytes
        Above this the entries longest unused go, and a twentieth of all with them; None: no limit. To look
        through all entries after every write would take the time of many encoders, so that is done after
        each twentieth written: by so much each process that writes may exceed it meanwhile.
    """

    def __init__(self, folder: Path, *, max_bytes: int | None = None) -> None:
        if max_bytes is not None and max_bytes < 1:
            raise ValueError(f"max_bytes must be positive or None, not {max_bytes}.")
        self.folder, self.max_bytes = folder, max_bytes
        self._hits = self._misses = self._evicted = 0
        self._room = -1  # bytes that may be written before the folder is looked through
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"the embedding cache {folder} cannot be made: {error.strerror}.") from error

    @property
    def statistics(self) -> CacheStatistics:
        """Hits, misses and evictions so far."""
        return CacheStatistics(self._hits, self._misses, self._evicted)

    def embed(
        self, teacher: Teacher, images: Sequence[Image], *, progress: Callable[[int, int], None] | None = None
    ) -> list[Embedding]:
        """Embed images, running the encoder only on those that are not in the cache.

        What comes from the encoder is rounded to fp16 as what comes from disk is, so that a first run and a
        second see the same.

        Parameters
        ----------
        teacher
            Any.
        images
            uint8 (H, W, 3) RGB each.
        progress
            Called with images done and images in total.

        Raises
        ------
        UsageError
            When the cache cannot be read or written.
        InputRejected
            When an embedding is not finite, or not as fp16.
        """
        found: list[Embedding] = []
        for image in images:
            key = entry_key(teacher, image)
            embedding = self.read(key, teacher.device)
            if embedding is None:
                self._misses += 1
                (fresh,) = teacher.embed([image])
                embedding = Embedding(_rounded(fresh.features), fresh.image_size, fresh.input_size)
                self._write(key, embedding)
            else:
                self._hits += 1
            found.append(embedding)
            if progress is not None:
                progress(len(found), len(images))
        return found

    def fill(
        self,
        teacher: Teacher,
        images: Iterable[Callable[[], Image]],
        *,
        progress: Callable[[int], None] | None = None,
    ) -> int:
        """Put images into the cache one by one without holding more than one; return how many were new."""
        before = self._misses
        for done, read in enumerate(images, start=1):
            self.embed(teacher, [read()])
            if progress is not None:
                progress(done)
        return self._misses - before

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.bin"

    def read(self, key: str, device: torch.device) -> Embedding | None:
        """Read an entry; one that is damaged (a disk's fault, no writer leaves such) counts as missing."""
        path = self._path(key)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UsageError(
                f"the embedding cache {self.folder} cannot be read: {error.strerror}. Give access, or name "
                "another folder."
            ) from error
        embedding = decode_entry(content, device)
        if embedding is None:
            with contextlib.suppress(OSError):  # a read-only cache, which writing will tell of
                path.unlink()
            return None
        with contextlib.suppress(OSError):  # evicted by somebody else meanwhile, or a read-only cache
            os.utime(path)  # eviction goes by last use
        return embedding

    def _write(self, key: str, embedding: Embedding) -> None:
        """Write an entry; a full or read-only disk leaves the cache as it was and says so."""
        path, content = self._path(key), encode_entry(embedding)
        if self._misses == 1:
            sweep(self.folder)
        try:
            path.parent.mkdir(exist_ok=True)
            write_bytes(path, content)
        except OSError as error:
            raise UsageError(
                f"the embedding cache {self.folder} cannot be written: {error.strerror}. Free space, or name "
                "another folder."
            ) from error
        self._room -= len(content)
        if self.max_bytes is not None and self._room < 0:
            left = self.max_bytes - self._evict(self.max_bytes)
            self._room = min(left, self.max_bytes // LOOKS)

    def _evict(self, max_bytes: int) -> int:
        """Let entries go where they are too many; return how many bytes stay."""
        entries = []
        for path in self.folder.glob("??/*.bin"):
            try:
                stat = path.stat()
            except OSError:
                continue
            entries.append((stat.st_mtime, stat.st_size, path))
        total = sum(size for _, size, _ in entries)
        more = len(entries) // LOOKS if total > max_bytes else 0
        for _, size, path in sorted(entries):
            if total <= max_bytes:
                if more == 0:
                    break
                more -= 1
            try:
                path.unlink(missing_ok=True)
            except OSError:  # somebody else's: it stays
                continue
            self._evicted += 1
            total -= size
        return total


def _rounded(features: torch.Tensor) -> torch.Tensor:
    """Features as fp16 holds them, float32 still."""
    rounded = features.half().float()
    if not rounded.isfinite().all():
        raise InputRejected(
            "the teacher's embedding must be finite as fp16, in which the cache holds it, and has values of "
            f"{float(features.abs().max()):g}: its weights overflow. Take other weights."
        )
    return rounded


def sweep(folder: Path) -> None:
    """Remove what writers that were killed left in a cache's folder, once it is old."""
    for path in folder.glob("??/.*.tmp"):
        with contextlib.suppress(OSError):  # swept by somebody else meanwhile, or somebody else's
            if time.time() - path.stat().st_mtime > ABANDONED_S:
                path.unlink()


def entry_key(teacher: Teacher, image: Image) -> str:
    """Name an embedding: SHA-256 of weights, preprocessing, size and pixels."""
    image = check_image(image)
    digest = hashlib.sha256()
    what = (teacher.weights_sha256, teacher.preprocessing, teacher.input_side, image.shape)
    digest.update(f"{what}\n".encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def encode_entry(embedding: Embedding) -> bytes:
    """An entry's bytes: magic, header, features as little-endian fp16, SHA-256 of all that."""
    features = embedding.features.detach().cpu().numpy().astype("<f2")
    header = HEADER.pack(*features.shape, *embedding.image_size, *embedding.input_size)
    content = MAGIC + header + features.tobytes()
    return content + hashlib.sha256(content).digest()


def decode_entry(content: bytes, device: torch.device) -> Embedding | None:
    """The embedding in an entry's bytes; None where they are damaged."""
    body, digest = content[:-32], content[-32:]
    if not body.startswith(MAGIC) or hashlib.sha256(body).digest() != digest:
        return None
    start = len(MAGIC) + HEADER.size
    channels, height, width, image_h, image_w, input_h, input_w = HEADER.unpack(body[len(MAGIC) : start])
    features: npt.NDArray[np.float16] = np.frombuffer(body, "<f2", offset=start)
    return Embedding(
        torch.from_numpy(features.reshape(channels, height, width).astype(np.float32)).to(device),
        (image_h, image_w),
        (input_h, input_w),
    )
