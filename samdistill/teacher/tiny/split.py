"""Which pictures the embedded teacher is never trained on. Knows names alone."""

from __future__ import annotations

import hashlib

TRAINED_SETS = ("nuclei", "nerves", "fetal_head")


def held_out(stem: str) -> bool:
    """Say whether a file of that name is held out.

    A fifth of the groups is, by the SHA-256 of the name up to its first underscore: frames of one group go
    together.
    """
    return hashlib.sha256(stem.split("_")[0].encode()).digest()[0] % 5 == 0
