"""The configuration of SamDSK and the methods beside it: TOML `[samdsk]`, `[ups]`, `[bcp]`, `[classes.NAME]`.

Sources of the defaults: SamDSK, sections 3 and 4; UPS, section 4; BCP, section 4. Knows no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Bounds = tuple[int, int]
"""Least and most of a class in an image."""


MAX_ROUNDS = 1000


@dataclass(frozen=True)
class ProposalsConfig:
    """How proposals are made, `[samdsk.proposals]`: thresholds so low that all there is comes through.

    Parameters
    ----------
    points_per_side, predicted_iou, stability, box_iou, min_region_px, crop_layers, crop_box_iou
        As in `teacher.propose.ProposeConfig`; box_iou and crop_box_iou are the paper's two NMS thresholds.
    """

    points_per_side: int = 32
    predicted_iou: float = 0.5
    stability: float = 0.5
    box_iou: float = 0.5
    min_region_px: int = 0
    crop_layers: int = 0
    crop_box_iou: float = 0.5

    def __post_init__(self) -> None:
        if self.points_per_side < 1:
            raise ValueError(f"points_per_side must be at least 1, not {self.points_per_side}.")
        for name in ("predicted_iou", "stability", "box_iou", "crop_box_iou"):
            _check_share(self, name)
        for name in ("min_region_px", "crop_layers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}.")


@dataclass(frozen=True)
class SamdskConfig:
    """Rounds of training, matching and admission.

    Parameters
    ----------
    rounds
        At most so many; they end with the first that admits no image. There is one training more than rounds.
    lower, upper
        How many proposals each class has in an image: a number, or one a round, the last of which also holds
        for further rounds. `[classes.NAME] count` overrides them for a class, `counts` for an image.
    counts
        CSV file of what is known of single images, see knowledge.py.
    beta
        An image is admitted when its beta is above this.
    iou
        "soft": of the student's probabilities; "hard": of its masks p > 0.5.
    counted
        What the bounds count: "proposals", or the "components" of a class's annotation.
    max_proposals
        With "components", the most proposals of a class; None: its upper bound.
    count_absent
        A class that may be missing and of which the student sees nothing counts in beta all the same, with 0
        (the paper to the letter); False leaves it out.
    min_proposals
        An image with fewer is not matched.
    near_duplicate
        Of proposals with a greater mask IoU than this only the one of the highest predicted IoU is matched;
        1: all are.
    on_infeasible
        When too few proposals are there for the bounds: "reject" the image, "relax" the bounds, or "raise".
    rescore
        Which images a round matches: "rest", those not admitted yet; "all", which may take an admission back.
    retrain
        Each round's student starts from the initial weights; False: it goes on from the round before.
    weight
        lambda of L(human-labelled) + lambda L(machine-labelled), both sums over images.
    last_share
        With `max_steps`, the share of the last training; those before divide the rest equally. Rounds that
        end early leave their steps to it. None: all alike.
    node_limit, time_limit_s
        Of matching an image; 0 and None: none. A time limit makes the answer depend on the machine.
    proposals
        How they are made.
    """

    rounds: int = 3
    lower: int | tuple[int, ...] = 1
    upper: int | tuple[int, ...] = (1, 2, 3)
    counts: str | None = None
    beta: float = 0.9
    iou: Literal["soft", "hard"] = "soft"
    counted: Literal["proposals", "components"] = "proposals"
    max_proposals: int | None = None
    count_absent: bool = False
    min_proposals: int = 1
    near_duplicate: float = 0.9
    on_infeasible: Literal["reject", "relax", "raise"] = "reject"
    rescore: Literal["rest", "all"] = "rest"
    retrain: bool = True
    weight: float = 1.0
    last_share: float | None = None
    node_limit: int = 20_000
    time_limit_s: float | None = None
    proposals: ProposalsConfig = field(default_factory=ProposalsConfig)

    def __post_init__(self) -> None:
        if not 1 <= self.rounds <= MAX_ROUNDS:
            raise ValueError(f"rounds must be 1 to {MAX_ROUNDS}, not {self.rounds}.")
        for name in ("lower", "upper"):
            values = _numbers(getattr(self, name))
            if not values or min(values) < 0:
                raise ValueError(f"{name} must be 0 or more, one number or one a round, not {list(values)}.")
        for number in range(1, self.rounds + 1):
            lower, upper = of_round(self.lower, number), of_round(self.upper, number)
            if lower > upper:
                raise ValueError(
                    f"lower must be at most upper, not {lower} where it is {upper}, in round {number}."
                )
        for name in ("beta", "near_duplicate"):
            _check_share(self, name)
        if self.max_proposals is not None and (self.counted != "components" or self.max_proposals < 1):
            raise ValueError(
                f"max_proposals must be at least 1 and goes with counted = 'components', not "
                f"{self.max_proposals} with {self.counted!r}."
            )
        if self.min_proposals < 0:
            raise ValueError(f"min_proposals must be at least 0, not {self.min_proposals}.")
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"weight must be at least 0, not {self.weight}.")
        if self.last_share is not None and not 0 < self.last_share < 1:
            raise ValueError(f"last_share must be between 0 and 1, not {self.last_share}.")
        if self.node_limit < 0:
            raise ValueError(f"node_limit must be at least 0, not {self.node_limit}.")
        if self.time_limit_s is not None and not self.time_limit_s > 0:
            raise ValueError(f"time_limit_s must be above 0, not {self.time_limit_s}.")


@dataclass(frozen=True)
class ClassConfig:
    """What is known of a class in every image, `[classes.NAME]`.

    Parameters
    ----------
    count
        [least, most], or one such pair a round, the last of which also holds for further rounds.
    """

    count: tuple[int, ...] | tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        for pair in self._pairs():
            if len(pair) != 2 or not 0 <= pair[0] <= pair[1]:
                raise ValueError(
                    f"count must be [least, most] with 0 <= least <= most, or one such pair a round, not "
                    f"{list(pair)}."
                )

    def bounds(self, number: int) -> Bounds:
        """Least and most in a round, counted from 1."""
        pairs = self._pairs()
        least, most = pairs[min(number, len(pairs)) - 1]
        return least, most

    def _pairs(self) -> list[tuple[int, ...]]:
        pairs = [one for one in self.count if isinstance(one, tuple)]
        return pairs or [tuple(one for one in self.count if isinstance(one, int))]


@dataclass(frozen=True)
class UpsConfig:
    """Which pixels of an unlabelled image UPS learns from; `rounds`, `retrain`, `last_share`: of `[samdsk]`.

    Parameters
    ----------
    min_positive, max_positive_spread
        Foreground is learned where the mean probability over the views is at least the one and its standard
        deviation at most the other (tau_p, kappa_p).
    max_negative, max_negative_spread
        Background, where both are at most these (tau_n, kappa_n).
    """

    min_positive: float = 0.7
    max_positive_spread: float = 0.05
    max_negative: float = 0.05
    max_negative_spread: float = 0.005

    def __post_init__(self) -> None:
        for name in ("min_positive", "max_positive_spread", "max_negative", "max_negative_spread"):
            _check_share(self, name)
        if self.max_negative >= self.min_positive:
            raise ValueError(f"max_negative must be below min_positive, not {self.max_negative}.")


@dataclass(frozen=True)
class BcpConfig:
    """Bidirectional copy-paste.

    Parameters
    ----------
    box
        Side of the box that is pasted, as a share of the view's.
    weight
        alpha: what the unlabelled part of a picture weighs against the labelled one.
    """

    box: float = 2 / 3
    weight: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.box < 1:
            raise ValueError(f"box must be between 0 and 1, not {self.box}.")
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"weight must be at least 0, not {self.weight}.")


def of_round(values: int | Sequence[int], number: int) -> int:
    """The value of a round, counted from 1; the last one also holds for further rounds."""
    numbers = _numbers(values)
    return numbers[min(number, len(numbers)) - 1]


def _numbers(values: int | Sequence[int]) -> tuple[int, ...]:
    return (values,) if isinstance(values, int) else tuple(values)


def _check_share(config: object, name: str) -> None:
    value = getattr(config, name)
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], not {value}.")
