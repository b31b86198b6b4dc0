"""A run whose student is known, and calls on it: discs of light on dark ground, a student that sees light."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from test_train import Silent
from torch import nn
from typer.testing import CliRunner, Result

from samdistill.cli.app import app
from samdistill.errors import SamdistillError
from samdistill.train.config import load_config
from samdistill.train.launch import train
from samdistill.train.run import Run

CONFIG = """
preset = "light"
precision = "fp32"
min_epoch_steps = 1
max_steps = 1
batch = 2
[student]
encoder = "tu-mobilenetv3_small_050"
decoder_channels = [8, 8, 8, 8, 8]
size = 32
"""
SIZE = (40, 56)


class SeesLight(nn.Module):
    """Logits of channel i: how much of colour i there is; a parameter tells the device."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = nn.Parameter(torch.arange(classes), requires_grad=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = (pixels.float()[:, self.classes] - 128) / 16
        return logits


def disc(index: int, channel: int) -> npt.NDArray[np.bool_]:
    """(H, W) bool; discs of two channels overlap."""
    y, x = np.ogrid[: SIZE[0], : SIZE[1]]
    centre_x, centre_y, radius = 18 + index % 5 + 8 * channel, 17 + index % 4 + 3 * channel, 8 + index % 3
    inside: npt.NDArray[np.bool_] = (x - centre_x) ** 2 + (y - centre_y) ** 2 <= radius**2
    return inside


def picture(index: int, classes: int, *, empty: bool = False) -> npt.NDArray[np.uint8]:
    """(H, W, 3): class i is light in channel i, and the student sees a fringe too much."""
    image = np.full((*SIZE, 3), 40, np.uint8)
    for channel in range(0 if empty else classes):
        mask = disc(index, channel)
        image[mask, channel] = 230
        image[np.roll(mask, 3, axis=1), channel] = 200
    noise = np.random.default_rng(index).integers(-8, 9, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def write_data(folder: Path, *, classes: int = 1, labelled: int = 10, unlabelled: int = 4) -> Path:
    """A data folder, classes in folders of their own where there are several; the last image is empty."""
    names = [f"class{number}" for number in range(classes)]
    (folder / "images").mkdir(parents=True)
    mask_folders = [folder / "masks" / name for name in names] if classes > 1 else [folder / "masks"]
    for one in mask_folders:
        one.mkdir(parents=True)
    for index in range(labelled + unlabelled):
        last = index == labelled + unlabelled - 1
        Image.fromarray(picture(index, classes, empty=last)).save(folder / "images" / f"{index:02d}.png")
        if index < labelled:
            for channel, one in enumerate(mask_folders):
                Image.fromarray(disc(index, channel)).save(one / f"{index:02d}.png")
    (folder / "dataset.toml").write_text(f"classes = {names}\n")
    return folder


def trained(folder: Path, classes: int) -> Path:
    """A real run of one step; what its student answers is replaced in `student`."""
    data = write_data(folder / "data", classes=classes)
    (folder / "tiny.toml").write_text(CONFIG)
    return train(data, folder / "run", load_config(folder / "tiny.toml"), Silent(), device="cpu").path


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("single"), 1)


@pytest.fixture(autouse=True)
def student(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Run, "load_student", lambda self: SeesLight(len(self.class_names)).eval())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def run(single: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(single, tmp_path / "run"))


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def done(*words: object) -> str:
    result = call(*words)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def refused(error: type[SamdistillError], *words: object) -> str:
    result = call(*words)
    assert type(result.exception) is error, (result.output, result.exception)
    return str(result.exception)
