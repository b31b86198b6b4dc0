"""A labelled image with everything that rules are fitted to: the bundle's answers and how right they are."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from samdistill.arrays import Masks
from samdistill.evaluation import channel_order
from samdistill.export.fit_calibration import Pixels
from samdistill.export.fit_rules import Vector
from samdistill.geometry import ModelFrame
from samdistill.io.dataset import Case
from samdistill.manifest_quality import Reference
from samdistill.metrics import dice_per_class, found_classes
from samdistill.predictor import Predictor
from samdistill.quality import Numbers, sampled, shape_numbers
from samdistill.refined import Refined


@dataclass(frozen=True, eq=False)
class Seen:
    """A labelled validation image with the bundle's answers; nothing of it is of the image's own size.

    Attributes
    ----------
    group
        Of the case.
    frame, pixels, logits
        The student's input and output, see `judging.look`.
    masks, refined_masks
        (C, h, w) bool, model frame, the student's, and those of mode "refine" where the bundle has a teacher.
    refined
        What came of asking the teacher, without the prompts.
    dice, refined_dice
        (C,) of both.
    found, refined_found
        (C,) bool, `metrics.found_classes` of both.
    empty
        Whether the student found nothing.
    shapes
        `quality.shape_numbers` of the truth.
    """

    group: str
    frame: ModelFrame
    pixels: npt.NDArray[np.uint8]
    logits: npt.NDArray[np.float32]
    masks: Masks
    dice: Vector
    found: npt.NDArray[np.bool_]
    empty: bool
    shapes: Numbers
    refined_masks: Masks | None = None
    refined: Refined | None = None
    refined_dice: Vector | None = None
    refined_found: npt.NDArray[np.bool_] | None = None


def see(predictor: Predictor, case: Case, pixels: Pixels, reference: Reference) -> Seen | None:
    """Predict a case, and give its pixels to the calibration; None where all of its pixels are ignored.

    `reference` is what its shapes are off from.
    """
    raw = case.read_image()
    image = predictor.manifest.intensity.apply(raw)
    truth, ignored = case.read_labels()
    if ignored.all():
        return None
    truth = truth[channel_order(case, predictor.class_names)]
    contract = predictor.manifest.input
    frame = ModelFrame.of((image.shape[0], image.shape[1]), contract.size, contract.multiple)
    own = frame.pixels(image)
    logits = predictor.student_logits(own[None])[0]
    answer = predictor.predict(raw)
    pixels.add(answer.probability_maps, truth, ignored)
    dice = dice_per_class(answer.masks, truth, ignore=ignored)
    seen = Seen(
        case.group,
        frame,
        own,
        logits,
        sampled(answer.masks, frame.size),
        dice,
        found_classes(answer.masks, truth, ignore=ignored),
        not answer.masks.any(),
        shape_numbers(truth, reference),
    )
    if predictor.manifest.teacher is None:
        return seen
    asked = predictor.predict(raw, "refine")
    assert asked.refined is not None
    return replace(
        seen,
        refined_masks=sampled(asked.masks, frame.size),
        refined=replace(asked.refined, prompts=()),
        refined_dice=dice_per_class(asked.masks, truth, ignore=ignored),
        refined_found=found_classes(asked.masks, truth, ignore=ignored),
    )
