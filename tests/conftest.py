"""Fixtures shared by all tests."""

from __future__ import annotations

import os

# One thread a test process, its children included: two processes run side by side (make test), and answers do
# not depend on how many cores a machine has. Has to be set before numpy or torch loads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# How long an example takes says something of the machine, not of the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

HERE = (None, "", "localhost", "127.0.0.1", "::1", "0.0.0.0", b"localhost", b"127.0.0.1")


def no_network(event: str, arguments: tuple[Any, ...]) -> None:
    """Let no test leave this machine."""
    host: Any = None
    if event == "socket.getaddrinfo":
        host = arguments[0]
    elif event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    if host not in HERE:
        raise RuntimeError(f"a test must not use the network, and asked for {host}")


sys.addaudithook(no_network)

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real development images; the test skips, and says where it looked, when it is missing."""
    root = Path(os.environ.get("SAMDISTILL_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (root / "polyps" / "images").is_dir():
        pytest.skip(f"no development data at {root}: set SAMDISTILL_DATA to the folder that holds polyps/")
    return root


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of 20 phantoms with masks, whose path must not get into what is published."""
    from samdistill.phantoms.folder import write

    folder = tmp_path_factory.mktemp("secret_hospital") / "data"
    write(folder, "endoscopy", 20, seed=5, size=(48, 70))
    return folder


@pytest.fixture
def tiny_bundle(tmp_path: Path) -> Path:
    """A copy of the committed bundle, whose student finds colours (tests/colour_student.py); no torch."""
    return Path(shutil.copytree(REPOSITORY / "tests" / "golden" / "tiny_bundle", tmp_path / "tiny_bundle"))
