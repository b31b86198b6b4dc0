"""Strategy `mine`: knowledge mining (knowledge mining, sections 2.2 to 2.4).

1. Train the student on the labelled images. 2. It predicts the unlabelled ones. 3. Its answers become
prompts. 4. The teacher's answers are the pseudo labels. 5. The same student goes on with both, batches
stratified.
"""

from __future__ import annotations

from samdistill.train.mixed import Loss, Mixed, Source
from samdistill.train.pseudo import LiteralRefiner, Refiner, TeacherRefiner
from samdistill.train.random_walker import RandomWalkerRefiner
from samdistill.train.sources import Continuous, ContinuousViews, Stored, make_labels
from samdistill.train.store import PseudoStore
from samdistill.train.strategies.supervised import first_of_two
from samdistill.train.training import Training


def mine(training: Training) -> None:
    """Two phases of one student."""
    config = training.config
    student, second = first_of_two(training)
    source: Source
    if config.pseudo.schedule == "once":
        store = PseudoStore(training.run.path / "pseudo" / "1")
        make_labels(training, student, choose_refiner(training), store)
        source = Stored(training.unlabelled, store, config.pseudo)
    elif config.pseudo.literal_views:
        source = ContinuousViews(choose_refiner(training, literal=True), config.pseudo)
    else:
        source = Continuous(training.unlabelled, choose_refiner(training), config.pseudo)
    training.fit(
        student,
        mixed(training, source),
        name="mine",
        number=1,
        images=len(training.labelled) + len(training.unlabelled),
        steps=second,
        rate_factor=config.pseudo.rate_factor,
        carry_best=True,
    )


def choose_refiner(training: Training, *, literal: bool = False) -> Refiner:
    """Who makes pseudo labels: of whole frames, or `literal`, of whatever is looked at."""
    if training.config.pseudo.refiner == "random-walker":
        pseudo = training.config.pseudo
        return RandomWalkerRefiner(
            training.config.refine_or_default, margin=pseudo.walker_margin, beta=pseudo.walker_beta
        )
    if literal:
        return LiteralRefiner(training.teacher, training.refine)
    return TeacherRefiner(training.embedded, training.refine)


def mixed(
    training: Training,
    source: Source,
    *,
    labelled: int | None = None,
    weight: float | None = None,
    pseudo_loss: Loss | None = None,
) -> Mixed:
    """Labelled and pseudo-labelled views, a fixed share of each in every batch that lacks no pseudo label.

    `labelled` images of each batch, by default the run's share or else half; lambda is `weight` or the run's.
    """
    config = training.config
    if labelled is None:
        labelled = labelled_images(training, default=0.5)
    unlabelled = config.batch - labelled
    return Mixed(
        training.batches(training.labelled, labelled, stream=1) if labelled else None,
        training.batches(training.unlabelled, unlabelled, stream=2),
        source,
        training.loss,
        config.pseudo.weight if weight is None else weight,
        pseudo_loss=pseudo_loss,
        spare=training.batches(training.labelled, unlabelled, stream=4) if labelled else None,
        truth=training.hidden_truth,
    )


def labelled_images(training: Training, *, default: float) -> int:
    """Labelled images in a batch: one a process at least where there are to be any, and room for others."""
    share = training.config.pseudo.labelled_share
    share = default if share is None else share
    batch, world = training.config.batch, training.fabric.world_size
    return min(max(world, round(batch * share)), batch - world) if share else 0
