"""The manifest is read strictly, and its JSON Schema agrees with its reader."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import samdistill
from samdistill.errors import BundleError
from samdistill.manifest import parse

Values = dict[str, Any]

SCHEMA = json.loads((Path(samdistill.manifest.__file__).with_suffix(".schema.json")).read_text())
HERE = Path(__file__).resolve().parent
TINY = json.loads((HERE / "golden" / "tiny_bundle" / "manifest.json").read_text())


def put(path: str, value: Any) -> Callable[[Values], None]:
    """An edit that sets the value at a dotted path; numbers index lists."""

    def edit(values: Values) -> None:
        *parts, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        target: Any = values
        for part in parts:
            target = target[part]
        target[last] = value

    return edit


def drop(name: str) -> Callable[[Values], None]:
    def edit(values: Values) -> None:
        del values[name]

    return edit


def changed(edit: Callable[[Values], None]) -> Values:
    values = copy.deepcopy(TINY)
    edit(values)
    return values


TEACHER = {
    "name": "tiny",
    "weights_sha256": "a" * 64,
    "preprocessing": "sam",
    "side": 256,
    "embedding": [96, 24, 24],
    "mask_size": [96, 96],
    "mask_threshold": 0.0,
    "licence": "Apache-2.0",
}
NOTHING = {"box": False, "points": "none"}

CALIBRATION = {
    "temperatures": [1.5, 0.8],
    "images": 8,
    **{f"{what}_{when}": [0.2, 0.1] for what in ("nll", "ece") for when in ("before", "after")},
}
LINEAR = {
    "features": ["confidence"], "centres": [0.8], "scales": [0.1], "weights": [0.05], "intercept": 0.7,
}  # fmt: skip
SCORE = {"rule": LINEAR, "images": 8, "rmse": 0.1, "accept": 0.8, "reject": None}
QUALITY = {
    "least_dice": 0.7,
    "student": SCORE,
    "refined": None,
    "limits": {"area_off": 0.5},
    "reference": {
        "images": 20,
        "classes": [{"area_share": [0.0, 0.3], "components": [0, 2]}] * 2,
        "intensity": [0.5] * 48,
    },
}
ROUTING = {
    "refine": False, "reason": "no gain", "rule": LINEAR, "least_predicted_iou": 0.0, "images": 8,
    "gain_quantiles": [0.0] * 21, "gain_always": 0.0, "gain_auto": 0.0, "gain_error": None, "share": 0.0,
}  # fmt: skip


def judged(path: str = "", value: Any = None) -> Callable[[Values], None]:
    """An edit that gives the bundle calibration and quality, then sets the value at a path of these."""

    def edit(values: Values) -> None:
        values.update(copy.deepcopy({"calibration": CALIBRATION, "quality": QUALITY}))
        if path:
            put(path, value)(values)

    return edit


ALLOWED = {
    "calibration and quality": judged(),
    "quality that accepts nothing": judged("quality.student.accept", None),
    "quality without a score": judged("quality.student", None),
    "a least number": judged("quality.student.least", {"confidence": 0.6, "sharpness": -0.01}),
    "cleaning by area": put("cleaning", {"keep": "largest", "min_area_px": 20}),
    "a window": put("intensity", {"kind": "window", "low": -100, "high": 300.5}),
    "a class name with spaces and accents": put("classes.0.name", "kyste rénal 2.a"),
    "defaults left out": drop("routing"),
    "another precision": put("engines.0.precision", "int8"),
    "an engine without a speed": put("engines.0.latency_ms", None),
    "provenance of any shape": put("provenance", {"a": [1, {"b": None}]}),
    "a threshold near one": put("classes.1.threshold", 0.999),
}

# What the reader refuses, what its message says, and whether a JSON Schema can say it too.
REFUSED = {
    "unknown key": (put("colour_space", "RGB"), "colour_space", True),
    "unknown nested key": (put("input.crop", 3), "crop", True),
    "missing key": (drop("licence"), "licence", True),
    "class without name": (put("classes.0", {"colour": [1, 2, 3]}), "name", True),
    "no classes": (put("classes", []), "classes", True),
    "class named as a path": (put("classes.0.name", "../x"), "folder's name", True),
    "class named with a final space": (put("classes.0.name", "x "), "folder's name", True),
    "hidden class": (put("classes.0.name", ".x"), "folder's name", True),
    "two classes of one name": (put("classes.0.name", "Bright"), "differ in name", False),
    "colour of two numbers": (put("classes.0.colour", [1, 2]), "colour", True),
    "colour out of range": (put("classes.0.colour", [1, 2, 256]), "colour", True),
    "colour as fraction": (put("classes.0.colour", [1, 2, 0.5]), "colour", True),
    "threshold of one": (put("classes.0.threshold", 1.0), "threshold", True),
    "threshold as text": (put("classes.0.threshold", "0.5"), "threshold", True),
    "true for a number": (put("input.size", True), "size", True),
    "size of zero": (put("input.size", 0), "size", True),
    "another multiple": (put("input.multiple", 16), "multiple", True),
    "another aspect": (put("input.max_aspect", 8.0), "max_aspect", True),
    "another resize": (put("input.resize", "nearest"), "resize", True),
    "another layout": (put("input.layout", "NHWC"), "layout", True),
    "normalisation outside the graph": (put("normalisation.where", "host"), "where", True),
    "std of zero": (put("normalisation.std", [1.0, 0.0, 1.0]), "std", True),
    "mean of two": (put("normalisation.mean", [1.0, 1.0]), "mean", True),
    "unknown intensity": (put("intensity.kind", "log"), "intensity", True),
    "intensity upside down": (put("intensity", {"kind": "window", "low": 3, "high": 1}), "below high", False),
    "unknown precision": (put("engines.0.precision", "fp8"), "precision", True),
    "unknown runtime": (put("engines.0.runtime", "caffe"), "runtime", True),
    "no engine": (put("engines", []), "engines must run student", True),
    "engine of no network": (put("engines.0.model", "decoder"), "engines must run student", False),
    "engine's file not listed": (put("engines.0.file", "other.onnx"), "files must list", False),
    "latency of zero": (put("engines.0.latency_ms", 0), "latency_ms", True),
    "network without inputs": (put("models.student.inputs", []), "inputs", True),
    "no student": (put("models", {}), "student", True),
    "an encoder alone": (put("models.encoder", TINY["models"]["student"]), "given together", False),
    "unknown network": (put("models.teacher", {}), "teacher", True),
    "a teacher without networks": (put("teacher", TEACHER), "teacher must be given exactly", False),
    "a teacher of a cut hash": (put("teacher", {**TEACHER, "weights_sha256": "ab"}), "sha256", True),
    "a teacher of another kind": (put("teacher", {**TEACHER, "preprocessing": "x"}), "prepro", True),
    "prompts without a teacher": (
        put("prompts", {"first_pass": "box"}),
        "prompts must be given exactly",
        False,
    ),
    "prompts of other classes": (
        put("prompts", {"prompts": {"threshold": [0.5, 0.4, 0.3]}}),
        "must be one number or 2, one a class, not 3",
        False,
    ),
    "prompts that ask for nothing": (
        put("prompts", {"prompts": {"box": False, "points": "none"}}),
        "all be off",
        False,
    ),
    "unknown prompts": (put("prompts", {"circles": 3}), "circles", True),
    "no golden case": (put("golden", []), "golden", True),
    "golden tolerance of zero": (put("golden.0.max_changed_pixels", 0), "max_changed_pixels", True),
    "golden file not listed": (put("golden.0.file", "golden/other.npz"), "files must list", False),
    "student not listed": (put("models.student.file", "other.onnx"), "files must list", False),
    "path upwards": (put("files.0.path", "../MODEL_CARD.md"), "inside the bundle", True),
    "path upwards inside": (put("files.0.path", "golden/../../x"), "inside the bundle", True),
    "absolute path": (put("files.0.path", "/etc/passwd"), "inside the bundle", True),
    "backslash path": (put("files.0.path", "golden\\x"), "inside the bundle", True),
    "path of the manifest": (put("files.0.path", "manifest.json"), "inside the bundle", True),
    "empty path": (put("files.0.path", ""), "inside the bundle", True),
    "file listed twice": (put("files.0.path", "student.onnx"), "differ in path", False),
    "short hash": (put("files.0.sha256", "ab"), "sha256", True),
    "upper-case hash": (put("files.0.sha256", "A" * 64), "sha256", True),
    "negative length": (put("files.0.bytes", -1), "bytes", True),
    "routing": (put("routing", {"threshold": 0.2}), "routing", True),
    "calibration of another kind": (put("calibration", {"temperature": 1.5}), "calibration", True),
    "temperature of zero": (judged("calibration.temperatures.0", 0.0), "temperatures", True),
    "one temperature of two": (judged("calibration", {**CALIBRATION, "temperatures": [1.5]}), "nll_", False),
    "quality without calibration": (put("quality", QUALITY), "without calibration", False),
    "routing without a teacher": (judged("routing", ROUTING), "a teacher", False),
    "weights of another number": (judged("quality.student.rule.weights", []), "weights must be 1", False),
    "scale of zero": (judged("quality.student.rule.scales.0", 0.0), "scales", True),
    "ranges of one class": (judged("quality.reference.classes", []), "2 class ranges", False),
    "range upside down": (
        judged("quality.reference.classes.0.area_share", [0.3, 0.1]),
        "least and most",
        False,
    ),
    "histogram cut short": (judged("quality.reference.intensity", [0.5]), "intensity must be 48", True),
    "half an embedding": (judged("quality.reference.embedding_mean", [1.0]), "given together", False),
    "an embedding without a teacher": (
        judged(
            "quality.reference",
            {**QUALITY["reference"], "embedding_mean": [1.0], "embedding_scale": [1.0]},
        ),
        "must have 0 numbers",
        False,
    ),
    "limit of no number": (judged("quality.limits.area_of", 0.5), "limits must be of area_off", True),
    "rule of no number": (judged("quality.student.rule.features.0", "colour"), "not of colour", True),
    "student's rule of the teacher": (
        judged("quality.student.rule.features.0", "predicted_iou"),
        "features of student must be of",
        False,
    ),
    "routing by the teacher": (
        judged("routing", {**ROUTING, "rule": {**LINEAR, "features": ["agreement"]}}),
        "features of rule must be of",
        False,
    ),
    "accepting what is rejected": (judged("quality.student.reject", 0.9), "accept must be at least", False),
    "weights beyond measure": (judged("quality.student.rule.weights", [1e308]), "weights must be", False),
    "a temperature of nothing": (judged("calibration.temperatures.0", 1e-300), "temperatures must be", True),
    "an error beyond one": (judged("calibration.ece_after.0", 7.0), "ece_after must be", True),
    "a name that moves the cursor": (put("name", "a\x1b[2J"), "name must be printable", False),
    "a case that moves the cursor": (put("golden.0.name", "a\x1b[2J"), "name must be printable", False),
    "hashes that are none": (put("provenance.trained_on", 5), "trained_on must be a list", False),
    "limit as text": (judged("quality.limits.area_off", "0.5"), "area_off", True),
    "another bad Dice": (judged("quality.least_dice", 0.8), "least_dice must be 0.7", True),
    "a least of no number": (judged("quality.student.least", {"area": 0.1}), "least must be of", True),
    "student's least of the teacher": (
        judged("quality.student.least", {"agreement": 0.5}),
        "least of student must be of",
        False,
    ),
    "unknown cleaning": (put("cleaning", {"keep": "best"}), "keep", True),
    "version as number": (put("versions.torch", 2), "versions", True),
    "classes as an object": (put("classes", {"0": "x"}), "classes", True),
}


def test_the_committed_bundle_is_valid_and_comes_back_byte_by_byte() -> None:
    text = (HERE / "golden" / "tiny_bundle" / "manifest.json").read_bytes()
    manifest = parse(text)
    assert manifest.to_json() == text
    assert manifest.class_names == ("red", "bright")
    jsonschema.validate(TINY, SCHEMA)


def test_the_json_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("name", ALLOWED)
def test_what_is_allowed_passes_reader_and_schema(name: str) -> None:
    values = changed(ALLOWED[name])
    parse(json.dumps(values).encode())
    jsonschema.validate(values, SCHEMA)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_by_name(name: str) -> None:
    edit, message, in_schema = REFUSED[name]
    values = changed(edit)
    with pytest.raises(BundleError, match=message):
        parse(json.dumps(values).encode())
    assert in_schema != jsonschema.Draft202012Validator(SCHEMA).is_valid(values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe{", "not valid JSON"),
        (b'{"schema": 3, "name": "\\ud800"}', "not valid JSON"),
        (b'{"schema": 3, "name": 1' + b"0" * 400 + b"}", "too large a number"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "must be an object"),
        (b"{}", "must be an object"),
        (b'{"schema": "2"}', "must be an object"),
        (b'{"schema": 3, "schema": 3}', "given twice"),
        (b'{"schema": 3, "name": NaN}', "no finite number"),
        (b'{"schema": 3, "name": 1e999}', "no finite number"),
    ],
)
def test_text_that_is_no_manifest_is_refused(text: bytes, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        parse(text)


def test_a_newer_schema_is_refused_by_number_and_writer_before_anything_else_is_looked_at() -> None:
    text = json.dumps({"schema": 4, "versions": {"samdistill": "9.9"}, "whatever": 1}).encode()
    with pytest.raises(BundleError, match=r"schema 3, not 4: .*samdistill 9\.9\. Upgrade samdistill"):
        parse(text)


def test_an_older_schema_asks_for_a_new_export() -> None:
    with pytest.raises(BundleError, match=r"not 1: .*Export it again"):
        parse(b'{"schema": 1}')
