"""The gate's findings as a page: every engine that was tried, what it measured, whether it was published."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from samdistill.export.parity import ParityReport
from samdistill.report.document import Section, number, paragraph, table, write_report

HEADERS = (
    *("network", "engine", "masks", "mean Dice", "1st percentile", "worst", "one side empty"),
    *("truth Dice", "of PyTorch", "outputs differ by", "published"),
)


def parity_page(name: str, reports: Sequence[ParityReport]) -> bytes:
    """Write the page, HTML in one file."""
    first = reports[0]
    sections = [
        Section(
            "Against PyTorch",
            paragraph(
                f"Final masks of each engine against PyTorch's in fp32, on {first.images} validation images; "
                "Dice over masks of at least 64 px. Outputs differ by a share of the largest of their image."
            )
            + table(HEADERS, [_row(report) for report in reports]),
        ),
        Section(
            "Tolerances",
            table(
                ("precision", "mean Dice", "1st percentile", "one side empty", "truth lost", "outputs"),
                [_tolerances(report) for report in {one.precision: one for one in reports}.values()],
            ),
        ),
    ]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "parity.html")
        write_report(file, f"Parity of {name}", sections)
        return file.read_bytes()


def _row(report: ParityReport) -> list[str]:
    return [
        report.model,
        f"{report.runtime} {report.precision} ({report.provider})",
        str(report.masks),
        number(report.mean_dice, 5),
        number(report.low_dice, 5),
        number(report.worst_dice, 5),
        str(report.flips),
        number(report.truth_dice, 4),
        number(report.pytorch_truth_dice, 4),
        f"{report.max_relative_difference:.2g}",
        "no: " + "; ".join(report.failures()) if report.failures() else _published(report),
    ]


def _published(report: ParityReport) -> str:
    return "yes" if report.verified else "yes, unverified: PyTorch's own masks tell nothing"


def _tolerances(report: ParityReport) -> list[str]:
    allowed = report.tolerances
    return [
        report.precision,
        f"at least {allowed.min_mean_dice}",
        f"at least {allowed.min_low_dice}",
        f"at most {allowed.max_flips:.0%}",
        f"at most {allowed.max_truth_loss}",
        f"at most {allowed.max_relative_difference}",
    ]
