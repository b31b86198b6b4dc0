"""Can this teacher help here? What it reaches on labelled images from perfect, rough and a student's prompts.

For every object (8-connected component) of a labelled image the teacher is asked with prompts made from the
truth: the ceiling of any student's prompts. The answers of a class are united and scored as everywhere, over
the classes that are in the image. Two lines to compare with: an ellipse drawn into the same rough box, which
needs no teacher, and a run's student. Draws nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from samdistill.arrays import Image, Mask, Masks
from samdistill.components import Components, label
from samdistill.errors import InputRejected
from samdistill.io.dataset import Case
from samdistill.metrics import dice_per_class, iou_per_class
from samdistill.prompts import Prompts
from samdistill.refine import MINE, RefineConfig, refine, suited
from samdistill.statistics import Estimate, bootstrap_mean, paired_difference
from samdistill.teacher import Embedding, Teacher
from samdistill.teacher.cache import EmbeddingCache
from samdistill.teacher.propose import ProposeConfig
from samdistill.train.pseudo import predict_maps
from samdistill.train.student import Student

WAYS = {
    "box": "perfect box",
    "box_points": "perfect box and 5 points",
    "points": "5 points",
    "rough_box": "rough box: sides moved by up to 15 %",
    "proposals": "best of its proposals, SamDSK's thresholds",
    "ellipse": "no teacher: ellipse in the rough box",
    "student": "student alone",
    "refined": "student, refined by the teacher",
}
JITTER = 0.15
POINTS = 5
MIN_AREA_PX = 16  # smaller objects are not asked for; they count in the truth of a class that has larger ones
SETS = 16  # prompt sets a decoder call, so that images with hundreds of objects fit into memory
LeftOut = Literal["empty", "small"]
"""Why an image is not answered: it holds no object, or none that is large enough to be asked for."""


@dataclass(frozen=True, eq=False)
class Answer:
    """One image, all ways.

    Attributes
    ----------
    case
        Of the data set.
    image
        uint8 (H, W, 3).
    truth
        (C, H, W) bool.
    masks
        Way -> (C, H, W) bool.
    rough_boxes
        (N, 4) float32 xyxy half-open, image frame.
    dice, iou
        Way -> mean over the classes of which an object was asked for.
    """

    case: Case
    image: Image
    truth: Masks
    masks: dict[str, Masks]
    rough_boxes: npt.NDArray[np.float32]
    dice: dict[str, float]
    iou: dict[str, float]


@dataclass(frozen=True)
class Assessment:
    """What was measured.

    Attributes
    ----------
    dice, iou
        Way -> mean over images, with interval.
    cases
        Case id -> way -> Dice.
    differences
        "rough_box - ellipse" and the like: Dice image by image, with interval.
    empty, small
        Images without any object, and with none of MIN_AREA_PX; left out.
    advice
        One sentence, see `advise`.
    """

    dice: dict[str, Estimate]
    iou: dict[str, Estimate]
    cases: dict[str, dict[str, float]]
    differences: dict[str, Estimate]
    empty: int
    small: int
    advice: str


@dataclass(frozen=True, eq=False)
class Assessor:
    """Everything that answers one image all ways.

    Attributes
    ----------
    teacher, cache
        The teacher, and where its embeddings are kept.
    read
        A case's uint8 (H, W, 3) image.
    student, size, classes
        The student, its shortest side, and the names of its channels; None without a student.
    config
        How the student's answers are put to the teacher.
    points_per_side
        Of the proposals' grid; 0 leaves them out.
    seed
        Of points and rough boxes, together with the case's id.
    """

    teacher: Teacher
    cache: EmbeddingCache
    read: Callable[[Case], Image]
    student: Student | None = None
    size: int = 0
    classes: tuple[str, ...] = ()
    config: RefineConfig = MINE
    points_per_side: int = 16
    seed: int = 0

    def answer(self, case: Case) -> Answer | LeftOut:
        """Answer a labelled case, or say why it is left out."""
        truth, ignored = case.read_labels()
        if self.classes:
            truth = truth[[case.code.class_names.index(name) for name in self.classes]]
        if not truth.any():
            return "empty"
        found = [label(mask) for mask in truth]
        asked = np.array([(one.area_px >= MIN_AREA_PX).any() for one in found])
        if not asked.any():
            return "small"
        image = self.read(case)
        (embedding,) = self.cache.embed(self.teacher, [image])
        # Names on disk need not be UTF-8.
        seeded = f"{self.seed} {case.id}".encode(errors="surrogateescape")
        digest = hashlib.sha256(seeded).digest()
        masks, boxes = self._from_truth(embedding, truth, found, np.random.default_rng(list(digest)))
        if self.student is not None:
            (maps,) = predict_maps(self.student, [image], self.size, 1)
            config = suited(self.config, self.teacher.preprocessing)
            masks["student"] = maps > 0.5
            masks["refined"] = refine(self.teacher, [embedding], [maps], config)[0].masks
        return Answer(
            case,
            image,
            truth,
            masks,
            boxes,
            {
                way: float(dice_per_class(one, truth, ignore=ignored)[asked].mean())
                for way, one in masks.items()
            },
            {
                way: float(iou_per_class(one, truth, ignore=ignored)[asked].mean())
                for way, one in masks.items()
            },
        )

    @property
    def _boxes_only(self) -> bool:
        return self.teacher.preprocessing == "medsam"

    def _from_truth(
        self, embedding: Embedding, truth: Masks, found: Sequence[Components], random: np.random.Generator
    ) -> tuple[dict[str, Masks], npt.NDArray[np.float32]]:
        """What the teacher makes of prompts out of the truth's components, and the rough boxes."""
        ways = ["box", "rough_box"] if self._boxes_only else ["box", "box_points", "points", "rough_box"]
        sets: dict[str, list[Prompts]] = {way: [] for way in ways}
        masks = {way: np.zeros_like(truth) for way in (*ways, "ellipse")}
        owners: list[int] = []
        rough: list[npt.NDArray[np.float32]] = []
        for number, components in enumerate(found):
            for component in np.flatnonzero(components.area_px >= MIN_AREA_PX):
                box = components.boxes[component].astype(np.float32)
                points = _points(components, int(component), random)
                owners.append(number)
                rough.append(jittered(box, truth.shape[1:], random))
                foreground = np.ones(len(points), np.int32)
                made = {
                    "box": Prompts(box=box),
                    "box_points": Prompts(points, foreground, box),
                    "points": Prompts(points, foreground),
                    "rough_box": Prompts(box=rough[-1]),
                }
                for way in ways:
                    sets[way].append(made[way])
                masks["ellipse"][number] |= ellipse(rough[-1], truth.shape[1:])
        for way, prompts in sets.items():
            for start in range(0, len(prompts), SETS):
                answer = self.teacher.segment([embedding], [prompts[start : start + SETS]])
                for owner, mask in zip(owners[start:], answer.masks, strict=False):
                    masks[way][owner] |= mask
        if self.points_per_side and not self._boxes_only:
            config = ProposeConfig(points_per_side=self.points_per_side)
            masks["proposals"] = best_of(self.teacher.propose(embedding, config).masks, found, truth)
        return masks, np.stack(rough)


def assess(
    assessor: Assessor, cases: Sequence[Case], *, tell: Callable[[str, int, int], None], seed: int = 0
) -> Assessment:
    """Answer every case and make means with intervals.

    Parameters
    ----------
    assessor
        What is assessed.
    cases
        Labelled; not what the student was trained on.
    tell
        Hears of progress.
    seed
        Of the bootstrap.

    Raises
    ------
    InputRejected
        When no case holds an object that is large enough to be asked for.
    """
    dice: dict[str, list[float]] = {}
    iou: dict[str, list[float]] = {}
    kept: list[Case] = []
    left_out: list[LeftOut] = []
    for number, case in enumerate(cases):
        answer = assessor.answer(case)
        if not isinstance(answer, Answer):
            left_out.append(answer)
        else:
            kept.append(case)
            for way, value in answer.dice.items():
                dice.setdefault(way, []).append(value)
                iou.setdefault(way, []).append(answer.iou[way])
        tell("assessing", number + 1, len(cases))
    if not kept:
        raise InputRejected(
            "there must be at least one labelled image that shows an object of at least "
            f"{MIN_AREA_PX} px, and there is none: {left_out.count('small')} show smaller ones alone, "
            f"{left_out.count('empty')} none at all."
        )
    groups = [case.group for case in kept]
    ways = [way for way in WAYS if way in dice]
    pairs = [("rough_box", "ellipse"), ("rough_box", "student"), ("refined", "student")]
    differences = {
        f"{first} - {second}": paired_difference(dice[first], dice[second], groups=groups, seed=seed)
        for first, second in pairs
        if first in dice and second in dice
    }
    return Assessment(
        {way: bootstrap_mean(dice[way], groups=groups, seed=seed) for way in ways},
        {way: bootstrap_mean(iou[way], groups=groups, seed=seed) for way in ways},
        {case.id: {way: dice[way][number] for way in ways} for number, case in enumerate(kept)},
        differences,
        left_out.count("empty"),
        left_out.count("small"),
        advise(differences),
    )


def advise(differences: dict[str, Estimate]) -> str:
    """One sentence, by a fixed rule: a difference counts where its 95 % interval excludes 0.

    With a student: refined above student: mine. Else, rough boxes above the student: the teacher could help,
    the prompts do not. Else it does not help. Without: rough boxes above the ellipse in them: worth trying.
    """
    refined = differences.get("refined - student")
    rough = differences.get("rough_box - student")
    if refined is None or rough is None:
        seen = differences["rough_box - ellipse"]
        if seen.low > 0:
            return (
                f"Worth trying: from rough boxes this teacher's masks are {_told(seen)} above an ellipse in "
                "the same box. Whether a student's prompts are good enough, --run RUN tells."
            )
        if seen.high <= 0:
            return (
                f"This teacher does not see these objects: an ellipse in the box is {_told(seen, -1)} better."
            )
        return (
            "No use shown: from rough boxes this teacher is not clearly better than an ellipse in the same "
            f"box ({_told(seen)}). Assess more images, or another teacher."
        )
    if refined.low > 0:
        return f"This teacher helps: prompted by this student it adds {_told(refined)}. Mine with it."
    if rough.low > 0:
        how = f"takes away {_told(refined, -1)}" if refined.high < 0 else f"changes {_told(refined)}"
        return (
            f"This teacher could help, these prompts do not: from rough boxes it is {_told(rough)} above the "
            f"student, prompted by the student it {how}. Tune the prompts with `samdistill tune`, or train "
            "the student further first."
        )
    if rough.high < 0 or refined.high < 0:
        return (
            "This teacher does not help here: even from rough boxes of the truth it is not above this "
            f"student ({_told(rough)}). Take another teacher, or train without."
        )
    return (
        f"Undecided: prompted by this student the teacher changes {_told(refined)}. Assess more images, or "
        "another teacher."
    )


def jittered(
    box: npt.NDArray[np.float32], size: tuple[int, ...], random: np.random.Generator
) -> npt.NDArray[np.float32]:
    """A half-open xyxy box with each side moved by up to JITTER of its extent, inside (height, width)."""
    extent = np.array([box[2] - box[0], box[3] - box[1]] * 2)
    moved = box + random.uniform(-JITTER, JITTER, 4) * extent
    limit = np.array([size[1], size[0]] * 2)
    inside: npt.NDArray[np.float32] = np.clip(moved, 0, limit).astype(np.float32)
    return inside


def ellipse(box: npt.NDArray[np.float32], size: tuple[int, ...]) -> Mask:
    """(H, W) bool: the pixels whose centre lies in the ellipse inscribed in a half-open xyxy box."""
    y, x = np.ogrid[: size[0], : size[1]]
    centre_x, centre_y = (box[0] + box[2]) / 2 - 0.5, (box[1] + box[3]) / 2 - 0.5
    inside: Mask = ((x - centre_x) / ((box[2] - box[0]) / 2)) ** 2 + (
        (y - centre_y) / ((box[3] - box[1]) / 2)
    ) ** 2 <= 1
    return inside


def best_of(proposals: Masks, found: Sequence[Components], truth: Masks) -> Masks:
    """For each object the proposal of highest IoU with it, those of a class united.

    Parameters
    ----------
    proposals
        (K, H, W) bool.
    found
        The components of each class.
    truth
        (C, H, W) bool.
    """
    united = np.zeros_like(truth)
    if not len(proposals):
        return united
    areas = proposals.sum(axis=(1, 2))
    for number, components in enumerate(found):
        if not len(components):
            continue
        both = np.stack(
            [np.bincount(components.labels[one], minlength=len(components) + 1)[1:] for one in proposals]
        )
        iou = both / (areas[:, None] + components.area_px[None] - both)
        for component in np.flatnonzero(components.area_px >= MIN_AREA_PX):
            if iou[:, component].max() > 0:
                united[number] |= proposals[int(iou[:, component].argmax())]
    return united


def _points(components: Components, component: int, random: np.random.Generator) -> npt.NDArray[np.float32]:
    """(N, 2) xy: the object's pixel nearest to its centre of mass, then others at random; at most POINTS."""
    x0, y0, x1, y1 = components.boxes[component]
    y, x = np.nonzero(components.labels[y0:y1, x0:x1] == component + 1)
    pixels = np.stack([x + x0, y + y0], axis=1).astype(np.float32)
    first = int(((pixels - components.centroids[component]) ** 2).sum(axis=1).argmin())
    others = np.delete(np.arange(len(pixels)), first)
    chosen = random.choice(others, min(POINTS - 1, len(others)), replace=False)
    return pixels[[first, *chosen]]


def _told(one: Estimate, sign: int = 1) -> str:
    """Dice points, with their interval where there is one: a single image has none."""
    low, high = sorted((100 * sign * one.low, 100 * sign * one.high))
    interval = "" if low != low else f" ({low:.1f} to {high:.1f})"
    return f"{100 * sign * one.mean:.1f} Dice points{interval}"
