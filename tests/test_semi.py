"""The strategies with several voices, end to end on phantoms with a student of 32 px."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from small_sam import small_teacher

from samdistill.errors import InputRejected, UsageError
from samdistill.io.dataset import open_dataset
from samdistill.io.splits import make_split
from samdistill.phantoms import folder as phantoms
from samdistill.train.config import TrainConfig, load_config
from samdistill.train.consistency import supervised_loss
from samdistill.train.launch import _new_run, choose_devices, train
from samdistill.train.losses import IGNORE
from samdistill.train.run import Run
from samdistill.train.strategies.cps import CrossPseudo
from samdistill.train.strategies.mean_teacher import MeanTeacher, first_student
from samdistill.train.training import Training

semisam = importlib.import_module(
    "samdistill.train.strategies.semisam"
)  # the package has a runner of that name
STRATEGIES = ("mean-teacher", "ua-mt", "semisam", "semisam-ua-mt", "cps", "fixmatch")
TINY = """
preset = "light"
precision = "fp32"
min_epoch_steps = 2
max_steps = 6
batch = 4
labels = 5
[student]
decoder_channels = [8, 8, 8, 8, 8]
size = 32
[consistency]
passes = 2
"""


class Silent:
    """A watcher that collects, and may pull the plug."""

    def __init__(self, *, plug_at_step: int | None = None) -> None:
        self.records: list[dict[str, Any]] = []
        self.messages: list[str] = []
        self._plug = plug_at_step

    def on_message(self, text: str) -> None:
        self.messages.append(text)

    def on_prepare(self, what: str, done: int, total: int) -> None: ...

    def on_start(self, phase: str, first_step: int, total_steps: int) -> None: ...

    def on_step(self, step: int, loss: float) -> None:
        assert np.isfinite(loss)
        if step == self._plug:
            raise KeyboardInterrupt

    def on_epoch(self, record: dict[str, Any]) -> None:
        self.records.append(record)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms") / "data"
    phantoms.write(folder, kind="ultrasound", count=9, seed=4, size=(40, 48))
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TrainConfig]:
    file = tmp_path_factory.mktemp("config") / "tiny.toml"
    file.write_text(TINY)
    return lambda strategy, **changes: load_config(
        file, overrides={"strategy": strategy, **{k.replace("__", "."): v for k, v in changes.items()}}
    )


@pytest.fixture(scope="module")
def runs(
    data: Path, cache: Path, configured: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Run]:
    """One run of each strategy, with the hidden labels in the log."""
    folder = tmp_path_factory.mktemp("runs")

    def run(strategy: str) -> Run:
        out = folder / strategy
        if not out.is_dir():
            train(data, out, configured(strategy), Silent(), device="cpu", cache=cache, audit=True)
        return Run.load(out)

    return run


def log(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]


def bytes_of(run: Run) -> bytes:
    return (run.path / "student.safetensors").read_bytes()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_says_what_its_voices_said(runs: Any, strategy: str) -> None:
    run = runs(strategy)
    records = log(run)
    assert [record["step"] for record in records] == [2, 4, 6]
    second = {"cps": "second", "fixmatch": "strong"}.get(strategy, "ema")
    wanted = {
        "lambda_c",
        "loss_supervised",
        "loss_consistency",
        f"agree_student_{second}",
        "agree_student_truth",
    }
    if "semisam" in strategy:
        wanted |= {"lambda_s", "teacher_silent", "teacher_val_dice"}
        spoken = {"loss_teacher", "agree_student_teacher", "agree_ema_teacher", "agree_teacher_truth"}
        for record in records:
            assert spoken <= record.keys() or record["teacher_silent"] == 1
    assert all(wanted <= record.keys() for record in records)
    # lambda_c over t = 0 and 1 of 6, by hand: 0.1 (e^-5 + e^-3.4722) / 2.
    assert records[0]["lambda_c"] == pytest.approx(0.00188930, rel=1e-4)
    if "semisam" in strategy:
        # lambda_s over t = 4 and 5 of 6, by hand: 0.1 (e^-2.2222 + e^-3.4722) / 2.
        assert records[2]["lambda_s"] == pytest.approx(0.0069708, rel=1e-4)
    assert (run.path / "curves.png").stat().st_size > 10_000


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_labels_of_the_unlabelled_part_change_nothing(
    runs: Any, data: Path, cache: Path, configured: Any, tmp_path: Path, strategy: str
) -> None:
    """With every unlabelled image's mask destroyed, and unaudited, the student is the same to a bit."""
    known = runs(strategy)
    copy = tmp_path / "data"
    for source in data.rglob("*"):
        if source.is_file():
            target = copy / source.relative_to(data)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    for name in known.record.split["train_unlabelled"]:
        (mask,) = copy.glob(f"masks/{name}.*")
        mask.write_bytes(b"not a mask")
    run = train(copy, tmp_path / "run", configured(strategy), Silent(), device="cpu", cache=cache)
    assert run.record.split == known.record.split
    assert bytes_of(run) == bytes_of(known)


@pytest.mark.parametrize(
    ("strategy", "changes"),
    [
        ("semisam-ua-mt", {"consistency__switch_off": 1, "optimiser__kind": "sgd"}),
        ("cps", {"optimiser__kind": "sgd", "optimiser__schedule": "steps"}),
    ],
)
def test_resumed_is_the_uninterrupted_run(
    data: Path,
    cache: Path,
    configured: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    strategy: str,
    changes: dict[str, Any],
) -> None:
    """Stopped in the middle of the second and of the third epoch."""
    # The teacher is beaten from the start, so that the resumed run has to know that it is off.
    monkeypatch.setattr(semisam.Voice, "validate", lambda self, student: -1.0)
    config = configured(strategy, **changes)
    whole = train(data, tmp_path / "whole", config, Silent(), device="cpu", cache=cache)
    out = tmp_path / "stopped"
    for step in (3, 5):
        with pytest.raises(KeyboardInterrupt):
            train(
                data, out, config, Silent(plug_at_step=step), device="cpu", cache=cache, resume=out.is_dir()
            )
    watcher = Silent()
    stopped = train(data, out, config, watcher, device="cpu", cache=cache, resume=True)
    assert [record["step"] for record in watcher.records] == [6]
    for name in ("student", "last"):
        (tensors, state), (others, other_state) = whole.load_tensors(name), stopped.load_tensors(name)
        assert tensors.keys() == others.keys()
        assert all(torch.equal(tensors[key], others[key]) for key in tensors)
        for record in [*state.get("history", []), *other_state.get("history", [])]:
            del record["seconds"]
        assert state == other_state
    networks = {key.split(".")[1] for key in whole.load_tensors("last")[0] if key.startswith("network.")}
    assert networks == ({"second"} if strategy == "cps" else {"ema"})
    if "semisam" in strategy:
        assert stopped.record.result["teacher_switched_off_step"] == 2


@pytest.fixture
def training(data: Path, cache: Path, configured: Any, tmp_path: Path) -> Callable[..., Training]:
    """The inside of a run, on one process of a CPU."""

    def make(strategy: str, **changes: Any) -> Training:
        config = configured(strategy, **changes)
        split = make_split(open_dataset(data, infer_classes=False), seed=0, labels=config.labels)
        run = _new_run(split, data, tmp_path / "run", config, choose_devices("cpu", "fp32"), "none")
        run.path.mkdir(exist_ok=True)
        return Training(run, Fabric(accelerator="cpu", devices=1), split, Silent(), cache=cache)

    return make


def test_gradients_reach_the_student_alone(training: Any) -> None:
    inside = training("semisam-ua-mt")
    student = inside.new_student()
    objective = semisam.SemiSam(inside, student, 6, uncertainty=True)
    loss, numbers = objective.loss(student.train(), 1)
    assert numbers["loss_teacher"] > 0
    loss.backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert all(parameter.grad is None for parameter in objective.networks()["ema"].parameters())
    assert all(parameter.grad is None for parameter in inside.teacher.model.parameters())
    learning = [p for net in objective.networks().values() for p in net.parameters() if p.requires_grad]
    assert not learning


def test_the_average_is_normalised_by_the_batch_that_the_student_sees(
    training: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of four images are labelled; the passes that find uncertain pixels see them, too."""
    inside = training("ua-mt")
    student = inside.new_student()
    objective = MeanTeacher(inside, student, 6, uncertainty=True)
    seen: list[int] = []
    answer = objective._ema.answer
    monkeypatch.setattr(
        objective._ema, "answer", lambda pixels: (seen.append(len(pixels)), answer(pixels))[1]
    )
    objective.loss(student.train(), 0)
    assert seen == [4, 4, 4]


def test_cross_pseudo_labels_pass_no_gradient(training: Any) -> None:
    """The first student learns from the second one's masks, not through them."""
    inside = training("cps", consistency__schedule="constant", consistency__weight=1.0)
    student, second = inside.new_student(), inside.new_student(1)
    objective = CrossPseudo(inside, second)
    objective.loss(student.train(), 0)[0].backward()
    alone = {name: p.grad.clone() for name, p in student.named_parameters()}
    # The same with the second student frozen: the first one's gradient is its own.
    student.zero_grad()
    second.requires_grad_(False)
    torch.manual_seed(0)
    objective.loss(student, 0)[0].backward()
    assert all(torch.equal(alone[name], p.grad) for name, p in student.named_parameters())


def silence(student: Any) -> None:
    """Let a student find nothing anywhere, in any mode."""
    head = student.net.segmentation_head[0]
    head.weight.data.zero_()
    head.bias.data.fill_(-20.0)


def test_an_empty_prediction_has_no_teacher_term(training: Any) -> None:
    inside = training("semisam")
    student = inside.new_student()
    silence(student)
    third = semisam.SemiSam(inside, student, 6, uncertainty=False)
    plain = MeanTeacher(inside, student, 6, uncertainty=False)
    losses = []
    for objective in (third, plain):
        torch.manual_seed(5)
        losses.append(objective.loss(student.train(), 0))
    (loss, numbers), (without, _) = losses
    assert numbers["teacher_silent"] == 1
    assert numbers["lambda_s"] == pytest.approx(0.1)
    assert "loss_teacher" not in numbers
    assert torch.equal(loss, without)


def test_an_image_without_prediction_leaves_the_others_their_term(
    training: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = training("semisam")
    student = inside.new_student()

    def answers(network: Any, frames: Any, batch: int) -> list[Any]:
        logits = [np.full((len(inside.run.class_names), *one.shape[:2]), -20, np.float32) for one in frames]
        logits[1][:, 8:20, 8:20] = 20
        return logits

    monkeypatch.setattr(semisam, "predict_logits", answers)
    objective = semisam.SemiSam(inside, student, 6, uncertainty=False)
    halves = objective._batches(0)
    targets, numbers = objective._voice(student, halves, torch.zeros(2, 1, 32, 32))
    assert numbers["teacher_silent"] == 0.5
    assert targets is not None
    assert (targets[0] == IGNORE).all()
    assert not (targets[1] == IGNORE).all()


@pytest.mark.parametrize("before", [0, 2])
def test_the_teacher_is_asked_no_more_once_it_is_beaten(
    data: Path, cache: Path, configured: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    """Steps are counted from the run's first one, pre-training's included."""
    asked: list[int] = []
    ask = semisam.Voice.__call__

    def counted(self: Any, *words: Any) -> Any:
        asked.append(1)
        return ask(self, *words)

    monkeypatch.setattr(semisam.Voice, "__call__", counted)
    # Beaten, not beaten, beaten twice running: a single time is not enough.
    verdicts = iter((-1.0, 2.0, -1.0, -1.0))
    monkeypatch.setattr(semisam.Voice, "validate", lambda self, student: next(verdicts))
    watcher = Silent()
    pretrain = {"pretrain": "simclr", "pretrain_steps": before} if before else {}
    config = configured("semisam", consistency__switch_off=2, max_steps=12, **pretrain)
    run = train(data, tmp_path / "run", config, watcher, device="cpu", cache=cache)
    assert len(asked) == 8
    assert run.record.result["teacher_switched_off_step"] == before + 8
    assert any(f"step {before + 8}: the teacher is asked no more" in message for message in watcher.messages)
    weights = [record["lambda_s"] for record in watcher.records if "lambda_s" in record]
    assert [weight > 0 for weight in weights] == [True] * 4 + [False] * 2
    assert [record["step"] for record in log(run) if "teacher_switched_off" in record] == [before + 8]


def test_the_teacher_waits_through_the_warm_up_and_stays_where_it_is_better(
    data: Path, cache: Path, configured: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(semisam.Voice, "validate", lambda self, student: 2.0)
    watcher = Silent()
    config = configured("semisam", consistency__teacher_warm_up=0.5, consistency__switch_off=1)
    run = train(data, tmp_path / "run", config, watcher, device="cpu", cache=cache)
    # Three of six steps: the second epoch has one step with lambda_s(3) = 0.1 e^-1.25 and one without.
    assert [record["lambda_s"] for record in watcher.records[:2]] == pytest.approx(
        [0, 0.0286505 / 2], rel=1e-4
    )
    assert ["teacher_val_dice" in record for record in watcher.records] == [False, True, True]
    assert "teacher_switched_off_step" not in run.record.result


def test_the_teacher_is_validated_as_it_answers(training: Any) -> None:
    """A student that finds nothing leaves the teacher unasked: both score what an empty mask scores."""
    inside = training("semisam")
    student = inside.new_student()
    silence(student)
    from samdistill.train.loop import validate

    voice = semisam.Voice(inside)
    assert voice.validate(student) == validate(student, inside.validation, inside.loss, 4).dice


@pytest.mark.parametrize(
    "changes",
    [
        {"pseudo__literal_views": True},
        {"consistency__teacher_soft": True, "refine__prompts__box": True},
        {"precision": "bf16"},
        {"consistency__schedule": "off"},
    ],
)
def test_further_options_of_semisam_run(
    data: Path, cache: Path, configured: Any, tmp_path: Path, changes: dict[str, Any]
) -> None:
    watcher = Silent()
    train(data, tmp_path / "run", configured("semisam", max_steps=2, **changes), watcher, cache=cache)
    assert watcher.records[0]["loss_teacher"] > 0
    assert ("agree_student_ema" in watcher.records[0]) == ("consistency__schedule" not in changes)


@pytest.mark.parametrize("strategy", ["ua-mt", "cps", "fixmatch"])
def test_all_of_them_train_in_mixed_precision(
    data: Path, cache: Path, configured: Any, tmp_path: Path, strategy: str
) -> None:
    config = configured(strategy, max_steps=2, precision="bf16", consistency__schedule="constant")
    watcher = Silent()
    run = train(data, tmp_path / "run", config, watcher, device="cpu", cache=cache)
    assert run.record.devices["precision"] == "bf16"
    assert watcher.records[0]["loss_consistency"] > 0
    # Weights and averages are kept in full precision.
    tensors, _ = run.load_tensors("last")
    assert {value.dtype for value in tensors.values() if value.is_floating_point()} == {torch.float32}


def test_the_loss_is_the_sum_of_its_three_parts(training: Any) -> None:
    """At T/2 with every part worked out anew in plain sums; lambda_c = lambda_s = 0.1 e^-1.25 there."""
    inside = training("semisam", consistency__noise=0.0)
    student = inside.new_student()
    objective = semisam.SemiSam(inside, student, 6, uncertainty=False)
    average = objective.networks()["ema"]
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.mul_(1.3)
    loss, numbers = objective.loss(student.train(), 3)
    halves = objective._batches(3)
    said, _ = objective._voice(student, halves, torch.zeros(()))
    assert said is not None
    with torch.no_grad():
        pixels = torch.cat([halves.labelled, halves.unlabelled])
        mine, its = student(pixels).sigmoid().double(), average(pixels).sigmoid().double()
    p, y = mine[:2], halves.targets.double()
    assert set(y.unique().tolist()) == {0.0, 1.0}
    cross = -(y * p.log() + (1 - y) * (1 - p).log()).mean()
    overlap = (2 * (p * y).sum((0, 2, 3)) / (p + y).sum((0, 2, 3)))[y.amax((0, 2, 3)) > 0]
    parts = (
        0.5 * (cross + (1 - overlap).sum() / y.shape[1]),
        ((mine[2:] - its[2:]) ** 2).mean(),
        ((mine[2:] - said) ** 2)[said != IGNORE].mean(),
    )
    found = [numbers[f"loss_{name}"] for name in ("supervised", "consistency", "teacher")]
    assert found == pytest.approx([float(part) for part in parts], rel=1e-4)
    assert min(found) > 1e-4
    assert float(loss.detach()) == pytest.approx(
        float(parts[0] + 0.0286505 * (parts[1] + parts[2])), rel=1e-4
    )


def test_a_pretrained_student_is_copied_without_the_images(training: Any) -> None:
    """The average is a copy of the student; pre-training must have left nothing hanging on it."""
    inside = training("mean-teacher", pretrain="simclr", pretrain_steps=1)
    plain = inside.new_student()
    student = first_student(inside)
    assert any(not torch.equal(a, b) for a, b in zip(plain.parameters(), student.parameters(), strict=True))
    assert not any(module._forward_hooks for module in student.modules())


@pytest.mark.parametrize("uncertainty", [False, True])
def test_an_average_of_the_same_weights_agrees_to_a_bit(training: Any, uncertainty: bool) -> None:
    """Without noise, before any step: another answer could only come of another normalisation."""
    inside = training("mean-teacher", consistency__noise=0.0, consistency__schedule="constant")
    student = inside.new_student()
    objective = MeanTeacher(inside, student, 6, uncertainty=uncertainty)
    _, numbers = objective.loss(student.train(), 0)
    assert numbers["loss_consistency"] == 0
    assert numbers["agree_student_ema"] == 1


@pytest.mark.parametrize(("batch", "labelled"), [(2, 1), (3, 2), (5, 2), (12, 6)])
def test_batches_of_any_size_have_two_halves(training: Any, batch: int, labelled: int) -> None:
    """Four images are labelled; of six places a batch two are second views of them."""
    inside = training("ua-mt", batch=batch, consistency__schedule="constant")
    assert len(inside.labelled) == 4
    student = inside.new_student()
    objective = MeanTeacher(inside, student, 6, uncertainty=True)
    halves = objective._batches(0)
    assert (len(halves.labelled), len(halves.unlabelled)) == (labelled, batch - labelled)
    drawn = [index for index, _ in objective._batches._labelled.draw(0)]
    assert max(drawn.count(index) for index in drawn) == math.ceil(labelled / 4)
    loss, numbers = objective.loss(student.train(), 0)
    assert torch.isfinite(loss)
    assert 0 < numbers["loss_consistency"] < 1


@pytest.mark.parametrize("changes", [{}, {"pseudo__literal_views": True, "consistency__teacher_soft": True}])
def test_medsam_as_teacher_is_prompted_with_boxes_alone(
    training: Any, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    medsam = small_teacher()
    medsam.preprocessing = "medsam"
    monkeypatch.setattr("samdistill.train.training.load_teacher", lambda *words: medsam)
    inside = training("semisam", **changes)
    student = inside.new_student()
    objective = semisam.SemiSam(inside, student, 6, uncertainty=False)
    _, numbers = objective.loss(student.train(), 0)
    assert numbers["teacher_silent"] < 1
    assert 0 < numbers["loss_teacher"] < 1
    assert 0 <= objective._voice.validate(student) <= 1


def test_the_loss_on_labels_is_half_of_ce_and_dice(training: Any) -> None:
    """By hand: logits 0 give p = 1/2; 4 of 8 pixels true: Dice 1/2, CE ln 2."""
    logits, targets = torch.zeros(1, 1, 2, 4), torch.tensor([[[[1.0, 1, 1, 1], [0, 0, 0, 0]]]])
    half = supervised_loss(training("mean-teacher"))
    assert float(half(logits, targets)) == pytest.approx(0.5 * (0.5 + math.log(2)), abs=1e-5)
    own = supervised_loss(training("mean-teacher", consistency__loss="dice-bce", bce_weight=3.0))
    assert float(own(logits, targets)) == pytest.approx(0.5 + 3 * math.log(2), abs=1e-5)


def test_both_halves_must_be_there(data: Path, cache: Path, configured: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="labelled_share must be above 0"):
        train(data, tmp_path / "none", configured("mean-teacher", pseudo__labelled_share=0.0), Silent())
    with pytest.raises(InputRejected, match="must have unlabelled images"):
        train(data, tmp_path / "all", configured("cps", labels=1.0), Silent())
