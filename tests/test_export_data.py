"""The data behind an export: masks count by their classes' names, whatever order a folder gives them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bundles import colours, expected
from colour_student import CLASS_NAMES, ColourStudent

from samdistill.config import to_dict
from samdistill.errors import InputRejected
from samdistill.export.pieces import Silent, Source, student_piece
from samdistill.intensity import IntensityRule
from samdistill.io import open_dataset, write_png
from samdistill.train.config import TrainConfig
from samdistill.train.run import SCHEMA, Run, RunRecord

OTHER_ORDER = (CLASS_NAMES[1], CLASS_NAMES[0])


def folder_of(root: Path, names: tuple[str, ...]) -> Path:
    """Two pictures of colours with index masks in which the classes are numbered in this order."""
    for place in ("images", "masks"):
        (root / place).mkdir(parents=True)
    for number in range(2):
        image = colours(seed=number)
        masks = expected(image)[[CLASS_NAMES.index(name) for name in names]]
        write_png(root / "images" / f"{number}.png", image)
        index = (masks * np.arange(1, 3)[:, None, None]).sum(axis=0)
        write_png(root / "masks" / f"{number}.png", index.astype(np.uint8))
    declare(root, names)
    return root


def declare(root: Path, names: tuple[str, ...], more: str = "") -> None:
    (root / "dataset.toml").write_text(f"classes = {list(names)}\n{more}")


@pytest.mark.parametrize("names", [CLASS_NAMES, OTHER_ORDER])
def test_the_gate_holds_each_class_against_the_masks_of_its_name(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    cases = open_dataset(folder_of(tmp_path / "data", names)).cases
    source = Source(ColourStudent(), CLASS_NAMES, False, IntensityRule(), 64, {})
    made = student_piece(source, cases, thresholds=(0.5, 0.5), progress=Silent())
    assert made.parity[0].pytorch_truth_dice == 1.0


def test_masks_of_other_classes_are_no_truth_for_the_gate(tmp_path: Path) -> None:
    cases = open_dataset(folder_of(tmp_path / "data", CLASS_NAMES)).cases
    source = Source(ColourStudent(), ("red", "dark"), False, IntensityRule(), 64, {})
    with pytest.raises(InputRejected, match="must have the classes red, dark, not red, bright"):
        student_piece(source, cases, thresholds=(0.5, 0.5), progress=Silent())


@pytest.mark.parametrize(
    ("names", "more"),
    [
        (OTHER_ORDER, ""),
        (CLASS_NAMES, "class_values = [2, 1]"),
        (CLASS_NAMES, "ignore_index = 9"),
    ],
)
def test_data_whose_masks_mean_something_else_now_are_not_the_runs(
    names: tuple[str, ...], more: str, tmp_path: Path
) -> None:
    data = folder_of(tmp_path / "data", CLASS_NAMES)
    dataset = open_dataset(data)
    record = RunRecord(
        schema=SCHEMA,
        config=to_dict(TrainConfig()),
        data={"path": str(data), "fingerprint": dataset.fingerprint()},
        split={"train_labelled": ["0"], "train_unlabelled": [], "validation": ["1"], "test": []},
        class_names=list(CLASS_NAMES),
        multi_label=False,
        intensity=to_dict(IntensityRule()),
        encoder_weights="none",
        versions={},
        devices={},
        result={},
    )
    run = Run(tmp_path / "run", record)
    np.testing.assert_array_equal(run.cases()["validation"][0].read_masks(), expected(colours(seed=1)))
    declare(data, names, more)
    with pytest.raises(InputRejected, match="does not hold the data of this run"):
        run.cases()
