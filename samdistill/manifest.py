"""The manifest: what a bundle says of itself, and the only contract between training and inference.

Schema 1. Reading is strict: another schema is refused by its number, an unknown key by its name, and every
value is checked, so that nothing a writer meant is passed over in silence. `manifest.schema.json` beside this
module says the same as a JSON Schema. Knows no file but its own text; `bundle` reads and hashes files.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from samdistill.config import build
from samdistill.errors import BundleError, UsageError
from samdistill.geometry import MAX_ASPECT
from samdistill.intensity import IntensityRule

SCHEMA = 1
MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 16 << 20

_SHA256 = re.compile(r"[0-9a-f]{64}")
_CLASS_NAME = re.compile(r"[^\x00-\x1f\x7f/\\:*?\"<>|.][^\x00-\x1f\x7f/\\:*?\"<>|]{0,63}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check_path(path: str, name: str) -> None:
    """A file of a bundle lies in the bundle: relative, forward slashes, no way up."""
    parts = PurePosixPath(path).parts
    inside = bool(parts) and path == "/".join(parts) and not path.startswith("/") and ".." not in parts
    _require(
        inside and "\\" not in path and "\0" not in path and path != MANIFEST,
        f"{name} must be a relative path inside the bundle, not {path!r}.",
    )


@dataclass(frozen=True)
class FileRecord:
    """One file of the bundle; every file but the manifest has one.

    Attributes
    ----------
    path
        Relative to the bundle, forward slashes.
    sha256
        Of its bytes, 64 lower-case hexadecimal digits.
    bytes
        Its length.
    """

    path: str
    sha256: str
    bytes: int

    def __post_init__(self) -> None:
        _check_path(self.path, "path")
        _require(bool(_SHA256.fullmatch(self.sha256)), f"sha256 must be 64 hex digits, not {self.sha256!r}.")
        _require(self.bytes >= 0, f"bytes must be at least 0, not {self.bytes}.")


@dataclass(frozen=True)
class ClassInfo:
    """One foreground class; its place in the list is its channel, class_id is the channel + 1.

    Attributes
    ----------
    name
        Also the folder its masks are written to where classes overlap, so it must do as one: 1 to 64
        characters, none of / \\ : * ? " < > |, no full stop first.
    colour
        RGB, 0..255 each, for overlays and palettes.
    threshold
        The mask is where the probability map lies strictly above it; in (0, 1).
    """

    name: str
    colour: tuple[int, ...]
    threshold: float = 0.5

    def __post_init__(self) -> None:
        _require(
            bool(_CLASS_NAME.fullmatch(self.name)) and self.name == self.name.strip(),
            f"name must do as a folder's name, without / \\ : * ? \" < > | or '.' first, not {self.name!r}.",
        )
        _require(
            len(self.colour) == 3 and all(0 <= part <= 255 for part in self.colour),
            f"colour must be three numbers 0..255, not {list(self.colour)}.",
        )
        _require(0 < self.threshold < 1, f"threshold must lie between 0 and 1, not {self.threshold}.")


@dataclass(frozen=True)
class InputContract:
    """How an image, made uint8 by the intensity rule, becomes the student's input; `geometry.ModelFrame`.

    Attributes
    ----------
    size
        Length of the shortest side in the model frame, pixels.
    multiple
        Height and width are padded right and below to multiples of this.
    max_aspect
        Longest over shortest side of the model frame.
    resize, padding, layout, dtype, channels
        The one way this schema knows.
    """

    size: int
    multiple: int = 32
    max_aspect: float = MAX_ASPECT
    resize: Literal["pillow-bilinear"] = "pillow-bilinear"
    padding: Literal["edge"] = "edge"
    layout: Literal["NCHW"] = "NCHW"
    dtype: Literal["uint8"] = "uint8"
    channels: Literal["RGB"] = "RGB"

    def __post_init__(self) -> None:
        _require(1 <= self.size <= 8192, f"size must be 1..8192 px, not {self.size}.")
        _require(self.multiple == 32, f"multiple must be 32, not {self.multiple}.")
        _require(self.max_aspect == MAX_ASPECT, f"max_aspect must be {MAX_ASPECT}, not {self.max_aspect}.")


@dataclass(frozen=True)
class Normalisation:
    """What the graph itself does to pixels first: (pixel - mean) / std, in units of 0..255. A record only.

    Attributes
    ----------
    where
        "graph": whoever runs the model must not normalise again.
    mean, std
        One value a channel, RGB.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    where: Literal["graph"] = "graph"

    def __post_init__(self) -> None:
        _require(
            len(self.mean) == len(self.std) == 3 and min(self.std) > 0,
            f"mean and std must be three numbers each, std above 0, not {self.mean} and {self.std}.",
        )


@dataclass(frozen=True)
class ModelRecord:
    """One network of the bundle.

    Attributes
    ----------
    file
        Its path in the bundle.
    input, output
        Names of its tensors: uint8 (N, 3, H, W) in, float32 (N, C, H, W) logits out.
    opset
        ONNX operator set.
    parameters
        Number of trained values.
    """

    file: str
    opset: int
    parameters: int
    format: Literal["onnx"] = "onnx"
    precision: Literal["fp32"] = "fp32"
    input: str = "pixels"
    output: str = "logits"

    def __post_init__(self) -> None:
        _check_path(self.file, "file")
        _require(13 <= self.opset <= 30, f"opset must be 13..30, not {self.opset}.")
        _require(self.parameters > 0, f"parameters must be above 0, not {self.parameters}.")
        _require(bool(self.input) and bool(self.output), "input and output must be names, not empty.")


@dataclass(frozen=True)
class Models:
    """The networks, by their part in the bundle."""

    student: ModelRecord


@dataclass(frozen=True)
class CleaningRule:
    """What is done to the masks after the threshold; see `components.clean`.

    Attributes
    ----------
    keep
        Which connected components of each class stay.
    min_area_px
        Smaller components are dropped first; pixels of the image frame.
    """

    keep: Literal["likeliest", "largest", "all"] = "all"
    min_area_px: int = 0

    def __post_init__(self) -> None:
        _require(self.min_area_px >= 0, f"min_area_px must be at least 0, not {self.min_area_px}.")


@dataclass(frozen=True)
class GoldenRecord:
    """A made-up picture and the answer the bundle gave for it when it was published.

    Attributes
    ----------
    name
        Short, for messages.
    file
        Its npz in the bundle; see docs/bundle.md.
    origin
        How the picture was made.
    max_probability_difference
        How far any pixel of a probability map may be from the recorded one.
    max_changed_pixels
        Which share of an image's pixels may differ in any one mask.
    """

    name: str
    file: str
    origin: str
    max_probability_difference: float
    max_changed_pixels: float

    def __post_init__(self) -> None:
        _check_path(self.file, "file")
        for key in ("max_probability_difference", "max_changed_pixels"):
            value = getattr(self, key)
            _require(0 < value < 1, f"{key} must lie between 0 and 1, not {value}.")


@dataclass(frozen=True)
class Manifest:
    """Everything a stranger needs to get the same masks out of the bundle.

    Attributes
    ----------
    schema
        1.
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
    parity
        What the gate against PyTorch measured.
    provenance
        What the run tells of its training: fingerprint, split sizes, seed, steps; no path, no file name.
    versions
        Of samdistill and of the libraries that wrote the bundle.
    licence
        Under which the weights may be used, in the words of whoever exported them.
    model_card
        Path of the model card.
    routing, calibration, prompts, engines
        Reserved; null (or empty, for `engines`) in what this version writes and reads.
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
    parity: dict[str, Any]
    licence: str
    model_card: str
    cleaning: CleaningRule | None = None
    routing: None = None
    calibration: None = None
    prompts: None = None
    engines: tuple[None, ...] = field(default=())

    def __post_init__(self) -> None:
        _require(self.schema == SCHEMA, f"schema must be {SCHEMA}, not {self.schema}.")
        _require(1 <= len(self.name) <= 200, f"name must have 1..200 characters, not {len(self.name)}.")
        _require(1 <= len(self.classes) <= 255, f"classes must be 1..255, not {len(self.classes)}.")
        _unique([one.name.casefold() for one in self.classes], "classes", "name")
        _require(len(self.golden) >= 1, "golden must hold at least one case, not none.")
        _unique([case.name for case in self.golden], "golden", "name")
        _unique([file.path for file in self.files], "files", "path")
        _require(self.engines == (), "engines must be empty: engines in a bundle belong to a later schema.")
        listed = {file.path for file in self.files}
        for used in (self.models.student.file, self.model_card, *(case.file for case in self.golden)):
            _require(used in listed, f"files must list {used!r}, which the manifest speaks of.")

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
        values = json.loads(text, object_pairs_hook=_no_repeats, parse_float=_finite, parse_constant=_finite)
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
    _require(not repeated, f"{name} must differ in {key}, not repeat {', '.join(map(repr, repeated))}.")


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key is given twice")
    return values


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no finite number")
    return value
