"""The learning curves of a run as a picture."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from samdistill.io.files import write_bytes


def draw_curves(history: list[dict[str, Any]], path: Path) -> None:
    """Draw losses and validation Dice over steps from the log's records into a PNG."""
    from matplotlib.figure import Figure

    steps = [record["step"] for record in history]
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
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
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_bytes(path, picture.getvalue())
