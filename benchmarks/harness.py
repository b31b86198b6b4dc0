"""Time the contestants of a case in turns, check their answers, print a table, write JSON.

A case names one call of samdistill and the peers it is measured against. All are called in turns in one
process, so that whatever the machine does meanwhile happens to each of them, and medians are compared. Times
are of the calling thread on its processor: every contestant runs in one thread, and on a machine that others
use the wall clock would measure the waiting. Knows no kernel.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[variable] = "1"  # one thread for everybody; this module is imported before numpy is

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))  # for `reference`, the peers written out

MEASURED_PACKAGES = (
    "samdistill",
    "numpy",
    "scipy",
    "opencv-python-headless",
    "connected-components-3d",
    "lapx",
)


class Quiet:
    """A training's watcher that says nothing."""

    def on_message(self, text: str) -> None: ...
    def on_prepare(self, what: str, done: int, total: int) -> None: ...
    def on_start(self, phase: str, first_step: int, total_steps: int) -> None: ...
    def on_step(self, step: int, loss: float) -> None: ...
    def on_epoch(self, record: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Parameters
    ----------
    section
        What is measured, for example `label with statistics`.
    name
        On which input, for example `blobs 1024 x 1024`.
    ours
        The call of samdistill; it must touch every field of its result.
    peers
        Name -> the same work done with another library.
    check
        Raises AssertionError when ours and a peer do not give the same answer; called once, untimed.
    target
        How many times faster than the fastest peer to be at least (1/3: at most 3 times slower), or None.
    """

    section: str
    name: str
    ours: Callable[[], object]
    peers: dict[str, Callable[[], object]]
    check: Callable[[], None]
    target: float | None = None


@dataclass(frozen=True)
class Result:
    """Medians of one case in milliseconds a call."""

    section: str
    name: str
    ours_ms: float
    peers_ms: dict[str, float]
    target: float | None
    rounds: int
    speedup: float = field(init=False)  # fastest peer / ours
    reached: bool = field(init=False)

    def __post_init__(self) -> None:
        speedup = min(self.peers_ms.values()) / self.ours_ms
        object.__setattr__(self, "speedup", speedup)
        object.__setattr__(self, "reached", self.target is None or speedup >= self.target)


def _calls_for(function: Callable[[], object], least_seconds: float) -> int:
    """How many calls in a row last at least so long (one untimed call first, to warm up)."""
    function()
    calls = 1
    while True:
        start = time.thread_time()
        for _ in range(calls):
            function()
        seconds = time.thread_time() - start
        if seconds >= least_seconds:
            return calls
        calls = max(calls * 2, int(calls * least_seconds / max(seconds, 1e-9)))


def measure(case: Case, *, seconds: float = 2.0, least_rounds: int = 7) -> Result:
    """Check a case, then time its contestants in turns for about so many seconds."""
    case.check()
    contestants = {"": case.ours, **case.peers}
    calls = {name: _calls_for(function, 0.002) for name, function in contestants.items()}
    times: dict[str, list[float]] = {name: [] for name in contestants}
    collecting = gc.isenabled()
    gc.disable()
    try:
        end = time.thread_time() + seconds
        while len(times[""]) < least_rounds or (time.thread_time() < end and len(times[""]) < 1000):
            for name, function in contestants.items():
                start = time.thread_time()
                for _ in range(calls[name]):
                    function()
                times[name].append((time.thread_time() - start) / calls[name])
            gc.collect(0)
    finally:
        if collecting:
            gc.enable()
    medians = {name: statistics.median(values) * 1e3 for name, values in times.items()}
    ours_ms = medians.pop("")
    return Result(case.section, case.name, ours_ms, medians, case.target, len(times[""]))


def machine() -> dict[str, str]:
    """The machine's name, processor and the versions of what was measured."""
    model = platform.processor() or "unknown"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].split(":", 1)[1].strip() if lines else model
    facts = {
        "name": f"{model}, {os.cpu_count()} cores",
        "system": platform.platform(),
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    for package in (
        "samdistill",
        "numpy",
        "scipy",
        "opencv-python-headless",
        "connected-components-3d",
        "lapx",
    ):
        facts[package] = importlib.metadata.version(package)
    return facts


def show(results: Sequence[Result]) -> None:
    """Print the table."""
    table = Table("what", "input", "samdistill ms", "peers ms", "fastest peer / ours", "to reach", "")
    for result in results:
        peers = ", ".join(f"{name} {value:.3g}" for name, value in result.peers_ms.items())
        target = "" if result.target is None else f">= {result.target:.2g}"
        verdict = "ok" if result.reached else "MISSED"
        table.add_row(
            result.section,
            result.name,
            f"{result.ours_ms:.4g}",
            peers,
            f"{result.speedup:.3g}",
            target,
            verdict,
        )
    Console(width=170).print(table)


def write(results: Sequence[Result], path: Path) -> None:
    """Write the medians with the machine's name; sections that were not run keep their last figures."""
    kept: list[dict[str, object]] = []
    if path.exists():
        ran = {result.section for result in results}
        kept = [case for case in json.loads(path.read_text())["cases"] if case["section"] not in ran]
    cases = kept + [vars(result) for result in results]
    save({"machine": machine(), "threads": 1, "cases": cases}, path)


def save(content: Any, path: Path) -> None:
    """Write figures as JSON; the folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def parse_out(description: str | None, default: Path) -> Path:
    """Read the command line of a benchmark that has nothing to choose but where its figures go."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=default, help=f"default: results/{default.name}")
    out: Path = parser.parse_args().out
    return out
