"""The shapes a network meets, for engines that are built for some shapes and made fast for one.

Follows from how the pipeline calls each network: `geometry.ModelFrame`, `teacher_frame`, `prompt_arrays`.
"""

from __future__ import annotations

from collections.abc import Callable

from samdistill.errors import UsageError
from samdistill.geometry import MAX_ASPECT
from samdistill.manifest import Part, TeacherRecord
from samdistill.prompts import PromptConfig
from samdistill.runtime.tensorrt import Profile, Shapes
from samdistill.teacher_frame import most_embedded, most_sets

MULTIPLE = 32
LARGEST_BATCH = 8  # images of the student's, as `predict_batch` takes them
MOST_IMAGES, MOST_POINTS = 64, 64  # in one call of the decoder


def check_points(prompts: PromptConfig, classes: int) -> None:
    """Refuse prompts that give a set more points than plans take, before any is built.

    Raises
    ------
    UsageError
        Then.
    """
    own = {"likeliest": prompts.count, "centre": 1, "none": 0}[prompts.points]
    most = own * (classes if prompts.negatives else 1)
    if most > MOST_POINTS:
        raise UsageError(
            f"prompts must give at most {MOST_POINTS} points a set for TensorRT, not {most}. Lower "
            "prompts.count, or export without --trt."
        )


def profiles(part: Part, *, size: int, teacher: TeacherRecord | None) -> list[Profile]:
    """Shapes that a network meets.

    Parameters
    ----------
    size
        Shortest side of the student's model frame, pixels.
    teacher
        Whose encoder or decoder it is; not for the student.

    Returns
    -------
    list
        The student's twice, for wide images and for tall ones: for both at once the largest would be square,
        and four times what any image needs.
    """
    if part == "student":
        short = -(-size // MULTIPLE) * MULTIPLE
        long, least, usual = round(MAX_ASPECT) * short, (1, 3, MULTIPLE, MULTIPLE), (1, 3, short, short)
        return [
            Profile({"pixels": (least, usual, (LARGEST_BATCH, 3, *sides))})
            for sides in ((short, long), (long, short))
        ]
    assert teacher is not None
    side = teacher.side
    if part == "encoder":
        most = most_embedded(side)
        pixels: dict[str, Shapes] = {
            "pixels": ((1, 3, side, side), (1, 3, side, side), (most, 3, side, side))
        }
        if teacher.preprocessing == "sam":
            pixels["input_size"] = ((1, 2), (1, 2), (most, 2))
        return [Profile(pixels)]
    counts = ((1, 1, 1), (1, 4, 6), (MOST_IMAGES, most_sets(teacher.embedding), MOST_POINTS))

    def shapes(shape: Callable[[int, int, int], tuple[int, ...]]) -> Shapes:
        least, usual, largest = (shape(*count) for count in counts)
        return least, usual, largest

    each = shapes(lambda images, sets, points: (sets,))
    return [
        Profile(
            {
                "embeddings": shapes(lambda images, sets, points: (images, *teacher.embedding)),
                "image_index": each,
                "points": shapes(lambda images, sets, points: (sets, points, 2)),
                "point_labels": shapes(lambda images, sets, points: (sets, points)),
                "boxes": shapes(lambda images, sets, points: (sets, 4)),
                "has_box": each,
                "masks": shapes(lambda images, sets, points: (sets, 1, *teacher.mask_size)),
                "has_mask": each,
                "multimask": each,
            }
        )
    ]
