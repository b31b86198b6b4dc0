"""How many phantoms a second one core makes, at 256 x 256; fails below 15. Writes results/phantoms.json.

python benchmarks/bench_phantoms.py [--out FILE]
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import harness  # first: it sets the number of threads

from samdistill.phantoms import KINDS, make

COUNT, LEAST_PER_SECOND = 40, 15.0


def seconds(kind: str, index: int) -> float:
    """Time of this thread on its processor: on a shared machine the wall clock would measure the waiting."""
    before = time.thread_time()
    make(kind, seed=11, index=index)
    return time.thread_time() - before


def main() -> int:
    out = harness.parse_out(__doc__, Path(__file__).parent / "results" / "phantoms.json")
    rates = {}
    for kind in KINDS:
        make(kind)
        rates[kind] = round(1 / statistics.mean(seconds(kind, index) for index in range(COUNT)), 1)
        print(f"{kind:12} {rates[kind]:6.1f} images/s")
    harness.save({"machine": harness.machine(), "size": 256, "images_per_s": rates}, out)
    return int(min(rates.values()) < LEAST_PER_SECOND)


if __name__ == "__main__":
    sys.exit(main())
