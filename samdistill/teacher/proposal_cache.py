"""Proposals on disk beside the embeddings, so that an image is asked for everything once.

Keyed as the embeddings are, and by how proposals are made; masks bit-packed and compressed. Any number of
processes may read and write one folder: an entry appears whole or not at all. Knows no class and no student.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from samdistill.arrays import Image
from samdistill.errors import UsageError
from samdistill.io.files import write_bytes
from samdistill.proposals import Proposals, boxes_of
from samdistill.teacher.cache import entry_key, sweep
from samdistill.teacher.propose import ProposeConfig, propose
from samdistill.teacher.sam import Embedding, Teacher

MAGIC = b"samdistill-proposals-1\n"
HEADER = struct.Struct("<3I")  # proposals, height, width
FOLDER = "proposals"


class ProposalCache:
    """The proposals of images, in the folder of the embeddings' cache.

    Parameters
    ----------
    embeddings
        That cache's folder; proposals lie below it in a folder of their own, which eviction leaves alone.
    teacher
        Whose proposals.
    config
        How they are made.
    """

    def __init__(self, embeddings: Path, teacher: Teacher, config: ProposeConfig) -> None:
        self.folder, self._teacher, self._config = embeddings / FOLDER, teacher, config
        self.made = 0

    def propose(self, image: Image, embed: Callable[[], Embedding]) -> Proposals:
        """The proposals of an image; asks the teacher, and for the embedding, only where there are none yet.

        Parameters
        ----------
        image
            uint8 (H, W, 3) RGB.
        embed
            Gives its embedding.
        """
        path = self._path(image)
        try:
            found = decode_proposals(path.read_bytes())
        except FileNotFoundError:
            found = None
        except OSError as error:
            raise UsageError(
                f"the cache of proposals {self.folder} cannot be read: {error.strerror}. Give access, or "
                "name another folder with --cache."
            ) from error
        if found is None:  # also where an entry is damaged: a disk's fault, no writer leaves such
            found = propose(self._teacher, embed(), self._config, image=image)
            self.made += 1
            if self.made == 1:
                sweep(self.folder)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_bytes(path, encode_proposals(found))
            except OSError as error:
                raise UsageError(
                    f"the cache of proposals {self.folder} cannot be written: {error.strerror}. Free space, "
                    "or name another folder with --cache."
                ) from error
        return found

    def _path(self, image: Image) -> Path:
        what = f"{entry_key(self._teacher, image)} {sorted(asdict(self._config).items())}"
        key = hashlib.sha256(what.encode()).hexdigest()
        return self.folder / key[:2] / f"{key}.bin"


def encode_proposals(proposals: Proposals) -> bytes:
    """An entry's bytes: magic, sizes, compressed scores and mask bits, SHA-256 of all that."""
    count, height, width = proposals.masks.shape
    scores = np.stack([proposals.iou_predictions, proposals.stability_scores]).astype("<f4")
    bits = np.packbits(proposals.masks.reshape(count, height * width), axis=1)
    content = MAGIC + HEADER.pack(count, height, width) + zlib.compress(scores.tobytes() + bits.tobytes(), 1)
    return content + hashlib.sha256(content).digest()


def decode_proposals(content: bytes) -> Proposals | None:
    """The proposals in an entry's bytes; None where they are damaged."""
    body, digest = content[:-32], content[-32:]
    if not body.startswith(MAGIC) or hashlib.sha256(body).digest() != digest:
        return None
    start = len(MAGIC) + HEADER.size
    count, height, width = HEADER.unpack(body[len(MAGIC) : start])
    plain = zlib.decompress(body[start:])
    scores = np.frombuffer(plain, "<f4", 2 * count).astype(np.float32).reshape(2, count)
    bits = np.frombuffer(plain, np.uint8, offset=8 * count).reshape(count, -(-height * width // 8))
    masks = np.unpackbits(bits, axis=1, count=height * width).astype(np.bool_).reshape(count, height, width)
    return Proposals(masks, boxes_of(masks), scores[0], scores[1])
