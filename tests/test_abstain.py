"""A least score is asked for only where answers are scored: else nothing would be flagged, without a word."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from bundles import colours, rewrite
from PIL import Image as PillowImage
from test_auto_mode import TINY, records
from test_inference import segment

from samdistill.errors import UsageError
from samdistill.predictor import Predictor


@pytest.mark.parametrize("told", ["without", "with too few"])
def test_abstaining_wants_a_bundle_that_judges(told: str, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(TINY, tmp_path / "bundle"))
    if told == "with too few":
        rules = {**records(), "routing": None}
        rules["quality"] |= {"student": None, "refined": None}
        rewrite(bundle, lambda values: values.update(rules))
    PillowImage.fromarray(colours()).save(tmp_path / "a.png")
    with pytest.raises(UsageError, match=f"abstain must be left out: .* {told} labelled"):
        segment(bundle, tmp_path / "a.png", tmp_path / "out", abstain=0.6)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="abstain must be left out"):
        Predictor.load(bundle, threads=1).predict(colours(), abstain=0.6)
    assert Predictor.load(bundle, threads=1).predict(colours()).quality.flag is None


def test_abstaining_in_mode_refine_wants_a_rule_of_refined_masks(tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(TINY, tmp_path / "bundle"))
    rules = {**records(), "routing": None}
    rules["quality"]["refined"] = None
    rewrite(bundle, lambda values: values.update(rules))
    PillowImage.fromarray(colours()).save(tmp_path / "a.png")
    words = [bundle, tmp_path / "a.png", "--out", tmp_path / "out", "--mode", "refine", "--abstain", 0.6]
    done = subprocess.run(
        [sys.executable, "-m", "samdistill", "infer", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "abstain must be left out in mode refine" in done.stderr
    assert not (tmp_path / "out").exists()
    assert Predictor.load(bundle, threads=1).predict(colours(), abstain=1.0).quality.flag == "reject"
