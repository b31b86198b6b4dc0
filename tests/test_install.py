"""What a hospital's machine does: the wheel with the extra `cpu` alone, in an empty environment, predicts."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.install


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)]
    # A build folder of its own: the editable install's holds the same targets for another destination.
    settings = [f"--config-settings=build-dir={folder / 'build'}"]
    subprocess.run([sys.executable, "-m", "pip", *build, *settings], check=True, env=_environment())
    (built,) = folder.glob("samdistill-*.whl")
    return built


def _environment() -> dict[str, str]:
    """This environment with the build tools of the virtual environment on the path."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def test_the_wheel_holds_the_export_package_the_core_and_what_travels_with_them(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"samdistill/export/bundle.py", "samdistill/py.typed", "samdistill/manifest.schema.json"} <= names
    assert {
        "samdistill/report/report.css",
        "samdistill/report/report.html",
        "samdistill/report/report.js",
    } <= names
    assert any(name.startswith("samdistill/_core.") and name.endswith(".so") for name in names)
    assert not [name for name in names if name.split("/")[0] in ("tests", "benchmarks", "csrc", "export")]


def test_the_wheel_alone_opens_a_bundle_and_predicts(wheel: Path, tmp_path: Path) -> None:
    """No torch, no numba, at most 210 MB; the command line segments; training says what it lacks."""
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    before = _megabytes(environment)
    requirement = f"samdistill[cpu] @ {wheel.as_uri()}"
    constraints = ["--constraint", str(ROOT / "constraints.txt")]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *constraints, requirement], check=True)
    assert _megabytes(environment) - before < 210
    bare = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    subprocess.run([python, ROOT / "tests" / "wheel_smoke.py"], check=True, cwd=tmp_path, env=bare)
    done = subprocess.run(
        [environment / "bin" / "samdistill", "train", "data", "--out", "run"],
        capture_output=True, text=True, cwd=tmp_path, env=bare, check=False,
    )  # fmt: skip
    assert done.returncode == 6
    assert "samdistill[train]" in done.stderr


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
