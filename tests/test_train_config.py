"""The training configuration: presets, TOML, overrides, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from samdistill.config import build, to_dict
from samdistill.errors import UsageError
from samdistill.train.config import PRESETS, TrainConfig, load_config


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
