"""The learning curves of a run as a picture."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

from samdistill.io.files import write_bytes

WEIGHTS = {"lambda_c": r"$\lambda_c$, consistency", "lambda_s": r"$\lambda_s$, teacher"}
VOICES = {
    "agree_student_ema": "student, EMA",
    "agree_student_teacher": "student, teacher",
    "agree_ema_teacher": "EMA, teacher",
    "agree_student_second": "student, second student",
    "agree_student_strong": "weak view, strong view",
    "agree_student_truth": "student, hidden truth",
    "agree_ema_truth": "EMA, hidden truth",
    "agree_teacher_truth": "teacher, hidden truth",
}


def draw_curves(history: list[dict[str, Any]], path: Path) -> None:
    """Draw losses and validation Dice over steps from the log's records into a PNG.

    Where strategies with several voices were at work, their schedules and how far the voices agree, too.
    """
    from matplotlib.figure import Figure

    steps = [record["step"] for record in history]
    scheduled = any(name in record for record in history for name in WEIGHTS)
    figure = Figure(figsize=(9, 6.6 if scheduled else 3.4), layout="constrained")
    rows = figure.subplots(2 if scheduled else 1, 2, squeeze=False)
    left, right = rows[0]
    left.plot(steps, [record["train_loss"] for record in history], label="training")
    left.plot(steps, [record["val_loss"] for record in history], label="validation")
    left.set(xlabel="step", ylabel="loss, Dice + k BCE")
    left.legend(frameon=False)
    scores = [record["val_dice"] for record in history]
    best = max(range(len(scores)), key=scores.__getitem__)
    right.plot(steps, scores, color="tab:green")
    right.plot(steps[best], scores[best], "o", color="tab:green")
    right.annotate(
        f"{scores[best]:.3f}", (steps[best], scores[best]), textcoords="offset points", xytext=(0, -14)
    )
    right.set(xlabel="step", ylabel="validation Dice", ylim=(0, 1))
    if scheduled:
        left.set(ylabel="loss")  # the training loss has further terms
        for axes, names, what in (
            (rows[1][0], WEIGHTS, "weight, mean of the epoch"),
            (rows[1][1], VOICES, "Dice on unlabelled views"),
        ):
            for name, label in names.items():
                if any(name in record for record in history):
                    values = [record.get(name, math.nan) for record in history]
                    axes.plot(steps, values, marker=".", label=label)
            axes.set(xlabel="step", ylabel=what)
            axes.set_ylim(bottom=0)
            axes.legend(frameon=False)
        rows[1][1].set(ylim=(0, 1))
        for record in history:
            if "teacher_switched_off" in record:
                rows[1][0].axvline(record["step"], color="grey", linestyle=":")
                rows[1][0].annotate(
                    "teacher off",
                    (record["step"], 0),
                    textcoords="offset points",
                    xytext=(4, 4),
                    color="grey",
                )
    for axes in rows.flat:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_bytes(path, picture.getvalue())
