"""A torchvision whose binary does not load: imports work, nms answers, a healthy one is left alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torchvision belongs to the extra train")

from samdistill import torchvision_cure  # noqa: E402
from samdistill.proposals import nms as core_nms  # noqa: E402

IMPORTS = """
from samdistill.torchvision_cure import cure
first = cure()
assert cure() is first
import torchvision, segment_anything, segmentation_models_pytorch, torch
boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]])
kept = torchvision.ops.nms(boxes, torch.tensor([0.5, 0.9, 0.3]), 0.5)
assert kept.tolist() == [1, 2], kept
"""


def test_everything_that_needs_torchvision_imports_and_nms_answers() -> None:
    """In a process of its own, healthy torchvision or not."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", IMPORTS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_nms_is_the_cores() -> None:
    rng = np.random.default_rng(0)
    for n in (0, 1, 2, 50):
        corners = rng.integers(0, 20, (n, 2)).astype(np.float32)
        boxes = np.concatenate([corners, corners + rng.integers(1, 12, (n, 2))], axis=1).astype(np.float32)
        scores = rng.integers(0, 5, n).astype(np.float32)
        for iou in (0.0, 0.3, 1 / 3, 0.7, 1.0):
            own = torchvision_cure.nms(torch.from_numpy(boxes), torch.from_numpy(scores), iou)
            assert own.tolist() == core_nms(boxes, scores, iou).tolist()


def test_a_healthy_torchvision_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second definition of its operators would abort the process."""
    monkeypatch.setattr(torchvision_cure, "_binary_loads", lambda package: True)
    monkeypatch.setattr(torch.library, "Library", lambda *_: pytest.fail("operators were defined"))
    assert torchvision_cure.cure.__wrapped__() is False


def test_a_torchvision_that_is_not_there_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert torchvision_cure.cure.__wrapped__() is False


def test_a_binary_that_is_missing_or_broken_does_not_load(tmp_path: Path) -> None:
    assert not torchvision_cure._binary_loads(tmp_path)
    (tmp_path / "_C.so").write_bytes(b"not a library")
    assert not torchvision_cure._binary_loads(tmp_path)
