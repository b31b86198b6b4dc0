"""The teacher's embeddings of a run's images: from the cache on disk, then from memory. Knows no student."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from samdistill.intensity import IntensityRule
from samdistill.io.dataset import Case
from samdistill.teacher import Embedding, Teacher
from samdistill.teacher.cache import EmbeddingCache, entry_key
from samdistill.train.data import read_uint8

HELD_BYTES = 2 * 2**30
"""Embeddings beyond this much memory are read from disk at every visit."""


class EmbeddedCases:
    """Embeddings of some cases, by number; the encoder runs at most once an image, ever.

    Parameters
    ----------
    teacher
        Whose embeddings.
    cache
        Where they are kept between runs.
    cases
        The images, embedded at their own size.
    intensity
        Raw pixels to uint8.
    """

    def __init__(
        self, teacher: Teacher, cache: EmbeddingCache, cases: Sequence[Case], intensity: IntensityRule
    ) -> None:
        self.teacher = teacher
        self._cache = cache
        self._cases = cases
        self._intensity = intensity
        self._keys: dict[int, str] = {}
        self._held: dict[int, Embedding] = {}
        self._bytes = 0

    def fill(self, indices: Iterable[int], tell: Callable[[int, int], None]) -> None:
        """Embed what the cache lacks; `tell` gets how many of how many are done."""
        wanted = list(indices)
        for done, index in enumerate(wanted, start=1):
            self._load(index)
            tell(done, len(wanted))

    def __getitem__(self, index: int) -> Embedding:
        held = self._held.get(index)
        if held is None:
            held = self._load(index)
        return Embedding(held.features.float(), held.image_size, held.input_size)

    def _load(self, index: int) -> Embedding:
        key = self._keys.get(index)
        found = None if key is None else self._cache.read(key, self.teacher.device)
        if found is None:
            image = read_uint8(self._cases[index], self._intensity)
            self._keys[index] = entry_key(self.teacher, image)
            (found,) = self._cache.embed(self.teacher, [image])
        # Entries are fp16 on disk, so nothing is lost by holding them so.
        half = Embedding(found.features.to(torch.float16), found.image_size, found.input_size)
        if index not in self._held and self._bytes < HELD_BYTES:
            self._held[index] = half
            self._bytes += half.features.nbytes
        return half
