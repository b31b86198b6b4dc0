"""Golden cases as a proof: what may compute otherwise on this machine is used once they come out on it.

Knows no image: whoever runs the network computes a case.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from samdistill.bundle import Bundle
from samdistill.engines import OpenedPart
from samdistill.errors import BundleError
from samdistill.golden import GoldenResult
from samdistill.manifest import EngineRecord, GoldenRecord


def golden_records(bundle: Bundle, engine: EngineRecord) -> list[GoldenRecord]:
    """The golden cases that an engine has to do, with what it may differ by."""
    student = engine.model == "student"
    return [
        replace(
            case,
            max_probability_difference=engine.max_probability_difference or case.max_probability_difference,
            max_changed_pixels=engine.max_changed_pixels or case.max_changed_pixels,
        )
        for case in bundle.manifest.golden
        if (case.part == "student") == student
    ]


def golden_results(
    bundle: Bundle, opened: OpenedPart, compute: Callable[[GoldenRecord], GoldenResult]
) -> list[GoldenResult]:
    """Compute an engine's golden cases again; a plan that is new to this machine is kept once all came out.

    Raises
    ------
    BundleError
        When one cannot be computed, or comes out otherwise; when there is none.
    """
    name = f"{opened.record.model}: {opened}"
    cure = "Do not use this bundle; export it again."
    if opened.record.precision != "fp32":
        cure = "Do not use this engine here: name another with --precision, or export the bundle again."
    records, results = golden_records(bundle, opened.record), []
    if not records:
        raise BundleError(f"golden must hold a case for the {opened.record.model}, or nothing proves it.")
    for record in records:
        try:
            result = compute(record)
        except ValueError as error:
            raise BundleError(f"golden case {record.name} cannot be computed: {error}") from error
        if not result.passed:
            raise BundleError(
                f"golden cases come out otherwise on {name}; {result.name}: "
                f"probabilities differ by {result.max_probability_difference:.3g} "
                f"(at most {record.max_probability_difference:.3g}), "
                f"{result.changed_pixels:.2%} of a mask's pixels (at most {record.max_changed_pixels:.2%}). "
                f"{cure}"
            )
        results.append(replace(result, engine=name))
    if opened.plan is not None and not opened.plan.proved:
        opened.plan.keep(bundle.sha256)
    return results


def prove(bundle: Bundle, opened: OpenedPart, compute: Callable[[GoldenRecord], GoldenResult]) -> None:
    """Hold a plan that is new to this machine, or int8, against the golden cases, as `golden_results`.

    A processor without instructions for int8 may saturate sums that the exporting one did not, and no library
    says so. Does nothing for other engines without a plan, and for plans that were kept.
    """
    new = opened.plan is not None and not opened.plan.proved
    if new or (opened.plan is None and opened.record.precision == "int8"):
        golden_results(bundle, opened, compute)
