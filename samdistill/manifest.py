"""The manifest: what a bundle says of itself, and the only contract between training and inference.

Schema 3. Reading is strict: another schema is refused by its number, an unknown key by its name, and every
value is checked, so that nothing a writer meant is passed over in silence. `manifest.schema.json` beside this
module says the same as a JSON Schema. Knows no file but its own text; `bundle` reads and hashes files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from samdistill.config import build
from samdistill.errors import BundleError, UsageError
from samdistill.intensity import IntensityRule
from samdistill.manifest_quality import Calibration, QualityRule, RoutingRule
from samdistill.manifest_records import (
    MANIFEST,
    ClassInfo,
    CleaningRule,
    EngineRecord,
    FileRecord,
    GoldenRecord,
    InputContract,
    ModelRecord,
    Models,
    Normalisation,
    Part,
    Precision,
    TeacherRecord,
    require,
)
from samdistill.refine import RefineConfig, check_thresholds

__all__ = [
    "MANIFEST",
    "MAX_MANIFEST_BYTES",
    "MOST_NAME",
    "SCHEMA",
    "Calibration",
    "ClassInfo",
    "CleaningRule",
    "EngineRecord",
    "FileRecord",
    "GoldenRecord",
    "InputContract",
    "Manifest",
    "ModelRecord",
    "Models",
    "Normalisation",
    "Part",
    "Precision",
    "QualityRule",
    "RoutingRule",
    "TeacherRecord",
    "parse",
]

SCHEMA = 3
MOST_NAME = 200  # characters
MAX_MANIFEST_BYTES = 16 << 20


@dataclass(frozen=True)
class Manifest:
    """Everything a stranger needs to get the same masks out of the bundle.

    Attributes
    ----------
    schema
        3.
    name
        Of the bundle, for people.
    classes
        Foreground classes in channel order.
    multi_label
        Whether classes may overlap. Where not, a pixel above several thresholds belongs to the class of the
        highest probability.
    input, intensity, normalisation
        From raw pixels to the network.
    models
        The networks.
    cleaning
        None leaves the masks as the thresholds make them.
    golden
        At least one case.
    files
        Every file of the bundle but the manifest.
    engines
        Every way of running the networks that has passed the gate; of each network at least one. For each
        network and device the fastest comes first.
    teacher
        Whose encoder and decoder `models` holds; null where it holds none.
    prompts
        How the student's answer is put to the teacher; null without a teacher.
    provenance
        What the run tells of its training: fingerprint, split sizes, seed, steps; no path, no file name.
    versions
        Of samdistill and of the libraries that wrote the bundle.
    licence
        Under which the weights may be used, in the words of whoever exported them.
    model_card
        Path of the model card.
    calibration
        The student's temperatures; null where no labelled validation image was there to fit them on.
    quality
        How an image's quality is judged; null without calibration.
    routing
        Which images mode "auto" refines; null without calibration or teacher.
    """

    schema: int
    name: str
    classes: tuple[ClassInfo, ...]
    multi_label: bool
    input: InputContract
    intensity: IntensityRule
    normalisation: Normalisation
    models: Models
    golden: tuple[GoldenRecord, ...]
    files: tuple[FileRecord, ...]
    versions: dict[str, str]
    provenance: dict[str, Any]
    engines: tuple[EngineRecord, ...]
    licence: str
    model_card: str
    cleaning: CleaningRule | None = None
    teacher: TeacherRecord | None = None
    prompts: RefineConfig | None = None
    calibration: Calibration | None = None
    quality: QualityRule | None = None
    routing: RoutingRule | None = None

    def __post_init__(self) -> None:
        require(self.schema == SCHEMA, f"schema must be {SCHEMA}, not {self.schema}.")
        count = len(self.name)
        require(1 <= count <= MOST_NAME, f"name must have 1..{MOST_NAME} characters, not {count}.")
        require(self.name.isprintable(), f"name must be printable text, not {self.name!r}.")
        require(self.licence.isprintable(), f"licence must be printable text, not {self.licence!r}.")
        trained_on = self.provenance.get("trained_on", [])
        require(
            isinstance(trained_on, list) and all(isinstance(one, str) for one in trained_on),
            "provenance.trained_on must be a list of hashes.",
        )
        require(1 <= len(self.classes) <= 255, f"classes must be 1..255, not {len(self.classes)}.")
        _unique([one.name.casefold() for one in self.classes], "classes", "name")
        require(len(self.golden) >= 1, "golden must hold at least one case, not none.")
        _unique([case.name for case in self.golden], "golden", "name")
        _unique([file.path for file in self.files], "files", "path")
        if self.prompts is not None:
            check_thresholds(self.prompts, len(self.classes))
        has_teacher = self.models.encoder is not None
        for key in ("teacher", "prompts"):
            given = getattr(self, key) is not None
            require(given == has_teacher, f"{key} must be given exactly when models has an encoder.")
        self._check_quality(has_teacher=has_teacher)
        parts: tuple[Part, ...] = ("student", "encoder", "decoder") if has_teacher else ("student",)
        networks: list[ModelRecord | EngineRecord] = [self.models.of(part) for part in parts]
        run = {engine.model for engine in self.engines}
        require(run == set(parts), f"engines must run {', '.join(parts)}, not {', '.join(sorted(run))}.")
        listed = {file.path for file in self.files}
        used = [path for owner in [*networks, *self.engines] for path in owner.paths]
        for path in (*used, self.model_card, *(case.file for case in self.golden)):
            require(path in listed, f"files must list {path!r}, which the manifest speaks of.")

    def _check_quality(self, *, has_teacher: bool) -> None:
        """What rests on the calibration, and is of these classes."""
        count = len(self.classes)
        if self.calibration is not None:
            given = len(self.calibration.temperatures)
            require(given == count, f"calibration must have {count} temperatures, one a class, not {given}.")
        calibrated = self.calibration is not None
        require(self.quality is None or calibrated, "quality must not be given without calibration.")
        require(
            self.routing is None or (calibrated and has_teacher),
            "routing must not be given without calibration and a teacher.",
        )
        if self.quality is not None:
            given = len(self.quality.reference.classes)
            require(given == count, f"quality must have {count} class ranges, one a class, not {given}.")
            mean = self.quality.reference.embedding_mean
            channels = 0 if self.teacher is None else self.teacher.embedding[0]
            require(
                mean is None or len(mean) == channels,
                f"embedding_mean must have {channels} numbers, one a channel, not {len(mean or ())}.",
            )

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in channel order."""
        return tuple(one.name for one in self.classes)

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Thresholds in channel order."""
        return tuple(one.threshold for one in self.classes)

    def to_json(self) -> bytes:
        """The manifest as its file holds it; equal manifests give equal bytes."""
        return (json.dumps(asdict(self), indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def parse(text: bytes) -> Manifest:
    """Read a manifest.

    Parameters
    ----------
    text
        The content of `manifest.json`.

    Raises
    ------
    BundleError
        When it is no JSON, has another schema, an unknown, repeated or missing key, or a value that is not
        allowed.
    """
    try:
        values = json.loads(
            text,
            object_pairs_hook=_no_repeats,
            parse_float=_finite,
            parse_constant=_finite,
            parse_int=_bounded,
        )
        json.dumps(values, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{MANIFEST} is not valid JSON: {error}.") from error
    if not isinstance(values, dict) or not isinstance(values.get("schema"), int):
        raise BundleError(f"{MANIFEST} must be an object with a schema number; it is no bundle's manifest.")
    if values["schema"] != SCHEMA:
        writer = values.get("versions", {})
        version = writer.get("samdistill") if isinstance(writer, dict) else None
        raise BundleError(
            f"{MANIFEST} must have schema {SCHEMA}, not {values['schema']}: the bundle was written by "
            f"samdistill {version or 'of an unknown version'}. "
            + ("Upgrade samdistill." if values["schema"] > SCHEMA else "Export it again.")
        )
    try:
        return build(Manifest, values, where=MANIFEST)
    except UsageError as error:
        raise BundleError(str(error)) from error


def _unique(values: Sequence[str], name: str, key: str) -> None:
    repeated = sorted({value for value in values if values.count(value) > 1})
    require(not repeated, f"{name} must differ in {key}, not repeat {', '.join(map(repr, repeated))}.")


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key is given twice")
    return values


def _bounded(text: str) -> int:
    value = int(text)
    if abs(value) >= 1 << 63:
        raise ValueError(f"{text[:20]}... is too large a number")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no finite number")
    return value
