"""Training in rounds: train, let someone label what is not labelled, train again with that (SamDSK, UPS).

One training more than rounds: the supervised one, then one after each round. Knows not who labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from samdistill.errors import UsageError
from samdistill.train.data import FrameStore
from samdistill.train.mixed import Mixed, Source
from samdistill.train.strategies.supervised import Supervised, supervised_phase
from samdistill.train.student import Student
from samdistill.train.training import Training


@dataclass(frozen=True)
class Labelled:
    """What a round gives to train on.

    Parameters
    ----------
    indices
        Images of the unlabelled part, ascending.
    source
        Their labels; its frames are numbered as in `indices`.
    fresh
        How many of them this round labelled; none ends the rounds.
    """

    indices: list[int]
    source: Source
    fresh: int


def run_rounds(training: Training, label: Callable[[Student, int], Labelled]) -> None:
    """Train in rounds; `label` gets the best student so far and the number of the round, from 1.

    With `max_steps` the run takes exactly that many: rounds that end early leave their steps to one more
    training on what there is.
    """
    config, rounds = training.config, training.config.samdsk.rounds
    steps = divide(config.max_steps, rounds, config.samdsk.last_share)
    student = training.new_student()
    supervised_phase(training, student, steps=steps[0])
    for number in range(1, rounds + 1):
        student.load_state_dict(training.best_of_phase(number - 1))
        answer = label(student, number)
        last = answer.fresh == 0 or number == rounds
        wanted = steps[number]
        if answer.fresh == 0:
            if config.max_steps is None:
                return
            wanted = sum(one or 0 for one in steps[number:])
            training.watcher.on_message(
                f"round {number} labelled no image; the last training takes {wanted} steps"
            )
        _train(training, student, answer, number, wanted)
        if last:
            return


def divide(total: int | None, rounds: int, last_share: float | None) -> Sequence[int | None]:
    """Optimiser steps of each of 1 + rounds trainings; None each where the total is not given."""
    if total is None:
        return [None] * (rounds + 1)
    if total <= rounds:
        raise UsageError(
            f"max_steps must be at least {rounds + 1}, one for each training of {rounds} rounds, not {total}."
        )
    last = -(-total // (rounds + 1)) if last_share is None else round(last_share * total)
    last = min(max(1, last), total - rounds)
    each, more = divmod(total - last, rounds)
    return [each + (place < more) for place in range(rounds)] + [last]


def _train(training: Training, student: Student, answer: Labelled, number: int, steps: int | None) -> None:
    """One training on labelled and machine-labelled images: sum L(human) + lambda sum L(machine) (eq. 5).

    A batch holds both, each loss a mean over its own, weighted as the sums over all images would be: by
    n / (n + m) and lambda m / (n + m).
    """
    config, weight = training.config, training.config.samdsk.weight
    name = f"{config.strategy} round {number}"
    if config.samdsk.retrain:
        student = training.new_student()
    rate_factor = 1.0 if config.samdsk.retrain else config.pseudo.rate_factor
    human, machine = len(training.labelled), len(answer.indices)
    stream = 20 + 2 * number
    if not machine:
        batches = training.batches(training.labelled, config.batch, stream=stream)
        objective: Supervised | Mixed = Supervised(batches, training.loss)
    else:
        world, share = training.fabric.world_size, human / (human + machine)
        wanted = share if config.pseudo.labelled_share is None else config.pseudo.labelled_share
        count = min(max(world, round(wanted * config.batch)), config.batch - world)
        store = _part(training, training.unlabelled, answer.indices)
        truth = training.hidden_truth
        objective = Mixed(
            training.batches(training.labelled, count, stream=stream),
            training.batches(store, config.batch - count, stream=stream + 1),
            answer.source,
            lambda logits, targets: share * training.loss(logits, targets),
            weight * (1 - share),
            pseudo_loss=training.loss,
            truth=None if truth is None else _part(training, truth, answer.indices),
        )
    training.fit(
        student,
        objective,
        name=name,
        number=number,
        images=human + machine,
        steps=steps,
        rate_factor=rate_factor,
        carry_best=True,
    )


def _part(training: Training, store: FrameStore, indices: list[int]) -> FrameStore:
    cases = [store.cases[index] for index in indices]
    return FrameStore(cases, training.config.student.size, training.run.intensity)
