"""Strategy `burden`: SAM Carries the Burden (methods section).

1. Train a student on the few labelled images. 2. It predicts the unlabelled ones. 3. Each class mask is
cleaned and becomes prompts. 4. The teacher refines it in two passes. 5. A new student, from scratch, trains
on the pseudo labels.
"""

from __future__ import annotations

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
    weighted = config.pseudo.loss != "dice-bce"
    objective = mixed(
        training,
        source,
        labelled=labelled,
        weight=config.pseudo.weight if labelled else 1.0,
        pseudo_loss=WeightedBCE(*source.pixels_by_class()) if weighted else training.loss,
    )
    training.fit(
        training.new_student(1),
        objective,
        name="burden",
        number=1,
        images=len(training.unlabelled),
        steps=second,
    )
