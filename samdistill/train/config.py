"""The configuration of a training run: what can be set, its defaults (the paper's) and its presets.

Sources of the defaults: knowledge mining, section 2.5 (loss) and appendix A.1 (optimiser, augmentation,
size). Knows neither torch nor files other than TOML.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from samdistill.config import build, load_toml, to_dict
from samdistill.errors import UsageError
from samdistill.intensity import IntensityRule
from samdistill.prompts import PromptConfig
from samdistill.refine import BURDEN, MINE, RefineConfig
from samdistill.train.consistency_config import ConsistencyConfig
from samdistill.train.samdsk_config import BcpConfig, ClassConfig, SamdskConfig, UpsConfig

STRATEGIES = (
    "supervised",
    "pseudo-label",
    "mine",
    "burden",
    "mean-teacher",
    "ua-mt",
    "semisam",
    "semisam-ua-mt",
    "cps",
    "fixmatch",
    "samdsk",
    "ups",
    "bcp",
)
WITH_TEACHER = ("mine", "burden", "semisam", "semisam-ua-mt", "samdsk")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True)
class StudentConfig:
    """The student: U-Net++ with an encoder of segmentation_models_pytorch.

    Parameters
    ----------
    encoder
        Name as segmentation_models_pytorch knows it, `tu-<name>` for timm's; or "plain", see encoder.py.
    encoder_weights
        "auto": ImageNet where the weights are in the local cache, else none; "imagenet": they must be in the
        cache; "none": random.
    decoder_channels
        Width of the five decoder stages, coarse to fine.
    size
        Shortest side of the model frame, pixels; a multiple of 32.
    """

    encoder: str = "resnet34"
    encoder_weights: str = "auto"
    decoder_channels: tuple[int, ...] = (256, 128, 64, 32, 16)
    size: int = 224

    def __post_init__(self) -> None:
        _require(
            self.encoder_weights in ("auto", "imagenet", "none"),
            f"encoder_weights must be auto, imagenet or none, not {self.encoder_weights!r}.",
        )
        _require(
            len(self.decoder_channels) == 5 and min(self.decoder_channels) > 0,
            f"decoder_channels must be five positive widths, not {self.decoder_channels}.",
        )
        _require(
            32 <= self.size <= 2048 and self.size % 32 == 0,
            f"size must be a multiple of 32 in 32..2048 px, not {self.size}.",
        )


@dataclass(frozen=True)
class OptimiserConfig:
    """The optimiser and its schedule.

    Parameters
    ----------
    kind
        "adam" or "sgd".
    learning_rate, weight_decay
        The decay is decoupled with adam, part of the gradient with sgd.
    momentum
        With sgd.
    schedule
        "plateau": times 0.5 after `plateau_patience` epochs without a lower validation loss, down to
        `min_learning_rate`; "cosine": linear warm-up over 5 % of the steps, then half a cosine down to
        `min_learning_rate`; "steps": divided by 10 after 5/12 and after 10/12 of the steps (2500 and 5000 of
        6000, as SemiSAM and UA-MT have it).
    """

    kind: str = "adam"
    learning_rate: float = 5e-5
    weight_decay: float = 0.0
    momentum: float = 0.9
    schedule: str = "plateau"
    plateau_patience: int = 3
    min_learning_rate: float = 1e-7

    def __post_init__(self) -> None:
        _require(
            0 < self.min_learning_rate <= self.learning_rate < 1,
            f"learning_rate must be in [min_learning_rate, 1), not {self.learning_rate}.",
        )
        _require(self.kind in ("adam", "sgd"), f"kind must be adam or sgd, not {self.kind!r}.")
        _require(0 <= self.momentum < 1, f"momentum must be in [0, 1), not {self.momentum}.")
        _require(self.weight_decay >= 0, f"weight_decay must be at least 0, not {self.weight_decay}.")
        _require(
            self.schedule in ("plateau", "cosine", "steps"),
            f"schedule must be plateau, cosine or steps, not {self.schedule!r}.",
        )
        _require(self.plateau_patience >= 0, f"plateau_patience must be >= 0, not {self.plateau_patience}.")


@dataclass(frozen=True)
class AugmentConfig:
    """What the student sees of an image: one random view of the model frame.

    Parameters
    ----------
    flip, transpose, rotate
        Probability of each: horizontal and vertical flip (drawn apart), transposition, rotation.
    rotate_degrees
        The rotation's angle is uniform in plus or minus this.
    zoom
        The view's scale is drawn log-uniformly from 1 / (1 + zoom) to 1 + zoom.
    crop
        "centre" or "random": where the square view lies in the model frame.
    brightness, contrast, colour
        Strength of the photometric changes, as shares of the full range; 0 switches one off.
    """

    flip: float = 0.5
    transpose: float = 0.5
    rotate: float = 0.5
    rotate_degrees: float = 90.0
    zoom: float = 0.0
    crop: str = "centre"
    brightness: float = 0.0
    contrast: float = 0.0
    colour: float = 0.0

    def __post_init__(self) -> None:
        for name in ("flip", "transpose", "rotate"):
            value = getattr(self, name)
            _require(0 <= value <= 1, f"{name} must be a probability, not {value}.")
        for name in ("zoom", "brightness", "contrast", "colour"):
            value = getattr(self, name)
            _require(0 <= value < 1, f"{name} must be in [0, 1), not {value}.")
        _require(
            0 <= self.rotate_degrees <= 180, f"rotate_degrees must be 0..180, not {self.rotate_degrees}."
        )
        _require(self.crop in ("centre", "random"), f"crop must be centre or random, not {self.crop!r}.")


@dataclass(frozen=True)
class PseudoConfig:
    """How unlabelled images get their pseudo labels and what these weigh.

    Parameters
    ----------
    refiner
        Who makes a pseudo label of the student's answer: "teacher", or "random-walker", a baseline.
    walker_margin, walker_beta
        Of the random walker, see random_walker.py.
    schedule
        "continuous": anew at each visit of an image; "once": after the supervised phase, kept in the run.
    weight
        lambda of L(labelled) + lambda L(pseudo).
    supervised_share
        Share of the steps that the supervised phase takes; the student's second phase takes the rest.
    labelled_share
        Share of labelled images in each batch of the second phase, more where pseudo labels are skipped;
        None: 0.5, but 0 with burden, whose second student learns from pseudo labels alone.
    loss
        Strategy burden, on pseudo labels: "weighted-bce" (the paper's), each class weighted by how rare it
        is, or "dice-bce", as on labels.
    rate_factor
        The second phase's learning rate over the first one's, where the same student goes on.
    literal_views
        Student and teacher both see the augmented view, so that the teacher's encoder runs at every visit;
        False: both see the whole frame, embedded once, and the pseudo label is warped by the view.
    min_iou, min_agreement
        A class counts in an image's pseudo label where the teacher's predicted IoU, and the Dice between
        student and teacher, are at least this.
    min_confidence
        Strategy pseudo-label: pixels whose max(p, 1 - p) is below this do not count.
    soft
        Strategy pseudo-label: learn the probabilities, not the mask.
    """

    refiner: str = "teacher"
    walker_margin: float = 0.1
    walker_beta: float = 130.0
    schedule: str = "continuous"
    weight: float = 0.25
    supervised_share: float = 0.5
    labelled_share: float | None = None
    loss: str = "weighted-bce"
    rate_factor: float = 1.0
    literal_views: bool = False
    min_iou: float = 0.0
    min_agreement: float = 0.0
    min_confidence: float = 0.5
    soft: bool = False

    def __post_init__(self) -> None:
        _require(
            self.refiner in ("teacher", "random-walker"),
            f"refiner must be teacher or random-walker, not {self.refiner!r}.",
        )
        _require(
            self.schedule in ("once", "continuous"),
            f"schedule must be once or continuous, not {self.schedule!r}.",
        )
        _require(
            not self.literal_views or self.schedule == "continuous",
            f"schedule must be continuous with literal_views, which are of a visit, not {self.schedule!r}.",
        )
        _require(
            self.refiner == "teacher" or self.min_iou == 0,
            f"min_iou must be 0 with the random walker, which predicts no IoU, not {self.min_iou}. Use "
            "min_agreement.",
        )
        for name in ("walker_margin", "walker_beta"):
            _require(getattr(self, name) > 0, f"{name} must be above 0, not {getattr(self, name)}.")
        _require(0 <= self.weight < math.inf, f"weight must be at least 0 and finite, not {self.weight}.")
        _require(
            0 < self.supervised_share < 1,
            f"supervised_share must be between 0 and 1, not {self.supervised_share}.",
        )
        _require(
            self.labelled_share is None or 0 <= self.labelled_share < 1,
            f"labelled_share must be in [0, 1), not {self.labelled_share}.",
        )
        _require(
            self.loss in ("dice-bce", "weighted-bce"),
            f"loss must be dice-bce or weighted-bce, not {self.loss!r}.",
        )
        _require(0 < self.rate_factor <= 1, f"rate_factor must be in (0, 1], not {self.rate_factor}.")
        for name in ("min_iou", "min_agreement"):
            _require(0 <= getattr(self, name) <= 1, f"{name} must be in [0, 1], not {getattr(self, name)}.")
        _require(
            0.5 <= self.min_confidence < 1, f"min_confidence must be in [0.5, 1), not {self.min_confidence}."
        )


SEMISAM = RefineConfig(PromptConfig(box=False))
"""SemiSAM: points alone."""

REFINE: dict[str, RefineConfig] = {"burden": BURDEN, "semisam": SEMISAM, "semisam-ua-mt": SEMISAM}
"""How each strategy puts its student's answers to the teacher where the configuration does not say."""


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Parameters
    ----------
    strategy
        What uses the unlabelled images, one of STRATEGIES: "supervised" does not.
    labels
        The label budget, see io.splits.make_split: a share in (0, 1] of the labels outside the test part or a
        number of images (at least 4 are taken), validation images included; None takes every label.
    seed
        Of the split, the weights, the batches and the views.
    max_epochs, max_steps
        An epoch is as many batches as the images fill, at least `min_epoch_steps`. With `max_steps` the run
        takes exactly that many optimiser steps and never stops early.
    batch
        Images a step.
    keep
        Which student of a phase is kept: the "best" on the validation images, or the "last", for schedules
        that end at a low rate and validation images too few to choose by.
    early_stop
        Epochs without a lower validation loss after which training ends.
    bce_weight
        k of L = Dice + k BCE.
    precision
        "fp32", "bf16", "fp16", or "auto": bf16 where the hardware computes in it, fp16 on other GPUs, else
        fp32.
    intensity
        The rule from raw pixels to uint8; None chooses identity for uint8 data, else percentiles 0.5..99.5.
    pretrain, pretrain_steps
        "simclr": the encoder learns from all images first, for that many further steps; or "none".
    teacher
        As `load_teacher` takes it; used by strategies with a teacher alone.
    refine
        How the student's answers are put to the teacher; None: as the strategy's paper does.
    classes
        What is known of each class in every image, by its name; for strategy samdsk.
    """

    strategy: str = "supervised"
    labels: int | float | None = None
    seed: int = 0
    max_epochs: int = 100
    max_steps: int | None = None
    min_epoch_steps: int = 100
    batch: int = 8
    keep: str = "best"
    early_stop: int = 10
    bce_weight: float = 0.2
    precision: str = "auto"
    intensity: IntensityRule | None = None
    student: StudentConfig = field(default_factory=StudentConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    pretrain: str = "none"
    pretrain_steps: int = 500
    teacher: str = "tiny"
    pseudo: PseudoConfig = field(default_factory=PseudoConfig)
    consistency: ConsistencyConfig = field(default_factory=ConsistencyConfig)
    refine: RefineConfig | None = None
    samdsk: SamdskConfig = field(default_factory=SamdskConfig)
    ups: UpsConfig = field(default_factory=UpsConfig)
    bcp: BcpConfig = field(default_factory=BcpConfig)
    classes: dict[str, ClassConfig] = field(default_factory=dict)

    @property
    def refine_or_default(self) -> RefineConfig:
        """How the student's answers are put to the teacher."""
        return self.refine or REFINE.get(self.strategy, MINE)

    @property
    def asks_teacher(self) -> bool:
        """Whether a teacher is asked."""
        return self.strategy in WITH_TEACHER and self.pseudo.refiner == "teacher"

    def __post_init__(self) -> None:
        _require(
            self.strategy in STRATEGIES,
            f"strategy must be one of {', '.join(STRATEGIES)}, not {self.strategy!r}.",
        )
        _require(
            self.pseudo.refiner == "teacher" or self.strategy not in ("semisam", "semisam-ua-mt", "samdsk"),
            f"refiner must be teacher with the strategy {self.strategy}, not {self.pseudo.refiner!r}.",
        )
        if isinstance(self.labels, float):
            _require(0 < self.labels <= 1, f"labels must be a share in (0, 1], not {self.labels}.")
        elif self.labels is not None:
            _require(self.labels >= 1, f"labels must be at least 1 image, not {self.labels}.")
        _require(self.batch >= 2, f"batch must be at least 2, for batch normalisation, not {self.batch}.")
        for name in ("max_epochs", "min_epoch_steps", "early_stop"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}.")
        _require(
            self.max_steps is None or self.max_steps >= 1,
            f"max_steps must be at least 1, not {self.max_steps}.",
        )
        _require(
            self.pretrain in ("none", "simclr"), f"pretrain must be none or simclr, not {self.pretrain!r}."
        )
        _require(self.pretrain_steps >= 1, f"pretrain_steps must be at least 1, not {self.pretrain_steps}.")
        _require(self.keep in ("best", "last"), f"keep must be best or last, not {self.keep!r}.")
        # torch takes 64 bits; a second student's seed lies a little above this one.
        _require(0 <= self.seed < 2**63, f"seed must be 0 to 2**63 - 1, not {self.seed}.")
        _require(self.bce_weight >= 0, f"bce_weight must be at least 0, not {self.bce_weight}.")
        _require(
            self.precision in PRECISIONS,
            f"precision must be one of {', '.join(PRECISIONS)}, not {self.precision!r}.",
        )


PRESETS: dict[str, TrainConfig] = {
    # The paper's recipe.
    "paper": TrainConfig(),
    # Fast on a CPU: plain convolutions at 128 px from random weights, which take a far higher rate.
    "light": TrainConfig(
        max_epochs=40,
        min_epoch_steps=50,
        bce_weight=1.0,
        student=StudentConfig(
            encoder="plain", encoder_weights="none", decoder_channels=(64, 48, 32, 24, 16), size=128
        ),
        optimiser=OptimiserConfig(
            learning_rate=3e-3, weight_decay=0.01, schedule="cosine", min_learning_rate=1e-5
        ),
        # Flips and a little light: rotation and zoom cost more than they bring within a thousand steps.
        augment=AugmentConfig(rotate=0.0, crop="random", brightness=0.1, contrast=0.15),
    ),
}


def load_config(
    path: Path | None = None, *, preset: str | None = None, overrides: dict[str, Any] | None = None
) -> TrainConfig:
    """A preset, changed by a TOML file, changed by single values.

    Parameters
    ----------
    path
        TOML whose keys are TrainConfig's; tables `student`, `optimiser`, `augment`, `intensity`. It may name
        its own `preset`.
    preset
        Key of PRESETS; None: the file's, else "paper".
    overrides
        Values by dotted key ("student.size"); None means not given.

    Raises
    ------
    UsageError
        For an unknown preset or key, a wrong type or a value out of range.
    """
    values = load_toml(path) if path else {}
    named = values.pop("preset", "paper")
    preset = named if preset is None else preset
    if not isinstance(preset, str) or preset not in PRESETS:
        raise UsageError(f"preset must be one of {', '.join(PRESETS)}, not {preset!r}.")
    for key, value in (overrides or {}).items():
        if value is None:
            continue
        table = values
        *tables, name = key.split(".")
        for part in tables:
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                raise UsageError(f"{path}: {part} must be a table, not {table!r}.")
        table[name] = value
    return _changed(PRESETS[preset], values, str(path or "configuration"))


def _changed(base: TrainConfig, values: dict[str, Any], where: str) -> TrainConfig:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        current = getattr(base, key, None)
        if key == "refine" and isinstance(value, dict):
            # What the file leaves open is as the strategy's paper has it.
            current = current or REFINE.get(str(values.get("strategy", base.strategy)), MINE)
        if isinstance(value, dict) and dataclasses.is_dataclass(current) and key != "intensity":
            flat[key] = build(type(current), _merged(to_dict(current), value), where=f"{where}.{key}")
        else:
            # Built alone, so that a wrong key or type is named before it meets the rest.
            flat[key] = getattr(build(TrainConfig, {key: value}, where=where), key)
    try:
        return replace(base, **flat)
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from error


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Nested tables, those of `changes` over those of `base`."""
    merged = dict(base)
    for key, value in changes.items():
        below = merged.get(key)
        merged[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged
