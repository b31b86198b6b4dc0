"""Cleaning and prompts with scipy.ndimage and numpy: the obvious way and a fair peer."""

from __future__ import annotations

import numpy as np
from reference.components import clean_with_scipy
from scipy import ndimage

EIGHT = np.ones((3, 3), bool)


def clean(maps, config):
    """What stays of each class; a plain comparison where nothing can go."""
    thresholds = np.broadcast_to(config.threshold, len(maps)).astype(np.float32)
    if config.keep == "all" and config.min_area_px <= 1 and config.morphology is None:
        return maps > thresholds[:, None, None]
    how = {"keep": config.keep, "min_area_px": config.min_area_px, "morphology": config.morphology}
    each = [clean_with_scipy(p[None], t, **how) for p, t in zip(maps, thresholds, strict=True)]
    return np.concatenate(each) if each else np.zeros(maps.shape, bool)


def ranks(indices, seed):
    """The tie-breaking rank of each pixel index: MurmurHash3's finaliser keyed by splitmix64 of the seed."""
    bits = 2**64 - 1
    z = (seed + 0x9E3779B97F4A7C15) & bits
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & bits
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & bits
    h = indices.astype(np.uint32) ^ np.uint32((z ^ (z >> 31)) >> 32)
    h ^= h >> np.uint32(16)
    h *= np.uint32(0x85EBCA6B)
    h ^= h >> np.uint32(13)
    h *= np.uint32(0xC2B2AE35)
    return h ^ (h >> np.uint32(16))


def likeliest(p, mask, config):
    """(N, 2) xy of the likeliest pixels of a mask, best first."""
    indices = np.flatnonzero(mask)
    values = p.ravel()[indices]
    if config.spread_px == 0 and len(indices) > config.count:
        level = np.partition(values, -config.count)[-config.count]
        indices, values = indices[values >= level], values[values >= level]
    order = np.lexsort((~ranks(indices, config.seed), -values))
    rows, columns = np.divmod(indices[order], p.shape[1])
    found = np.stack([columns, rows], axis=1).astype(float)
    if config.spread_px == 0:
        return found[: config.count]
    points = []
    while len(found) and len(points) < config.count:
        points.append(found[0])
        far = ((found - found[0]) ** 2).sum(axis=1) >= config.spread_px**2
        far[0] = False
        found = found[far]
    return np.array(points)


def centre(exclusive, config):
    """(1, 2) xy of the centre of mass, or of the pixel nearest to it; (0, 2) where no pixel is exclusive."""
    rows, columns = np.nonzero(exclusive)
    if len(rows) == 0:
        return np.empty((0, 2))
    x, y = columns.mean(), rows.mean()
    if config.snap:
        nearest = np.argmin((columns - x) ** 2 + (rows - y) ** 2)
        x, y = columns[nearest], rows[nearest]
    return np.array([[x, y]], dtype=float)


def extract(maps, config):
    """(masks, sets): sets[c] is a list of (box, points, point_labels, own mask)."""
    masks = clean(maps, config)
    alone = masks.sum(axis=0) == 1 if config.points == "centre" else None
    found = []
    for c, (p, mask) in enumerate(zip(maps, masks, strict=True)):
        if not mask.any():
            continue
        own = [mask]
        if config.per_component:
            labels, count = ndimage.label(mask, structure=EIGHT)
            own = [labels == k for k in range(1, count + 1)]
        for part in own:
            points = np.empty((0, 2))
            if config.points == "likeliest":
                points = likeliest(p, part, config)
            elif config.points == "centre":
                points = centre(part & alone, config)
                if len(points) == 0:
                    continue
            rows, columns = np.flatnonzero(part.any(axis=1)), np.flatnonzero(part.any(axis=0))
            box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)
            found.append((c, box, points, part))
    sets = [[] for _ in maps]
    for c, box, points, part in found:
        negatives = []
        if config.negatives:
            for other, _, others, _ in found:
                if other == c:
                    continue
                for x, y in others:
                    if config.points == "likeliest" and masks[c][int(y), int(x)]:
                        continue
                    negatives.append((x, y))
        every = np.concatenate([points, np.array(negatives).reshape(-1, 2)]).astype(np.float32)
        labels = np.array([1] * len(points) + [0] * len(negatives), np.int32)
        sets[c].append((box, every, labels, part))
    return masks, sets


def mask_logits(p, threshold, own, limit):
    """logit(p), clipped; pixels above the threshold that are not the set's own get -limit."""
    with np.errstate(divide="ignore"):
        logits = np.log(p.astype(float)) - np.log1p(-p.astype(float))
    logits = np.clip(logits, -limit, limit)
    logits[(p > threshold) & ~own] = -limit
    return logits
