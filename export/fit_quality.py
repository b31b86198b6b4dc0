"""Fits what a bundle knows of its own errors, on the run's validation images, by the very bundle.

Temperatures, the score and its thresholds, and what training images are like. Every figure that is told of a
rule comes from images it was not fitted on. What cannot be fitted is left out or says so; nothing is made up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from samdistill import quality
from samdistill.components import label
from samdistill.errors import InputRejected
from samdistill.evaluation import channel_order
from samdistill.export.fit_calibration import Pixels, fit_calibration
from samdistill.export.fit_routing import fit_routing
from samdistill.export.fit_rules import (
    LEAST_GROUPS,
    LEAST_SPREAD,
    Numbers,
    bounds,
    fit_best,
    out_of_fold,
    value_of,
)
from samdistill.export.fit_seen import Seen, see
from samdistill.export.pieces import Progress
from samdistill.geometry import ModelFrame
from samdistill.io.dataset import Case
from samdistill.judging import Look, look, teacher_numbers
from samdistill.manifest_quality import (
    LEAST_DICE,
    RISING_NUMBERS,
    STUDENT_NUMBERS,
    UNLIKE_NUMBERS,
    Calibration,
    ClassRange,
    QualityRule,
    Reference,
    RoutingRule,
    ScoreRule,
)
from samdistill.metrics import found_dice
from samdistill.predictor import Predictor
from samdistill.quality import CUT
from samdistill.refined import average

LEVEL = 0.2  # share of cases that may lie beyond a bound of the score
MARGIN = 1.25  # an input may be so much farther from the training images than the farthest validation image
FLOORS = {"area_off": 0.5, "components_off": 1.0}  # the limits of shapes are never below these
MOST_EMBEDDED = 32  # training images; a large encoder takes seconds for each
OF_STUDENT = (
    ("confidence",),
    ("confidence", "sharpness"),
    ("confidence", "sharpness", "expected_dice"),
    STUDENT_NUMBERS,
)
OF_REFINED = (
    ("predicted_iou",),
    ("predicted_iou", "agreement"),
    ("predicted_iou", "agreement", "confidence"),
    ("predicted_iou", "agreement", *STUDENT_NUMBERS),
)


@dataclass(frozen=True)
class Fitted:
    """What goes into the manifest; None where there was nothing to fit it on."""

    calibration: Calibration | None = None
    quality: QualityRule | None = None
    routing: RoutingRule | None = None


def fit(predictor: Predictor, cases: Sequence[Case], training: Sequence[Case], progress: Progress) -> Fitted:
    """Fit everything on labelled validation cases.

    Parameters
    ----------
    predictor
        The bundle, as far as it is.
    cases
        Validation cases; those without labels do not count.
    training
        Labelled training cases, for what images and labels are like.

    Raises
    ------
    InputRejected
        When a file cannot be read, or there are labelled validation cases and no labelled training ones.
    """
    labelled = [case for case in cases if case.labelled]
    known = [case for case in training if case.labelled]
    if not labelled:
        progress.on_message("no labelled validation image: no calibration, no quality, no mode auto")
        return Fitted()
    if not known:
        raise InputRejected("the run must have labelled training images to tell what is unlike them.")
    progress.on_message(f"fitting calibration, quality and routing on {len(labelled)} validation images")
    reference = _reference(predictor, known)
    pixels, seen = Pixels(), []
    for done, case in enumerate(labelled):
        progress.on_case(done, len(labelled))
        one = see(predictor, case, pixels, reference)
        if one is not None:
            seen.append(one)
    progress.on_case(len(labelled), len(labelled))
    if len(seen) < len(labelled):
        progress.on_message(f"{len(labelled) - len(seen)} of them do not count: all their pixels are ignored")
    if not seen:
        progress.on_message("no validation image counts: no calibration, no quality, no mode auto")
        return Fitted()
    calibration, notes = fit_calibration(pixels, predictor.class_names)
    for note in notes:
        progress.on_message(note)
    looks = [look(one.frame, one.pixels, one.logits, one.masks, calibration.temperatures) for one in seen]
    dice = [found_dice(one.dice, one.found) for one in seen]
    rule = QualityRule(
        LEAST_DICE,
        _score([one.numbers for one in looks], dice, seen, OF_STUDENT),
        reference,
        _limits(reference, looks, seen),
        _refined_score(looks, seen),
    )
    if rule.student is None:
        progress.on_message(f"validation images of fewer than {LEAST_GROUPS} patients: no score, no flag")
    elif rule.refined is None and predictor.manifest.teacher is not None:
        progress.on_message(f"the teacher's masks for fewer than {LEAST_GROUPS} patients: no score of such")
    routing = None if predictor.manifest.teacher is None else fit_routing(looks, seen)
    if routing is not None:
        progress.on_message(f"mode auto: {routing.reason}")
    return Fitted(calibration, rule, routing)


def _reference(predictor: Predictor, training: Sequence[Case]) -> Reference:
    """What the training images and labels are like."""
    contract, shapes, histograms, embeddings = predictor.manifest.input, [], [], []
    every = max(1, -(-len(training) // MOST_EMBEDDED))
    for number, case in enumerate(training):
        image = predictor.manifest.intensity.apply(case.read_image())
        frame = ModelFrame.of((image.shape[0], image.shape[1]), contract.size, contract.multiple)
        height, width = frame.size
        histograms.append(quality.intensity_histogram(frame.pixels(image)[:, :height, :width]))
        masks = case.read_labels()[0][channel_order(case, predictor.class_names)]
        shapes.append([(float(mask.mean()), len(label(mask))) for mask in masks])
        if predictor.manifest.teacher is not None and number % every == 0:
            embeddings.append(average(predictor.teacher().embed([image])[0]))
    ranges = []
    for channel in range(len(predictor.class_names)):
        areas, counts = zip(*(one[channel] for one in shapes), strict=True)
        ranges.append(ClassRange((min(areas), max(areas)), (min(counts), max(counts))))
    reference = Reference(len(training), tuple(ranges), tuple(map(float, np.mean(histograms, axis=0))))
    if not embeddings:
        return reference
    mean, spread = np.mean(embeddings, axis=0), np.std(embeddings, axis=0)
    # A channel that hardly varies over a few images must not outweigh all others.
    scale = np.maximum(spread, max(float(np.median(spread)), 1e-6))
    return replace(
        reference,
        embedding_mean=tuple(map(float, mean)),
        embedding_scale=tuple(map(float, scale)),
    )


def _limits(reference: Reference, looks: Sequence[Look], seen: Sequence[Seen]) -> dict[str, float]:
    """What the validation images and their true masks reach, and a little more."""
    limits = {name: max(floor, *(one.shapes[name] for one in seen)) for name, floor in FLOORS.items()}
    distances = [quality.intensity_distance(one.intensity, reference.intensity) for one in looks]
    limits["intensity_distance"] = MARGIN * max(distances)
    mean, scale = reference.embedding_mean, reference.embedding_scale
    if mean is not None and scale is not None:
        embedded = [
            quality.embedding_distance(one.refined.embedding, mean, scale)
            for one in seen
            if one.refined is not None and one.refined.embedding is not None
        ]
        if embedded:
            limits["embedding_distance"] = MARGIN * max(embedded)
    assert set(limits) <= set(UNLIKE_NUMBERS)
    return limits


def _score(
    rows: Sequence[Numbers], dice: Sequence[float], seen: Sequence[Seen], candidates: Sequence[Sequence[str]]
) -> ScoreRule | None:
    """The score, and from its errors on images it was not fitted on the thresholds of the flags.

    None where these are of too few groups; the fewer they are, the fewer numbers has the rule.
    """
    target = np.array(dice)
    groups = [one.group for one in seen]
    allowed = [names for names in candidates if len(names) * LEAST_GROUPS <= len(set(groups))]
    if not allowed:
        return None

    def fit_on(indices: Sequence[int]) -> Callable[[int], float]:
        own = [groups[i] for i in indices]
        rule = fit_best([rows[i] for i in indices], target[list(indices)], own, allowed, RISING_NUMBERS)
        return lambda i: min(max(value_of(rule, rows[i]), 0.0), 1.0)

    errors = target - out_of_fold(groups, fit_on)
    rule = fit_best(rows, target, groups, allowed, RISING_NUMBERS)
    rmse = float(np.sqrt(np.mean(errors**2)))
    known = bounds(errors, LEVEL)
    assert known is not None  # LEAST_GROUPS images are as few as have bounds
    accept, reject = (LEAST_DICE - bound for bound in known)
    return ScoreRule(rule, len(rows), rmse, accept, reject, _least(rows))


def _least(rows: Sequence[Numbers]) -> dict[str, float]:
    """The least of each number of which more is better: where a rule cuts it, or what these images reach.

    Of what lies below a rule knows nothing: where validation images are alike and all good, its weights are
    so small that no answer, however bad, has a low score.
    """
    least = {}
    for name in RISING_NUMBERS:
        if name in rows[0]:
            values = np.array([row[name] for row in rows])
            cut = values.mean() - CUT * max(values.std(), LEAST_SPREAD)
            least[name] = float(min(values.min(), cut))
    return least


def _refined_score(looks: Sequence[Look], seen: Sequence[Seen]) -> ScoreRule | None:
    """The score of images of which a mask is the teacher's; None where too few are."""
    rows, dice, own = [], [], []
    for view, one in zip(looks, seen, strict=True):
        if one.refined is None or one.refined_masks is None:
            continue
        assert one.refined_dice is not None and one.refined_found is not None
        if one.refined.any:
            told = teacher_numbers(one.refined).items()
            known = {name: value for name, value in told if value is not None}
            rows.append({**view.numbers_of(one.refined_masks), **known})
            dice.append(found_dice(one.refined_dice, one.refined_found))
            own.append(one)
    return _score(rows, dice, own, OF_REFINED)
