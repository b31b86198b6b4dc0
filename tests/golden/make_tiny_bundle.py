"""Makes tests/golden/tiny_bundle, the bundle that tests open without torch.

Run it as `python tests/golden/make_tiny_bundle.py`, again whenever the manifest's schema changes. Its
student is the one of tests/colour_student.py; its parity images and golden cases are phantoms.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from colour_student import CLASS_NAMES, ColourStudent  # noqa: E402

from samdistill.export.bundle import Source, publish  # noqa: E402
from samdistill.intensity import IntensityRule  # noqa: E402
from samdistill.io.dataset import open_dataset  # noqa: E402
from samdistill.phantoms.folder import write  # noqa: E402

PROVENANCE = {"made by": "tests/golden/make_tiny_bundle.py", "training": "none, its weights are written down"}


def make(out: Path, *, multi_label: bool = False, force: bool = False) -> None:
    """Publish the bundle at `out`."""
    source = Source(ColourStudent(), CLASS_NAMES, multi_label, IntensityRule(), 64, PROVENANCE)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), "endoscopy", 4, seed=1, size=(72, 100))
        cases = [case.without_labels() for case in open_dataset(Path(folder)).cases]
        publish(source, cases, out, force=force, name="tiny", licence="Apache-2.0")


if __name__ == "__main__":
    make(HERE / "tiny_bundle", force=True)
