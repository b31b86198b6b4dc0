"""Search of prompts and morphology on a run's validation images (SAM Carries the Burden, tuning).

Optuna's TPE over which components are asked about, what each pass gives to the teacher, and how the student's
mask is eroded or dilated first. The student predicts each image once and the teacher embeds it once, so that
a trial costs its decoder calls. Trials go into a journal as they end: the same command continues where it
stopped, with the trials that an uninterrupted search would have made.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from samdistill.arrays import Masks, ProbabilityMaps
from samdistill.components import clean
from samdistill.config import to_dict, to_toml
from samdistill.errors import InputRejected
from samdistill.io.dataset import Case
from samdistill.io.files import sha256_file, write_text
from samdistill.prompts import PromptConfig
from samdistill.refine import BURDEN, RefineConfig, check_thresholds
from samdistill.statistics import Estimate, bootstrap_mean, paired_difference
from samdistill.teacher import Teacher
from samdistill.teacher.cache import EmbeddingCache
from samdistill.train.embedded import EmbeddedCases
from samdistill.train.examples import Dice, Examples, Tell
from samdistill.train.run import Run
from samdistill.train.tune_spaces import UNCHANGED, Params, Space, TeacherSpace, WalkerSpace

FOLDER = "tune"
TUNED = "tuned"


@dataclass(frozen=True)
class Row:
    """One way to a mask, over the validation images.

    Attributes
    ----------
    name
        What it is.
    dice
        Mean over the classes of an image, then over images.
    gain
        Over the student's cleaned mask, image by image.
    """

    name: str
    dice: Estimate
    gain: Estimate


@dataclass(frozen=True)
class Tuning:
    """What a search found.

    Attributes
    ----------
    rows
        The student alone, what was not tuned, and last the best trial.
    params, importance
        Of the best trial; how much each decided between the best tenth of the trials and the others.
    trials
        How many there are by now.
    file
        The TOML that was written.
    chosen
        Name of the row that it holds: the best trial's, or of what was not tuned where that is better.
    replaced
        Dice of what an earlier search had left there, where that was better; else None.
    """

    rows: tuple[Row, ...]
    params: dict[str, Any]
    importance: dict[str, float]
    trials: int
    file: Path
    chosen: str = TUNED
    replaced: float | None = None


def tune(
    run: Run,
    cases: Sequence[Case],
    teacher: Teacher | None,
    *,
    start: RefineConfig = BURDEN,
    trials: int = 100,
    seed: int = 0,
    device: str = "cpu",
    cache: EmbeddingCache | None = None,
    tell: Tell = lambda what, done, total: None,
) -> Tuning:
    """Search, or go on searching, and write the best into RUN/tune.

    Parameters
    ----------
    run
        A finished run.
    cases
        Its validation images: labelled, and not trained on.
    teacher
        None tunes the random walker.
    start
        Everything that is not searched, and the first trial.
    trials
        How many there are to be in all, those of an interrupted search included.
    seed
        Of the search: the same seed, data, run and teacher give the same trials on the same machine.
    device
        Of the student.
    cache
        Of the teacher's embeddings; needed with a teacher.
    tell
        Gets what is being done, and how much of how much.

    Raises
    ------
    UsageError
        When `start` has thresholds of other classes.
    """
    if trials < 1:
        raise ValueError(f"trials must be at least 1, not {trials}.")
    check_thresholds(start, len(run.class_names))
    validation = Examples(run, cases, device, tell)
    space: TeacherSpace | WalkerSpace
    if teacher is None:
        space = WalkerSpace(validation.image, start)
    else:
        if cache is None:
            raise ValueError("cache must be given with a teacher, not None.")
        embedded = EmbeddedCases(teacher, cache, validation.cases, run.intensity)
        embedded.fill(range(len(cases)), lambda done, total: tell("embedding", done, total))
        space = TeacherSpace(embedded, start)
    cleaned = validation.score_all(lambda _, maps: [_cleaned(one, start.prompts) for one in maps])

    def dice(params: Params) -> Dice:
        return validation.score_all(
            lambda indices, maps: [one.masks for one in space.refine(params, indices, maps)]
        )

    folder = run.path / FOLDER
    folder.mkdir(exist_ok=True)
    key = [
        sha256_file(run.path / "student.safetensors"),
        run.record.data["fingerprint"],
        [case.id for case in cases],
        teacher.weights_sha256 if teacher else "",
        to_dict(start),
        seed,
    ]
    study = _study(folder / "journal.log", hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16])
    # The student's own Dice does not depend on the trial. Measured against a mask that the trial has dilated,
    # a mere ruin of the student's mask would count as a gain.
    _search(study, space, lambda params: float((dice(params) - cleaned).mean()), trials, seed, tell)

    groups = [case.group for case in cases]

    def row(name: str, values: Dice) -> Row:
        return Row(
            name,
            bootstrap_mean(values, groups=groups, seed=seed),
            paired_difference(values, cleaned, groups=groups, seed=seed),
        )

    rows = [
        row(
            "student alone",
            validation.score_all(lambda _, maps: [one > _threshold(start, one) for one in maps]),
        ),
        row("student, cleaned", cleaned),
    ]
    best = dict(study.best_params)
    texts = {TUNED: space.text(best)}
    if isinstance(space, TeacherSpace):
        for name, config in space.untuned.items():
            texts[name] = to_toml(to_dict(config))
            rows.append(
                row(
                    name,
                    validation.score_all(
                        lambda i, maps, config=config: [  # type: ignore[misc]
                            one.masks for one in space.refine_by(config, i, maps)
                        ]
                    ),
                )
            )
    else:
        rows.append(row("random walker, untuned", dice(space.first_trials[0])))
    rows.append(row(TUNED, dice(best)))
    # Trials combine passes and components anew: what is not tuned as a whole need not be among them.
    chosen = max((one for one in reversed(rows) if one.name in texts), key=lambda one: one.dice.mean)
    file = folder / space.file
    before = _dice_before(file.with_suffix(".json"))
    write_text(file, _heading(chosen, len(cases), len(_complete(study))) + texts[chosen.name])
    tuning = Tuning(
        tuple(rows),
        best,
        _importance(study),
        len(_complete(study)),
        file,
        chosen.name,
        before if before is not None and before > chosen.dice.mean else None,
    )
    write_text(file.with_suffix(".json"), json.dumps(_plain(tuning), indent=1) + "\n")
    return tuning


def _study(journal: Path, name: str) -> optuna.Study:
    """Open the journal's study of this name, or begin it; trials that a kill cut short count as failed."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    _cut_off_half_line(journal)
    try:
        storage = JournalStorage(JournalFileBackend(str(journal)))
        study = optuna.create_study(
            storage=storage, study_name=name, direction="maximize", load_if_exists=True
        )
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            study.tell(trial.number, state=TrialState.FAIL)
        while study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):  # will be put in again
            study.tell(study.ask(), state=TrialState.FAIL)
    except (ValueError, KeyError) as error:
        raise InputRejected(f"{journal} is damaged: {error}. Delete it to begin anew.") from error
    return study


def _cut_off_half_line(journal: Path) -> None:
    """Drop what a kill or a full disk left of the last line: another appended to it would damage both."""
    if journal.is_file():
        content = journal.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(journal, whole)


def _search(
    study: optuna.Study,
    space: Space,
    objective: Callable[[Params], float],
    trials: int,
    seed: int,
    tell: Tell,
) -> None:
    known = {_key(trial.params): trial.value for trial in _complete(study)}
    while (done := len(_complete(study))) < trials:
        # A sampler of its own for each trial: nothing that draws has a state that a kill could lose.
        study.sampler = TPESampler(seed=(seed * 100_003 + done) % 2**32)
        if done < len(space.first_trials):
            study.enqueue_trial(space.first_trials[done])
        trial = study.ask(space.distributions)
        key = _key(trial.params)
        if key not in known:
            known[key] = objective(trial.params)
        study.tell(trial, known[key])
        tell("trials", done + 1, trials)


def _complete(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _key(params: Params) -> str:
    """Equal for parameters that do the same: where nothing is eroded, how does not matter."""
    same = {**params, **UNCHANGED} if params["radius"] == 0 else params
    return json.dumps(same, sort_keys=True)


def _importance(study: optuna.Study) -> dict[str, float]:
    """PED-ANOVA's; empty where there are too few trials to tell, or all did equally well."""
    values = {trial.value for trial in _complete(study)}
    if len(values) < 3:
        return {}
    return dict(get_param_importances(study, evaluator=PedAnovaImportanceEvaluator()))


def _cleaned(maps: ProbabilityMaps, how: PromptConfig) -> Masks:
    return clean(maps, threshold=how.threshold, keep=how.keep, min_area_px=how.min_area_px)


def _threshold(start: RefineConfig, maps: ProbabilityMaps) -> npt.NDArray[np.float32]:
    """(C, 1, 1) thresholds."""
    return np.broadcast_to(np.asarray(start.prompts.threshold, np.float32), (len(maps),))[:, None, None]


def _dice_before(record: Path) -> float | None:
    """Dice of what an earlier search left beside this record; None where there is nothing to read."""
    try:
        values = json.loads(record.read_text(encoding="utf-8"))
        means = {row["name"]: float(row["dice"]["mean"]) for row in values["rows"]}
        return means[values.get("chosen", TUNED)]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _heading(best: Row, images: int, trials: int) -> str:
    found = "Found" if best.name == TUNED else f"The prompts '{best.name}', better than any trial: found"
    return (
        f"# {found} by samdistill tune in {trials} trials on {images} validation images: "
        f"Dice {best.dice.mean:.4f}, {best.gain.mean:+.4f} over the student's cleaned mask.\n"
    )


def _plain(tuning: Tuning) -> dict[str, Any]:
    """As JSON can hold it: None for NaN, and no path."""
    rows = [
        {
            "name": row.name,
            **{
                kind: {
                    key: None if value != value else value
                    for key, value in asdict(getattr(row, kind)).items()
                }
                for kind in ("dice", "gain")
            },
        }
        for row in tuning.rows
    ]
    return {
        "rows": rows,
        "params": tuning.params,
        "importance": tuning.importance,
        "trials": tuning.trials,
        "chosen": tuning.chosen,
    }
