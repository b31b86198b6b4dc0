"""Pseudo labels as a data folder that people correct by hand and `train` takes again.

    images/        the pictures, as they were
    masks/         one a labelled image; of classes that may overlap one a class, in masks/<class>/
    pseudo/        beside each image a JSON: prompts, qualities, why there is no mask where there is none;
                   and a file of the store, for reports
    pseudo.json    who made them, and how
    dataset.toml   the classes; cases.csv the groups, where there are any

An image in which the student found nothing, or whose pseudo label a filter holds back, stays unlabelled: an
empty mask would say that there is nothing. Every file appears whole; the JSON comes last, and an image that
has one is left alone, corrected masks and all, so that the same command continues. Knows no training.
"""

from __future__ import annotations

import csv
import filecmp
import functools
import io
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from samdistill.config import to_dict
from samdistill.errors import InputRejected, UsageError
from samdistill.inference.sources import root_of
from samdistill.io.dataset import Case, open_dataset
from samdistill.io.dataset_toml import DATASET_TOML
from samdistill.io.files import atomic_write, sha256_file, walk_visible, write_bytes, write_text
from samdistill.io.images import write_mask
from samdistill.io.masks import MaskCode
from samdistill.io.stack import format_of, open_stack, stem
from samdistill.prompts import Prompts
from samdistill.refine import RefineConfig, Refinement, check_thresholds, suited
from samdistill.teacher import Teacher
from samdistill.teacher.cache import EmbeddingCache
from samdistill.train.config import PseudoConfig
from samdistill.train.data import read_uint8
from samdistill.train.embedded import EmbeddedCases
from samdistill.train.losses import IGNORE
from samdistill.train.pseudo import Refiner, TeacherRefiner, predict_maps, targets_of
from samdistill.train.random_walker import RandomWalkerRefiner
from samdistill.train.run import Run
from samdistill.train.store import PseudoLabel, PseudoStore

SETTINGS = "pseudo.json"
STORE = "pseudo"
GROUPS = "cases.csv"
SCHEMA = 1
NOTHING = "the student found nothing"
DISCARDED = "the prompts leave out all that the student found"


@dataclass(frozen=True)
class Counts:
    """What became of the images.

    Attributes
    ----------
    labelled, unlabelled
        With a mask; without one, by reason.
    failed
        Case ids of images that could not be read, with the reason.
    """

    labelled: int
    unlabelled: dict[str, int]
    failed: dict[str, str]


def find_images(images: Path, out: Path) -> tuple[Path, list[Case]]:
    """Find what is to be labelled: the unlabelled images of a data folder, or all of any other folder.

    Parameters
    ----------
    images
        The folder.
    out
        What lies in it is no input.

    Returns
    -------
    tuple
        The folder that the paths of the images are kept below, and the cases, without labels.

    Raises
    ------
    InputRejected
        When there is nothing to label, or two pictures have one name.
    """
    root = root_of(images, out)
    if root != images:
        dataset = open_dataset(images, infer_classes=False)
        if not dataset.unlabelled:
            raise InputRejected(
                f"{images} must hold images without masks, and all {len(dataset.cases)} have one."
            )
        return root, list(dataset.unlabelled)
    if not images.is_dir():
        raise InputRejected(f"{images} must be a folder of images or a data folder, and is no folder.")
    cases: dict[str, Case] = {}
    inside = out.resolve()  # one may be given relative, the other not

    def cannot(error: OSError) -> None:
        raise InputRejected(
            f"{error.filename} cannot be read: {error.strerror}. Give access, or move it out."
        )

    below = walk_visible(images, cannot)
    for path in sorted(base / name for base, folders, files in below for name in (*folders, *files)):
        if path.is_symlink() and not path.is_file():
            raise InputRejected(f"{path} is a link to a folder or to nothing. Link files one by one.")
        if not path.is_file() or format_of(path) is None or path.resolve().is_relative_to(inside):
            continue
        name = stem(path.relative_to(images).as_posix())
        count = len(open_stack(path)) if format_of(path) != "picture" else 1
        for index in range(count):
            case_id = name if count == 1 else f"{name}_{index:04d}"
            if case_id in cases:
                raise InputRejected(
                    f"{path} must have a name of its own, not that of {cases[case_id].image_path}."
                )
            cases[case_id] = Case(case_id, path, None, name, MaskCode(()), index if count > 1 else None)
    if not cases:
        raise InputRejected(f"{images} must hold images, and holds none.")
    return images, list(cases.values())


def write_folder(
    run: Run,
    root: Path,
    cases: Sequence[Case],
    out: Path,
    teacher: Teacher | None,
    *,
    config: RefineConfig,
    filters: PseudoConfig,
    cache: EmbeddingCache | None = None,
    device: str = "cpu",
    tell: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Counts:
    """Label images and write the data folder, or continue it.

    Parameters
    ----------
    run
        Whose student.
    root, cases
        As `find_images` gives them.
    out
        The folder: new, empty, or begun with the same settings.
    teacher
        None: the random walker.
    config
        How the student's answers are put to the teacher.
    filters
        Its `min_iou` and `min_agreement`, and the random walker's settings.
    cache
        Of the teacher's embeddings; needed with a teacher.
    device
        Of the student.
    tell
        Gets what is being done, and how much of how much.

    Raises
    ------
    UsageError
        When `out` holds anything else, or `config` has thresholds of other classes.
    """
    check_thresholds(config, len(run.class_names))
    student = run.load_student().to(device)
    refiner: Refiner
    if teacher is None:
        refiner = RandomWalkerRefiner(config, margin=filters.walker_margin, beta=filters.walker_beta)
    elif cache is None:
        raise ValueError("cache must be given with a teacher, not None.")
    else:
        config = suited(config, teacher.preprocessing)
        refiner = TeacherRefiner(EmbeddedCases(teacher, cache, cases, run.intensity), config)
    _begin(run, cases, out, _settings(run, teacher, config, filters))
    store, sha256 = PseudoStore(out / STORE), teacher.weights_sha256 if teacher else ""
    failed: dict[str, str] = {}
    another = functools.cache(
        lambda path: _holds_another(_copy(out, root, path), path)
    )  # scans have many cases
    for number, case in enumerate(cases):
        if another(case.image_path):
            failed[case.id] = f"{out} holds another picture of this name. Name another folder."
        elif not _record_path(out, case.id).is_file():
            try:
                image = read_uint8(case, run.intensity)
                (maps,) = predict_maps(student, [image], run.config.student.size, 1)
                (one,) = refiner([number], [image], [maps])
            except (InputRejected, ValueError) as error:
                failed[case.id] = str(error)
            else:
                found = bool((maps > 0.5).any())
                reason = why_unlabelled(
                    one, run.class_names, filters, found=found, multi_label=run.multi_label
                )
                _write(out, root, case, one, run, store, sha256, reason)
        tell("labelling", number + 1, len(cases))
    return _count(out, cases, failed)


def why_unlabelled(
    refinement: Refinement,
    class_names: Sequence[str],
    filters: PseudoConfig,
    *,
    found: bool,
    multi_label: bool,
) -> str | None:
    """Why an image gets no mask; None where it gets one.

    One class held back holds back the image: a mask without it would say that it is absent. `found` is
    whether the student found anything, before the prompts' cleaning; `multi_label`, whether classes may
    overlap.
    """
    if refinement.empty:
        return DISCARDED if found else NOTHING
    targets = targets_of(refinement, filters)
    for number, name in enumerate(class_names):
        if targets is not None and not (targets[number] == IGNORE).all():
            continue
        iou, agreement = float(refinement.predicted_iou[number]), float(refinement.agreement[number])
        if iou < filters.min_iou:
            return f"{name}: predicted IoU below {filters.min_iou:g}"
        if agreement < filters.min_agreement:
            return f"{name}: agreement below {filters.min_agreement:g}"
        if refinement.student_masks[number].any():
            return f"{name}: the teacher's mask is empty"
    painted = None if multi_label else _index(refinement)
    for number, name in enumerate(class_names):
        if painted is not None and refinement.masks[number].any() and not (painted == number + 1).any():
            return f"{name}: other classes cover it"
    return None


def read_reason(out: Path, case_id: str) -> str | None:
    """Why an image of a folder got no mask, by its JSON; None where it got one.

    Raises
    ------
    InputRejected
        When the JSON is missing or damaged.
    """
    path = _record_path(out, case_id)
    try:
        reason = json.loads(path.read_text(encoding="utf-8"))["reason"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputRejected(f"{path} is damaged: {error}. Delete it to have it made again.") from error
    return None if reason is None else str(reason)


def _begin(run: Run, cases: Sequence[Case], out: Path, settings: dict[str, Any]) -> None:
    """Make the folder, or see that it was begun with the same settings."""
    path = out / SETTINGS
    if path.is_file():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputRejected(f"{path} is damaged: {error}.") from error
        changed = [key for key, value in settings.items() if before.get(key) != value]
        if changed:
            raise UsageError(
                f"{out} holds pseudo labels made with another {changed[0]}. Name another folder."
            )
        _extend_groups(out, cases)
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} must be a new or empty folder, or one that this command began.")
    for name in ("images", STORE, *_mask_folders(run)):
        (out / name).mkdir(parents=True, exist_ok=True)
    names = ", ".join(json.dumps(name, ensure_ascii=False) for name in run.class_names)
    toml = f"# Pseudo labels by samdistill; {SETTINGS} says how they were made.\nclasses = [{names}]\n"
    if any(case.group != case.id for case in cases):
        _write_groups(out / GROUPS, "case,group\n" + _group_rows(cases, ["case", "group"]))
        toml += f'\n[table]\nfile = "{GROUPS}"\ngroup = "group"\n'
    write_text(out / DATASET_TOML, toml)
    write_text(path, json.dumps(settings, indent=1) + "\n")


def _extend_groups(out: Path, cases: Sequence[Case]) -> None:
    """Give images that are new a row in the table of groups; what people wrote into it stays."""
    path = out / GROUPS
    if not path.is_file():
        if any(case.group != case.id for case in cases):
            raise UsageError(
                f"{out} was begun without groups, and these images have some. Name another folder."
            )
        return
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
        reader = csv.DictReader(io.StringIO(text, newline=""))
        known = {row["case"] for row in reader}
        columns = list(reader.fieldnames or [])
        rows = _group_rows([case for case in cases if case.id not in known], columns)
    except (KeyError, ValueError, csv.Error) as error:
        raise InputRejected(f"{path} must be a table with the columns case and group: {error}.") from error
    if rows:
        _write_groups(path, text + ("" if text.endswith("\n") else "\n") + rows)


def _write_groups(path: Path, text: str) -> None:
    write_bytes(path, text.encode(errors="surrogateescape"))  # names on disk need not be UTF-8


def _group_rows(cases: Sequence[Case], columns: Sequence[str]) -> str:
    """Rows of the table of groups, empty in columns that people added."""
    rows = io.StringIO()
    writer = csv.DictWriter(rows, columns, lineterminator="\n")
    writer.writerows({"case": case.id, "group": case.group} for case in cases)
    return rows.getvalue()


def _settings(
    run: Run, teacher: Teacher | None, config: RefineConfig, filters: PseudoConfig
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "student_sha256": sha256_file(run.path / "student.safetensors"),
        "classes": list(run.class_names),
        "refiner": "random-walker" if teacher is None else "teacher",
        "teacher": "" if teacher is None else teacher.name,
        "teacher_sha256": "" if teacher is None else teacher.weights_sha256,
        "prompts": to_dict(config),
        **{
            name: getattr(filters, name)
            for name in (
                "min_iou",
                "min_agreement",
                *(("walker_margin", "walker_beta") if not teacher else ()),
            )
        },
    }


def _mask_folders(run: Run) -> list[str]:
    return [f"masks/{name}" for name in run.class_names] if run.multi_label else ["masks"]


def _record_path(out: Path, case_id: str) -> Path:
    return out / STORE / f"{case_id}.json"


def _copy(out: Path, root: Path, picture: Path) -> Path:
    return out / "images" / picture.relative_to(root)


def _holds_another(copy: Path, picture: Path) -> bool:
    return copy.is_file() and not filecmp.cmp(copy, picture, shallow=False)


def _write(
    out: Path,
    root: Path,
    case: Case,
    one: Refinement,
    run: Run,
    store: PseudoStore,
    sha256: str,
    reason: str | None,
) -> None:
    """An image's files, its JSON last."""
    copy = _copy(out, root, case.image_path)
    copy.parent.mkdir(parents=True, exist_ok=True)
    if not copy.is_file():  # a scan is the file of many cases
        with atomic_write(copy) as temporary:
            shutil.copyfile(case.image_path, temporary)
    asked = any(one.prompts)
    store.write(PseudoLabel(case.id, one, sha256 if asked else "", 1))
    if reason is None:
        masks = (
            dict(zip(_mask_folders(run), one.masks, strict=True))
            if run.multi_label
            else {"masks": _index(one)}
        )
        for folder, mask in masks.items():
            path = out / folder / f"{case.id}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_mask(path, mask)
    record = {
        "case": case.id,
        "status": "labelled" if reason is None else "unlabelled",
        "reason": reason,
        "teacher_sha256": sha256 if asked else "",
        "classes": {
            name: {
                "area_px": int(one.masks[number].sum()),
                "student_area_px": int(one.student_masks[number].sum()),
                "predicted_iou": _number(one.predicted_iou[number]),
                "estimated_dice": _number(one.estimated_dice[number]),
                "agreement": _number(one.agreement[number]),
                "prompts": [_plain(prompts) for prompts in one.prompts[number]],
            }
            for number, name in enumerate(run.class_names)
        },
    }
    path = _record_path(out, case.id)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(record, indent=1) + "\n")


def _index(one: Refinement) -> np.ndarray[Any, Any]:
    """(H, W) one class as bool, several as their numbers, the class of higher predicted IoU on top."""
    if len(one.masks) == 1:
        mask: np.ndarray[Any, Any] = one.masks[0]
        return mask
    index = np.zeros(one.masks.shape[1:], np.uint8 if len(one.masks) < 256 else np.uint16)
    for number in np.argsort(np.nan_to_num(one.predicted_iou, nan=0.0), kind="stable"):
        index[one.masks[number]] = number + 1
    return index


def _plain(prompts: Prompts) -> dict[str, Any]:
    """A prompt set in pixels of the image, points xy, boxes half-open xyxy."""
    given = {"points": prompts.points, "point_labels": prompts.point_labels, "box": prompts.box}
    return {name: np.round(value, 3).tolist() for name, value in given.items() if value is not None}


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)


def _count(out: Path, cases: Sequence[Case], failed: dict[str, str]) -> Counts:
    labelled, unlabelled = 0, dict[str, int]()
    for case in cases:
        if case.id not in failed:
            reason = read_reason(out, case.id)
            if reason is None:
                labelled += 1
            else:
                unlabelled[reason] = unlabelled.get(reason, 0) + 1
    return Counts(labelled, unlabelled, failed)
