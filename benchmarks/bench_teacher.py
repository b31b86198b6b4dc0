"""The teacher against segment_anything, one thread: parity, sets in one call, proposals; fails below target.

    python benchmarks/bench_teacher.py [--out FILE]

Both proposal makers use the core's suppression, so that nothing but their own work is compared.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import harness  # first: it sets the number of threads
import numpy as np
import torch
from small_sam import small_teacher

from samdistill.phantoms import make
from samdistill.prompts import Prompts
from samdistill.proposals import mask_iou
from samdistill.teacher import ProposeConfig, Teacher, load_teacher
from samdistill.teacher.cache import encode_entry
from samdistill.teacher.propose import _suppress

RESULTS = Path(__file__).parent / "results" / "teacher.json"
SIDE = 16  # points a side


def predictor_answers(
    teacher: Teacher, image: np.ndarray, sets: list[Prompts]
) -> list[tuple[np.ndarray, ...]]:
    """Ask SamPredictor set by set, the image embedded once."""
    from segment_anything import SamPredictor

    predictor = SamPredictor(teacher.model)
    predictor.set_image(image)
    answers = []
    for one in sets:
        box = None if one.box is None else one.box - np.array([0, 0, 1, 1], np.float32)
        mask, iou, low = predictor.predict(one.points, one.point_labels, box, return_logits=True)
        answers.append((mask, iou, low))
    return answers


def prompt_kinds() -> dict[str, Prompts]:
    box = np.array([60, 50, 190, 170], np.float32)
    points = np.array([[120, 100], [80, 90], [20, 20]], np.float32)
    labels = np.array([1, 1, 0], np.int32)
    return {
        "box": Prompts(box=box),
        "one point": Prompts(points=points[:1], point_labels=labels[:1]),
        "points": Prompts(points=points, point_labels=labels),
        "box and points": Prompts(points=points, point_labels=labels, box=box),
    }


def parity(teacher: Teacher) -> dict[str, float]:
    """Largest difference of logits, at full size and low resolution, all kinds sharing one call."""
    image = make("endoscopy", seed=1).image
    kinds = prompt_kinds()
    (embedding,) = teacher.embed([image])
    logits, _ = teacher.decode([embedding], [list(kinds.values())])
    found = {}
    for n, (kind, answer) in enumerate(
        zip(kinds, predictor_answers(teacher, image, list(kinds.values())), strict=True)
    ):
        full = teacher.upscale(logits[n, 1:], embedding).numpy()
        found[kind] = max(
            float(np.abs(full - answer[0]).max()), float(np.abs(logits[n, 1:].numpy() - answer[2]).max())
        )
    return found


def same_suppression(boxes: torch.Tensor, scores: torch.Tensor, _: Any, iou_threshold: float) -> torch.Tensor:
    kept = _suppress(boxes.numpy().astype(np.float32), scores.numpy().astype(np.float32), iou_threshold)
    return torch.from_numpy(kept)


def proposal_case(name: str, teacher: Teacher, image: np.ndarray, **thresholds: float) -> harness.Case:
    """The same settings for both; the answer is the same set of masks."""
    import segment_anything.automatic_mask_generator as official

    official.batched_nms = same_suppression
    generator = official.SamAutomaticMaskGenerator(
        teacher.model,
        points_per_side=SIDE,
        pred_iou_thresh=thresholds["predicted_iou"],
        stability_score_thresh=thresholds["stability"],
        box_nms_thresh=thresholds["box_iou"],
    )
    config = ProposeConfig(points_per_side=SIDE, **thresholds)  # type: ignore[arg-type]

    def ours() -> Any:
        (embedding,) = teacher.embed([image])
        return teacher.propose(embedding, config)

    def check() -> None:
        masks, expected = ours().masks, np.stack([r["segmentation"] for r in generator.generate(image)])
        assert len(masks) == len(expected) > 0
        overlap = mask_iou(masks, expected)
        assert len(set(overlap.argmax(axis=1).tolist())) == len(masks)
        assert overlap.max(axis=1).min() >= 0.99
        print(f"{name}: {len(masks)} masks, the same", file=sys.stderr)

    return harness.Case(
        "proposals", name, ours, {"segment_anything": lambda: generator.generate(image)}, check, 3.0
    )


def segment_case(teacher: Teacher) -> harness.Case:
    """Sixteen boxes in one image: one call against one call a set."""
    from segment_anything import SamPredictor

    image = make("endoscopy", seed=2).image
    sets = [Prompts(box=np.array([20 + i, 20, 120 + 4 * i, 200], np.float32)) for i in range(16)]
    embeddings = teacher.embed([image])
    predictor = SamPredictor(teacher.model)
    predictor.set_image(image)

    def loop() -> list[Any]:
        return [predictor.predict(box=one.box, multimask_output=False) for one in sets if one.box is not None]

    return harness.Case(
        "segment",
        "tiny, 16 boxes",
        lambda: teacher.segment(embeddings, [sets]),
        {"SamPredictor": loop},
        lambda: None,
    )


def main() -> int:
    """Run all; 1 when a target was missed."""
    out = harness.parse_out(__doc__, RESULTS)
    torch.set_num_threads(1)
    small, tiny = small_teacher(), load_teacher("tiny")
    with torch.no_grad():
        differences = {"small random SAM": parity(small), "tiny": parity(tiny)}
    assert max(value for one in differences.values() for value in one.values()) < 1e-4
    defaults = {"predicted_iou": 0.5, "stability": 0.5, "box_iou": 0.5}
    cases = [
        proposal_case("tiny, endoscopy 256 x 256", tiny, make("endoscopy", seed=3).image, **defaults),
        proposal_case("tiny, xray 512 x 512", tiny, make("xray", seed=3, size=(512, 512)).image, **defaults),
        proposal_case(
            "small random SAM, endoscopy 256 x 256",
            small,
            make("endoscopy", seed=3).image,
            predicted_iou=1.1,
            stability=0.8,
            box_iou=1.0,
        ),
        segment_case(tiny),
    ]
    results = [harness.measure(case, seconds=1.0, least_rounds=3) for case in cases]
    harness.show(results)
    entries = {
        name: len(encode_entry(teacher.embed([make("xray").image])[0])) for name, teacher in (("tiny", tiny),)
    }
    document = {
        "machine": harness.machine(),
        "threads": 1,
        "largest_logit_difference": differences,
        "cache_bytes_an_image": entries,
        "cases": [vars(result) for result in results],
    }
    harness.save(document, out)
    return 0 if all(result.reached for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
