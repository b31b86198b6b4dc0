"""The sections of samdistill's reports: an evaluation, its cases, the course of a training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from samdistill.errors import InputRejected
from samdistill.evaluation import CaseScores, Evaluation, Predicts, predictions
from samdistill.intensity import IntensityRule
from samdistill.io.dataset import Case
from samdistill.manifest import Manifest
from samdistill.report.charts import Series, histogram, line_chart
from samdistill.report.document import Section, facts, number, paragraph, table
from samdistill.report.gallery import PREDICTION, TRUTH, draw_picture, gallery
from samdistill.report.gallery import Case as Entry
from samdistill.report.overlay import COLOURS, Colour
from samdistill.report.trust_page import trust_sections
from samdistill.statistics import Estimate

WORST, BEST = 24, 12  # cases shown, so that a report of thousands stays a few megabytes


def evaluation_sections(
    evaluation: Evaluation,
    predictor: Predicts,
    cases: Sequence[Case],
    *,
    intensity: IntensityRule | None = None,
    colours: Sequence[Colour] = COLOURS,
    against: Mapping[str, Evaluation] | None = None,
) -> list[Section]:
    """Summary, distribution and the worst and best cases of an evaluation.

    Parameters
    ----------
    evaluation
        The result.
    predictor, cases
        What `evaluate` was given; the cases that are shown are predicted once more.
    intensity
        The rule by which raw pixels are shown as uint8, as the bundle names it; None takes them as they are.
    colours
        RGB of each class, used in turns.
    against
        Two names, two evaluations of the same cases: this one and another that it is compared with.
    """
    return [
        summary([evaluation]) if against is None else summary(list(against.values()), list(against)),
        distribution(evaluation),
        *trust_sections(evaluation),
        examples(evaluation, predictor, cases, intensity=intensity, colours=colours),
    ]


def summary(evaluations: Sequence[Evaluation], names: Sequence[str] | None = None) -> Section:
    """A table of every class and their mean, for one evaluation or several side by side.

    Parameters
    ----------
    evaluations
        Of the same classes.
    names
        What to call each where there are several; None: their modes.
    """
    headers, rows = summary_rows(evaluations, names)
    unit = "groups" if any(evaluation.grouped for evaluation in evaluations) else "cases"
    caption = (
        f"Means with 95 % bootstrap intervals over {unit}. Dice and IoU are 1 where both masks are empty, "
        "0 where one is; HD95 and ASD exist where neither is, so a missed class and a false alarm do not "
        "enter them. Dice, present: over the images with the class in the truth, counted under images."
    )
    return Section("Summary", table(headers, rows, caption=caption))


def summary_rows(
    evaluations: Sequence[Evaluation], names: Sequence[str] | None = None
) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of `summary` as plain text; an interval stands in its cell's second line."""
    headers = [
        "class", "Dice", "Dice, present", "IoU", "HD95, px", "ASD, px", "images", "missed", "false alarms"
    ]  # fmt: skip
    rows = []
    called = names or [evaluation.mode for evaluation in evaluations]
    for evaluation, label in zip(evaluations, called, strict=True):
        mode = f" · {label}" if len(evaluations) > 1 else ""
        total, classes = len(evaluation.cases), evaluation.classes
        for name, one in zip(evaluation.class_names, classes, strict=True):
            counts = [f"{one.present} of {total}", str(one.missed), str(one.false_alarms)]
            rows.append([f"{name}{mode}", *_estimates(one.metrics), *counts])
        if len(classes) > 1:
            missed, false_alarms = (
                sum(one.missed for one in classes),
                sum(one.false_alarms for one in classes),
            )
            counts = [str(total), str(missed), str(false_alarms)]
            rows.append([f"mean of the classes{mode}", *_estimates(evaluation.metrics), *counts])
    return headers, rows


def distribution(evaluation: Evaluation) -> Section:
    """Histograms of the cases' Dice and 95 % Hausdorff distance."""
    means = [case.means() for case in evaluation.cases]
    distances = [one["hd95_px"] for one in means if one["hd95_px"] == one["hd95_px"]]
    charts = histogram("Dice of the cases", [one["dice"] for one in means], x_label="Dice")
    if distances:
        charts += histogram(
            "95 % Hausdorff distance of the cases",
            distances,
            x_label="px",
            bounds=(0.0, max(*distances, 1.0)),
        )
    return Section("Distribution", f'<div class="charts">{charts}</div>')


def examples(
    evaluation: Evaluation,
    predictor: Predicts,
    cases: Sequence[Case],
    *,
    intensity: IntensityRule | None = None,
    colours: Sequence[Colour] = COLOURS,
    worst: int = WORST,
    best: int = BEST,
) -> Section:
    """Pictures of the worst and the best cases with prediction and truth; parameters as in the sections."""
    ranked = sorted(evaluation.cases, key=lambda case: (case.means()["dice"], case.id))
    shown = ranked if len(ranked) <= worst + best else [*ranked[:worst], *ranked[-best:]]
    by_id = {case.id: case for case in cases}
    chosen = [by_id[scores.id] for scores in shown]
    entries = []
    rule = intensity or IntensityRule()
    for scores, one in zip(shown, predictions(predictor, chosen, evaluation.mode), strict=True):
        layers = {PREDICTION: one.masks, TRUTH: one.truth}
        picture = draw_picture(rule.apply(one.pixels), layers, colours=colours)
        entries.append(Entry(scores.id, picture, scores.means()["dice"], _notes(scores, evaluation)))
    note = (
        f"All {len(ranked)} cases."
        if len(shown) == len(ranked)
        else f"The {worst} worst and the {best} best of {len(ranked)} cases by Dice."
    )
    return gallery("Cases", entries, class_names=evaluation.class_names, colours=colours, note=note)


def learning_curves(records: Sequence[Mapping[str, Any]]) -> Section:
    """The course of a training from its log: one record an epoch, as log.jsonl has them.

    Where strategies with several voices were at work, also what weighs how much and who agrees with whom.

    Parameters
    ----------
    records
        With `step` and whatever there is of `train_loss`, `val_loss`, `val_dice`, `lr`, `lambda_c`,
        `lambda_s`, `teacher_val_dice`, `teacher_switched_off`, `agree_<one>_<other>`; others are not drawn.
    """

    def chart(title: str, curves: Mapping[str, str], y_range: tuple[float, float] | None = None) -> str:
        """Curves by the key of their values; those without any are left out."""
        series = []
        for key, name in curves.items():
            known = [record for record in records if record.get(key) is not None]
            if known:
                steps, values = ([float(one[what]) for one in known] for what in ("step", key))
                series.append(Series(name, steps, values))
        return line_chart(title, series, x_label="optimiser step", y_range=y_range)

    share = (0.0, 1.0)
    student = "student" if any("teacher_val_dice" in record for record in records) else "validation"
    charts = [
        chart("Loss", {"train_loss": "training", "val_loss": "validation"}),
        chart("Dice", {"val_dice": student, "teacher_val_dice": "teacher, prompted by it"}, share),
        chart("Learning rate", {"lr": "learning rate"}),
    ]
    keys = dict.fromkeys(key for record in records for key in record)
    if "lambda_c" in keys or "lambda_s" in keys:
        weights = {"lambda_c": "lambda_c, consistency", "lambda_s": "lambda_s, teacher"}
        charts.append(chart("Weights, mean of the epoch", weights))
    agreements = {
        key: key.removeprefix("agree_").replace("_", ", ") for key in keys if key.startswith("agree_")
    }
    for title, audited in (("Agreement on unlabelled views", False), ("Against the hidden truth", True)):
        chosen = {key: name for key, name in agreements.items() if key.endswith("_truth") == audited}
        if chosen:
            charts.append(chart(f"{title}, Dice", chosen, share))
    off = [record["step"] for record in records if "teacher_switched_off" in record]
    note = paragraph(f"From step {off[0]} on the teacher was asked no more.") if off else ""
    return Section("Learning curves", f'<div class="charts">{"".join(charts)}</div>{note}')


def run_sections(run: Path) -> list[Section]:
    """The learning curves and the settings of a training, out of its run folder; no path of it is shown.

    Raises
    ------
    InputRejected
        When the folder has no readable run.json and log.jsonl.
    """
    try:
        record = json.loads((run / "run.json").read_text(encoding="utf-8"))
        log = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        settings = {
            "data fingerprint": record["data"]["fingerprint"],
            "images": {part: len(ids) for part, ids in record["split"].items()},
            **{key: record[key] for key in ("encoder_weights", "result")},
            "config": _without_folders(record["config"]),
            **{key: record[key] for key in ("devices", "versions")},
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputRejected(f"{run} must be a run folder with run.json and log.jsonl: {error}.") from error
    return [learning_curves(log), facts_section("Training", settings)]


def _without_folders(values: Any) -> Any:
    """Settings in which a file, such as a teacher's weights, has its name alone: folders name people."""
    if isinstance(values, dict):
        return {key: _without_folders(value) for key, value in values.items()}
    return values.rpartition("/")[2] if isinstance(values, str) else values


def facts_section(title: str, values: Mapping[str, object], *, note: str = "") -> Section:
    """A section of names and values: a run's configuration, a bundle's hashes and parity."""
    return Section(title, (paragraph(note) if note else "") + facts(values))


def bundle_section(manifest: Manifest, sha256: str) -> Section:
    """What a bundle says of itself: hashes, contract, parity, provenance; training images only by number."""
    provenance = {key: value for key, value in manifest.provenance.items() if key != "trained_on"}
    return facts_section(
        "Bundle",
        {
            "name": manifest.name,
            "sha256 of the manifest": sha256,
            "sha256": {file.path: file.sha256 for file in manifest.files},
            "classes": manifest.class_names,
            "thresholds": manifest.thresholds,
            "shortest side, px": manifest.input.size,
            "intensity": manifest.intensity.to_dict(),
            "engines": [
                {
                    "engine": f"{engine.model}: {engine.runtime} {engine.precision}",
                    "mean mask Dice against PyTorch": engine.parity.get("mean_dice"),
                }
                for engine in manifest.engines
            ],
            "provenance": provenance,
            "versions": manifest.versions,
            "licence": manifest.licence,
        },
    )


def _estimates(metrics: Mapping[str, Estimate]) -> list[str]:
    cells = []
    for metric, digits in (("dice", 3), ("dice_present", 3), ("iou", 3), ("hd95_px", 1), ("asd_px", 2)):
        one = metrics[metric]
        known = one.low == one.low  # NaN: too few groups for an interval
        interval = f"\n({number(one.low, digits)}–{number(one.high, digits)})" if known else ""
        cells.append(number(one.mean, digits) + interval)
    return cells


def _notes(scores: CaseScores, evaluation: Evaluation) -> list[str]:
    means = scores.means()
    notes = [f"HD95 {number(means['hd95_px'], 1)} px"] if means["hd95_px"] == means["hd95_px"] else []
    if scores.quality is not None and scores.quality.score is not None:
        notes.append(f"{scores.quality.flag}, score {number(scores.quality.score, 2)}")
    if scores.route is not None:
        notes.append("refined" if scores.route.refine else f"not refined: {scores.route.why}")
    for channel, name in enumerate(evaluation.class_names):
        if scores.present[channel] and not scores.predicted[channel]:
            notes.append(f"{name} missed")
        if scores.predicted[channel] and not scores.present[channel]:
            notes.append(f"{name} false alarm")
    return notes
