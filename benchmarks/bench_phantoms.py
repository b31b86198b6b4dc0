"""How many phantoms a second one core makes, at 256 x 256; fails below 15. Writes results/phantoms.json.

python benchmarks/bench_phantoms.py
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy is imported

from samdistill.phantoms import KINDS, make

COUNT, LEAST_PER_SECOND = 40, 15.0


def seconds(kind: str, index: int) -> float:
    """Time of this thread on its processor: on a shared machine the wall clock would measure the waiting."""
    before = time.thread_time()
    make(kind, seed=11, index=index)
    return time.thread_time() - before


def main() -> int:
    rates = {}
    for kind in KINDS:
        make(kind)
        rates[kind] = round(1 / statistics.mean(seconds(kind, index) for index in range(COUNT)), 1)
        print(f"{kind:12} {rates[kind]:6.1f} images/s")
    result = {"machine": platform.processor() or platform.machine(), "size": 256, "images_per_s": rates}
    path = Path(__file__).parent / "results" / "phantoms.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    return int(min(rates.values()) < LEAST_PER_SECOND)


if __name__ == "__main__":
    sys.exit(main())
