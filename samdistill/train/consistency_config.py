"""The configuration of the strategies with an EMA, a second student or a strong view: TOML `[consistency]`.

Sources of the defaults: SemiSAM, section 2; UA-MT, section 2.2; FixMatch, section 2. Knows no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Shape = Literal["gaussian", "exponential", "constant", "off"]


@dataclass(frozen=True)
class ConsistencyConfig:
    """What the voices of mean-teacher, ua-mt, semisam, semisam-ua-mt, cps and fixmatch weigh.

    Labelled images take `pseudo.labelled_share` of each batch, half where that is not given.

    Parameters
    ----------
    loss
        On labelled images: "ce-dice", 0.5 (CE + Dice), as the papers have it, CE being the binary one of each
        class; or "dice-bce", the run's own Dice + k BCE.
    weight, schedule
        lambda_c, its largest value and how it comes to it over the run; see schedules.py.
    ema_limit
        alpha = min(1 - 1 / (t + 1), ema_limit).
    noise, noise_limit
        The EMA's input gets clip(noise N(0, 1), -noise_limit, noise_limit), in units of the student's own
        normalisation.
    passes
        UA-MT: noisy answers of the EMA whose mean's entropy decides which pixels count.
    teacher_weight, teacher_schedule
        SemiSAM: lambda_s, its value at the start and how it falls over the run.
    teacher_soft
        SemiSAM: learn the teacher's probabilities, not its masks.
    teacher_warm_up
        SemiSAM: share of the steps before the teacher is first asked.
    switch_off
        SemiSAM: the teacher is asked no more once the student's validation Dice was above its own in this
        many validations running; 0: it is asked to the end.
    min_confidence
        FixMatch: pixels whose max(p, 1 - p) is below this do not count.
    strong_light
        FixMatch: strength of brightness and contrast in the strong view, as shares of the full range; the
        colour shifts by half of it.
    strong_cutout
        FixMatch: side of the grey box in the strong view, as a share of the view's; 0: none.
    """

    loss: Literal["ce-dice", "dice-bce"] = "ce-dice"
    weight: float = 0.1
    schedule: Shape = "gaussian"
    ema_limit: float = 0.99
    noise: float = 0.1
    noise_limit: float = 0.2
    passes: int = 8
    teacher_weight: float = 0.1
    teacher_schedule: Shape = "gaussian"
    teacher_soft: bool = False
    teacher_warm_up: float = 0.0
    switch_off: int = 3
    min_confidence: float = 0.95
    strong_light: float = 0.4
    strong_cutout: float = 0.3

    def __post_init__(self) -> None:
        for name in ("weight", "teacher_weight", "noise", "noise_limit", "switch_off"):
            value = getattr(self, name)
            if not value >= 0:
                raise ValueError(f"{name} must be at least 0, not {value}.")
        for name in ("ema_limit", "teacher_warm_up", "strong_light", "strong_cutout"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be in [0, 1), not {value}.")
        if self.passes < 2:
            raise ValueError(f"passes must be at least 2, to have a mean, not {self.passes}.")
        if not 0.5 <= self.min_confidence < 1:
            raise ValueError(f"min_confidence must be in [0.5, 1), not {self.min_confidence}.")
