"""Made-up pictures with exact object masks, for training the embedded teacher.

They resemble no organ on purpose: what is to be learned is where a thing ends, whatever it looks like.
Each picture is a background, up to eight objects (or a partition of the plane into cells), distractors
that bear no label, and an imaging chain. All randomness comes from the generator that is passed in.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
SIZE = 256
MAX_OBJECTS = 8  # one bit plane each
LEAST_VISIBILITY = 1.1
_Y, _X = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)


def picture(rng: np.random.Generator) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Draw one picture.

    Returns
    -------
    tuple
        (256, 256, 3) uint8 RGB, (256, 256) uint8 in which bit k is the visible part of object k.
    """
    image, kind, least = background(rng), rng.random(), LEAST_VISIBILITY
    if kind < 0.25:
        image, masks = partition(rng, image)
    elif kind < 0.45:
        image, masks = chambers(rng, image)
        least /= 2  # where two touch, their outline is seen in part only
    else:
        image, masks = scattered(rng, image)
    final = np.clip(imaging(rng, image, masks), 0, 255).astype(np.uint8)
    return final, bit_planes(final, masks, least)


def bit_planes(
    image: npt.NDArray[np.uint8], masks: list[npt.NDArray[np.bool_]], least: float
) -> npt.NDArray[np.uint8]:
    """(256, 256) uint8 in which bit k is the k-th mask of those at least that visible in the picture."""
    blurred = cv2.GaussianBlur(image, (0, 0), 1.5).astype(np.float32)
    seen = [mask for mask in masks if mask.sum() >= 30 and visibility(blurred, mask) >= least]
    bits = np.zeros((SIZE, SIZE), np.uint8)
    for k, mask in enumerate(seen[:MAX_OBJECTS]):
        bits |= mask.astype(np.uint8) << k
    return bits


# --- fields and textures ------------------------------------------------------------------------------------


def smooth_noise(rng: np.random.Generator, cells_y: float, cells_x: float | None = None) -> Array:
    """(256, 256) float32 smooth noise of about unit deviation with that many bumps along each axis."""
    ny, nx = int(cells_y) + 3, int(cells_x if cells_x is not None else cells_y) + 3
    grid = rng.standard_normal((ny, nx)).astype(np.float32)
    field: Array = cv2.resize(grid, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    return field


def fractal(rng: np.random.Generator) -> Array:
    """(256, 256) float32 noise over several octaves with a random slope, zero mean and unit deviation."""
    slope, field = rng.uniform(0.35, 1.0), np.zeros((SIZE, SIZE), np.float32)
    stretch = np.exp(rng.normal(0, 0.4))
    for octave in range(rng.integers(1, 3), 8):
        cells = 2.0**octave
        field += slope**octave * smooth_noise(rng, min(cells * stretch, 250), min(cells / stretch, 250))
    return _standard(field)


def texture(rng: np.random.Generator) -> Array:
    """(256, 256) float32 texture of a random kind, zero mean and unit deviation."""
    kind = rng.integers(6)
    if kind <= 1:
        return fractal(rng)
    if kind == 2:  # flat cells
        labels, n = voronoi(rng, int(rng.integers(6, 300)))
        return _standard(rng.standard_normal(n + 1).astype(np.float32)[labels])
    if kind == 3:  # stripes
        angle, period = rng.uniform(0, np.pi), rng.uniform(4, 60)
        phase = (_X * np.cos(angle) + _Y * np.sin(angle)) * (2 * np.pi / period)
        return _standard(np.sin(phase + rng.uniform(0, 4) * smooth_noise(rng, rng.uniform(2, 8))))
    if kind == 4:  # spots
        spots = (rng.random((SIZE, SIZE)) < rng.uniform(0.0005, 0.02)).astype(np.float32)
        return _standard(cv2.GaussianBlur(spots, (0, 0), rng.uniform(1, 6)))
    grain = rng.standard_normal((SIZE, SIZE)).astype(np.float32)
    return _standard(cv2.GaussianBlur(grain, (0, 0), rng.uniform(0.5, 2.5), sigmaY=rng.uniform(0.5, 2.5)))


def voronoi(rng: np.random.Generator, seeds: int) -> tuple[npt.NDArray[np.int32], int]:
    """(256, 256) int32 numbers 1..n of the nearest seed, borders bent by a smooth displacement; and n."""
    empty = np.full((SIZE, SIZE), 255, np.uint8)
    empty[rng.integers(0, SIZE, seeds), rng.integers(0, SIZE, seeds)] = 0
    _, labels = cv2.distanceTransformWithLabels(empty, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    bend, cells = rng.uniform(0, 0.35) * SIZE / seeds**0.5, seeds**0.5 * rng.uniform(1, 3)
    shifted = [axis + bend * smooth_noise(rng, cells) for axis in (_X, _Y)]
    labels = cv2.remap(
        labels.astype(np.float32), shifted[0], shifted[1], cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE
    )
    numbers: npt.NDArray[np.int32] = labels.astype(np.int32)
    return numbers, int(numbers.max())


def _standard(field: Array) -> Array:
    standard: Array = ((field - field.mean()) / (field.std() + 1e-6)).astype(np.float32)
    return standard


def colour(rng: np.random.Generator) -> Array:
    """(3,) float32 RGB, often grey or flesh."""
    kind = rng.random()
    if kind < 0.4:
        return np.full(3, rng.uniform(10, 240), np.float32)
    if kind < 0.6:
        red = rng.uniform(90, 230)
        return np.array([red, red * rng.uniform(0.3, 0.8), red * rng.uniform(0.2, 0.7)], np.float32)
    return rng.uniform(5, 250, 3).astype(np.float32)


def direction(rng: np.random.Generator) -> Array:
    """(3,) float32 unit direction in RGB, mostly along grey."""
    vector = np.ones(3) + rng.normal(0, rng.choice([0.0, 0.3, 1.0]), 3)
    vector *= rng.choice([-1, 1]) * np.sqrt(3) / np.linalg.norm(vector)
    return vector.astype(np.float32)


def background(rng: np.random.Generator) -> Array:
    """(256, 256, 3) float32 of a base colour and up to three textures and a gradient."""
    image = np.broadcast_to(colour(rng), (SIZE, SIZE, 3)).copy()
    for _ in range(rng.integers(0, 4)):
        image += np.exp(rng.uniform(np.log(2), np.log(35))) * texture(rng)[..., None] * direction(rng)
    if rng.random() < 0.5:
        image += rng.uniform(5, 50) * smooth_noise(rng, 0)[..., None] * direction(rng)
    for _ in range(rng.integers(0, 6) if rng.random() < 0.3 else 0):  # vessels
        line = tube(rng, rng.uniform(0, SIZE, 2), rng.uniform(60, 300), rng.uniform(1, 6))
        image += cv2.GaussianBlur(line.astype(np.float32), (0, 0), 0.8)[..., None] * (
            rng.uniform(-50, 50) * direction(rng)
        )
    return image


# --- shapes -------------------------------------------------------------------------------------------------


def tube(
    rng: np.random.Generator, start: npt.NDArray[np.float64], length: float, radius: float
) -> npt.NDArray[np.bool_]:
    """(256, 256) bool of a bending line of that length and half width."""
    angle = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, rng.uniform(0.05, 0.5), 12))
    path = start + np.cumsum(np.stack([np.cos(angle), np.sin(angle)], 1) * (length / 12), axis=0)
    canvas = np.zeros((SIZE, SIZE), np.uint8)
    cv2.polylines(canvas, [path.astype(np.int32)[:, None]], False, 1, thickness=max(1, int(2 * radius)))
    return canvas > 0


def shape(rng: np.random.Generator, centre: npt.NDArray[np.float64], extent: float) -> npt.NDArray[np.bool_]:
    """(256, 256) bool of one random shape about `extent` pixels across."""
    kind = rng.random()
    aspect = np.exp(rng.normal(0, 0.35))
    a, b = extent / 2 * min(1, aspect), extent / 2 * min(1, 1 / aspect)
    turn = rng.uniform(0, np.pi)
    dx, dy = _X - np.float32(centre[0]), _Y - np.float32(centre[1])
    u = (dx * np.cos(turn) + dy * np.sin(turn)) / max(a, 2)
    v = (-dx * np.sin(turn) + dy * np.cos(turn)) / max(b, 2)
    rho = np.sqrt(u * u + v * v)
    if kind < 0.12:
        mask = rho < 1
    elif kind < 0.5:  # an outline of a few harmonics
        theta, radius = np.arctan2(v, u), np.ones((SIZE, SIZE), np.float32)
        wild = rng.uniform(0.05, 0.6)
        for k in range(2, rng.integers(4, 10)):
            radius += wild / k * rng.normal() * np.cos(k * theta + rng.uniform(0, 2 * np.pi))
        mask = rho < radius
    elif kind < 0.72:  # a level set
        cells = SIZE / extent * rng.uniform(1.5, 6)
        mask = rho**2 < 1 + rng.uniform(0.2, 0.8) * smooth_noise(rng, min(cells, 200))
    elif kind < 0.86:  # a few discs grown together
        field = np.zeros((SIZE, SIZE), np.float32)
        for _ in range(rng.integers(2, 6)):
            o = rng.normal(0, 0.5, 2)
            field += np.exp(-((u - o[0]) ** 2 + (v - o[1]) ** 2) / rng.uniform(0.08, 0.4))
        mask = field > 0.5
    elif kind < 0.93:  # a sickle or a bean
        cut = np.hypot(u - rng.uniform(0.4, 1.0), v - rng.normal(0, 0.3)) < rng.uniform(0.4, 0.9)
        mask = (rho < 1) & ~cut
    else:
        mask = tube(rng, centre - extent / 4, extent * rng.uniform(0.6, 1.3), extent * rng.uniform(0.06, 0.2))
    if rng.random() < 0.25:  # with an arm
        mask = mask | tube(
            rng, centre, extent * rng.uniform(0.4, 0.9), max(1.0, extent * rng.uniform(0.04, 0.12))
        )
    return largest(mask)


def largest(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Keep the largest component, its holes filled."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    canvas = np.zeros(mask.shape, np.uint8)
    if contours:
        cv2.drawContours(canvas, [max(contours, key=cv2.contourArea)], -1, 1, thickness=cv2.FILLED)
    return canvas > 0


# --- objects ------------------------------------------------------------------------------------------------


def scattered(rng: np.random.Generator, image: Array) -> tuple[Array, list[npt.NDArray[np.bool_]]]:
    """Paint one to eight objects one over the other, some of them hollow with another inside."""
    n = int(rng.choice([1, 2, 3, 5, 8], p=[0.3, 0.2, 0.2, 0.15, 0.15]))
    top = {1: 0.9, 2: 0.7, 3: 0.6, 5: 0.45, 8: 0.3}[n]
    shared = Style(rng) if rng.random() < 0.6 else None
    masks: list[npt.NDArray[np.bool_]] = []
    for _ in range(n):
        extent = SIZE * np.exp(rng.uniform(np.log(0.35 * top), np.log(top)))
        mask = shape(rng, rng.uniform(0.1, 0.9, 2) * SIZE, extent)
        if mask.sum() < 40 or (
            rng.random() < 0.7 and any((mask & m).sum() > 0.15 * mask.sum() for m in masks)
        ):
            continue
        inside = rng.random() < 0.15
        style = shared if shared is not None and rng.random() < 0.8 else Style(rng)
        image = style.paint(rng, image, mask)
        masks = [m & ~mask for m in masks]
        masks.append(mask)
        if inside and mask.sum() > 800:  # a kernel: part of the object, and an object too
            y, x = np.nonzero(mask)
            pick = rng.integers(len(y))
            kernel = shape(rng, np.array([x[pick], y[pick]], float), extent * rng.uniform(0.2, 0.5)) & mask
            if kernel.sum() > 60:
                image = Style(rng).paint(rng, image, kernel)
                masks.append(kernel)
    for _ in range(rng.integers(0, 3)):  # unlabelled things, in front of the objects too
        if rng.random() < 0.3:
            thing = tube(rng, rng.uniform(0, SIZE, 2), rng.uniform(30, 250), rng.uniform(1, 4))
            image = Style(rng).paint(rng, image, thing)
    return image, [m for m in masks if m.sum() >= 30]


def partition(rng: np.random.Generator, image: Array) -> tuple[Array, list[npt.NDArray[np.bool_]]]:
    """Divide the plane into cells of a few grey levels with walls between, as tissue in a slice is."""
    labels, _ = voronoi(rng, int(rng.integers(6, 28)))
    levels = [Style(rng, plain=True) for _ in range(rng.integers(2, 5))]
    masks = []
    for k in rng.permutation(np.unique(labels)):
        mask = labels == k
        if rng.random() < 0.15 or mask.sum() < 60:
            continue
        gap = int(rng.integers(0, 4))
        if gap:
            mask = cv2.erode(mask.astype(np.uint8), np.ones((gap, gap), np.uint8)) > 0
        if rng.random() < 0.6:  # rounder
            sigma = 0.12 * np.sqrt(max(mask.sum(), 1)) * rng.uniform(0.3, 1.5)
            mask = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), max(sigma, 0.5)) > 0.5
        mask = largest(mask)
        if mask.sum() < 60:
            continue
        image = levels[rng.integers(len(levels))].paint(rng, image, mask)
        masks.append(mask)
    order = rng.permutation(len(masks))[:MAX_OBJECTS]
    return image, [masks[i] for i in order]


def chambers(rng: np.random.Generator, image: Array) -> tuple[Array, list[npt.NDArray[np.bool_]]]:
    """Paint blobs of one colour that touch one another, the walls between them thin and in part missing."""
    style, masks = Style(rng, plain=True), list[npt.NDArray[np.bool_]]()
    style.relative, style.colour = (
        False,
        image.mean(axis=(0, 1)) + max(45.0, rng.normal(90, 30)) * direction(rng),
    )
    style.opacity, style.fade, style.texture = 1.0, 0.0, style.texture * 0.5
    taken = np.zeros((SIZE, SIZE), np.uint8)
    centre, extent = rng.uniform(0.3, 0.7, 2) * SIZE, SIZE * rng.uniform(0.2, 0.6)
    for _ in range(rng.integers(2, 8)):
        wall = int(rng.integers(1, 7))
        grown = cv2.dilate(taken, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * wall + 1, 2 * wall + 1)))
        mask = largest(shape(rng, centre, extent) & (grown == 0))
        mask = largest(cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 0.02 * extent + 0.5) > 0.5)
        if mask.sum() >= 80:
            masks.append(mask)
            taken |= mask.astype(np.uint8)
        before, extent = extent, SIZE * rng.uniform(0.15, 0.55)
        angle, reach = rng.uniform(0, 2 * np.pi), 0.5 * (before + extent) * rng.uniform(0.6, 1.0)
        centre = np.clip(centre + reach * np.array([np.cos(angle), np.sin(angle)]), 0, SIZE)
    image = style.paint(rng, image, taken > 0)
    if rng.random() < 0.6:  # openings in the walls
        closed = cv2.morphologyEx(taken, cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8)) > 0
        walls = closed & (taken == 0) & (smooth_noise(rng, 5) > rng.uniform(0, 1))
        alpha = cv2.GaussianBlur(walls.astype(np.float32), (0, 0), 1.0)[..., None]
        image = image + alpha * (style.colour - image)
    return image.astype(np.float32), masks


class Style:
    """How objects of one kind are painted: colour, opacity, texture, shading, rim, edge."""

    def __init__(self, rng: np.random.Generator, *, plain: bool = False) -> None:
        self.relative = rng.random() < (0.3 if plain else 0.65)
        self.contrast = np.exp(rng.uniform(np.log(10), np.log(110))) * direction(rng)
        if not plain and rng.random() < 0.15:
            self.contrast = self.contrast * 0.15  # seen by its texture, its shading or its rim alone
        self.colour = colour(rng)
        self.opacity = float(rng.choice([1.0, rng.uniform(0.5, 1.0)]))
        self.texture = np.exp(rng.uniform(np.log(1), np.log(25))) * direction(rng)
        self.field = texture(rng)
        self.shade = 0.0 if plain else float(rng.choice([0.0, rng.uniform(10, 70)]))
        self.shade_width = rng.uniform(0.05, 0.4)
        self.rim = rng.uniform(-70, 70) * direction(rng) if rng.random() < 0.35 else None
        self.rim_width = np.exp(rng.uniform(np.log(0.8), np.log(5)))
        self.edge = np.exp(rng.uniform(np.log(0.4), np.log(3.5)))
        self.fade = rng.uniform(0, 0.9) if rng.random() < 0.3 else 0.0
        self.shadow = rng.uniform(-60, 20) if rng.random() < 0.25 and not plain else 0.0

    def paint(self, rng: np.random.Generator, image: Array, mask: npt.NDArray[np.bool_]) -> Array:
        """Return the image with the object on it."""
        if not mask.any():
            return image
        solid = mask.astype(np.float32)
        extent = float(np.sqrt(mask.sum())) + 1.0
        alpha = cv2.GaussianBlur(solid, (0, 0), min(self.edge, 0.1 * extent + 0.3))
        if self.shadow:
            width = 0.1 * extent * rng.uniform(0.5, 2)
            near = cv2.GaussianBlur(solid, (0, 0), max(width, 0.5))
            near = np.roll(near, tuple(int(s) for s in rng.normal(0, width, 2)), axis=(0, 1))
            image = image + self.shadow * (near * (1 - alpha))[..., None]
        around = image[mask].mean(axis=0)
        target = (around + self.contrast if self.relative else self.colour) + rng.normal(0, 4)
        body = np.where(self.relative, image + self.contrast, target).astype(np.float32)
        body = self.opacity * (0.5 * body + 0.5 * target) + (1 - self.opacity) * image
        body = (
            body + np.roll(self.field, tuple(rng.integers(0, SIZE, 2)), axis=(0, 1))[..., None] * self.texture
        )
        if self.shade:
            height = cv2.GaussianBlur(solid, (0, 0), max(self.shade_width * extent, 0.7))
            angle = rng.uniform(0, 2 * np.pi)
            slope = np.cos(angle) * cv2.Sobel(height, -1, 1, 0) + np.sin(angle) * cv2.Sobel(height, -1, 0, 1)
            light = slope / (np.abs(slope).max() + 1e-6) + rng.uniform(0, 1) * (height - 0.5)
            body = body + self.shade * light[..., None]
        if self.fade:
            angle = rng.uniform(0, 2 * np.pi)
            ramp = ((_X - SIZE / 2) * np.cos(angle) + (_Y - SIZE / 2) * np.sin(angle)) / extent
            centre = ramp[mask].mean()
            alpha = alpha * (1 - self.fade / (1 + np.exp(-4 * (ramp - centre))))
        image = image + alpha[..., None] * (body - image)
        if self.rim is not None:
            band = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
            band = cv2.GaussianBlur(band.astype(np.float32), (0, 0), self.rim_width)
            band *= np.clip(0.5 + rng.uniform(0, 1) * smooth_noise(rng, 4), 0, 1) / (band.max() + 1e-6)
            image = image + band[..., None] * self.rim
        return image.astype(np.float32)


# --- imaging ------------------------------------------------------------------------------------------------


def visibility(image: Array, mask: npt.NDArray[np.bool_]) -> float:
    """How well colours tell the rim inside an outline from the rim outside: d', deviations between the means.

    An object below about 1 is guesswork: it teaches the ellipse in the box and drowns what can be learned.
    """
    reach = max(2, int(0.06 * float(mask.sum()) ** 0.5))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    solid = mask.astype(np.uint8)
    inside = image[mask & (cv2.erode(solid, kernel) == 0)]
    outside = image[(cv2.dilate(solid, kernel) > 0) & ~mask]
    if len(inside) < 5 or len(outside) < 5:
        return 0.0
    apart = inside.mean(axis=0) - outside.mean(axis=0)
    spread = (np.cov(inside.T) + np.cov(outside.T)) / 2 + 9 * np.eye(3)  # 9: the square of a faint difference
    return float(np.sqrt(apart @ np.linalg.solve(spread, apart)))


def imaging(rng: np.random.Generator, image: Array, masks: list[npt.NDArray[np.bool_]]) -> Array:
    """Highlights, uneven light, shadows, a dark surround, blur, grain, coarse sampling and compression."""
    if rng.random() < 0.25:  # highlights
        for _ in range(rng.integers(1, 12)):
            centre = rng.uniform(0, SIZE, 2)
            if masks and rng.random() < 0.5:
                y, x = np.nonzero(masks[rng.integers(len(masks))])
                pick = rng.integers(len(y))
                centre = np.array([x[pick], y[pick]], float)
            spot = shape(rng, centre, rng.uniform(3, 22)).astype(np.float32)
            image = image + cv2.GaussianBlur(spot, (0, 0), rng.uniform(0.5, 2))[..., None] * rng.uniform(
                60, 255
            )
    if rng.random() < 0.5:
        image = (
            image * np.exp(rng.uniform(0.05, 0.4) * smooth_noise(rng, float(rng.integers(0, 3))))[..., None]
        )
    if rng.random() < 0.15:  # acoustic shadows
        for _ in range(rng.integers(1, 4)):
            place, width = rng.uniform(0, SIZE), rng.uniform(5, 50)
            ray = np.exp(-(((_X - place - rng.normal(0, 0.2) * _Y) / width) ** 2))
            ray *= rng.uniform(0, SIZE * 0.7) < _Y
            image = image * (1 - rng.uniform(0.2, 0.9) * ray)[..., None]
    if rng.random() < 0.3:  # speckle
        grain = cv2.GaussianBlur(
            rng.standard_normal((SIZE, SIZE)).astype(np.float32),
            (0, 0),
            rng.uniform(0.5, 2),
            sigmaY=rng.uniform(0.5, 1.2),
        )
        image = image * np.exp(rng.uniform(0.1, 0.7) * _standard(grain))[..., None]
    if rng.random() < 0.15:  # a dark surround
        inner = np.hypot(_X - rng.normal(128, 15), _Y - rng.normal(128, 15)) / rng.uniform(115, 175)
        image = image * np.clip((1.05 - inner) * 20, 0, 1)[..., None] + rng.uniform(0, 15)
    if rng.random() < 0.35:
        small = int(SIZE * rng.uniform(0.25, 0.8))
        image = cv2.resize(cv2.resize(image, (small, small), interpolation=cv2.INTER_AREA), (SIZE, SIZE))
    if rng.random() < 0.35:
        image = cv2.GaussianBlur(image, (0, 0), np.exp(rng.uniform(np.log(0.4), np.log(2.5))))
    if rng.random() < 0.6:
        image = image + rng.standard_normal((SIZE, SIZE, 1 if rng.random() < 0.5 else 3)).astype(
            np.float32
        ) * np.exp(rng.uniform(np.log(1), np.log(18)))
    if rng.random() < 0.4:
        image = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2)
    if rng.random() < 0.25:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 90))]
        packed = cv2.imencode(".jpg", np.clip(image, 0, 255).astype(np.uint8), quality)[1]
        image = np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR), dtype=np.float32)
    return image
