"""Strategy `samdsk`: SamDSK (method section, figure 2).

Rounds of: 1. Train on what is labelled. 2. Predict the rest. 3. Match the teacher's proposals to the
predictions under what is known of the image. 4. The images that match well join the labelled ones.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property

import numpy as np
import torch
from torch import nn

from samdistill.arrays import Image, Masks
from samdistill.errors import UsageError
from samdistill.geometry import resize_masks
from samdistill.io.files import write_text
from samdistill.metrics import dice_per_class
from samdistill.proposals import Proposals
from samdistill.report.admissions import GOOD_DICE
from samdistill.teacher import Embedding
from samdistill.teacher.cache import EmbeddingCache
from samdistill.teacher.proposal_cache import ProposalCache
from samdistill.teacher.propose import ProposeConfig
from samdistill.train.admission import Admission, as_pseudo, judge, read_records, write_record, write_records
from samdistill.train.data import FrameStore, read_uint8
from samdistill.train.knowledge import Knowledge
from samdistill.train.pseudo import Targets, predict_maps
from samdistill.train.sources import Answer, Drawn, warped
from samdistill.train.store import PseudoLabel, PseudoStore
from samdistill.train.strategies.rounds import Labelled, run_rounds
from samdistill.train.student import Student
from samdistill.train.training import Training

ROUNDING = 4  # decimals of Dice against hidden truth


def samdsk(training: Training) -> None:
    """One training more than rounds; the best student of all is the run's."""
    run_rounds(training, Admissions(training))


class Admissions:
    """Who labels in SamDSK's rounds.

    Parameters
    ----------
    training
        Whose unlabelled images.
    """

    def __init__(self, training: Training) -> None:
        self._training, self._config = training, training.config.samdsk
        self._folder = training.run.path / "pseudo"
        self._knowledge = Knowledge.of(training.run, training.split)
        if training.teacher.preprocessing == "medsam":  # told before hours of training, not after
            raise UsageError(
                f"teacher must take points to make proposals, which {training.config.teacher} does not. "
                "Use SAM or tiny."
            )
        self._admitted: dict[int, int] = {}  # image -> round whose annotation holds

    def __call__(self, student: Student, number: int) -> Labelled:
        """Match the images that are not admitted yet, or all; what a round has done before stays."""
        training, cases = self._training, self._training.unlabelled.cases
        if self._config.rescore == "all":
            self._admitted = {}
        candidates = [index for index in range(len(cases)) if index not in self._admitted]
        path = self._folder / f"{number}.jsonl"
        if not path.is_file():
            self._match(student, number, candidates)
        records = read_records(path)
        places = {cases[index].id: index for index in candidates}
        self._admitted |= {places[one.case_id]: number for one in records if one.admitted}
        self._tell(records, number)
        if training.hidden_truth is not None and training.fabric.global_rank == 0:
            self._audit(training.hidden_truth, records, places, number)
        indices = sorted(self._admitted)
        stores = [
            (PseudoStore(self._folder / str(self._admitted[index])), cases[index].id) for index in indices
        ]
        source = Annotations([training.unlabelled[index].image.shape[:2] for index in indices], stores)
        return Labelled(indices, source, sum(one.admitted for one in records))

    def _match(self, student: nn.Module, number: int, candidates: Sequence[int]) -> None:
        """Judge each candidate, each process its share; an image that has its record is done."""
        training, config = self._training, self._config
        fabric, cases = training.fabric, training.unlabelled.cases
        store, records = PseudoStore(self._folder / str(number)), self._folder / f"{number}.parts"
        own = candidates[fabric.global_rank :: fabric.world_size]
        for done, index in enumerate(own, start=1):
            case = cases[index]
            path = records / f"{index}.json"
            if not path.is_file():
                image = read_uint8(case, training.run.intensity)
                (maps,) = predict_maps(student, [image], training.config.student.size, 1)
                bounds = self._knowledge.bounds(case.id, number)
                proposals = self._proposals(image)
                record, annotation = judge(case.id, maps, proposals, bounds, config, number=number)
                pseudo = as_pseudo(annotation, maps, proposals, record)
                store.write(PseudoLabel(case.id, pseudo, training.teacher.weights_sha256, number))
                write_record(path, record)
            training.watcher.on_prepare("matching proposals", done, len(own))
        fabric.barrier()
        if fabric.global_rank == 0:
            parts = [records / f"{index}.json" for index in candidates]
            write_records(self._folder / f"{number}.jsonl", [read_records(path)[0] for path in parts])
            shutil.rmtree(records, ignore_errors=True)  # with what a killed process left half written
        fabric.barrier()

    def _proposals(self, image: Image) -> Proposals:
        def embed() -> Embedding:
            (found,) = self._embeddings.embed(self._training.teacher, [image])
            return found

        return self._cache.propose(image, embed)

    @cached_property
    def _embeddings(self) -> EmbeddingCache:
        return EmbeddingCache(self._training.cache_folder)

    @cached_property
    def _cache(self) -> ProposalCache:
        config = ProposeConfig(**asdict(self._config.proposals))
        return ProposalCache(self._training.cache_folder, self._training.teacher, config)

    def _tell(self, records: Sequence[Admission], number: int) -> None:
        limit, tell = self._config.beta, self._training.watcher.on_message
        if not records:
            tell(f"round {number}: all images are admitted already")
            return
        tell(
            f"round {number}: {sum(one.admitted for one in records)} of {len(records)} images admitted "
            f"(beta above {limit:g})"
        )
        ceilings = [one.ceiling for one in records if one.ceiling is not None]
        low = [ceiling for ceiling in ceilings if ceiling <= limit]
        if low:
            tell(
                f"warning: in {len(low)} of {len(ceilings)} images no annotation whatever could come above "
                f"beta {limit:g}: the student's maps are too unsure for it, or its objects too small (median "
                f"ceiling {np.median(ceilings):.3f}). Lower --beta, or match its masks with --iou hard."
            )

    def _audit(
        self, truth: FrameStore, records: Sequence[Admission], places: dict[str, int], number: int
    ) -> None:
        """Write and tell how good the annotations are against labels that training does not see."""
        path, store = self._folder / f"{number}.audit.jsonl", PseudoStore(self._folder / str(number))
        lines, scores = [], {True: list[float](), False: list[float]()}
        for record in records:
            case = truth.cases[places[record.case_id]]
            if case.labelled:
                masks, ignored = case.read_labels()
                one = store.read(record.case_id).refinement
                dice, own = (
                    round(float(dice_per_class(found, masks, ignore=ignored).mean()), ROUNDING)
                    for found in (one.masks, one.student_masks)
                )
                scores[record.admitted].append(dice)
                lines.append({"case_id": record.case_id, "dice": dice, "student_dice": own})
        write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
        if not lines:
            return
        told = " and ".join(
            f"{np.mean(own):.3f} over {len(own)} {'admitted' if admitted else 'other'} images"
            for admitted, own in scores.items()
            if own
        )
        text = f"round {number}, audit: mean Dice of the annotations {told}"
        if scores[True]:
            precision = np.mean([dice >= GOOD_DICE for dice in scores[True]])
            text += f"; precision {precision:.3f} (Dice from {GOOD_DICE:g})"
        self._training.watcher.on_message(text)


class Annotations:
    """The annotations of admitted images, in the canonical frame.

    Parameters
    ----------
    sizes
        (height, width) of each frame.
    stores
        Where the annotation of each lies, and under which case id.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], stores: Sequence[tuple[PseudoStore, str]]) -> None:
        self._sizes, self._stores = sizes, stores
        self._held: dict[int, Masks] = {}  # a quarter of what targets would take

    def __call__(self, student: nn.Module, drawn: Drawn, pixels: Sequence[torch.Tensor]) -> Answer:
        """Asks no student and no teacher."""
        return warped([self._targets(index) for index, _ in drawn], drawn), {}

    def _targets(self, index: int) -> Targets:
        if index not in self._held:
            store, case_id = self._stores[index]
            self._held[index] = resize_masks(store.read(case_id).refinement.masks, self._sizes[index])
        return self._held[index].astype(np.float32)
