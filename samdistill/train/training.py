"""What a strategy works with: the parts of the data, new students, phases, the teacher. Knows no strategy."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from lightning_fabric import Fabric

from samdistill.errors import InputRejected
from samdistill.io.dataset import Case, open_dataset
from samdistill.io.splits import Split
from samdistill.refine import RefineConfig, suited
from samdistill.teacher import Teacher, load_teacher
from samdistill.teacher.cache import EmbeddingCache, default_folder
from samdistill.train.config import AugmentConfig
from samdistill.train.data import Batches, FrameStore
from samdistill.train.embedded import EmbeddedCases
from samdistill.train.loop import Listener, Objective, Phase, fit
from samdistill.train.losses import SegmentationLoss
from samdistill.train.run import Run
from samdistill.train.student import Student, build_student


class Watcher(Listener, Protocol):
    """A listener that also hears what happens before the first step."""

    def on_message(self, text: str) -> None: ...
    def on_prepare(self, what: str, done: int, total: int) -> None: ...


class Training:
    """A run under way.

    Parameters
    ----------
    run
        Its folder, with the configuration.
    fabric
        Devices and precision.
    split
        The cases by part; those of the unlabelled part carry no labels.
    watcher
        Hears of everything.
    cache
        Folder of the teacher's embeddings; None: the default one.
    audit
        Whether `hidden_truth` may be asked for.
    """

    def __init__(
        self,
        run: Run,
        fabric: Fabric,
        split: Split,
        watcher: Watcher,
        *,
        cache: Path | None = None,
        audit: bool = False,
    ) -> None:
        self.run, self.fabric, self.split, self.watcher = run, fabric, split, watcher
        self.config = run.config
        self.loss = SegmentationLoss(run.config.bce_weight)
        self._cache, self._audit = cache, audit
        self._pretrained = int(run.config.pretrain != "none")

    @cached_property
    def labelled(self) -> FrameStore:
        """The labelled training images."""
        store = self._store(self.split.train_labelled)
        self._tell_of_absent_classes(store, "labelled training image", "it cannot be learned from labels")
        return store

    @cached_property
    def validation(self) -> FrameStore:
        """The images that the best student is chosen by."""
        store = self._store(self.split.validation)
        self._tell_of_absent_classes(store, "validation image", "the student is chosen without it")
        return store

    @cached_property
    def unlabelled(self) -> FrameStore:
        """The unlabelled training images; there must be some."""
        if not self.split.train_unlabelled:
            raise InputRejected(
                f"the strategy {self.config.strategy} must have unlabelled images, and there is none. Add "
                "images without masks, lower --labels, or train with --strategy supervised."
            )
        return self._store(self.split.train_unlabelled)

    def check_needs(self) -> None:
        """Read what the strategy cannot do without: what is missing is told before hours of training."""
        if self.config.strategy != "supervised":
            self.unlabelled  # noqa: B018
        if self.config.asks_teacher:
            self.teacher  # noqa: B018

    @cached_property
    def images(self) -> FrameStore:
        """All training images, labels unread."""
        cases = (*self.split.train_labelled, *self.split.train_unlabelled)
        return self._store(tuple(case.without_labels() for case in cases))

    @cached_property
    def hidden_truth(self) -> FrameStore | None:
        """For analysis alone: the unlabelled images with what labels they have; None where nobody asked."""
        if not self._audit:
            return None
        by_id: dict[str, Case] = {
            case.id: case for case in open_dataset(self.run.record.data["path"], infer_classes=False).labelled
        }
        known = self.split.train_labelled[0].code
        return FrameStore(
            [
                replace(by_id[case.id], code=known) if case.id in by_id else case
                for case in self.split.train_unlabelled
            ],
            self.config.student.size,
            self.run.intensity,
        )

    @cached_property
    def teacher(self) -> Teacher:
        """The frozen teacher, on the device of the training; on resuming the one that the run began with."""
        teacher = load_teacher(self.config.teacher, str(self.fabric.device))
        versions, now = self.run.record.versions, teacher.weights_sha256[:12]
        before = versions.get("teacher weights")
        if before not in (None, now):
            raise InputRejected(
                f"the run began with teacher weights {before}, which are {now} now: pseudo labels of two "
                "teachers would be mixed. Restore the weights or start a new run."
            )
        if before is None and self.fabric.global_rank == 0:
            self.run.write_record(versions={**versions, "teacher weights": now})
        self.watcher.on_message(f"teacher {teacher.name}, weights {now}")
        return teacher

    @property
    def refine(self) -> RefineConfig:
        """How the student's answers are put to the teacher: as configured, but to MedSAM as boxes alone."""
        return suited(self.config.refine_or_default, self.teacher.preprocessing)

    @cached_property
    def embedded(self) -> EmbeddedCases:
        """The teacher's embeddings of the unlabelled images; made first where the cache lacks them."""
        return self.embed(self.unlabelled)

    @property
    def cache_folder(self) -> Path:
        """Where embeddings, and what is made of them once, are kept between runs."""
        return self._cache or default_folder()

    def embed(self, store: FrameStore) -> EmbeddedCases:
        """The teacher's embeddings of the images of a store; made first where the cache lacks them."""
        embedded = EmbeddedCases(
            self.teacher,
            EmbeddingCache(self.cache_folder),
            store.cases,
            self.run.intensity,
        )
        rank, world = self.fabric.global_rank, self.fabric.world_size
        embedded.fill(
            range(rank, len(store), world),
            lambda done, total: self.watcher.on_prepare("embedding images", done, total),
        )
        self.fabric.barrier()
        return embedded

    def new_student(self, number: int = 0) -> Student:
        """A student from its initial weights, the same ones for the same seed and number."""
        torch.manual_seed(self.config.seed + 7919 * number)
        return build_student(self.config.student, len(self.run.class_names))[0]

    def batches(
        self,
        store: FrameStore,
        images: int,
        *,
        stream: int,
        order: int | None = None,
        augment: AugmentConfig | None = None,
    ) -> Batches:
        """Random views of a store, `images` a step over all processes; see `Batches`."""
        return Batches(
            store,
            self.config.student.size,
            images,
            augment or self.config.augment,
            seed=self.config.seed,
            stream=stream,
            order=order,
            rank=self.fabric.global_rank,
            world=self.fabric.world_size,
        )

    def fit(
        self,
        student: Student,
        objective: Objective,
        *,
        name: str,
        number: int,
        images: int,
        steps: int | None,
        rate_factor: float = 1.0,
        carry_best: bool = False,
    ) -> None:
        """Run one phase, see `loop.fit`.

        Parameters
        ----------
        number
            Of the phase, from 0; pre-training, where there is one, is -1.
        images
            How many images the phase goes over: an epoch is as many batches as they fill.
        steps
            Optimiser steps, exactly; None: at most `max_epochs` epochs, with early stopping.
        """
        config = self.config
        epoch_steps = self.epoch_steps(images)
        phase = Phase(
            name,
            number + self._pretrained,
            steps if steps is not None else config.max_epochs * epoch_steps,
            epoch_steps,
            early_stop=steps is None,
            rate_factor=rate_factor,
            carry_best=carry_best,
        )
        fit(self.run, self.fabric, student, objective, self.validation, phase, self.watcher)

    def best_of_phase(self, number: int) -> dict[str, torch.Tensor]:
        """The weights of the best student of a phase that is over."""
        return self.run.best_of_phase(number + self._pretrained)

    def epoch_steps(self, images: int) -> int:
        """Optimiser steps between two validations, going over so many images."""
        return max(self.config.min_epoch_steps, math.ceil(images / self.config.batch))

    def steps(self, first: float) -> tuple[int | None, int | None]:
        """Divide `max_steps` between two phases, the first taking this share; None for both without it."""
        total = self.config.max_steps
        if total is None:
            return None, None
        begin = min(max(1, round(first * total)), total - 1) if total > 1 else 1
        return begin, total - begin

    def _tell_of_absent_classes(self, store: FrameStore, what: str, why: str) -> None:
        for channel, name in enumerate(self.run.class_names):
            if not any(_shows(store, index, channel) for index in range(len(store))):
                self.watcher.on_message(
                    f"warning: no {what} shows {name!r}: {why}. Give more --labels, or another --seed."
                )

    def _store(self, cases: tuple[Case, ...]) -> FrameStore:
        store = FrameStore(cases, self.config.student.size, self.run.intensity)
        store.preload(lambda done, total: self.watcher.on_prepare("reading images", done, total))
        return store


def _shows(store: FrameStore, index: int, channel: int) -> bool:
    targets = store[index].targets
    return targets is not None and bool((targets[channel] == 1).any())
