"""Mode refine beside the sum of its parts: student, encoder and decoder, each called alone.

    python benchmarks/bench_refine.py [--out FILE]

The student is the one of tests/colour_student.py, which costs next to nothing, so that what refine adds is
set against the teacher alone; the teacher is the embedded one, with a box and points for each component.
Two sums: of the parts as the library gives them, pixels and prompts in, masks out, which is the target's;
and, for comparison, of the bare engines on tensors made before, which know neither image nor mask. Asserts
that refine's masks are the parts' masks.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import harness  # first: it sets the number of threads
import numpy as np
from teacher_bundles import give_teacher

from samdistill.geometry import ModelFrame
from samdistill.predictor import Predictor
from samdistill.prompts import PromptConfig, extract
from samdistill.refine import RefineConfig
from samdistill.teacher import load_teacher
from samdistill.teacher_frame import prompt_arrays, wants_best_of_three

HERE = Path(__file__).parent
CONFIG = RefineConfig(PromptConfig(per_component=True))
SIDE = 512
MOST = 1.10  # refine over the sum of its parts


def picture(objects: int) -> Any:
    """Red squares on a dark ground."""
    image = np.full((SIDE, SIDE, 3), 20, np.uint8)
    image += np.random.default_rng(0).integers(0, 9, image.shape, np.uint8)
    columns = 1 if objects == 1 else 8
    cell = SIDE // columns
    for number in range(objects):
        y, x = (number // columns) * cell, (number % columns) * cell
        image[y + cell // 4 : y + 3 * cell // 4, x + cell // 4 : x + 3 * cell // 4] = (200, 60, 60)
    return image


def cases(predictor: Predictor, objects: int) -> list[harness.Case]:
    """Refine against either sum, on a picture of so many objects."""
    image, manifest, teacher = picture(objects), predictor.manifest, predictor.teacher()
    student = predictor.predict(image)
    sets = [one for own in extract(student.probability_maps, CONFIG.prompts) for one in own]
    assert len(sets) == objects, f"{len(sets)} prompt sets, not {objects}"
    refined = predictor.predict(image, "refine")

    def parts() -> list[Any]:
        predictor.predict(image)
        return teacher.segment(teacher.embed([image]), [sets]).masks

    pixels = ModelFrame.of((SIDE, SIDE), manifest.input.size).pixels(image)[None]
    (embedding,) = teacher.embed([image])
    given = {
        "pixels": embedding.frame.pixels(image)[None],
        "input_size": np.array([embedding.frame.input_size], np.int64),
    }
    arrays = prompt_arrays([embedding.frame], [sets], teacher.record.mask_size)
    asked = {
        "embeddings": embedding.features[None],
        "image_index": np.zeros(objects, np.int64),
        **arrays._asdict(),
        "multimask": wants_best_of_three([sets], None, has_previous=False),
    }
    encoder, decoder = teacher.parts["encoder"].engine, teacher.parts["decoder"].engine

    def engines() -> object:
        predictor.student_logits(pixels)
        encoder.run({name: given[name] for name in encoder.inputs})
        return decoder.run({name: asked[name] for name in decoder.inputs})

    def check() -> None:
        np.testing.assert_array_equal(refined.masks[0], np.logical_or.reduce(parts()))

    def ours() -> object:
        return predictor.predict(image, "refine").masks

    def case(against: str, peer: Callable[[], object], target: float | None) -> harness.Case:
        return harness.Case(
            "refine", f"{objects} objects, {SIDE} x {SIDE}", ours, {against: peer}, check, target
        )

    return [case("its parts, one by one", parts, 1 / MOST), case("the bare engines", engines, None)]


def main() -> int:
    out = harness.parse_out(__doc__, HERE / "results" / "refine.json")
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        shutil.copytree(HERE.parent / "tests" / "golden" / "tiny_bundle", bundle)
        predictor = Predictor.load(give_teacher(bundle, load_teacher("tiny"), CONFIG), threads=1)
        results = [harness.measure(case) for objects in (1, 32) for case in cases(predictor, objects)]
    harness.show(results)
    content = {"machine": harness.machine(), "results": [asdict(result) for result in results]}
    harness.save(content, out)
    return 0 if all(result.reached for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
