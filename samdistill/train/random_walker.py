"""The random walker as a refiner: the baseline without a teacher (SAM Carries the Burden, experiments)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from samdistill.arrays import Image, ProbabilityMaps
from samdistill.components import clean
from samdistill.metrics import dice_per_class
from samdistill.prompts import Prompts
from samdistill.refine import RefineConfig, Refinement


class RandomWalkerRefiner:
    """The baseline of SAM Carries the Burden: a random walker seeded from the student's cleaned mask.

    Seeds are what is far inside and what is far outside the mask, by `margin` of the square root of its area;
    between them the walker (Grady 2006, scikit-image's) decides by the image's edges.

    Parameters
    ----------
    config
        Its prompts' cleaning is used.
    margin
        Half the width of the undecided band, over the square root of the mask's area.
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
        from scipy.ndimage import distance_transform_edt
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
            band = max(1.0, self._margin * float(np.sqrt(mask.sum())))
            inside, outside = distance_transform_edt(mask), distance_transform_edt(~mask)
            seeds = np.zeros(mask.shape, np.int32)
            # The very middle is a seed however small the mask is.
            seeds[inside > min(band, float(inside.max()) - 0.5)] = 1
            seeds[outside > band] = 2
            # An image of one colour has no edge to decide by, and the walker's weights would be NaN.
            if image.min() < image.max() and (seeds == 2).any() and (seeds == 0).any():
                gray = image.astype(np.float64) / 255
                walked = random_walker(
                    gray, seeds, beta=self._beta, mode="cg_j", tol=1e-4, prob_tol=0.05, channel_axis=-1
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
