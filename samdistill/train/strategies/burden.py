"""Strategy `burden`: SAM Carries the Burden (methods section).

1. Train a student on the few labelled images. 2. It predicts the unlabelled ones. 3. Each class mask is
cleaned and becomes prompts. 4. The teacher refines it in two passes. 5. A new student, from scratch, trains
on the pseudo labels.
"""

from __future__ import annotations

from collections.abc import Sequence

from samdistill.train.losses import WeightedBCE
from samdistill.train.sources import Stored, make_labels
from samdistill.train.store import PseudoStore
from samdistill.train.strategies.mine import choose_refiner, labelled_images, mixed
from samdistill.train.strategies.supervised import first_of_two
from samdistill.train.training import Training


def burden(training: Training) -> None:
    """Two students, one after the other; the second is the run's."""
    config = training.config
    student, second = first_of_two(training)
    store = PseudoStore(training.run.path / "pseudo" / "1")
    make_labels(training, student, choose_refiner(training), store)
    labelled = labelled_images(training, default=0.0)
    source = Stored(training.unlabelled, store, config.pseudo)
    positive, negative = source.pixels_by_class()  # whatever the loss is: there must be something to learn
    _tell_of_unlearned_classes(training, positive, negative)
    weighted = config.pseudo.loss != "dice-bce"
    objective = mixed(
        training,
        source,
        labelled=labelled,
        weight=config.pseudo.weight if labelled else 1.0,
        pseudo_loss=WeightedBCE(positive, negative) if weighted else training.loss,
    )
    training.fit(
        training.new_student(1),
        objective,
        name="burden",
        number=1,
        images=len(training.unlabelled),
        steps=second,
    )


def _tell_of_unlearned_classes(training: Training, positive: Sequence[int], negative: Sequence[int]) -> None:
    """Say which classes no pseudo label shows: the second student begins without what the first one knew."""
    for name, shown, background in zip(training.run.class_names, positive, negative, strict=True):
        if not shown:
            why = (
                "it is background in all that count, or held back"
                if background
                else "the filters or empty answers of the teacher hold it back in all"
            )
            training.watcher.on_message(
                f"warning: no pseudo label shows {name!r}: {why}. The second student does not learn it from "
                "them; lower --min-iou and --min-agreement, or train the first phase for longer."
            )
