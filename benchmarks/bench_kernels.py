"""Time every kernel of the compiled core against its peers, one thread, and check each answer.

    python benchmarks/bench_kernels.py [WORD ...] [--seconds 2]

Words choose the cases whose section or input contains one of them. The cases themselves are in
`kernels_*.py`, one `cases()` a file.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import harness
import kernels_components
import kernels_images
import kernels_prompts

MODULES = (kernels_components, kernels_images, kernels_prompts)
RESULTS = Path(__file__).parent / "results" / "kernels.json"


def main() -> int:
    """Run the chosen cases; 1 when a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="run only the cases that contain one of these words")
    parser.add_argument("--seconds", type=float, default=2.0, help="about how long to time a case")
    arguments = parser.parse_args()
    results = []
    for module in MODULES:
        for case in module.cases():
            title = f"{case.section} {case.name}"
            if not arguments.words or any(word in title for word in arguments.words):
                results.append(harness.measure(case, seconds=arguments.seconds))
                print(f"{title}: {results[-1].speedup:.3g}", file=sys.stderr)
    harness.show(results)
    if not arguments.words:
        harness.write(results, RESULTS)
    return 0 if all(result.reached for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
