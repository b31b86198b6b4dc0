"""Mode auto: which images the teacher is asked about, by a rule that was fitted at export.

The rule is a sum of a few numbers of the student's answer (docs/quality.md) and tells the gain in Dice to
expect of asking. Each image is decided on by itself, so its answer does not depend on its company. A budget
raises the gain that is asked for, to what so many of the validation images reached. Knows no network.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from samdistill.errors import UsageError
from samdistill.manifest_quality import RoutingRule
from samdistill.quality import evaluate_rule

Why = Literal["gain", "no gain", "budget", "empty", "never"]
_TIME = re.compile(r"(?P<number>[0-9.]+)\s*(?P<unit>ms|s)")


@dataclass(frozen=True)
class Route:
    """What was decided about one image.

    Attributes
    ----------
    refine
        Whether the teacher is asked.
    why
        "gain": enough is expected; "no gain": none is; "budget": some is, but not enough for the budget;
        "empty": the student found nothing, or nothing that the prompts take, to ask about; "never": the
        bundle's rule refines no image.
    expected_gain
        In Dice.
    """

    refine: bool
    why: Why
    expected_gain: float | None


@dataclass(frozen=True)
class Budget:
    """How much may be spent on asking: a share of the images, or seconds an image on average; one of the two.

    Either holds for images like the bundle's validation images.

    Attributes
    ----------
    share
        Of the images, 0..1.
    seconds
        An image may take on average, the student's part included.
    """

    share: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if (self.share is None) == (self.seconds is None):
            raise ValueError("Budget must be given a share or seconds, not both or neither.")
        if self.share is not None and not 0 <= self.share <= 1:
            raise ValueError(f"share must be 0..1, not {self.share}.")
        if self.seconds is not None and not (self.seconds > 0 and math.isfinite(self.seconds)):
            raise ValueError(f"seconds must be above 0, not {self.seconds}.")

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read "0.4" or "40%", a share, or "0.2s" or "150ms", seconds an image.

        Raises
        ------
        UsageError
            When it is none of these.
        """
        timed = _TIME.fullmatch(text.strip())
        try:
            if timed is not None:
                return cls(seconds=float(timed["number"]) / (1000 if timed["unit"] == "ms" else 1))
            plain = text.strip()
            return cls(share=float(plain[:-1]) / 100 if plain.endswith("%") else float(plain))
        except ValueError as error:
            raise UsageError(
                f"budget must be a share such as 0.4 or 40%, or a time an image such as 0.2s or 150ms, "
                f"not {text!r}."
            ) from error


def check_wishes(mode: str, budget: Budget | None, *, stability: bool) -> None:
    """Refuse what a mode has no use for, and would pass over without a word.

    Raises
    ------
    TypeError
        When the budget is none.
    UsageError
        For a budget in another mode than "auto", for stability in mode "fast".
    """
    if budget is not None and not isinstance(budget, Budget):
        raise TypeError(f"budget must be a routing.Budget, not {budget!r}. Budget.parse reads '40%'.")
    if budget is not None and mode != "auto":
        raise UsageError(f"budget must be given with mode auto alone, not with {mode}.")
    if stability and mode == "fast":
        raise UsageError("stability must be asked for in mode refine or auto: it is the teacher's.")


def least_gain(rule: RoutingRule, share: float | None) -> float:
    """The expected gain above which an image is refined: 0, or so high that a share is not exceeded.

    Parameters
    ----------
    share
        Of the validation images, 0..1, which is kept in steps of the quantiles (5 %); None: no limit.
    """
    if share is None or share >= 1:
        return 0.0
    if share <= 0:
        return math.inf
    # A quantile itself, no value below it: many images may expect just as much, and would all be refined.
    steps = len(rule.gain_quantiles) - 1
    return max(0.0, rule.gain_quantiles[steps - math.floor(share * steps)])


def told(routes: Sequence[Route]) -> dict[str, Any]:
    """What was decided about a file's images, for a record.

    Returns
    -------
    dict
        `refined`, how many; `why`, reason -> how many; `expected_gain`, the mean of those known, else None.
    """
    gains = [one.expected_gain for one in routes if one.expected_gain is not None]
    return {
        "refined": sum(one.refine for one in routes),
        "why": dict(Counter(one.why for one in routes)),
        "expected_gain": round(sum(gains) / len(gains), 6) if gains else None,
    }


def decide(
    rule: RoutingRule, numbers: Mapping[str, float | None], *, least: float = 0.0, empty: bool = False
) -> Route:
    """Decide about one image.

    Parameters
    ----------
    rule
        The bundle's.
    numbers
        `quality.student_numbers` of the student's masks.
    least
        As `least_gain` gives it; a gain has to lie above.
    empty
        Whether the student found nothing.
    """
    gain = evaluate_rule(rule.rule, numbers)
    if empty:
        return Route(False, "empty", gain)
    if not rule.refine:
        return Route(False, "never", gain)
    if gain is None or gain <= 0:
        return Route(False, "no gain", gain)
    return Route(True, "gain", gain) if gain > least else Route(False, "budget", gain)
