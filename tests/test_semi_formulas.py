"""Mean teacher, UA-MT and SemiSAM: each formula against numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from samdistill.errors import UsageError
from samdistill.prompts import PromptConfig, Prompts
from samdistill.refine import RefineConfig, Refinement, refine
from samdistill.train.config import OptimiserConfig, PseudoConfig, load_config
from samdistill.train.consistency import agreements, binary_ce, binary_entropy, certain, mean_square
from samdistill.train.consistency_config import ConsistencyConfig
from samdistill.train.ema import Ema, batch_statistics
from samdistill.train.loop import _rate
from samdistill.train.losses import IGNORE
from samdistill.train.schedules import ramp_down, ramp_up
from samdistill.train.strategies.fixmatch import strengthen
from samdistill.train.strategies.semisam import Remembering, spoken


# exp(-5), exp(-1.25), 1 and exp(-5), exp(-2.5), 1
@pytest.mark.parametrize(
    ("shape", "start", "middle", "end"),
    [
        ("gaussian", 0.006737947, 0.286504797, 1.0),
        ("exponential", 0.006737947, 0.082084999, 1.0),
        ("constant", 1.0, 1.0, 1.0),
        ("off", 0.0, 0.0, 0.0),
    ],
)
def test_ramps_at_the_start_the_middle_and_the_end(
    shape: Any, start: float, middle: float, end: float
) -> None:
    assert [ramp_up(shape, share) for share in (0, 0.5, 1)] == pytest.approx([start, middle, end])
    assert [ramp_down(shape, share) for share in (1, 0.5, 0)] == pytest.approx([start, middle, end])


class Number(nn.Module):
    """A network of one weight, with a normalisation as the student's."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([value]))
        self.norm = nn.BatchNorm2d(3)
        self.register_buffer("std", torch.tensor([58.0, 57.0, 57.0]).view(1, 3, 1, 1))
        self.seen: list[torch.Tensor] = []

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        self.seen.append(pixels.detach().clone())
        logits: torch.Tensor = self.weight * self.norm(pixels)
        return logits


def average_of(student: Any, **changes: Any) -> Ema:
    return Ema(student, Fabric(accelerator="cpu", devices=1), ConsistencyConfig(**changes))


def test_the_average_after_one_two_and_a_hundred_steps() -> None:
    """The student is at 1, 2, 3, ... after each step; alpha = 0, 1/2, 2/3, ..., 0.99: the plain mean."""
    student = Number(-7.0)
    ema = average_of(student)
    after = {}
    for step in range(101):
        student.weight.data.fill_(step + 1)
        ema.update(student, step)
        after[step + 1] = float(ema.network.get_parameter("weight"))
    assert after[1] == 1.0
    assert after[2] == 1.5
    assert after[100] == pytest.approx(50.5, rel=1e-5)
    assert after[101] == pytest.approx(0.99 * 50.5 + 0.01 * 101, rel=1e-5)


def test_the_average_has_the_running_statistics_too_and_counts_as_the_student() -> None:
    student = Number(1.0)
    ema = average_of(student)
    for step, mean in enumerate((2.0, 4.0)):
        student.norm.running_mean.fill_(mean)  # type: ignore[union-attr]
        student.norm.num_batches_tracked.fill_(step + 5)  # type: ignore[union-attr]
        ema.update(student, step)
    assert ema.network.get_buffer("norm.running_mean").tolist() == [3.0] * 3
    assert int(ema.network.get_buffer("norm.num_batches_tracked")) == 6


def test_answers_of_the_average_leave_no_trace_and_take_no_gradient() -> None:
    student = Number(1.0)
    ema = average_of(student)
    before = {name: value.clone() for name, value in ema.network.state_dict().items()}
    answer = ema.answer(255 * torch.rand(4, 3, 8, 8))
    assert not answer.requires_grad
    assert not any(parameter.requires_grad for parameter in ema.network.parameters())
    assert all(torch.equal(before[name], value) for name, value in ema.network.state_dict().items())
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_batch_statistics_are_of_the_batch_and_modes_come_back() -> None:
    network = Number(1.0).eval()
    pixels = 255 * torch.rand(4, 3, 8, 8)
    with batch_statistics(network):
        inside = network(pixels)
    assert inside.mean().abs() < 1e-4  # normalised by its own mean, not by a running mean of 0
    assert not network.training
    assert network.norm.track_running_stats
    assert network(pixels).mean() > 50


def test_the_averages_noise_is_a_clipped_tenth_of_a_standard_deviation() -> None:
    ema = average_of(Number(1.0))
    pixels = torch.full((8, 3, 32, 32), 100.0)
    torch.manual_seed(1)
    ema.answer(pixels), ema.answer(pixels)
    first, second = (seen - pixels for seen in ema.network.seen)  # type: ignore[union-attr]
    assert not torch.equal(first, second)
    for channel, std in enumerate((58, 57, 57)):
        noise = first[:, channel] / std
        assert noise.abs().max() == pytest.approx(0.2, abs=1e-6)
        # A normal distribution clipped at two deviations keeps 0.9603 of its deviation (variance 0.9221).
        assert float(noise.std()) == pytest.approx(0.09603, rel=0.03)


def test_the_entropy_of_a_class_is_at_most_ln_2() -> None:
    """By hand: H(1/2) = ln 2; H(1/4) = -(1/4) ln(1/4) - (3/4) ln(3/4) = 0.562335; H(0) = H(1) = 0."""
    found = binary_entropy(torch.tensor([0.5, 0.25, 0.75, 0.0, 1.0]))
    assert found.tolist() == pytest.approx([0.693147, 0.562335, 0.562335, 0, 0], abs=1e-6)


def test_which_pixels_ua_mt_trusts() -> None:
    """By hand: the bound is (0.75 + 0.25 e^-5) ln 2 = 0.521028 at t = 0, 0.569508 at T/2, ln 2 at T.

    H(0.2) = 0.500402, H(0.25) = 0.562335, H(0.3) = 0.610864, H(0.5) = ln 2, which is not below the bound.
    """
    mean = torch.tensor([[[0.2, 0.25, 0.3, 0.5, 0.8, 0.75, 0.7, 0.01]]])
    assert certain(mean, 0.0).int().tolist() == [[[1, 0, 0, 0, 1, 0, 0, 1]]]
    assert certain(mean, 0.5).int().tolist() == [[[1, 1, 0, 0, 1, 1, 0, 1]]]
    assert certain(mean, 1.0).int().tolist() == [[[1, 1, 1, 0, 1, 1, 1, 1]]]


def test_consistency_is_the_mean_square_over_what_counts() -> None:
    """By hand: differences 0.5, 0.1, 0.3 -> squares 0.25, 0.01, 0.09; all: 0.35/3; the last two: 0.05."""
    one, other = torch.tensor([[[0.9, 0.2, 0.4]]]), torch.tensor([[[0.4, 0.1, 0.7]]])
    assert float(mean_square(one, other)) == pytest.approx(0.35 / 3)
    counted = torch.tensor([[[False, True, True]]])
    assert float(mean_square(one, other, counted)) == pytest.approx(0.05)
    assert float(mean_square(one, other, torch.zeros_like(counted))) == 0.0


def test_fixmatch_counts_unsure_pixels_as_zeros_of_the_mean() -> None:
    """By hand: logits 0 cost ln 2 each; one of two is sure, so the mean is ln 2 / 2."""
    logits, masks = torch.zeros(1, 1, 2), torch.tensor([[[True, False]]])
    assert float(binary_ce(logits, masks)) == pytest.approx(math.log(2))
    assert float(binary_ce(logits, masks, torch.tensor([[[True, False]]]))) == pytest.approx(math.log(2) / 2)


def test_agreement_leaves_out_what_a_voice_does_not_speak_of() -> None:
    """By hand: class 0: 1 of (2 + 1) pixels shared: 2/3; class 1 both empty: 1; their mean 5/6."""
    one = torch.tensor([[[0.9, 0.8, 0.1], [0.0, 0.0, 0.0]]])
    other = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])
    assert agreements({"a": one, "b": other}) == {"agree_a_b": pytest.approx(5 / 6)}
    other[0, 1] = IGNORE
    assert agreements({"a": one, "b": other})["agree_a_b"] == pytest.approx(2 / 3)
    assert math.isnan(agreements({"a": one, "b": torch.full_like(other, IGNORE)})["agree_a_b"])
    assert agreements({"a": one, "b": None}) == {}


@pytest.mark.parametrize("axes", [(5,), (5, 4), (5, 4, 3)])
def test_the_formulas_care_for_no_number_of_image_axes(axes: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.rand(2, 3, *axes, generator=generator) for _ in range(2))
    flat = one.flatten(2)[..., None], other.flatten(2)[..., None]
    assert float(mean_square(one, other, certain(one, 0.5))) == pytest.approx(
        float(mean_square(*flat, certain(flat[0], 0.5)))
    )
    assert agreements({"a": one, "b": other}) == agreements({"a": flat[0], "b": flat[1]})
    strong = strengthen(255 * one, ConsistencyConfig())
    assert strong.shape == one.shape


def test_the_strong_view_has_one_grey_box_and_other_light() -> None:
    pixels = torch.full((4, 3, 20, 40), 90.0)
    torch.manual_seed(0)
    boxed = strengthen(pixels, ConsistencyConfig(strong_light=0.0, strong_cutout=0.5))
    for one in boxed:
        rows, columns = (one[0] == 127.5).nonzero(as_tuple=True)
        assert len(rows) == 10 * 20
        assert (int(rows.max() - rows.min()), int(columns.max() - columns.min())) == (9, 19)
        assert int((one == 90).sum()) == 3 * (800 - 200)
    lit = strengthen(pixels, ConsistencyConfig(strong_light=0.3, strong_cutout=0.0))
    assert len({float(one[0, 0, 0]) for one in lit}) == 4
    assert all(float(one.flatten(1).std(dim=1).max()) == 0 for one in lit)
    assert float(lit.min()) >= 0
    assert float(lit.max()) <= 255


def test_the_rate_falls_by_ten_after_2500_and_5000_of_6000_steps() -> None:
    config = OptimiserConfig(kind="sgd", learning_rate=0.01, schedule="steps")
    rates = {step: _rate(config, step, 6000, 0.0) for step in (0, 2499, 2500, 4999, 5000, 5999)}
    assert rates == pytest.approx({0: 0.01, 2499: 0.01, 2500: 1e-3, 4999: 1e-3, 5000: 1e-4, 5999: 1e-4})
    assert _rate(config, 25, 60, 0.0) == pytest.approx(1e-3), "shares of the run, not numbers of steps"


def refinement(student: list[int], teacher: list[int], iou: float) -> Refinement:
    """Two classes on four pixels: the given one, and one that the student did not find."""
    masks, own = (np.array([[row], [[0] * 4]], np.bool_) for row in (teacher, student))
    asked = any(student)
    sets = [Prompts(np.zeros((1, 2)), np.ones(1, np.int32))] if asked else []
    nan = np.float32("nan")
    values = np.array([iou if asked else nan, nan], np.float32)
    return Refinement(masks, own, [sets, []], values, np.array([0.5 if asked else nan, nan], np.float32))


def test_the_teacher_speaks_of_nothing_but_what_it_was_asked_about() -> None:
    heard = refinement([0, 1, 1, 0], [1, 1, 1, 0], 0.8)
    unasked = refinement([0, 0, 0, 0], [0, 0, 0, 0], 0.0)
    (first, second) = spoken([heard, unasked], PseudoConfig(), None)
    assert first.tolist() == [[[1, 1, 1, 0]], [[IGNORE] * 4]]
    assert (second == IGNORE).all()
    (unsure,) = spoken([heard], PseudoConfig(min_iou=0.81), None)
    assert (unsure == IGNORE).all()
    (far,) = spoken([heard], PseudoConfig(min_agreement=0.6), None)
    assert (far == IGNORE).all()


def test_a_soft_teacher_speaks_in_probabilities() -> None:
    heard = refinement([0, 1, 1, 0], [1, 1, 1, 0], 0.8)
    two = refinement([1, 0, 0, 0], [1, 0, 0, 1], 0.9)
    two = Refinement(two.masks, two.student_masks, [two.prompts[0] * 2, []], two.predicted_iou, two.agreement)
    maps = [np.full((1, 4), value, np.float32) for value in (0.7, 0.2, 0.6)]
    first, second = spoken([heard, two], PseudoConfig(), maps)
    assert first[0].tolist() == [[np.float32(0.7)] * 4]
    assert second[0].tolist() == [[np.float32(0.6)] * 4], "the larger one of two sets"
    assert (first[1] == IGNORE).all()
    # A class that is held back does not shift the maps of the next one.
    held, after = spoken([heard, two], PseudoConfig(min_iou=0.85), maps)
    assert (held == IGNORE).all()
    assert after[0].tolist() == second[0].tolist()


def test_the_remembered_probabilities_belong_to_the_masks() -> None:
    from small_sam import small_teacher

    teacher = Remembering(small_teacher())
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (size, 60, 3), np.uint8) for size in (40, 60)]
    embeddings = teacher._teacher.embed(images)
    sets = [
        [Prompts(np.array([[9.0, 9.0]]), np.ones(1, np.int32)), Prompts(box=np.array([3, 3, 30, 30]))],
        [Prompts(np.array([[30.0, 9.0]]), np.ones(1, np.int32))],
    ]
    answer = teacher.segment(embeddings, sets, sizes=[(20, 30), (30, 30)])
    assert [one.shape for one in teacher.probabilities] == [(20, 30), (20, 30), (30, 30)]
    for mask, probabilities in zip(answer.masks, teacher.probabilities, strict=True):
        assert np.array_equal(mask, probabilities > 0.5)
        assert 0 < mask.mean() < 1


def test_probabilities_are_remembered_of_all_parts_that_the_teacher_is_asked_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from small_sam import small_teacher

    teacher = small_teacher()
    images = list(np.random.default_rng(0).integers(0, 256, (2, 40, 60, 3), np.uint8))
    embeddings = teacher.embed(images)
    maps = np.zeros((2, 1, 40, 60), np.float32)
    for x in range(4, 60, 12):
        maps[:, 0, 10:20, x : x + 6] = 0.9
    config = RefineConfig(PromptConfig(per_component=True, count=2), second_pass="points")
    heard = []
    for pixels in (1 << 28, 3 * 40 * 60):  # all ten sets at once; three at a time
        monkeypatch.setattr("samdistill.refine.MOST_MASK_PIXELS", pixels)
        remembering = Remembering(teacher)
        refinements = refine(remembering, embeddings, list(maps), config)
        assert len(remembering.probabilities) == 10
        heard.append(spoken(refinements, PseudoConfig(), remembering.probabilities))
    np.testing.assert_allclose(heard[1], heard[0], atol=1e-5)
    assert not np.allclose(heard[0][0], heard[0][1])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[consistency]\nema_limit = 1.0", "ema_limit must be in [0, 1)"),
        ("[consistency]\nschedule = 'linear'", "gaussian"),
        ("[consistency]\npasses = 1", "passes must be at least 2"),
        ("[consistency]\nweight = -0.1", "weight must be at least 0"),
        ("[consistency]\nnoise = nan", "noise must be at least 0"),
        ("[consistency]\nteacher_warm_up = 1.5", "teacher_warm_up must be in [0, 1)"),
        ("[consistency]\nmin_confidence = 0.4", "min_confidence must be in [0.5, 1)"),
        ("[consistency]\nloss = 'dice'", "ce-dice"),
        ("[consistency]\nalpha = 0.9", "alpha"),
        ("[optimiser]\nkind = 'lion'", "kind must be adam or sgd"),
        ("[optimiser]\nmomentum = 1.0", "momentum must be in [0, 1)"),
        ("[optimiser]\nschedule = 'linear'", "schedule must be plateau, cosine or steps"),
    ],
)
def test_what_is_wrong_with_the_configuration_is_named(tmp_path: Any, text: str, named: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_config(file)
    assert named in str(caught.value)


def test_semisam_prompts_with_points_alone_unless_told_otherwise() -> None:
    plain = load_config(overrides={"strategy": "semisam"}).refine_or_default.prompts
    assert (plain.box, plain.points) == (False, "likeliest")
    boxed = load_config(overrides={"strategy": "semisam-ua-mt", "refine.prompts.box": True})
    assert boxed.refine_or_default.prompts.box
    assert load_config(overrides={"strategy": "mine"}).refine_or_default.prompts.box
