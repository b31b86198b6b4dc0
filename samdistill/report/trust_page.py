"""The sections of a report that say how far probabilities, scores and flags can be trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from samdistill.report.charts import Series, line_chart
from samdistill.report.document import Section, number, table

if TYPE_CHECKING:
    from samdistill.evaluation import Evaluation


def trust_sections(evaluation: Evaluation) -> list[Section]:
    """Calibration of each class with its reliability plot, and how well the flags tell bad cases."""
    sections = []
    if evaluation.trust is not None:
        rows, plots = [], []
        for name, one in zip(evaluation.class_names, evaluation.trust, strict=True):
            after = None if one.calibrated is None else one.calibrated.ece
            rows.append([name, number(one.uncalibrated.ece, 4), number(after, 4)])
            curves = [Series("ideal", [0.0, 1.0], [0.0, 1.0])]
            for label, found in (("uncalibrated", one.uncalibrated), ("calibrated", one.calibrated)):
                if found is not None and (points := found.points()):  # none where every pixel is ignored
                    x, y, _ = zip(*points, strict=True)
                    curves.append(Series(label, x, y))
            plots.append(
                line_chart(
                    f"Reliability, {name}", curves, x_label="mean probability of a bin", y_range=(0.0, 1.0)
                )
            )
        caption = (
            "Expected calibration error over 15 equal bins: how far the frequency of foreground is from the "
            "probability, mean over the pixels. Most pixels are far from any border and easy, which makes it "
            "small; the plot shows the others, too."
        )
        headers = ["class", "ECE, uncalibrated", "ECE, calibrated"]
        body = table(headers, rows, caption=caption) + f'<div class="charts">{"".join(plots)}</div>'
        sections.append(Section("Calibration", body))
    told = evaluation.judged()
    if told is not None:
        rows = [
            [flag, str(one["cases"]), number(one["dice"]), str(one["bad"])]
            for flag, one in told["flags"].items()
        ]
        caption = (
            f"{told['bad']} cases have a Dice below {told['least_dice']:g}. The score tells them from the "
            f"others with an AUROC of {number(told['auroc'])} (0.5: by chance, 1: always); as an estimate of "
            f"Dice it is off by {number(told['rmse'])} (root mean square)."
        )
        if told["unscored"]:
            caption += f" {told['unscored']} cases have no score and are in none of these figures."
        headers = ["flag", "cases", "mean Dice", f"Dice below {told['least_dice']:g}"]
        sections.append(Section("Flags", table(headers, rows, caption=caption)))
    return sections
