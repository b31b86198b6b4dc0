"""Strategies `semisam` and `semisam-ua-mt`: SemiSAM (methods, section 2), the teacher as third voice.

L = L_sup + lambda_c L_con(student, EMA) + lambda_s L_con(student, teacher), where the teacher is prompted by
the student's own foreground. The student answers the whole frame without gradient, its answer becomes
prompts, and the teacher's masks are warped by the views that the student trains on; the teacher's encoder
runs once an image, ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from samdistill.arrays import Image, ProbabilityMaps
from samdistill.geometry import sigmoid
from samdistill.metrics import dice_per_class
from samdistill.prompts import Prompts
from samdistill.refine import Refinement, refine
from samdistill.teacher import Embedding, Teacher, TeacherMasks
from samdistill.train.config import PseudoConfig
from samdistill.train.consistency import Halves
from samdistill.train.loop import Validation
from samdistill.train.losses import IGNORE
from samdistill.train.pseudo import predict_logits, targets_of
from samdistill.train.schedules import ramp_down
from samdistill.train.strategies.mean_teacher import MeanTeacher, first_student, fit_whole_run, whole_run
from samdistill.train.student import Student
from samdistill.train.training import Training

Targets = npt.NDArray[np.float32]


class SemiSam(MeanTeacher):
    """Mean teacher with the promptable teacher as third voice.

    Parameters
    ----------
    training, student, steps, uncertainty
        As of `MeanTeacher`.
    """

    kept = ("switched_off", "beaten")

    def __init__(self, training: Training, student: Student, steps: int, *, uncertainty: bool) -> None:
        super().__init__(training, student, steps, uncertainty=uncertainty)
        self.switched_off: int | None = None
        """Steps after which the teacher was asked no more."""
        self.beaten = 0
        """In how many validations running the student was better than the teacher."""
        self._training, self._student, self._done = training, student, 0
        self._voice = Voice(training)

    def third(
        self, student: nn.Module, halves: Halves, mine: torch.Tensor, step: int
    ) -> tuple[torch.Tensor | None, float, dict[str, float]]:
        """The teacher, where its weight is above 0."""
        weight = self._weight(step)
        if weight == 0:
            return None, 0.0, {"lambda_s": 0.0}
        targets, numbers = self._voice(student, halves, mine)
        return targets, weight, {"lambda_s": weight, **numbers}

    def after_step(self, student: nn.Module, step: int) -> None:
        """The EMA follows."""
        super().after_step(student, step)
        self._done = step + 1

    def after_epoch(self, measured: Validation) -> dict[str, float]:
        """Compare student and teacher on the validation images, and perhaps ask the latter no more."""
        patience = self.config.switch_off
        if not patience or self._weight(self._done - 1) == 0:
            return {}
        fabric = self._training.fabric
        own = self._voice.validate(self._student) if fabric.global_rank == 0 else None
        teacher = fabric.broadcast(own)
        assert teacher is not None
        self.beaten = self.beaten + 1 if measured.dice > teacher else 0
        if self.beaten < patience:
            return {"teacher_val_dice": teacher}
        self.switched_off = self._done
        config = self._training.config  # the log counts the steps of pre-training, too
        step = self._done + (config.pretrain_steps if config.pretrain != "none" else 0)
        self._training.watcher.on_message(
            f"step {step}: the teacher is asked no more; validation Dice of the student "
            f"{measured.dice:.3f}, of the teacher {teacher:.3f}"
        )
        return {"teacher_val_dice": teacher, "teacher_switched_off": 1.0}

    def _weight(self, step: int) -> float:
        """lambda_s at a step."""
        share = step / self.steps
        if self.switched_off is not None or share < self.config.teacher_warm_up:
            return 0.0
        return self.config.teacher_weight * ramp_down(self.config.teacher_schedule, share)


class Voice:
    """What the teacher says to the student's answers.

    Parameters
    ----------
    training
        Whose images, teacher and configuration.
    """

    def __init__(self, training: Training) -> None:
        self._training = training
        self._config = training.config
        self._teacher = training.teacher
        if not self._config.pseudo.literal_views:
            training.embedded  # noqa: B018 - now, not in the first step
        self._validation = (
            training.embed(training.validation) if self._config.consistency.switch_off else None
        )

    def __call__(
        self, student: nn.Module, halves: Halves, mine: torch.Tensor
    ) -> tuple[torch.Tensor | None, dict[str, float]]:
        """The teacher's answer in the views: float32 (N, C, size, size), IGNORE where it says nothing.

        None where it says nothing at all, since the student found nothing in any image.
        """
        if self._config.pseudo.literal_views:
            views: list[Image] = [
                np.ascontiguousarray(one.round().byte().permute(1, 2, 0).numpy())
                for one in halves.unlabelled.cpu()
            ]
            embeddings = self._teacher.embed(views)
            refinements, targets = self._ask(embeddings, list(mine.cpu().numpy()))
            answers = [torch.from_numpy(one) for one in targets]
        else:
            store = self._training.unlabelled
            frames = [store[index].image for index, _ in halves.drawn]
            maps = [sigmoid(one) for one in predict_logits(student, frames, len(frames))]
            embedded = self._training.embedded
            refinements, targets = self._ask([embedded[index] for index, _ in halves.drawn], maps)
            answers = [view.targets(one) for one, (_, view) in zip(targets, halves.drawn, strict=True)]
        silent = [bool((one == IGNORE).all()) for one in targets]
        iou = np.concatenate([one.predicted_iou for one in refinements])
        numbers = {"teacher_silent": float(np.mean(silent))}
        if not np.isnan(iou).all():
            numbers["teacher_iou"] = float(np.nanmean(iou))
        return None if all(silent) else torch.stack(answers), numbers

    def validate(self, student: nn.Module) -> float:
        """Dice of the teacher, prompted by the student, on the validation images in the model frame."""
        assert self._validation is not None
        store, batch, scores = self._training.validation, self._config.batch, []
        for start in range(0, len(store), batch):
            numbers = range(start, min(start + batch, len(store)))
            logits = predict_logits(student, [store[number].image for number in numbers], batch)
            embeddings = [self._validation[number] for number in numbers]
            refinements = refine(
                self._teacher,
                embeddings,
                [sigmoid(one) for one in logits],
                self._training.refine,
            )
            for number, one in zip(numbers, refinements, strict=True):
                truth = store[number].targets
                assert truth is not None
                scores.append(dice_per_class(one.masks, truth == 1, ignore=truth[0] == IGNORE).mean())
        return float(np.mean(scores))

    def _ask(
        self, embeddings: Sequence[Embedding], maps: Sequence[ProbabilityMaps]
    ) -> tuple[list[Refinement], list[Targets]]:
        """Refinements, and float32 (C, h, w) targets of them in the frame of the maps."""
        if not self._config.consistency.teacher_soft:
            refinements = refine(self._teacher, embeddings, maps, self._training.refine)
            return refinements, spoken(refinements, self._config.pseudo, None)
        remembering = Remembering(self._teacher)
        refinements = refine(remembering, embeddings, maps, self._training.refine)
        return refinements, spoken(refinements, self._config.pseudo, remembering.probabilities)


def spoken(
    refinements: Sequence[Refinement], config: PseudoConfig, soft: Sequence[Targets] | None
) -> list[Targets]:
    """What the teacher said: IGNORE for classes it was not asked about and those that the filters hold back.

    Parameters
    ----------
    config
        The filters.
    soft
        Probabilities behind each set's mask, in flattened order, where these are to be learned: a class takes
        the largest of its sets. None: masks.
    """
    rest = iter(soft or ())
    answers = []
    for one in refinements:
        said = targets_of(one, config)
        targets: Targets = np.full(one.masks.shape, IGNORE, np.float32) if said is None else said
        targets[np.isnan(one.predicted_iou)] = IGNORE
        if soft is not None:
            for number, sets in enumerate(one.prompts):
                maps = [next(rest) for _ in sets]
                if maps and (targets[number] != IGNORE).all():
                    targets[number] = np.max(maps, axis=0)
        answers.append(targets)
    return answers


class Remembering:
    """A teacher that keeps the probabilities behind the masks of its answers, one `refine` long.

    Where there are many sets it is asked in parts, and for a second pass once more about the last ones.

    Parameters
    ----------
    teacher
        Who answers.
    """

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher
        self.probabilities: list[Targets] = []

    def segment(
        self,
        embeddings: Sequence[Any],
        prompts: Sequence[Sequence[Prompts]],
        *,
        previous: npt.NDArray[np.float32] | None = None,
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> TeacherMasks:
        """As the teacher; masks are where the probabilities exceed 0.5."""
        answer = self._teacher.segment(embeddings, prompts, previous=previous, sizes=sizes)
        if previous is not None:  # the same sets again
            del self.probabilities[len(self.probabilities) - len(previous) :]
        done = 0
        low = torch.from_numpy(answer.low_res_logits).to(self._teacher.device)
        for number, (embedding, sets) in enumerate(zip(embeddings, prompts, strict=True)):
            seen = embedding if sizes is None else replace(embedding, image_size=sizes[number])
            maps = self._teacher.upscale(low[done : done + len(sets)], seen)
            if self._teacher.preprocessing != "medsam":  # whose maps are probabilities already
                maps = (maps - self._teacher.mask_threshold).sigmoid()
            self.probabilities.extend(maps.cpu().numpy())
            done += len(sets)
        return answer


def semisam(training: Training) -> None:
    """On mean teacher."""
    _run(training, uncertainty=False)


def semisam_ua_mt(training: Training) -> None:
    """On UA-MT."""
    _run(training, uncertainty=True)


def _run(training: Training, *, uncertainty: bool) -> None:
    student, steps = first_student(training), whole_run(training)
    fit_whole_run(training, student, SemiSam(training, student, steps, uncertainty=uncertainty))
