"""The random walker as a refiner: the baseline without a teacher (SAM Carries the Burden, experiments)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from samdistill.arrays import Image, Mask, ProbabilityMaps
from samdistill.components import clean, label
from samdistill.metrics import dice_per_class
from samdistill.prompts import Prompts
from samdistill.refine import RefineConfig, Refinement


class RandomWalkerRefiner:
    """The baseline of SAM Carries the Burden: a random walker seeded from the student's cleaned mask.

    Seeds are what is far inside and what is far outside the mask, by `margin` of the square root of the area
    of the component that is nearest; between them the walker (Grady 2006, scikit-image's) decides by the
    image's edges. Every component keeps a seed.

    Parameters
    ----------
    config
        Its prompts' cleaning is used.
    margin
        Half the width of the undecided band, over the square root of the component's area.
    beta
        How much an edge hinders.
    """

    def __init__(self, config: RefineConfig, *, margin: float = 0.1, beta: float = 130.0) -> None:
        self._config, self._margin, self._beta = config, margin, beta

    def __call__(
        self, indices: Sequence[int], images: Sequence[Image], maps: Sequence[ProbabilityMaps]
    ) -> list[Refinement]:
        """Class by class."""
        return [self._one(image, own) for image, own in zip(images, maps, strict=True)]

    def _one(self, image: Image, maps: ProbabilityMaps) -> Refinement:
        from skimage.segmentation import random_walker  # type: ignore[import-untyped,unused-ignore]

        how = self._config.prompts
        student = clean(
            maps,
            threshold=how.threshold,
            keep=how.keep,
            min_area_px=how.min_area_px,
            morphology=how.morphology,
        )
        masks = student.copy()
        agreement = np.full(len(masks), np.nan, np.float32)
        for number, mask in enumerate(student):
            if not mask.any() or mask.all():
                continue
            seeds = self._seeds(mask)
            # An image of one colour has no edge to decide by, and the walker's weights would be NaN.
            if image.min() < image.max() and (seeds == 2).any() and (seeds == 0).any():
                # Solved exactly: iterations end far from the solution where beta is large, and take longer.
                walked = random_walker(
                    image.astype(np.float64) / 255, seeds, beta=self._beta, mode="bf", channel_axis=-1
                )
                masks[number] = walked == 1
            agreement[number] = dice_per_class(masks[number : number + 1], mask[None])[0]
        nothing: list[list[Prompts]] = [[] for _ in masks]
        return Refinement(
            masks,
            student,
            nothing,
            np.full(len(masks), np.nan, np.float32),
            agreement,
        )

    def _seeds(self, mask: Mask) -> npt.NDArray[np.int32]:
        """(H, W): 1 surely inside, 2 surely outside, 0 to be decided."""
        from scipy.ndimage import distance_transform_edt, maximum

        found = label(mask)
        numbers = np.arange(1, len(found) + 1)
        inside = distance_transform_edt(mask)
        outside, nearest = distance_transform_edt(~mask, return_indices=True)
        bands = np.maximum(1.0, self._margin * np.sqrt(found.area_px))
        # The very middle of a component is a seed however small it is: without one it would be background.
        middles = maximum(inside, found.labels, numbers) - 0.5
        own = found.labels[tuple(nearest)] - 1
        seeds = np.zeros(mask.shape, np.int32)
        seeds[mask & (inside > np.minimum(bands, middles)[own])] = 1
        seeds[outside > bands[own]] = 2
        return seeds
