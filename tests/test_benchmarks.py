"""Benchmarks explain themselves before they measure, and record the calls that made their tables."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
COMMANDS = """
import argparse, pathlib, mining
options = argparse.Namespace(name="x", data=pathlib.Path("/home/me/x"), shares=[0.5], methods=["supervised"],
                             seeds=[9], steps=5, cache=None, threads=1)
cells = [{"method": method, "share": share, "seed": seed} for method, shares, seeds in (
    ("mine, selected", [0.1, 0.3], [0, 1]), ("supervised", [0.1, 0.3], [0, 1]), ("ups", [0.1], [0])
) for share in shares for seed in seeds]
print(*mining.commands(options, cells), sep="\\n")
"""

TWICE = """
import json, numpy, routing
dice = numpy.random.default_rng(0).random((40, 2))
rows = [{"id": str(i), "group": str(i), "fast": one, "refine": two, "kept": two, "auto": two, "refined": True,
         "expected": two - one, "score": one, "refined_score": two, "flag": "review",
         "refined_flag": "review", "seconds": [0.1, 0.2]} for i, (one, two) in enumerate(dice)]
routing.DRAWS = 300
once, twice = routing.summary(rows), routing.summary(rows + rows)
print(json.dumps([[one[key] for key in ("answers", "images", "groups")] for one in (once, twice)]))
assert numpy.allclose(once["auto_gain_interval"], twice["auto_gain_interval"])
assert numpy.allclose(once["score"]["auroc_interval"], twice["score"]["auroc_interval"])
"""
LEAD = """
import numpy, admission
draw, admission.DRAWS = numpy.random.default_rng(0), 50
names = [*admission.ORDERS, "student_dice", "dice"]
table = admission.compare([dict(zip(names, row)) for row in draw.random((12, len(names)))])
base = {one["share"]: one["student_dice"] for one in table if one["order"] == admission.ORDERS["beta"]}
for one in table:
    assert abs(base[one["share"]] - one["student_dice"] - one["beta_leads_by"]) < 2e-4, one
"""


def python(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], cwd=BENCHMARKS, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("name", ["bench_phantoms", "bench_refine", "bench_teacher"])
def test_help_measures_nothing(name: str) -> None:
    done = python(f"{name}.py", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: {name}.py") and "--out" in done.stdout


def test_a_table_without_the_student_that_all_are_held_against_is_refused() -> None:
    done = python("mining.py", "--name", "none", "--methods", "mine")
    assert done.returncode == 2
    assert "--methods must have supervised among them" in done.stderr


def test_the_calls_that_made_a_table_are_recorded_whole_and_name_no_folder() -> None:
    done = python("-c", COMMANDS)
    assert done.returncode == 0, done.stderr
    start, end = "python benchmarks/mining.py --name x --data DATA", "--steps 5 --threads 1"
    assert [shlex.split(line) for line in done.stdout.splitlines()] == [
        [*start.split(), "--shares", "0.1", "0.3", "--methods", "supervised", "mine, selected",
         "--seeds", "0", "1", *end.split()],
        [*start.split(), "--shares", "0.1", "--methods", "supervised", "ups", "--seeds", "0", *end.split()],
    ]  # fmt: skip


def test_an_image_that_two_students_answer_for_makes_no_interval_narrower() -> None:
    done = python("-c", TWICE)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[40, 40, 40], [80, 40, 40]]


def test_the_lead_that_is_told_is_the_one_that_was_measured() -> None:
    done = python("-c", LEAD)
    assert done.returncode == 0, done.stderr
