"""Every command that opens a bundle can be told which one it has to be."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from samdistill.cli.app import app
from samdistill.errors import BundleError


@pytest.mark.parametrize("command", ["verify", "bench", "infer", "evaluate"])
def test_another_bundle_than_the_pinned_one_is_refused(
    command: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "data" / "images").mkdir(parents=True)
    more = {"infer": [str(tmp_path), "--out", str(tmp_path / "out")], "evaluate": [str(tmp_path / "data")]}
    words = [command, str(tiny_bundle), *more.get(command, []), "--expect-sha256", "0" * 64]
    found = CliRunner().invoke(app, words)
    assert isinstance(found.exception, BundleError)
    assert f"must have the SHA-256 {'0' * 64}" in str(found.exception)
