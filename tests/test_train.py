"""Training end to end on phantoms: label privacy, equal shares over processes, what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from samdistill.errors import DeviceUnavailable, InputRejected, UsageError
from samdistill.io import write_png
from samdistill.io.dataset import open_dataset
from samdistill.phantoms import folder as phantoms
from samdistill.train.config import AugmentConfig, TrainConfig, load_config
from samdistill.train.data import Batches, FrameStore, whole_frames
from samdistill.train.launch import choose_devices, choose_intensity, train
from samdistill.train.loop import Phase, Validation, _Progress, _rate, fit
from samdistill.train.losses import IGNORE, SegmentationLoss
from samdistill.train.run import Run
from samdistill.train.student import build_student

TINY = """
preset = "light"
precision = "fp32"
min_epoch_steps = 3
max_steps = 9
batch = 4
labels = 10
[student]
encoder = "tu-mobilenetv3_small_050"
decoder_channels = [16, 16, 8, 8, 8]
size = 32
"""


class Silent:
    """A watcher that only collects."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.messages: list[str] = []

    def on_message(self, text: str) -> None:
        self.messages.append(text)

    def on_prepare(self, what: str, done: int, total: int) -> None:
        assert done <= total

    def on_start(self, phase: str, first_step: int, total_steps: int) -> None:
        self.first = first_step

    def on_step(self, step: int, loss: float) -> None:
        assert np.isfinite(loss)

    def on_epoch(self, record: dict[str, Any]) -> None:
        self.records.append(record)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms") / "data"
    phantoms.write(folder, kind="ultrasound", count=30, seed=4, size=(48, 64))
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("config") / "tiny.toml"
    file.write_text(TINY)
    return file


@pytest.fixture(scope="module")
def trained(data: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(data, tmp_path_factory.mktemp("runs") / "run", load_config(tiny), Silent(), device="cpu")


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def test_a_run_leaves_all_its_files_and_says_what_it_did(trained: Run) -> None:
    names = {path.name for path in trained.path.iterdir()}
    assert names == {
        "run.json",
        "student.safetensors",
        "last.safetensors",
        "log.jsonl",
        "log.csv",
        "curves.png",
    }
    log = [json.loads(line) for line in (trained.path / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in log] == [3, 6, 9]
    result = trained.record.result
    assert result["steps"] == 9
    assert result["best"]["val_dice"] == max(record["val_dice"] for record in log)
    assert trained.record.versions["torch"] == torch.__version__


def test_the_label_budget_covers_training_and_validation(trained: Run) -> None:
    split = trained.record.split
    assert len(split["train_labelled"]) + len(split["validation"]) == 10
    assert len(split["validation"]) >= 3
    everything = [name for part in split.values() for name in part]
    assert len(everything) == len(set(everything)) == 30


def test_a_class_that_no_label_within_the_budget_shows_is_told_of(
    data: Path, tiny: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(data, tmp_path / "data")
    (copy / "dataset.toml").write_text('classes = ["nerve", "vessel", "needle"]\n')
    watcher = Silent()
    config = load_config(tiny, overrides={"max_steps": 1})
    train(copy, tmp_path / "run", config, watcher, device="cpu")
    told = [text for text in watcher.messages if "shows 'needle'" in text]
    assert [text.split(" shows")[0] for text in told] == [
        "warning: no labelled training image",
        "warning: no validation image",
    ]


def test_the_loaded_student_is_the_best_one(trained: Run) -> None:
    student = trained.load_student()
    store = FrameStore(trained.validation_cases(), 32, trained.intensity)
    from samdistill.train.loop import validate

    measured = validate(student, store, SegmentationLoss(1.0), 4)
    assert measured.dice == pytest.approx(trained.record.result["best"]["val_dice"], abs=1e-9)


def test_a_student_is_where_the_run_computes_though_its_phase_is_over(trained: Run) -> None:
    """Resumed on a GPU, the student of a phase that is over predicts there, too."""
    elsewhere: Any = SimpleNamespace(device=torch.device("meta"))
    student, over = build_student(trained.config.student, 1)[0], Phase("over", -1, 1, 1)
    nothing: Any = None
    fit(trained, elsewhere, student, nothing, nothing, over, Silent())
    assert {parameter.device.type for parameter in student.parameters()} == {"meta"}


def test_training_learns(data: Path, tiny: Path, tmp_path: Path) -> None:
    config = load_config(tiny, overrides={"max_steps": 60, "min_epoch_steps": 20, "labels": 30})
    watcher = Silent()
    train(data, tmp_path / "run", config, watcher, device="cpu")
    assert watcher.records[-1]["train_loss"] < 0.85 * watcher.records[0]["train_loss"]


def test_labels_of_the_unlabelled_part_are_never_read(
    data: Path, tiny: Path, trained: Run, tmp_path: Path
) -> None:
    """With every unlabelled image's mask destroyed, the run comes out the same to the last bit."""
    copy = tmp_path / "data"
    for source in data.rglob("*"):
        if source.is_file():
            target = copy / source.relative_to(data)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    for name in trained.record.split["train_unlabelled"]:
        (mask,) = copy.glob(f"masks/{name}.*")
        mask.write_bytes(b"not a mask")
    run = train(copy, tmp_path / "run", load_config(tiny), Silent(), device="cpu")
    assert run.record.split == trained.record.split
    assert (run.path / "student.safetensors").read_bytes() == (
        trained.path / "student.safetensors"
    ).read_bytes()


def test_a_loss_that_is_no_number_ends_the_run_with_what_to_do(
    data: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("samdistill.train.loop._rate", lambda *_: 1e30)
    with pytest.raises(UsageError, match=r"must stay finite, and became nan .* lower optimiser"):
        train(data, tmp_path / "run", load_config(tiny), Silent(), device="cpu")
    assert not Run.load(tmp_path / "run").record.result


def test_weights_that_the_last_step_broke_end_the_run_too(
    data: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("samdistill.train.loop._rate", lambda *_: 1e30)
    config = load_config(tiny, overrides={"max_steps": 1})
    with pytest.raises(UsageError, match=r"the validation loss must stay finite, and became nan at step 1"):
        train(data, tmp_path / "run", config, Silent(), device="cpu")
    assert not (tmp_path / "run" / "student.safetensors").exists()


def test_two_processes_share_each_batch(data: Path, tiny: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
            "-m",
            "samdistill",
            "train",
            str(data),
            "--config",
            str(tiny),
            "--out",
            str(tmp_path / "run"),
            "--device",
            "cpu",
            "--keep",
            "last",
        ],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    run = Run.load(tmp_path / "run")
    assert run.record.result["steps"] == 9
    assert run.config.keep == "last"
    kept, last = run.load_tensors("student")[0], run.load_tensors("last")[0]
    assert all(torch.equal(kept[key], last[f"student.{key}"]) for key in kept)


@pytest.fixture(scope="module")
def store(data: Path) -> FrameStore:
    return FrameStore(open_dataset(data).cases[:7], 32, load_config().intensity or _identity())


def _identity() -> Any:
    from samdistill.intensity import IntensityRule

    return IntensityRule()


def test_an_image_deeper_than_the_rule_is_named(data: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(data, tmp_path / "data")
    write_png(copy / "images" / "deep.png", np.full((48, 64), 4096, np.uint16))
    with pytest.raises(InputRejected, match=r"deep\.png: pixels must be uint8 under the intensity rule"):
        FrameStore(open_dataset(copy).unlabelled, 32, _identity()).preload(lambda done, total: None)


def test_a_batch_depends_on_nothing_but_seed_stream_and_step(store: FrameStore) -> None:
    first = Batches(store, 32, 4, AugmentConfig(), seed=1, stream=0)
    second = Batches(store, 32, 4, AugmentConfig(), seed=1, stream=0)
    second(0), second(1)
    assert torch.equal(first(5).pixels, second(5).pixels)
    other = Batches(store, 32, 4, AugmentConfig(), seed=1, stream=1)
    assert not torch.equal(first(5).pixels, other(5).pixels)


def test_every_case_comes_once_before_any_comes_again(store: FrameStore) -> None:
    batches = Batches(store, 32, 4, AugmentConfig(), seed=3, stream=0)
    drawn = [index for step in range(7) for index in batches(step).indices]
    for cycle in range(4):
        assert sorted(drawn[7 * cycle : 7 * cycle + 7]) == list(range(7))


def test_the_shares_of_two_processes_make_up_the_batch(store: FrameStore) -> None:
    whole = Batches(store, 32, 4, AugmentConfig(), seed=3, stream=0)(2)
    parts = [
        Batches(store, 32, 4, AugmentConfig(), seed=3, stream=0, rank=rank, world=2)(2) for rank in (0, 1)
    ]
    assert torch.equal(whole.pixels[0::2], parts[0].pixels)
    assert torch.equal(whole.pixels[1::2], parts[1].pixels)


def test_whole_frames_pad_with_pixels_that_count_nowhere(store: FrameStore) -> None:
    seen = 0
    for batch in whole_frames(store, 3):
        assert batch.pixels.shape[2] % 32 == batch.pixels.shape[3] % 32 == 0
        width = store[batch.indices[0]].image.shape[1]
        assert (batch.targets[:, :, :, width:] == IGNORE).all()
        seen += len(batch.indices)
    assert seen == len(store)


def test_ignored_pixels_change_no_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 2, 8, 8, generator=generator)
    targets = (torch.rand(2, 2, 8, 8, generator=generator) > 0.5).float()
    targets[:, :, :, 5:] = IGNORE
    loss = SegmentationLoss(0.5)
    changed = logits.clone()
    changed[:, :, :, 5:] += 100
    assert loss(logits, targets) == loss(changed, targets)
    changed[:, :, :, :5] += 100
    assert loss(logits, targets) != loss(changed, targets)


def test_the_loss_is_dice_plus_weighted_bce() -> None:
    """Worked by hand: logits 0 give p = 1/2 everywhere; 4 of 8 pixels true: Dice 2*2/(4+4), BCE ln 2."""
    logits, targets = torch.zeros(1, 1, 2, 4), torch.tensor([[[[1.0, 1, 1, 1], [0, 0, 0, 0]]]])
    assert float(SegmentationLoss(0.2)(logits, targets)) == pytest.approx(0.5 + 0.2 * np.log(2), abs=1e-5)


def test_the_students_normalisation_is_inside() -> None:
    student, start = build_student(TrainConfig().student, 2)
    assert start in ("none", "imagenet")
    pixels = torch.randint(0, 256, (1, 3, 32, 64), dtype=torch.uint8)
    student.eval()
    with torch.no_grad():
        assert torch.equal(student(pixels), student(pixels.float()))
        assert student(pixels).shape == (1, 2, 32, 64)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU, so asking for it is no error")
def test_a_missing_gpu_is_said_and_never_replaced() -> None:
    with pytest.raises(DeviceUnavailable, match=r"CUDA|GPU"):
        choose_devices("cuda", "auto")
    assert choose_devices("auto", "fp32").kind == "cpu"


@pytest.mark.parametrize(("dtype", "kind"), [(np.uint8, "identity"), (np.int8, "percentiles")])
def test_only_bytes_above_zero_are_taken_as_they_are(
    monkeypatch: pytest.MonkeyPatch, dtype: Any, kind: str
) -> None:
    stack = SimpleNamespace(image=lambda: np.zeros((2, 2), dtype))
    monkeypatch.setattr("samdistill.train.launch.open_stack", lambda path: stack)
    assert choose_intensity([Path("a.nii")]).kind == kind


def test_half_precision_on_a_cpu_is_refused() -> None:
    with pytest.raises(UsageError, match="fp16 needs a GPU"):
        choose_devices("cpu", "fp16")


def test_the_rate_halves_on_a_plateau_and_training_stops_early() -> None:
    config = load_config(overrides={"optimiser.plateau_patience": 1, "early_stop": 4})
    progress = _Progress(config.optimiser.learning_rate)
    rates, over = [], []
    for loss in (1.0, 0.9, 0.9, 0.95, 0.9, 0.92):
        progress.finish_epoch(Validation(loss, 0.5), 10, config.optimiser)
        rates.append(progress.plateau_rate / config.optimiser.learning_rate)
        over.append(progress.stale(config))
    assert rates == [1, 1, 1, 0.5, 0.5, 0.25]
    assert over == [False, False, False, False, False, True]
    assert progress.best_epoch == 2, "equal Dice: the lower loss is the better student"


def test_the_cosine_warms_up_and_ends_at_the_minimum() -> None:
    config = load_config(preset="light").optimiser
    rates = [_rate(config, step, 200, 0.0) for step in range(200)]
    assert rates[0] == pytest.approx(config.learning_rate / 10)
    assert max(rates) == rates[9] == pytest.approx(config.learning_rate)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 1.1 * config.min_learning_rate
