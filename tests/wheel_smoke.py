"""What a fresh installation of `samdistill[cpu]` must do: open a bundle, predict, load nothing heavy.

Run as a script by cibuildwheel and by tests; needs the wheel, its base dependencies and this folder only.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from samdistill.predictor import Predictor
from samdistill.verify import verify

HEAVY = {"torch", "torchvision", "numba", "scipy", "matplotlib", "onnx", "segmentation_models_pytorch"}


def main() -> None:
    """Open the committed bundle and look at its answers."""
    bundle = Path(__file__).resolve().parent / "golden" / "tiny_bundle"
    image = np.zeros((64, 80, 3), np.uint8)
    image[8:40, 16:60] = (200, 60, 60)
    segmentation = Predictor.load(bundle).predict(image)
    wanted = np.zeros((2, 64, 80), bool)
    wanted[0, 8:40, 16:60] = True
    np.testing.assert_array_equal(segmentation.masks, wanted)
    found = verify(bundle)
    heavy = sorted(HEAVY & set(sys.modules))
    if heavy:
        sys.exit(f"heavy libraries were loaded: {', '.join(heavy)}")
    print(f"ok: {len(found.golden)} golden cases on {found.provider}")


if __name__ == "__main__":
    main()
