"""Golden cases as a proof: an engine that was built for this machine is used only once they come out on it.

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
        When one cannot be computed, or comes out otherwise.
    """
    name = f"{opened.record.model}: {opened}"
    results = []
    for record in golden_records(bundle, opened.record):
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
                "Do not use this bundle; export it again."
            )
        results.append(replace(result, engine=name))
    if opened.plan is not None and not opened.plan.proved:
        if not results:
            raise BundleError(
                f"golden must hold a case for the {opened.record.model}, or its plan cannot be proved."
            )
        opened.plan.keep()
    return results


def prove(bundle: Bundle, opened: OpenedPart, compute: Callable[[GoldenRecord], GoldenResult]) -> None:
    """Hold a plan that is new to this machine against the golden cases; errors as for `golden_results`.

    Does nothing for engines without a plan, and for plans that were kept.
    """
    if opened.plan is not None and not opened.plan.proved:
        golden_results(bundle, opened, compute)
