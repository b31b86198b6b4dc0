"""Evaluation: scores of cases, their means and intervals, and which cases may be scored."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from samdistill.errors import InputRejected
from samdistill.evaluation import METRICS, evaluate, predictions, score_case, summarize, unseen
from samdistill.io.dataset import open_dataset
from samdistill.io.files import sha256_file

Mask = npt.NDArray[np.bool_]
SIZE = (24, 32)


@dataclass
class Found:
    masks: Mask


class Painter:
    """Predicts what is painted: red above 128 is class a, green above 128 is class b."""

    class_names = ("a", "b")

    def __init__(self) -> None:
        self.asked: list[int] = []

    def predict_batch(self, images: Sequence[npt.NDArray[Any]], mode: str = "fast") -> list[Found]:
        self.asked.append(len(images))
        return [Found(np.stack([image[..., 0] > 128, image[..., 1] > 128])) for image in images]


def block(y0: int, y1: int, x0: int, x1: int) -> Mask:
    mask = np.zeros(SIZE, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def write_case(root: Path, name: str, predicted: Sequence[Mask], truth: Sequence[Mask] | None) -> None:
    """An image that makes `Painter` answer `predicted`, and an index mask of `truth`."""
    pixels = np.zeros((*SIZE, 3), np.uint8)
    for channel, mask in enumerate(predicted):
        pixels[mask, channel] = 255
    pixels[..., 2] = len(list(root.glob("images/*")))  # no two images alike
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(root / "images" / f"{name}.png")
    if truth is not None:
        labels = sum(((i + 1) * mask for i, mask in enumerate(truth)), np.zeros(SIZE, int))
        Image.fromarray(labels.astype(np.uint8)).save(root / "masks" / f"{name}.png")


NOTHING = block(0, 0, 0, 0)
SQUARE = block(2, 12, 2, 12)
OTHER = block(14, 20, 10, 20)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """right: all right. half: half of a found, b missed. alarm: a right, b found where there is none."""
    write_case(tmp_path, "right", [SQUARE, OTHER], [SQUARE, OTHER])
    write_case(tmp_path, "half", [block(2, 7, 2, 12), NOTHING], [SQUARE, OTHER])
    write_case(tmp_path, "alarm", [SQUARE, OTHER], [SQUARE, NOTHING])
    write_case(tmp_path, "unlabelled", [SQUARE, OTHER], None)
    (tmp_path / "dataset.toml").write_text('classes = ["a", "b"]\n')
    return tmp_path


def test_scores_of_cases_and_their_means_are_those_worked_by_hand(data: Path) -> None:
    """Dice of a: 1, 2/3, 1; of b: 1, 0, 0. The mean over an image's classes first: 1, 1/3, 1/2."""
    painter = Painter()
    result = evaluate(painter, open_dataset(data).labelled)
    by_id = {case.id: case for case in result.cases}
    assert set(by_id) == {"right", "half", "alarm"}
    np.testing.assert_allclose(by_id["half"].dice, [2 / 3, 0])
    np.testing.assert_allclose(by_id["half"].iou, [1 / 2, 0])
    np.testing.assert_allclose(by_id["alarm"].dice, [1, 0])
    assert by_id["right"].means()["dice"] == 1.0
    assert by_id["half"].means()["dice"] == pytest.approx(1 / 3)
    assert result.metrics["dice"].mean == pytest.approx((1 + 1 / 3 + 1 / 2) / 3)
    assert result.metrics["dice_present"].mean == pytest.approx((1 + 1 / 3 + 1) / 3)
    a, b = result.classes
    assert (a.present, a.missed, a.false_alarms) == (3, 0, 0)
    assert (b.present, b.missed, b.false_alarms) == (2, 1, 1)
    assert a.metrics["dice"].mean == pytest.approx((1 + 2 / 3 + 1) / 3)
    assert b.metrics["dice"].mean == pytest.approx(1 / 3)
    assert b.metrics["dice_present"].mean == pytest.approx(1 / 2)


def test_distances_that_do_not_exist_are_counted_and_do_not_enter_means(data: Path) -> None:
    result = evaluate(Painter(), open_dataset(data).labelled)
    by_id = {case.id: case for case in result.cases}
    assert math.isnan(by_id["half"].hd95_px[1]) and math.isnan(by_id["alarm"].hd95_px[1])
    b = result.classes[1].metrics["hd95_px"]
    assert (b.mean, b.count, b.missing) == (0.0, 1, 2)
    # Of a's half, each truth pixel below is at most 5 px from the prediction's surface.
    assert by_id["half"].hd95_px[0] == pytest.approx(5.0)
    assert by_id["half"].means()["hd95_px"] == by_id["half"].hd95_px[0]


def test_json_is_strict_and_holds_what_the_command_line_promises(data: Path) -> None:
    plain = evaluate(Painter(), open_dataset(data).labelled).to_dict()
    read = json.loads(json.dumps(plain, allow_nan=False))
    assert read == plain
    assert read["dice"] == pytest.approx((1 + 1 / 3 + 1 / 2) / 3)
    assert set(METRICS) <= set(read)
    assert read["missed"] == read["false_alarms"] == 1
    half = next(case for case in read["cases"] if case["id"] == "half")
    assert half["classes"]["b"] == {
        "dice": 0.0, "dice_present": 0.0, "iou": 0.0, "hd95_px": None, "asd_px": None
    }  # fmt: skip
    alarm = next(case for case in read["cases"] if case["id"] == "alarm")
    assert alarm["classes"]["b"]["dice_present"] is None
    interval = read["intervals"]["dice"]
    assert interval["low"] <= interval["mean"] <= interval["high"]
    assert (interval["count"], read["interval_unit"]) == (3, "case")


def test_a_data_set_may_name_its_classes_in_another_order(data: Path) -> None:
    expected = evaluate(Painter(), open_dataset(data).labelled).to_dict()
    for path in (data / "masks").iterdir():
        labels = np.asarray(Image.open(path))
        Image.fromarray(np.array([0, 2, 1], np.uint8)[labels]).save(path)
    (data / "dataset.toml").write_text('classes = ["b", "a"]\n')
    assert evaluate(Painter(), open_dataset(data).labelled).to_dict() == expected
    (data / "dataset.toml").write_text('classes = ["b", "c"]\n')
    with pytest.raises(InputRejected, match="must have the classes a, b, not b, c"):
        evaluate(Painter(), open_dataset(data).labelled)


def test_pixels_of_the_ignore_index_do_not_count(data: Path) -> None:
    truth = np.where(SQUARE, 1, 0).astype(np.uint8)
    truth[2:7][SQUARE[2:7]] = 255  # the upper half of the square is not known
    Image.fromarray(truth).save(data / "masks" / "half.png")
    (data / "dataset.toml").write_text('classes = ["a", "b"]\nignore_index = 255\n')
    case = next(case for case in open_dataset(data).labelled if case.id == "half")
    scores = evaluate(Painter(), [case]).cases[0]
    assert scores.dice[0] == 0.0, "the found half lies in the ignored part, the other is missed"
    assert scores.present[0] and not scores.predicted[0]


def test_cases_go_in_batches_and_come_out_in_order_with_progress(tmp_path: Path) -> None:
    for number in range(11):
        write_case(tmp_path, f"{number:02d}", [SQUARE, NOTHING], [SQUARE, NOTHING])
    (tmp_path / "dataset.toml").write_text('classes = ["a", "b"]\n')
    painter, told = Painter(), []
    result = evaluate(painter, open_dataset(tmp_path).labelled, on_case=lambda case: told.append(case.id))
    assert painter.asked == [8, 3]
    assert told == [case.id for case in result.cases] == [f"{number:02d}" for number in range(11)]


def test_of_large_images_fewer_are_predicted_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(8):
        write_case(tmp_path, str(number), [SQUARE, NOTHING], [SQUARE, NOTHING])
    (tmp_path / "dataset.toml").write_text('classes = ["a", "b"]\n')
    monkeypatch.setattr("samdistill.evaluation.BATCH_PIXELS", 2 * SIZE[0] * SIZE[1])
    painter = Painter()
    assert evaluate(painter, open_dataset(tmp_path).labelled).metrics["dice"].mean == 1
    assert painter.asked == [3, 3, 2]


def test_intervals_redraw_groups_where_the_data_have_groups() -> None:
    truth = np.stack([SQUARE, OTHER])
    wrong = np.stack([block(2, 7, 2, 12), NOTHING])
    cases = [
        score_case(f"{patient}_{slice_}", patient, truth if patient < "p3" else wrong, truth)
        for patient in ("p1", "p2", "p3", "p4")
        for slice_ in range(10)
    ]
    grouped = summarize(cases, class_names=["a", "b"])
    assert grouped.grouped and grouped.to_dict()["interval_unit"] == "group"
    single = summarize(
        [score_case(str(i), str(i), truth if i < 20 else wrong, truth) for i in range(40)],
        class_names=["a", "b"],
    )
    wide, narrow = grouped.metrics["dice"], single.metrics["dice"]
    assert wide.mean == pytest.approx(narrow.mean)
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_the_same_seed_gives_the_same_result(data: Path) -> None:
    cases = open_dataset(data).labelled
    assert evaluate(Painter(), cases, seed=3).to_dict() == evaluate(Painter(), cases, seed=3).to_dict()


def test_images_that_were_trained_on_and_their_groups_are_unseen_no_more(data: Path) -> None:
    dataset = open_dataset(data)
    assert unseen(dataset.cases, []) == dataset.labelled
    half = sha256_file(data / "images" / "half.png")[:16]
    assert [case.id for case in unseen(dataset.cases, [half])] == ["alarm", "right"]
    (data / "images" / "half.png").rename(data / "images" / "half_again.png")
    (data / "masks" / "half.png").rename(data / "masks" / "half_again.png")
    renamed = open_dataset(data)
    assert [c.id for c in unseen(renamed.cases, [half])] == ["alarm", "right"], "names do not matter"
    # The unlabelled image was trained on and belongs to one patient with "right".
    (data / "dataset.toml").write_text(
        'classes = ["a", "b"]\n[table]\nfile = "groups.csv"\ngroup = "patient"\n'
    )
    (data / "groups.csv").write_text("case,patient\nright,p1\nunlabelled,p1\nalarm,p2\nhalf_again,p3\n")
    grouped = open_dataset(data)
    trained = sha256_file(data / "images" / "unlabelled.png")[:16]
    assert [case.id for case in unseen(grouped.cases, [trained])] == ["alarm", "half_again"]


def test_nothing_to_evaluate_is_said_and_a_broken_case_is_never_skipped(data: Path) -> None:
    with pytest.raises(InputRejected, match="nothing to evaluate"):
        evaluate(Painter(), [])
    (data / "images" / "half.png").write_bytes((data / "images" / "half.png").read_bytes()[:60])
    with pytest.raises(InputRejected, match=r"half\.png"):
        evaluate(Painter(), open_dataset(data).labelled)


def test_a_predictor_whose_masks_have_another_size_is_found_out(data: Path) -> None:
    class Crooked(Painter):
        def predict_batch(self, images: Sequence[npt.NDArray[Any]], mode: str = "fast") -> list[Found]:
            return [Found(found.masks[:, 1:]) for found in super().predict_batch(images, mode)]

    with pytest.raises(ValueError, match=r"masks of case alarm must be \(C, H, W\) \(2, 24, 32\)"):
        evaluate(Crooked(), open_dataset(data).labelled)


def test_pixels_the_predictor_refuses_are_an_input_that_is_rejected(data: Path) -> None:
    class Strict(Painter):
        def predict_batch(self, images: Sequence[npt.NDArray[Any]], mode: str = "fast") -> list[Found]:
            raise ValueError("images[0]: pixels must be uint8")

    with pytest.raises(InputRejected, match=r"alarm\.png and the next 2: images\[0\]"):
        list(predictions(Strict(), open_dataset(data).labelled))
