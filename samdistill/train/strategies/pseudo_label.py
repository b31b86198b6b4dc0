"""Strategy `pseudo-label`: the student teaches itself (Lee 2013), hard or soft; the baseline without teacher.

The same loop as `mine`, so that what a teacher adds can be told from what more images add.
"""

from __future__ import annotations

from samdistill.train.sources import Own
from samdistill.train.strategies.mine import mixed
from samdistill.train.strategies.supervised import first_of_two
from samdistill.train.training import Training


def pseudo_label(training: Training) -> None:
    """Two phases of one student, its own answers anew at each visit."""
    config = training.config
    student, second = first_of_two(training)
    training.fit(
        student,
        mixed(training, Own(training.unlabelled, config.pseudo)),
        name="pseudo-label",
        number=1,
        images=len(training.labelled) + len(training.unlabelled),
        steps=second,
        rate_factor=config.pseudo.rate_factor,
        carry_best=True,
    )
