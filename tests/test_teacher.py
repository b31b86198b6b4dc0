"""The teacher against segment_anything's own predictor, prompt set by prompt set."""

from __future__ import annotations

import numpy as np
import pytest
from small_sam import small_teacher

torch = pytest.importorskip("torch", reason="the teacher needs the extra train")

from samdistill.prompts import Prompts  # noqa: E402
from samdistill.teacher import Teacher  # noqa: E402

TOLERANCE = 1e-4
SIZES = [(128, 128), (90, 128), (200, 77), (33, 300), (64, 50)]


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return small_teacher()


def picture(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 6, 3)).astype(np.uint8)
    rows, columns = (np.arange(n) * 6 // n for n in size)
    return np.ascontiguousarray(coarse[rows][:, columns])


def prompt_sets(size: tuple[int, int]) -> dict[str, Prompts]:
    """One set of every kind, in the frame of an image of that size."""
    h, w = size
    box = np.array([0.2 * w, 0.1 * h, 0.8 * w, 0.7 * h], np.float32).round()
    box[2:] = np.maximum(box[2:], box[:2] + 1)
    one = np.array([[0.5 * w, 0.4 * h]], np.float32)
    three = np.array([[0.5 * w, 0.4 * h], [0.3 * w, 0.3 * h], [0.9 * w, 0.9 * h]], np.float32)
    labels = np.array([1, 1, 0], np.int32)
    return {
        "box": Prompts(box=box),
        "one point": Prompts(points=one, point_labels=np.array([1], np.int32)),
        "points": Prompts(points=three, point_labels=labels),
        "box and points": Prompts(points=three, point_labels=labels, box=box),
        "box and one point": Prompts(points=one, point_labels=np.array([0], np.int32), box=box),
    }


def ask_predictor(
    teacher: Teacher, image: np.ndarray, one: Prompts, mask_input: np.ndarray | None, multimask: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The official predictor's full-size logits, predicted IoU and low-resolution logits."""
    from segment_anything import SamPredictor

    predictor = SamPredictor(teacher.model)
    predictor.set_image(image)
    box = None if one.box is None else one.box - np.array([0, 0, 1, 1], np.float32)
    return predictor.predict(
        point_coords=one.points,
        point_labels=one.point_labels,
        box=box,
        mask_input=mask_input,
        multimask_output=multimask,
        return_logits=True,
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("with_mask", [False, True])
def test_one_call_gives_what_the_predictor_gives_set_by_set(
    teacher: Teacher, size: tuple[int, int], with_mask: bool
) -> None:
    """All sets of two images of unlike size share a call, with and without low-resolution logits."""
    images = [picture(size), picture((70, 110), seed=1)]
    sets = [prompt_sets(size), prompt_sets((70, 110))]
    prompts = [list(one.values()) for one in sets]
    embeddings = teacher.embed(images)
    rng = np.random.default_rng(0)
    previous = rng.normal(0, 4, (10, 32, 32)).astype(np.float32) if with_mask else None
    logits, scores = teacher.decode(embeddings, prompts, previous=previous)
    n = 0
    for embedding, image, own in zip(embeddings, images, prompts, strict=True):
        for one in own:
            mask_input = None if previous is None else previous[n][None]
            for multimask, rows in ((False, slice(0, 1)), (True, slice(1, 4))):
                full, iou, low = ask_predictor(teacher, image, one, mask_input, multimask)
                assert np.abs(logits[n, rows].numpy() - low).max() < TOLERANCE
                assert np.abs(scores[n, rows].numpy() - iou).max() < TOLERANCE
                assert np.abs(teacher.upscale(logits[n, rows], embedding).numpy() - full).max() < TOLERANCE
            n += 1
