"""Count the instructions of one fixed case of each kernel with callgrind.

    python benchmarks/count_instructions.py [--update] [--build FOLDER]

So that a regression shows on a noisy machine. Builds csrc/tests/instructions.cpp, runs each case under
valgrind and compares with results/instructions.json. Fails when a case takes more than TOLERANCE more
instructions than recorded; --update records what was counted. The counts are the same from run to run, but
not from compiler to compiler, nor between instruction sets, so figures are kept for each; valgrind knows AVX2
but not AVX-512. Fewer instructions are not always less time: benchmarks/bench_kernels.py has the last word.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

TOLERANCE = 0.02
CASES = ("label_blobs", "label_noise", "summarize_blobs", "clean", "clean_and_extract")
ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results" / "instructions.json"


def run(*command: str | Path) -> tuple[str, str]:
    """Run a command that must succeed; its output and its errors."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout, done.stderr


def build(folder: Path) -> tuple[Path, str]:
    """Compile the cases as wheels are compiled; the program and the compiler's name."""
    run("cmake", "-S", ROOT / "csrc", "-B", folder, "-DSAMDISTILL_PYTHON=OFF", "-DSAMDISTILL_TESTS=ON")
    run("cmake", "--build", folder, "--target", "instructions")
    cache = (folder / "CMakeCache.txt").read_text()
    compiler = re.search(r"^CMAKE_CXX_COMPILER:\w+=(.+)$", cache, re.MULTILINE)
    assert compiler is not None
    return folder / "tests" / "instructions", run(compiler[1], "--version")[0].splitlines()[0]


def count(program: Path, case: str) -> tuple[str, int]:
    """The instruction set a case ran on and how many instructions it took."""
    output, log = run(
        "valgrind",
        "--tool=callgrind",
        "--callgrind-out-file=/dev/null",
        "--toggle-collect=measured",
        program,
        case,
    )
    collected = re.search(r"Collected : (\d+)", log)
    assert collected is not None, log
    return output.split()[0], int(collected[1])


def main() -> int:
    """Compare, or record; 1 when a case has become dearer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--update", action="store_true", help="record what is counted")
    parser.add_argument("--build", type=Path, help="build here instead of in a temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        program, compiler = build(arguments.build or Path(temporary))
        counted = {case: count(program, case) for case in CASES}
    key = f"{compiler}, {counted[CASES[0]][0]}"
    recorded = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if arguments.update:
        recorded[key] = {case: instructions for case, (_, instructions) in counted.items()}
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(recorded, indent=1) + "\n")
    if key not in recorded:
        print(f"nothing is recorded for {key}; record it with --update", file=sys.stderr)
        return 1
    dearer = 0
    for case, (_, instructions) in counted.items():
        ratio = instructions / recorded[key][case]
        dearer += ratio > 1 + TOLERANCE
        verdict = "DEARER" if ratio > 1 + TOLERANCE else "ok"
        print(f"{case:20} {instructions:12,} recorded {recorded[key][case]:12,}  {ratio - 1:+.2%}  {verdict}")
    return 1 if dearer else 0


if __name__ == "__main__":
    sys.exit(main())
