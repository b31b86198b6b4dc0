"""`samdistill export` of a run: what it publishes, what it tells, and what it refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import samdistill.export.bundle as publishing
from samdistill.bundle import Bundle
from samdistill.cli.export import export as command
from samdistill.errors import InputRejected, UsageError
from samdistill.export.bundle import Published, export_run
from samdistill.geometry import ModelFrame
from samdistill.io.dataset import open_dataset
from samdistill.predictor import Predictor
from samdistill.train.config import load_config
from samdistill.train.launch import train
from samdistill.train.run import Run
from samdistill.verify import verify


@pytest.fixture(scope="module")
def run(hospital: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("config") / "tiny.toml"
    file.write_text(
        'preset = "light"\nprecision = "fp32"\nmin_epoch_steps = 2\nmax_steps = 2\nbatch = 2\nlabels = 10\n'
        '[student]\nencoder = "plain"\ndecoder_channels = [16, 16, 8, 8, 8]\nsize = 32\n'
    )
    out = tmp_path_factory.mktemp("secret_home") / "run"

    class Silent:
        def __getattr__(self, name: str) -> Any:
            return lambda *_: None

    train(hospital, out, load_config(file), Silent(), device="cpu")
    return out


@pytest.fixture(scope="module")
def published(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    yield export_run(run, tmp_path_factory.mktemp("out") / "bundle", teacher=None, licence="CC BY 4.0")


def test_a_trained_student_is_published_equal_to_itself(run: Path, published: Published) -> None:
    opened = Run.load(run)
    (parity,) = published.parity
    assert parity.images == len(opened.validation_cases())
    assert parity.mean_dice >= 0.999
    assert parity.truth_dice is not None
    predictor = Predictor.load(published.path)
    manifest = predictor.manifest
    assert manifest.class_names == opened.class_names
    assert manifest.input.size == 32
    assert manifest.licence == "CC BY 4.0"
    assert manifest.provenance["data_fingerprint"] == opened.record.data["fingerprint"]
    assert manifest.provenance["steps"] == 2
    image = opened.validation_cases()[0].read_image()
    frame = ModelFrame.of(image.shape[:2], 32)
    with torch.inference_mode():
        logits = opened.load_student()(torch.from_numpy(frame.pixels(image)[None])).numpy()[0]
    found = predictor.predict(image)
    np.testing.assert_allclose(found.probability_maps, frame.probability_maps(logits), atol=1e-4)


def test_a_published_student_knows_how_far_to_trust_itself(run: Path, published: Published) -> None:
    manifest = Predictor.load(published.path).manifest
    parts = Run.load(run).cases()
    assert manifest.calibration is not None
    assert manifest.calibration.images == len(parts["validation"])
    assert manifest.quality is not None
    assert manifest.quality.reference.images == len(parts["train_labelled"])
    assert manifest.quality.refined is None
    assert manifest.routing is None, "without a teacher there is nothing to route to"
    card = (published.path / "MODEL_CARD.md").read_text()
    assert f"Fitted on {len(parts['validation'])} validation images" in card


def test_a_bundle_tells_no_path_no_file_name_and_holds_no_real_image(
    run: Path, hospital: Path, published: Published
) -> None:
    words = {str(Path.home()), "secret_hospital", "secret_home", str(Path.cwd()), "site-packages"}
    for file in published.path.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert not [word for word in words if len(word) > 3 and word.encode() in content], file
    manifest = (published.path / "manifest.json").read_text()
    assert not [
        case.image_path.name for case in open_dataset(hospital).cases if case.image_path.name in manifest
    ]


def test_of_a_run_that_is_not_finished_export_says_so(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    class Listening:
        def on_message(self, text: str) -> None:
            told.append(text)

        def on_case(self, done: int, total: int) -> None: ...

    monkeypatch.setattr("samdistill.export.bundle.publish", lambda *_, **__: None)
    export_run(run, tmp_path / "bundle", teacher=None, progress=Listening())
    assert not told
    cut = shutil.copytree(run, tmp_path / "cut")
    record = json.loads((cut / "run.json").read_text())
    (cut / "run.json").write_text(json.dumps({**record, "result": {}}))
    export_run(cut, tmp_path / "bundle", teacher=None, progress=Listening())
    assert [text for text in told if "is not finished" in text]


def test_a_run_that_cannot_be_read_or_has_lost_its_data_is_not_published(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputRejected, match=r"run\.json"):
        export_run(tmp_path, tmp_path / "bundle")
    with pytest.raises(InputRejected, match="images"):
        export_run(run, tmp_path / "bundle", data=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_command_ends_with_2_when_a_bundle_is_in_the_way(run: Path, published: Published) -> None:
    line = [sys.executable, "-m", "samdistill", "export", str(run), "--out", str(published.path)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "--force" in done.stderr
    assert verify(published.path).bundle_sha256 == published.sha256


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": ["fp7"]}, "precision must be one of int8, fp16, bf16, mixed, fp32, not 'fp7'"),
        ({"prompts": "loudly"}, "prompts must be mine, burden, box or a TOML file, not 'loudly'"),
        ({"teacher": "sam_vit_x"}, "sam_vit_x"),
    ],
)
def test_bad_options_of_the_command_are_refused_before_anything_is_written(
    run: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises((UsageError, InputRejected), match=message):
        command(run, tmp_path / "bundle", **options)
    assert list(tmp_path.iterdir()) == []


def test_the_command_exports_the_runs_own_way_of_prompting_or_a_files(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def record(*arguments: Any, **options: Any) -> Any:
        asked.append(options)
        raise UsageError("enough")

    monkeypatch.setattr(publishing, "publish", record)
    file = tmp_path / "prompts.toml"
    file.write_text('first_pass = "box"\n[prompts]\ncount = 3\n')
    for options in ({}, {"prompts": str(file)}, {"prompts": "burden"}, {"no_teacher": True}):
        with pytest.raises(UsageError, match="enough"):
            command(run, tmp_path / "bundle", **options)
    assert [one["prompts"].first_pass for one in asked] == ["all", "box", "box", "all"]
    assert asked[1]["prompts"].prompts.count == 3
    assert [one["teacher"] is None for one in asked] == [False, False, False, True]
    assert asked[0]["teacher"].name == "tiny"
    assert len(asked[0]["calibration"]) > 0


def test_the_command_exports_the_runs_own_teacher(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mined = tmp_path / "run"
    shutil.copytree(run, mined)
    record = json.loads((mined / "run.json").read_text())
    record["config"]["teacher"] = "sam_vit_b:/gone/sam.pth"
    (mined / "run.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match=r"/gone/sam\.pth is no file"):
        command(mined, tmp_path / "bundle")
    command(mined, tmp_path / "bundle", no_teacher=True)
    assert Bundle.open(tmp_path / "bundle").manifest.teacher is None
