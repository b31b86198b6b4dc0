"""Files in, masks out: gathers files, segments them, writes what came of each. Knows no terminal."""

from samdistill.inference.outputs import Options, Outputs, plan
from samdistill.inference.pipeline import raise_for_failures, segment_files
from samdistill.inference.records import AUDIT, RESULTS, Outcome, Record, Summary
from samdistill.inference.sources import Shard, Source, gather

__all__ = [
    "AUDIT",
    "RESULTS",
    "Options",
    "Outcome",
    "Outputs",
    "Record",
    "Shard",
    "Source",
    "Summary",
    "gather",
    "plan",
    "raise_for_failures",
    "segment_files",
]
