"""The run folder: what a training run writes and what export and resume read.

    run.json             configuration, data (path, fingerprint, split), versions, seed, result
    student.safetensors  the student that was best on the validation images
    last.safetensors     everything a resumed run continues from; its header holds the loop's state as JSON
    phase-<n>.safetensors  the best student of a phase that another one followed
    pseudo/              pseudo labels, see train/store.py
    log.jsonl, log.csv   one record an epoch
    curves.png           the learning curves

Every file is replaced whole or not at all. Knows no strategy.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from samdistill.config import build
from samdistill.errors import InputRejected
from samdistill.intensity import IntensityRule
from samdistill.io.dataset import Case, fingerprint, open_dataset
from samdistill.io.files import locked, sha256_file, write_bytes
from samdistill.train.config import TrainConfig
from samdistill.train.student import Student

SCHEMA = 1


@dataclass(frozen=True)
class RunRecord:
    """run.json.

    Parameters
    ----------
    schema
        Of this file.
    config
        The whole TrainConfig as plain values.
    data
        `path` and `fingerprint` (of what training may see).
    split
        Case ids by part: train_labelled, train_unlabelled, validation, test.
    class_names, multi_label, intensity
        Contract of the masks and the rule from raw pixels to uint8.
    encoder_weights
        What the encoder started from: imagenet or none.
    versions
        Of samdistill, of the libraries that computed, and of the teacher's weights once it was loaded.
    devices
        Kind and precision.
    result
        Empty until the run is done; then steps, seconds, and the best epoch's record.
    """

    schema: int
    config: dict[str, Any]
    data: dict[str, Any]
    split: dict[str, list[str]]
    class_names: list[str]
    multi_label: bool
    intensity: dict[str, Any]
    encoder_weights: str
    versions: dict[str, str]
    devices: dict[str, Any]
    result: dict[str, Any]


class Run:
    """A run folder.

    Parameters
    ----------
    path
        The folder.
    record
        What its run.json says.
    """

    def __init__(self, path: Path, record: RunRecord) -> None:
        self.path = path
        self.record = record
        self.config: TrainConfig = build(TrainConfig, record.config, where=f"{path / 'run.json'}: config")
        self.class_names: tuple[str, ...] = tuple(record.class_names)
        self.multi_label = record.multi_label
        self.intensity: IntensityRule = build(IntensityRule, record.intensity, where="intensity")

    @classmethod
    def load(cls, path: Path | str) -> Run:
        """Open a run folder.

        Raises
        ------
        InputRejected
            When it holds no run.json, or one of another schema.
        """
        path = Path(path)
        try:
            values = json.loads((path / "run.json").read_text(encoding="utf-8"))
        except OSError as error:
            raise InputRejected(
                f"{path} is no run: it has no readable run.json. Make one with `samdistill train`."
            ) from error
        except ValueError as error:
            raise InputRejected(f"{path / 'run.json'} is damaged: {error}.") from error
        if not isinstance(values, dict) or values.get("schema") != SCHEMA:
            raise InputRejected(
                f"{path / 'run.json'} must have schema {SCHEMA}, not {values.get('schema')!r}; "
                "it was written by another version of samdistill."
                if isinstance(values, dict)
                else f"{path / 'run.json'} must hold an object."
            )
        if set(values) != {field.name for field in fields(RunRecord)}:
            raise InputRejected(f"{path / 'run.json'} lacks keys of a run, or has others.")
        return cls(path, RunRecord(**values))

    def write_record(self, **changes: Any) -> None:
        """Change fields of the record and write run.json."""
        self.record = RunRecord(**{**asdict(self.record), **changes})
        write_bytes(self.path / "run.json", json.dumps(asdict(self.record), indent=1).encode() + b"\n")

    def save(self, name: str, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        """Write `<name>.safetensors`: tensors, and a state of plain values in its header."""
        plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        write_bytes(self.path / f"{name}.safetensors", save(plain, {"state": json.dumps(state)}))

    def load_tensors(self, name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Read `<name>.safetensors` back: tensors and state.

        Raises
        ------
        InputRejected
            When the file is missing or damaged.
        """
        with self._opened(name) as (file, state):
            return {key: file.get_tensor(key) for key in file.keys()}, state  # noqa: SIM118

    def load_state(self, name: str) -> dict[str, Any]:
        """Read the state of `<name>.safetensors` alone; as `load_tensors`, without the tensors."""
        with self._opened(name) as (_, state):
            return state

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[tuple[Any, dict[str, Any]]]:
        """`<name>.safetensors`, open, and its state."""
        file = self.path / f"{name}.safetensors"
        if not file.is_file():
            raise InputRejected(f"{self.path} has no {file.name}: the run has not finished its first epoch.")
        try:
            with safe_open(file, "pt") as opened:
                yield opened, json.loads((opened.metadata() or {})["state"])
        except (SafetensorError, KeyError, ValueError) as error:
            raise InputRejected(f"{file} is damaged: {error}.") from error

    def best_of_phase(self, number: int) -> dict[str, torch.Tensor]:
        """The best student's weights of a phase that is over; kept from the first call on.

        To be called before the next phase writes its own best student.
        """
        name = f"phase-{number}"
        if not (self.path / f"{name}.safetensors").is_file():
            write_bytes(self.path / f"{name}.safetensors", (self.path / "student.safetensors").read_bytes())
        return self.load_tensors(name)[0]

    def write_log(self, history: list[dict[str, Any]]) -> None:
        """Write log.jsonl and log.csv, one record an epoch."""
        lines = "".join(json.dumps(record) + "\n" for record in history)
        write_bytes(self.path / "log.jsonl", lines.encode())
        columns = list(dict.fromkeys(key for record in history for key in record))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
        write_bytes(self.path / "log.csv", text.getvalue().encode())

    def tell_if_unfinished(self, tell: Callable[[str], None]) -> None:
        """Say so where the run was stopped or is still under way: a better student may come."""
        if not self.record.result:
            tell(f"{self.path} is not finished: its best student so far is taken")

    def load_student(self) -> Student:
        """The best student: float32, in eval mode, on the CPU."""
        student = Student(self.config.student, len(self.class_names))
        tensors, _ = self.load_tensors("student")
        student.load_state_dict(tensors)
        return student.eval()

    def cases(self, data: Path | None = None) -> dict[str, list[Case]]:
        """The cases the run was trained on, by part: train_labelled, train_unlabelled, validation, test.

        Parameters
        ----------
        data
            The data folder, where it is no longer at the recorded path.

        Raises
        ------
        InputRejected
            When the folder is not to be found, or holds other data than the run recorded.
        """
        path = data or Path(self.record.data["path"])
        if not path.is_dir():
            raise InputRejected(f"the run's data are not at {path}; say where they are with --data.")
        dataset = open_dataset(path, class_names=self.class_names, infer_classes=False)
        by_id = {case.id: case for case in dataset.cases}
        try:
            parts = {part: [by_id[name] for name in ids] for part, ids in self.record.split.items()}
        except KeyError as error:
            raise InputRejected(f"{path} does not hold the data of this run: {error} is missing.") from error
        parts["train_unlabelled"] = [case.without_labels() for case in parts["train_unlabelled"]]
        seen = (*parts["train_labelled"], *parts["train_unlabelled"], *parts["validation"])
        if fingerprint(seen, dataset.class_names) != self.record.data["fingerprint"]:
            raise InputRejected(
                f"{path} does not hold the data of this run: its fingerprint differs. "
                "Give the folder the run was trained on with --data, or train again."
            )
        return parts

    def validation_cases(self, data: Path | None = None) -> list[Case]:
        """The labelled cases training chose the student by."""
        return self.cases(data)["validation"]

    def provenance(self, data: Path | None = None) -> dict[str, Any]:
        """What a bundle tells of its training; names no path and no file.

        `trained_on` are the first 16 hexadecimal digits of the sha256 of each image file that training or
        validation used, so that an evaluation can leave them out.
        """
        parts = self.cases(data)
        seen = [*parts["train_labelled"], *parts["train_unlabelled"], *parts["validation"]]
        files = {case.image_path for case in seen}  # the slices of a scan share one
        return {
            "data_fingerprint": self.record.data["fingerprint"],
            "images": {part: len(ids) for part, ids in self.record.split.items()},
            "trained_on": sorted(sha256_file(path)[:16] for path in files),
            "strategy": self.config.strategy,
            "seed": self.config.seed,
            "steps": self.record.result.get("steps"),
            "encoder": self.config.student.encoder,
            "encoder_weights": self.record.encoder_weights,
            "versions": self.record.versions,
        }


@contextlib.contextmanager
def alone_in(folder: Path, tell: Callable[[str], None]) -> Iterator[None]:
    """Keep other processes from writing into a run's folder; the lock ends with the process, however it ends.

    Parameters
    ----------
    folder
        There already.
    tell
        Hears of a filesystem without locks.

    Raises
    ------
    UsageError
        When another process holds it.
    """
    refusal = f"{folder} is being written to by another process; wait for it, or choose another folder."
    with locked(folder, refusal) as held:
        if not held:
            tell(f"{folder} cannot be locked on this filesystem: start nothing else in it.")
        yield
