"""A supervised student on real images: train, export, evaluate by the command line, with Dice and times.

    python benchmarks/supervised.py DATA [--labels 0.1] [--preset light] [--seed 0] [--name polyps]

DATA is a data folder (docs/data.md) that stays where it is. Scores the test part of the split alone. Writes
results/supervised_<name>.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import machine

from samdistill.io.files import write_text

KEPT = ("dice", "dice_present", "iou", "hd95_px", "asd_px", "missed", "false_alarms", "intervals")


def samdistill(*words: str | Path) -> tuple[str, float]:
    """Run a command; its standard output and its seconds."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "samdistill", *map(str, words)], stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout, round(time.perf_counter() - started, 1)


def main() -> None:
    """Run the three commands and record what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--labels", default="0.1")
    parser.add_argument("--preset", default="light")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--name", help="of the result; default: the data folder's")
    arguments = parser.parse_args()
    options = ["--preset", arguments.preset, "--labels", arguments.labels, "--seed", arguments.seed]
    with tempfile.TemporaryDirectory() as temporary:
        run, bundle = Path(temporary, "run"), Path(temporary, "bundle")
        _, train_s = samdistill("train", arguments.data, "--out", run, *options)
        _, export_s = samdistill("export", run, "--out", bundle)
        answer, evaluate_s = samdistill("evaluate", bundle, arguments.data, "--json")
        record = json.loads((run / "run.json").read_text())
        parity = json.loads((bundle / "manifest.json").read_text())["engines"][0]["parity"]
    scores = json.loads(answer)
    result = {
        "machine": machine(),
        "options": options,
        "images": {part: len(ids) for part, ids in record["split"].items()},
        "steps": record["result"]["steps"],
        "seconds": {"train": train_s, "export": export_s, "evaluate": evaluate_s},
        "test": {key: scores[key] for key in KEPT},
        "parity": parity,
    }
    name = arguments.name or arguments.data.name
    path = Path(__file__).parent / "results" / f"supervised_{name}.json"
    write_text(path, json.dumps(result, indent=1) + "\n")
    low, high = scores["intervals"]["dice"]["low"], scores["intervals"]["dice"]["high"]
    print(f"{name}: test Dice {scores['dice']:.3f} ({low:.3f} to {high:.3f}), trained in {train_s:.0f} s")


if __name__ == "__main__":
    main()
