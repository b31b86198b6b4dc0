"""The training configuration: presets, TOML, overrides, what it refuses, and what of it a run records."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_train import TINY, Silent

from samdistill.config import build, to_dict
from samdistill.errors import UsageError
from samdistill.phantoms import folder as phantoms
from samdistill.train.config import PRESETS, TrainConfig, load_config
from samdistill.train.launch import _check_same, train


@pytest.fixture
def data(tmp_path: Path) -> Path:
    phantoms.write(tmp_path / "data", kind="ultrasound", count=12, seed=4, size=(48, 64))
    return tmp_path / "data"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    (tmp_path / "tiny.toml").write_text(TINY)
    return tmp_path / "tiny.toml"


@pytest.mark.parametrize("preset", PRESETS)
def test_a_configuration_survives_the_way_through_plain_values(preset: str) -> None:
    config = load_config(preset=preset, overrides={"labels": 0.25, "max_steps": 7})
    assert build(TrainConfig, to_dict(config)) == config


def test_the_default_is_the_papers_recipe() -> None:
    config = load_config()
    assert (config.student.encoder, config.student.size, config.batch) == ("resnet34", 224, 8)
    assert (config.optimiser.learning_rate, config.optimiser.plateau_patience) == (5e-5, 3)
    assert (config.bce_weight, config.early_stop, config.min_epoch_steps) == (0.2, 10, 100)


def test_a_file_changes_its_preset_and_an_option_changes_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('preset = "light"\nseed = 3\n[student]\nsize = 96\n[augment]\nflip = 0.25\n')
    config = load_config(file, overrides={"seed": 5})
    assert (config.seed, config.student.size, config.augment.flip) == (5, 96, 0.25)
    assert config.student.encoder == PRESETS["light"].student.encoder
    assert load_config(file, preset="paper").student.encoder == PRESETS["paper"].student.encoder


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("sede = 3", "sede"),
        ("[student]\nencodr = 'x'", "encodr"),
        ("seed = 'three'", "seed must be int"),
        ("seed = -1", "seed must be 0 to 2**63 - 1"),
        ("seed = 9223372036854775808", "seed must be 0 to 2**63 - 1"),
        ("labels = 1.5", "share in (0, 1]"),
        ("labels = 0", "at least 1 image"),
        ("batch = 1", "batch must be at least 2"),
        ("[student]\nsize = 100", "multiple of 32"),
        ("max_steps = 0", "max_steps must be at least 1"),
        ("preset = 'heavy'", "preset must be one of"),
        ("preset = ['light']", "preset must be one of"),
        ("strategy = 'magic'", "strategy must be one of"),
        ("[augment]\nflip = 2.0", "flip must be a probability"),
        ("student = 3", "student must be a table"),
        ("[intensity]\nkind = 'guess'", "intensity kind"),
        ("seed = ", "not valid TOML"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_config(file)
    assert named in str(caught.value)
    assert "bad.toml" in str(caught.value) or "preset" in named


def test_an_option_finds_no_value_where_its_table_should_be(tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text("student = 5\n")
    with pytest.raises(UsageError, match=r"bad\.toml: student must be a table, not 5"):
        load_config(file, overrides={"student.size": 32})


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the configuration"):
        load_config(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("encoder", "named"),
    [
        ("mit_b0", "U-Net\\+\\+ can be built on, not 'mit_b0'"),
        ("tu-xcit_nano_12_p8_224", "U-Net\\+\\+ can be built on"),
        ("tu-maxvit_nano_rw_256", "takes images of any size, not 'tu-maxvit_nano_rw_256'"),
        ("resnet35", "a name segmentation_models_pytorch knows"),
        ("tu-resnet35", "timm knows no encoder"),
    ],
)
def test_an_encoder_that_cannot_be_the_students_is_refused_before_the_run_is_made(
    data: Path, tiny: Path, tmp_path: Path, encoder: str, named: str
) -> None:
    overrides = {"student.encoder": encoder, "student.encoder_weights": "none"}
    with pytest.raises(UsageError, match=named):
        train(data, tmp_path / "run", load_config(tiny, overrides=overrides), Silent(), device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_budget_of_one_image_is_not_that_of_all_labels(tmp_path: Path) -> None:
    started: Any = SimpleNamespace(path=tmp_path, config=TrainConfig(labels=1, bce_weight=1.0))
    with pytest.raises(UsageError, match=r"labels was 1 when .* not 1\.0"):
        _check_same(started, TrainConfig(labels=1.0, bce_weight=1.0))
    _check_same(started, TrainConfig(labels=1, bce_weight=1))


@pytest.mark.parametrize(
    ("words", "recorded"),
    [
        ("tiny:w.safetensors", "tiny:{here}/w.safetensors"),
        ("sam_vit_b:../b.pth", "sam_vit_b:{above}/b.pth"),
        ("weights/sam.pth", "{here}/weights/sam.pth"),
        ("/elsewhere/sam.pth", "/elsewhere/sam.pth"),
        ("tiny", "tiny"),
        ("sam_vit_b", "sam_vit_b"),
        ("professor", "professor"),
    ],
)
def test_the_path_of_a_teacher_is_recorded_absolute(
    words: str, recorded: str, data: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[TrainConfig] = []

    def stop(split: Any, data: Any, out: Any, config: TrainConfig, *_: Any) -> None:
        made.append(config)
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("samdistill.train.launch._new_run", stop)
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "run", load_config(tiny, overrides={"teacher": words}), Silent(), device="cpu")
    assert made[0].teacher == recorded.format(here=tmp_path, above=tmp_path.parent)
