"""Training data: images and targets in the canonical frame, held in memory, and the batches drawn from them.

A batch is a pure function of seed, stream and step, so a resumed run draws what the uninterrupted one would
have drawn. Knows no loss and no student.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from samdistill.arrays import Image
from samdistill.errors import InputRejected
from samdistill.geometry import model_size, pad_image, padded_size, resize_image, resize_masks
from samdistill.intensity import IntensityRule
from samdistill.io.dataset import Case
from samdistill.train.config import AugmentConfig
from samdistill.train.losses import IGNORE
from samdistill.train.views import View, draw_view

HELD_BYTES = 4 * 2**30
"""Frames beyond this much memory are read anew at every visit."""


def read_uint8(case: Case, intensity: IntensityRule) -> Image:
    """Read a case's image, raw pixels made uint8 (H, W, 3).

    Raises
    ------
    InputRejected
        With the file's name, where the rule cannot be applied: to NaN, or to images deeper than those that it
        was chosen by.
    """
    raw = case.read_image()
    try:
        return intensity.apply(raw)
    except ValueError as error:
        raise InputRejected(f"{case.image_path}: {error}") from error


@dataclass(frozen=True)
class Frame:
    """One image in the canonical frame.

    Parameters
    ----------
    image
        uint8 (h, w, 3), the whole resized image, not padded.
    targets
        int8 (C, h, w): 1 foreground, 0 background, -1 ignore; None where the labels are not to be read.
    """

    image: Image
    targets: npt.NDArray[np.int8] | None


class FrameStore:
    """The frames of some cases, read once, in order of the cases.

    Parameters
    ----------
    cases
        Labelled or unlabelled.
    size
        Shortest side of the frames, pixels.
    intensity
        Raw pixels to uint8.
    """

    def __init__(self, cases: Sequence[Case], size: int, intensity: IntensityRule) -> None:
        self.cases = tuple(cases)
        self._size = size
        self._intensity = intensity
        self._frames: dict[int, Frame] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> Frame:
        held = self._frames.get(index)
        if held is not None:
            return held
        frame = self._read(self.cases[index])
        self._hold(index, frame)
        return frame

    def preload(self, tell: Callable[[int, int], None]) -> None:
        """Read all frames that memory may hold; `tell` gets how many of how many are read."""
        with ThreadPoolExecutor(4) as pool:
            for index, frame in enumerate(pool.map(self._read, self.cases)):
                self._hold(index, frame)
                tell(index + 1, len(self))
                if self._bytes >= HELD_BYTES:
                    pool.shutdown(cancel_futures=True)
                    return

    def _hold(self, index: int, frame: Frame) -> None:
        if self._bytes < HELD_BYTES:
            self._frames[index] = frame
            self._bytes += frame.image.nbytes + (frame.targets.nbytes if frame.targets is not None else 0)

    def _read(self, case: Case) -> Frame:
        image = read_uint8(case, self._intensity)
        size = model_size((image.shape[0], image.shape[1]), self._size)
        targets: npt.NDArray[np.int8] | None = None
        if case.labelled:
            masks, ignored = case.read_labels()
            targets = resize_masks(masks, size).astype(np.int8)
            targets[:, resize_masks(ignored[None], size)[0]] = int(IGNORE)
        return Frame(resize_image(image, size), targets)


@dataclass(frozen=True)
class Batch:
    """What one optimiser step sees.

    Parameters
    ----------
    indices
        Which cases, as numbered in the store.
    pixels
        float32 (N, 3, size, size), 0..255.
    targets
        float32 (N, C, size, size), IGNORE where a pixel does not count.
    """

    indices: tuple[int, ...]
    pixels: torch.Tensor
    targets: torch.Tensor


class Batches:
    """Random views of frames, as a function of the step.

    Parameters
    ----------
    store
        The cases; labelled where batches with targets are asked for.
    size
        Side of the views, pixels.
    batch
        Images a step, over all devices.
    seed, stream
        The same two numbers give the same batches; streams of one seed are independent.
    order
        The stream whose cases are drawn, where that is not this one: same images, other views.
    rank, world
        Which share of each batch this process takes.
    """

    def __init__(
        self,
        store: FrameStore,
        size: int,
        batch: int,
        augment: AugmentConfig,
        *,
        seed: int,
        stream: int,
        order: int | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if batch < 1:
            raise ValueError(f"batch must be at least 1, not {batch}.")
        if len(store) == 0:
            raise ValueError("store must hold at least one case, not none.")
        self.store = store
        self._size = size
        self._batch = batch
        self._augment = augment
        self._key = (seed, stream)
        self._order_key = (seed, stream if order is None else order)
        self._share = (rank, world)

    def draw(self, step: int) -> list[tuple[int, View]]:
        """Which cases, and which view of each, this process sees at a step, counted from 0.

        Every case comes once before any comes again.
        """
        rank, world = self._share
        drawn = []
        for position in range(step * self._batch + rank, (step + 1) * self._batch, world):
            cycle, place = divmod(position, len(self.store))
            order = np.random.default_rng((*self._order_key, 0, cycle)).permutation(len(self.store))
            index = int(order[place])
            view = draw_view(
                np.random.default_rng((*self._key, 1, position)),
                self.store[index].image.shape[:2],
                self._size,
                self._augment,
            )
            drawn.append((index, view))
        return drawn

    def __call__(self, step: int, most: int | None = None) -> Batch:
        """The views of a step, or the first of them, with their targets; the cases must be labelled."""
        drawn = self.draw(step)[:most]
        frames = [self.store[index] for index, _ in drawn]
        for (index, _), frame in zip(drawn, frames, strict=True):
            if frame.targets is None:
                raise ValueError(f"case {index} must be labelled to train on it.")
        return Batch(
            tuple(index for index, _ in drawn),
            torch.stack([view.pixels(frame.image) for (_, view), frame in zip(drawn, frames, strict=True)]),
            torch.stack(
                [
                    view.targets(frame.targets.astype(np.float32))
                    for (_, view), frame in zip(drawn, frames, strict=True)
                    if frame.targets is not None
                ]
            ),
        )


def by_padded_size(images: Sequence[Image], batch: int) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Whole frames padded as at inference, those of equal padded size together.

    Yields
    ------
    tuple
        Positions in `images`, at most `batch`, and their uint8 (N, 3, height, width) pixels.
    """
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for number, image in enumerate(images):
        groups[padded_size((image.shape[0], image.shape[1]))].append(number)
    for size, members in groups.items():
        for start in range(0, len(members), batch):
            part = members[start : start + batch]
            pixels = np.stack([pad_image(images[number], size).transpose(2, 0, 1) for number in part])
            yield part, torch.from_numpy(pixels)


def whole_frames(store: FrameStore, batch: int) -> Iterator[Batch]:
    """Every labelled frame whole, padded as at inference; frames of equal padded size share a batch."""
    for indices, pixels in by_padded_size([store[index].image for index in range(len(store))], batch):
        size = (pixels.shape[2], pixels.shape[3])
        targets = np.stack([_pad_targets(store[index].targets, size) for index in indices])
        yield Batch(tuple(indices), pixels, torch.from_numpy(targets))


def _pad_targets(targets: npt.NDArray[np.int8] | None, size: tuple[int, int]) -> npt.NDArray[np.float32]:
    if targets is None:
        raise ValueError("whole_frames needs labelled cases.")
    below, right = size[0] - targets.shape[1], size[1] - targets.shape[2]
    padded = np.pad(targets, ((0, 0), (0, below), (0, right)), constant_values=int(IGNORE))
    return padded.astype(np.float32)
