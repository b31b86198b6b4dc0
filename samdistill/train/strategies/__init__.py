"""What a run does with its images, one readable file a paper; this table is all there are."""

from __future__ import annotations

from collections.abc import Callable

from samdistill.train.strategies.bcp import bcp
from samdistill.train.strategies.burden import burden
from samdistill.train.strategies.cps import cps
from samdistill.train.strategies.fixmatch import fixmatch
from samdistill.train.strategies.mean_teacher import mean_teacher, ua_mt
from samdistill.train.strategies.mine import mine
from samdistill.train.strategies.pseudo_label import pseudo_label
from samdistill.train.strategies.samdsk import samdsk
from samdistill.train.strategies.semisam import semisam, semisam_ua_mt
from samdistill.train.strategies.supervised import supervised
from samdistill.train.strategies.ups import ups
from samdistill.train.training import Training

RUNNERS: dict[str, Callable[[Training], None]] = {
    "supervised": supervised,
    "pseudo-label": pseudo_label,
    "mine": mine,
    "burden": burden,
    "mean-teacher": mean_teacher,
    "ua-mt": ua_mt,
    "semisam": semisam,
    "semisam-ua-mt": semisam_ua_mt,
    "cps": cps,
    "fixmatch": fixmatch,
    "samdsk": samdsk,
    "ups": ups,
    "bcp": bcp,
}
