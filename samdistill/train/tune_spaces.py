"""What `tune` searches: components, what each pass gives, morphology; or the random walker's numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, get_args

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from samdistill.arrays import Image, ProbabilityMaps
from samdistill.components import MAX_RADIUS, Keep, Morphology
from samdistill.config import to_dict, to_toml
from samdistill.prompts import PromptConfig
from samdistill.refine import BURDEN, MINE, RefineConfig, Refinement, suited
from samdistill.train.embedded import EmbeddedCases
from samdistill.train.pseudo import TeacherRefiner
from samdistill.train.random_walker import RandomWalkerRefiner

Params = Mapping[str, Any]

MORPHOLOGY: dict[str, BaseDistribution] = {
    "operation": CategoricalDistribution(("erosion", "dilation")),
    "element": CategoricalDistribution(("square", "disk", "diamond", "star")),
    "radius": IntDistribution(0, MAX_RADIUS),
}
COMPONENTS = (*get_args(Keep), "each")
"""`keep`, one prompt set for a class's components together; or "each", a set for each of them."""
LEAST_PX = 16
"""Where each component is asked about: smaller ones are specks, and each would cost a set."""
UNCHANGED = {"operation": "dilation", "element": "square", "radius": 0}


class Space(Protocol):
    """What is searched."""

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """Name of each parameter and what it may be."""
        ...

    @property
    def first_trials(self) -> list[dict[str, Any]]:
        """What is tried before anything is searched."""
        ...

    def refine(
        self, params: Params, indices: Sequence[int], maps: Sequence[ProbabilityMaps]
    ) -> list[Refinement]:
        """Refine the maps of some images by these parameters."""
        ...

    def text(self, params: Params) -> str:
        """The parameters as the TOML that training takes."""
        ...


class TeacherSpace:
    """Components, two passes of the teacher, and the morphology before them.

    Parameters
    ----------
    embedded
        The images, embedded.
    start
        Everything that is not searched.
    """

    file = "prompts.toml"

    def __init__(self, embedded: EmbeddedCases, start: RefineConfig) -> None:
        preprocessing = embedded.teacher.preprocessing
        start = suited(start, preprocessing)
        self._embedded, self._start = embedded, start
        self._boxes_only = preprocessing == "medsam"
        self.untuned = {
            "mine, untuned": suited(MINE, preprocessing),
            "burden, untuned": suited(BURDEN, preprocessing),
        }
        """What the search is to be better than, by the name of its row."""
        if start not in self.untuned.values():
            self.untuned["start, untuned"] = start
        self.distributions: dict[str, BaseDistribution] = {
            **MORPHOLOGY,
            "components": CategoricalDistribution(COMPONENTS),
        }
        papers = [(start.first_pass, start.second_pass)]
        if not self._boxes_only:
            passes = _passes(start.prompts)
            self.distributions["first_pass"] = CategoricalDistribution(passes)
            self.distributions["second_pass"] = CategoricalDistribution((*passes, "none"))
            papers += [
                (one.first_pass, one.second_pass)
                for one in (BURDEN, MINE)
                if one.first_pass in passes and one.second_pass in (*passes, "none")
            ]
        first = [
            {**self.unchanged, "first_pass": first, "second_pass": second}
            for first, second in dict.fromkeys(papers)
        ]
        first.append({**first[0], "components": "each"})
        self.first_trials = [{name: one[name] for name in self.distributions} for one in first]

    @property
    def unchanged(self) -> dict[str, Any]:
        """The parameters that stand for the start without its morphology."""
        prompts = self._start.prompts
        own = {
            **UNCHANGED,
            "components": "each" if prompts.per_component else prompts.keep,
            "first_pass": self._start.first_pass,
            "second_pass": self._start.second_pass,
        }
        return {name: own[name] for name in self.distributions}

    def config(self, params: Params) -> RefineConfig:
        """The configuration that the parameters stand for."""
        prompts = _with_morphology(self._start.prompts, params)
        if params["components"] == "each":
            least = max(prompts.min_area_px, LEAST_PX)
            prompts = replace(prompts, keep="all", per_component=True, min_area_px=least)
        else:
            prompts = replace(prompts, keep=params["components"], per_component=False)
        return replace(
            self._start,
            prompts=prompts,
            first_pass=params.get("first_pass", "box"),
            second_pass=params.get("second_pass", "none"),
        )

    def refine(
        self, params: Params, indices: Sequence[int], maps: Sequence[ProbabilityMaps]
    ) -> list[Refinement]:
        """One decoder call a pass."""
        return self.refine_by(self.config(params), indices, maps)

    def refine_by(
        self, config: RefineConfig, indices: Sequence[int], maps: Sequence[ProbabilityMaps]
    ) -> list[Refinement]:
        """The same by any configuration."""
        return TeacherRefiner(self._embedded, config)(indices, [], maps)

    def text(self, params: Params) -> str:
        """A RefineConfig."""
        return to_toml(to_dict(self.config(params)))


class WalkerSpace:
    """The random walker's margin and beta, and the morphology before it.

    Parameters
    ----------
    image
        Gives the uint8 (H, W, 3) image of a number.
    start
        Its prompts' cleaning is used.
    """

    file = "random-walker.toml"

    def __init__(self, image: Callable[[int], Image], start: RefineConfig) -> None:
        self._image, self._start = image, start
        self.distributions: dict[str, BaseDistribution] = {
            **MORPHOLOGY,
            "walker_margin": FloatDistribution(0.01, 0.5, log=True),
            "walker_beta": FloatDistribution(1.0, 1e4, log=True),
        }
        self.first_trials: list[dict[str, Any]] = [{**UNCHANGED, "walker_margin": 0.1, "walker_beta": 130.0}]

    def refine(
        self, params: Params, indices: Sequence[int], maps: Sequence[ProbabilityMaps]
    ) -> list[Refinement]:
        """Image by image."""
        config = replace(self._start, prompts=_with_morphology(self._start.prompts, params))
        refiner = RandomWalkerRefiner(config, margin=params["walker_margin"], beta=params["walker_beta"])
        return refiner(indices, [self._image(index) for index in indices], maps)

    def text(self, params: Params) -> str:
        """A part of a training's configuration."""
        prompts = _with_morphology(self._start.prompts, params)
        return to_toml(
            {
                "pseudo": {
                    "refiner": "random-walker",
                    **{name: params[name] for name in ("walker_margin", "walker_beta")},
                },
                "refine": to_dict(replace(self._start, prompts=prompts)),
            }
        )


def _passes(prompts: PromptConfig) -> tuple[str, ...]:
    points = ("points", "positive-points") if prompts.points != "none" else ()
    return (*(("box",) if prompts.box else ()), *points, "all")


def _with_morphology(prompts: PromptConfig, params: Params) -> PromptConfig:
    if params["radius"] == 0:
        return replace(prompts, morphology=None)
    return replace(prompts, morphology=Morphology(params["operation"], params["element"], params["radius"]))
