"""Reads what `samdistill infer` recorded, and checks all that a report takes from it: files may be edited."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from samdistill.errors import InputRejected
from samdistill.inference import RESULTS

Record = Mapping[str, Any]
Check = Callable[[Any], bool]


def read_records(out: Path) -> list[Record]:
    """Read every line of a folder's results.jsonl.

    Parameters
    ----------
    out
        The folder that `infer` wrote.

    Returns
    -------
    list
        What `inference.records.Record` has; all of status "ok" have the same classes.

    Raises
    ------
    InputRejected
        When there is none, or a line of it is not what `infer` writes.
    """
    path = out / RESULTS
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        cure = ""
        if [*out.glob("results-*-of-*.jsonl"), *out.glob(f".{RESULTS.removesuffix('.jsonl')}*.partial")]:
            cure = " A run was shared out or interrupted: finish it by infer --resume, without --shard."
        raise InputRejected(
            f"{out} must be a folder written by `samdistill infer`, and has no readable {RESULTS}.{cure}"
        ) from error
    except UnicodeDecodeError as error:
        raise InputRejected(f"{path} is damaged: {error}. Run infer again.") from error
    records: list[Record] = []
    names: list[str] | None = None
    for line_number, line in enumerate(lines, 1):
        record = _record(line, f"{path} must be what infer wrote, and is not in line {line_number}: ")
        if record["status"] == "ok":
            names = names or list(record["classes"])
            if list(record["classes"]) != names:
                raise InputRejected(
                    f"{path} must have the classes {', '.join(names)} throughout, and has others in line "
                    f"{line_number}."
                )
        records.append(record)
    if not records:
        raise InputRejected(f"{path} must hold at least one record, and is empty.")
    return records


def _record(line: str, refusal: str) -> Record:
    """One line; whatever else its record holds goes unread."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputRejected(f"{refusal}it is cut short or damaged.") from error
    if not isinstance(record, dict) or record.get("status") not in ("ok", "failed"):
        raise InputRejected(f"{refusal}its status must be ok or failed.")
    done = record["status"] == "ok"
    for key, check in (_NEEDED if done else {"input": _NEEDED["input"]}).items():
        if record.get(key) is None:
            raise InputRejected(f"{refusal}it lacks {key}.")
        if not check(record[key]):
            raise InputRejected(f"{refusal}its {key} cannot be.")
    for key, check in _OPTIONAL.items():
        if not _or_none(check)(record.get(key)):
            raise InputRejected(f"{refusal}its {key} cannot be.")
    if done and set(record["masks"]) not in ({"labels"}, {"segments"}, set(record["classes"])):
        raise InputRejected(f"{refusal}its masks are not those of its classes.")
    return record


def _text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _number(value: Any) -> bool:
    """A finite number: JSON as Python reads it has NaN, infinity, and integers too long for a float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _some(check: Check) -> Check:
    """A mapping of such values, at least one."""
    return lambda value: isinstance(value, dict) and len(value) > 0 and all(map(check, value.values()))


def _with(**checks: Check) -> Check:
    """A mapping with such values among others; a missing one is None."""
    return lambda value: (
        isinstance(value, dict) and all(check(value.get(key)) for key, check in checks.items())
    )


_NEEDED = {
    "input": _text,
    "masks": _some(_text),
    "classes": _some(_with(area_px=_count, max_probability=_number)),
    "latency_ms": _number,
}
_OPTIONAL = {
    "mode": _text,
    "bundle_sha256": _text,
    "input_sha256": _text,
    "images": _count,
    "overlay": _text,
    "files": _some(_text),
    "refined": lambda value: isinstance(value, dict),
    "routed": _with(refined=_count, why=_some(_count)),
    "quality": _with(
        flag=_or_none(_text),
        score=_or_none(_number),
        reasons=_or_none(lambda value: isinstance(value, list) and all(map(_text, value))),
        image=_or_none(_count),
        flags=_or_none(_some(_count)),
    ),
}
