"""Training samples for the embedded teacher: which pictures, cut and coloured how, with which objects.

Reads the made-up pictures from a cache folder and nuclei, nerves and fetal_head from the data folder. Of
these three a fixed fifth, by the hash of the group in a file's name, is held out and never leaves
`held_out`. Polyps and atrium are not read here at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from numpy.lib.format import open_memmap
from PIL import Image as PillowImage

from samdistill import phantoms
from samdistill.components import label
from samdistill.io.files import atomic_write, remove_leftovers
from samdistill.teacher.tiny import pictures
from samdistill.teacher.tiny.model import PIXEL
from samdistill.teacher.tiny.split import TRAINED_SETS, held_out

SIZE = 256  # the frame samples are composed in; they may be drawn smaller
HELD_OUT_PICTURES = 200
LEAST_PX = 12  # of an object, in the sampler's frame
# Shares shown whole, as in use, bent (a head stays an ellipse) and recoloured.
WHOLE = {"pictures": 0.35, "nuclei": 0.85, "nerves": 0.75, "fetal_head": 0.6}
BENT = {"pictures": 0.0, "nuclei": 0.4, "nerves": 0.45, "fetal_head": 0.0}
RECOLOURED = {"pictures": 0.8, "nuclei": 0.6, "nerves": 0.4, "fetal_head": 0.4}
LARGE = 0.25  # of the made-up pictures that are cut: an object fills the window, as a near polyp does
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Source:
    """One picture with its objects."""

    image: Pixels  # (h, w, 3) RGB
    labels: npt.NDArray[Any]  # (h, w): uint16 numbers, or uint8 bit planes
    planes: bool  # labels are bit planes

    @cached_property
    def ids(self) -> list[int]:
        """List the objects' numbers (or planes)."""
        if self.planes:
            return [k for k in range(8) if (self.labels >> k & 1).any()]
        return [int(k) for k in np.unique(self.labels) if k]

    @staticmethod
    def member(labels: npt.NDArray[Any], planes: bool, k: int) -> npt.NDArray[np.bool_]:
        """Mask of object k in a label map of either kind."""
        return (labels >> k & 1).astype(bool) if planes else labels == k


def real_sources(data: Path, name: str, *, hold_out: bool = False) -> list[Source]:
    """Read one of the sets: the training part, or the part held out."""
    sources = []
    for path in sorted((data / name / "masks").glob("*.png")):
        if held_out(path.stem) != hold_out:
            continue
        instances = data / name / "instances" / path.name
        labels = np.array(PillowImage.open(instances if instances.exists() else path)).astype(np.uint16)
        picture = next((data / name / "images").glob(path.stem + ".*"))
        image = np.array(PillowImage.open(picture).convert("RGB"))
        scale = min(1.0, 512 / max(labels.shape))
        if scale < 1:
            image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            labels = cv2.resize(labels, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        sources.append(Source(image, labels, planes=False))
    return sources


def cache_pictures(folder: Path, seed: int, count: int) -> None:
    """Draw `count` pictures into the cache folder, each by seed and number, a quarter of them phantoms."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"pictures_{seed}_{what}.npy" for what in ("images", "bits")]
    remove_leftovers(folder, [path.name for path in paths])
    # The images, which are looked for, appear last: killed before, all are drawn anew.
    with atomic_write(paths[0]) as images_path, atomic_write(paths[1]) as bits_path:
        images = open_memmap(images_path, "w+", np.uint8, (count, SIZE, SIZE, 3))
        bits = open_memmap(bits_path, "w+", np.uint8, (count, SIZE, SIZE))
        for i in range(count):
            if i % 4 == 0:
                images[i], bits[i] = phantom(seed, i // 4)
            else:
                images[i], bits[i] = pictures.picture(np.random.default_rng([seed, i]))
        images.flush()
        bits.flush()


def phantom(seed: int, index: int) -> tuple[Pixels, Pixels]:
    """One of the built-in phantoms as `pictures.picture` gives pictures; every second one is an endoscopy."""
    kind = ("endoscopy", "ultrasound", "endoscopy", "xray")[index % 4]
    made = phantoms.make(kind, seed=seed, index=index, size=(SIZE, SIZE))
    parts = [c.labels == k for mask in made.masks for c in (label(mask),) for k in range(1, len(c) + 1)]
    return made.image, pictures.bit_planes(made.image, parts, pictures.LEAST_VISIBILITY / 2)


class Sampler:
    """Draws training samples; one per process."""

    def __init__(
        self,
        data: Path,
        cache: Path,
        *,
        objects: dict[str, int],
        shares: dict[str, float],
        side: int = SIZE,
        hold_out: bool = False,
    ) -> None:
        self.side = side
        self.real = {name: real_sources(data, name, hold_out=hold_out) for name in TRAINED_SETS}
        # The last pictures are held out as well.
        self.made = []
        for path in sorted(cache.glob("pictures_*_images.npy")):
            images = np.load(path, mmap_mode="r")
            bits = np.load(str(path).replace("_images", "_bits"), mmap_mode="r")
            part = slice(-HELD_OUT_PICTURES, None) if hold_out else slice(None, -HELD_OUT_PICTURES)
            self.made.append((images[part], bits[part]))
        self.objects = objects
        self.names, self.weights = list(shares), np.array(list(shares.values())) / sum(shares.values())

    def kind(self, rng: np.random.Generator) -> str:
        """Pick the set that the next sample is of."""
        return self.names[rng.choice(len(self.names), p=self.weights)]

    def source(self, rng: np.random.Generator, name: str) -> Source:
        """Pick one of a set's pictures."""
        if name == "pictures":
            i = int(rng.integers(sum(len(images) for images, _ in self.made)))
            for images, bits in self.made:  # noqa: B007
                if i < len(images):
                    break
                i -= len(images)
            return Source(np.array(images[i]), np.array(bits[i]), planes=True)
        return self.real[name][rng.integers(len(self.real[name]))]

    def draw(self, rng: np.random.Generator, name: str) -> dict[str, Any]:
        """Draw one sample of a set.

        Returns
        -------
        dict
            With S the sampler's side, L that of its low-resolution masks and P as many objects as asked for
            of such a picture: `image` (S, S, 3) uint8; `content` (2,) int64 height and width that are not
            padding; `targets` (P, L, L) uint8 covered share x 255; `boxes` (P, 4) float32 half-open, exact;
            `border` (L, L) uint8 share of pixels on an object's outline x 255.
        """
        while True:
            source = self.source(rng, name)
            if source.image.std() < 2:
                continue
            sample = self._cut(rng, name, source)
            if sample is not None:
                return sample

    def _cut(self, rng: np.random.Generator, name: str, source: Source) -> dict[str, Any] | None:
        ids = source.ids
        if not ids:
            return None
        chosen = ids[rng.integers(len(ids))]
        box = bounding_box(source.member(source.labels, source.planes, chosen))
        content = np.array([SIZE, SIZE])
        if rng.random() < 0.5:
            content[rng.integers(2)] = int(SIZE * rng.uniform(0.55, 1))
        whole = rng.random() < WHOLE[name]
        matrix = _whole(rng, source, content, name) if whole else _zoom(rng, box, content, name)
        shrink = self.side / SIZE
        matrix = shrink * matrix
        matrix[:, 2] += 0.5 * shrink - 0.5
        height, width = (max(1, int(length * shrink + 0.5)) for length in content)
        image = _warp(source.image, matrix, (width, height))
        labels = cv2.warpAffine(source.labels, matrix, (width, height), flags=cv2.INTER_NEAREST)
        # Twice as fine: outlines rounded to whole pixels would teach small objects a pixel wrong.
        finer = 2 * matrix
        finer[:, 2] += 0.5
        fine = cv2.warpAffine(source.labels, finer, (2 * width, 2 * height), flags=cv2.INTER_NEAREST)
        if rng.random() < BENT[name]:
            maps = bend(rng, (width, height))
            image = cv2.remap(image, *maps, cv2.INTER_LINEAR)
            labels = cv2.remap(labels, *maps, cv2.INTER_NEAREST)
            fine = cv2.remap(fine, _doubled(maps[0]), _doubled(maps[1]), cv2.INTER_NEAREST)
        masks: list[tuple[npt.NDArray[np.bool_], int]] = []
        most = self.objects[name]
        border = np.zeros((height, width), np.uint8)
        present = [chosen, *rng.permutation([k for k in ids if k != chosen])]
        for k in present:
            mask = source.member(labels, source.planes, k)
            if not LEAST_PX <= mask.sum() <= 0.85 * mask.size:
                if k == chosen and not whole:
                    return None
                continue
            border |= cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
            if len(masks) < most:
                masks.append((mask, k))
        if not masks:
            return None
        while len(masks) < most:
            masks.append(masks[rng.integers(len(masks))])
        canvas = np.zeros((self.side, self.side, 3), np.uint8)
        canvas[:height, :width] = recolour(rng, image) if rng.random() < RECOLOURED[name] else image
        return {
            "image": canvas,
            "content": np.array([height, width]),
            "targets": np.stack(
                [self._low(source.member(fine, source.planes, k).astype(np.uint8)) for _, k in masks]
            ),
            "boxes": np.stack([bounding_box(mask) for mask, _ in masks]).astype(np.float32),
            "border": self._low(np.repeat(np.repeat(border, 2, axis=0), 2, axis=1)),
        }

    def _low(self, mask: Pixels) -> Pixels:
        """Bring a mask at twice the sampler's frame to the low-resolution one."""
        canvas = np.zeros((2 * self.side, 2 * self.side), np.uint8)
        canvas[: mask.shape[0], : mask.shape[1]] = mask * 255
        side = round(self.side / PIXEL)
        low: Pixels = cv2.resize(canvas, (side, side), interpolation=cv2.INTER_AREA)
        return low


def bounding_box(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """(4,) half-open xyxy of the mask's foreground."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def _whole(
    rng: np.random.Generator, source: Source, content: npt.NDArray[np.int64], name: str
) -> npt.NDArray[np.float64]:
    """Fit the whole picture as inference does, mostly turned and scaled a little; sets `content`."""
    height, width = source.labels.shape
    scale = SIZE / max(height, width)
    content[:] = int(height * scale + 0.5), int(width * scale + 0.5)
    linear, place = scale * np.eye(2), content[::-1] / 2
    if rng.random() < 0.7:
        any_way = name in ("nuclei", "pictures") and rng.random() < 0.5
        linear = linear @ turn(rng.uniform(0, 2 * np.pi) if any_way else rng.normal(0, 0.12))
        linear = linear @ np.diag(np.exp(rng.uniform(-0.2, 0.5) + rng.normal(0, 0.08, 2)))
        place = place + rng.uniform(-0.15, 0.15, 2) * SIZE
    mirror = [rng.choice([-1, 1]), rng.choice([-1, 1]) if name in ("nuclei", "pictures") else 1]
    linear = linear @ np.diag(mirror)
    # Pixel centres lie at integers in both frames.
    return np.column_stack([linear, place - 0.5 - linear @ (np.array([width, height]) / 2 - 0.5)])


def turn(angle: float) -> npt.NDArray[np.float64]:
    """(2, 2) rotation."""
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def bend(rng: np.random.Generator, size: tuple[int, int]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Maps for cv2.remap over (width, height) that shift smoothly by up to some 4 % of the side."""
    width, height = size
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    cells = int(rng.integers(3, 7))
    reach = rng.uniform(0.05, 0.15) * max(size) / cells
    shift = (reach * rng.standard_normal((cells, cells, 2))).astype(np.float32)
    shift = cv2.resize(shift, size, interpolation=cv2.INTER_CUBIC)
    return x + shift[..., 0], y + shift[..., 1]


def _doubled(places: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """One of `bend`'s maps in the frame twice as fine."""
    fine: npt.NDArray[Any] = cv2.resize(places, None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR)
    return 2 * fine + 0.5


def _zoom(
    rng: np.random.Generator, box: npt.NDArray[np.int64], content: npt.NDArray[np.int64], name: str
) -> npt.NDArray[np.float64]:
    """Turn, flip and scale about the chosen object so that it takes a chosen share of the window."""
    share = rng.uniform(0.2, 0.75) if rng.random() < 0.65 else np.exp(rng.uniform(np.log(0.06), np.log(0.95)))
    if name == "pictures" and rng.random() < LARGE:
        share = rng.uniform(0.8, 1.3)
    extent = max(box[2] - box[0], box[3] - box[1])
    limits = {"pictures": (0.55, 4.0), "nuclei": (0.7, 7.0)}.get(name, (0.35, 3.0))
    scale = np.clip(share * content.min() / extent, *limits)
    angle = rng.uniform(0, 2 * np.pi) if rng.random() < 0.5 else rng.normal(0, 0.1)
    stretch = np.exp(rng.normal(0, 0.12))
    mirror = rng.choice([-1, 1], 2)
    linear = turn(angle) @ np.diag(mirror * np.array([scale * stretch, scale / stretch]))
    reach = 0.4 * extent * scale
    place = [rng.uniform(min(reach, size / 2), max(size - reach, size / 2)) for size in content[::-1]]
    centre = np.array([box[0] + box[2], box[1] + box[3]]) / 2
    return np.column_stack([linear, np.array(place) - linear @ centre])


def _warp(image: Pixels, matrix: npt.NDArray[np.float64], size: tuple[int, int]) -> Pixels:
    scale = float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    if scale < 0.7:  # against aliasing
        image = cv2.GaussianBlur(image, (0, 0), 0.45 / scale)
    warped: Pixels = cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR)
    return warped


def recolour(rng: np.random.Generator, image: Pixels) -> Pixels:
    """Change colours, light, sharpness and grain of a picture at random."""
    x: npt.NDArray[Any] = image.astype(np.float32)
    if rng.random() < 0.3:
        x = np.repeat((x @ rng.dirichlet(np.ones(3)).astype(np.float32))[..., None], 3, axis=2)
    if rng.random() < 0.4:
        x @= (np.eye(3) + rng.normal(0, 0.25, (3, 3))).astype(np.float32)
    if rng.random() < 0.2:
        x = 255 - x
    if rng.random() < 0.5:
        x = 255 * np.clip(x / 255, 0, 1) ** np.float32(np.exp(rng.normal(0, 0.4)))
    if rng.random() < 0.7:
        x = x * rng.uniform(0.7, 1.3, 3 if rng.random() < 0.5 else 1).astype(np.float32)
        x += rng.normal(0, 12, 3 if rng.random() < 0.5 else 1).astype(np.float32)
    if rng.random() < 0.2:
        light = cv2.resize(
            rng.standard_normal((3, 3)).astype(np.float32), x.shape[1::-1], interpolation=cv2.INTER_CUBIC
        )
        x = x * np.exp(0.25 * light)[..., None]
    if rng.random() < 0.2:
        x = cv2.GaussianBlur(x, (0, 0), rng.uniform(0.5, 2.0))
    if rng.random() < 0.3:
        grain = rng.standard_normal(x.shape[:2], dtype=np.float32)[..., None]
        x = x + grain * np.float32(rng.uniform(2, 15))
    if rng.random() < 0.3 or x.mean() < 10 or x.mean() > 245:  # stretched to the full range
        low, high = np.percentile(x[::4, ::4], [rng.uniform(0, 3), rng.uniform(97, 100)])
        x = (x - low) * (255 / max(high - low, 8))
    final: Pixels = np.clip(x, 0, 255).astype(np.uint8)
    return final
