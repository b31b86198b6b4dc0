"""What a run does with its images, one readable file a paper; this table is all there are."""

from __future__ import annotations

from collections.abc import Callable

from samdistill.train.strategies.burden import burden
from samdistill.train.strategies.mine import mine
from samdistill.train.strategies.pseudo_label import pseudo_label
from samdistill.train.strategies.supervised import supervised
from samdistill.train.training import Training

RUNNERS: dict[str, Callable[[Training], None]] = {
    "supervised": supervised,
    "pseudo-label": pseudo_label,
    "mine": mine,
    "burden": burden,
}
