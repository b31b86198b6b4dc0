"""Frozen dataclasses from TOML and back: strict about every key and type. Knows no single configuration."""

from __future__ import annotations

import dataclasses
import json
import tomllib
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from samdistill.errors import UsageError

T = TypeVar("T")


def load_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file into a plain dict.

    Raises
    ------
    UsageError
        When the file is missing or is not TOML; the message has the line.
    """
    try:
        return tomllib.loads(decode(path.read_bytes()))
    except OSError as error:
        raise UsageError(f"cannot read the configuration {path}: {error.strerror}.") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is not valid TOML: {error}.") from error
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from error


def decode(content: bytes) -> str:
    """Decode a text that people wrote: UTF-8, with or without the byte order mark that Windows puts first.

    Raises
    ------
    ValueError
        With the line and the cure, when it is in another encoding.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line} must be UTF-8 text, and is not. Save the file as UTF-8.") from error


def build(cls: type[T], values: dict[str, Any], *, where: str = "configuration") -> T:
    """Make a dataclass of plain values, nested dataclasses included.

    Parameters
    ----------
    cls
        A dataclass; fields may be int, float, str, bool, `Literal`, `X | None`, unions of these,
        `tuple[X, ...]`, `dict[str, X]`, `Any` or dataclasses.
    values
        Keys are field names; an int is accepted where a float is wanted.
    where
        What the values are, for messages.

    Raises
    ------
    UsageError
        For an unknown key, a wrong type, a missing field, or what the dataclass itself refuses.
    """
    hints = typing.get_type_hints(cls)
    known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - known)
    if unknown:
        raise UsageError(
            f"{where} has the unknown key {unknown[0]!r}; it may have {', '.join(sorted(known))}."
        )
    try:
        return cls(**{key: _convert(hints[key], value, f"{where}.{key}") for key, value in values.items()})
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where}: {error}") from error


def to_dict(config: object) -> dict[str, Any]:
    """The plain values of a dataclass, tuples as lists, fields that are None left out (TOML has no null)."""
    plain: dict[str, Any] = {}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        if value is not None:
            plain[field.name] = _plain(value)
    return plain


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def to_toml(values: dict[str, Any], *, prefix: str = "") -> str:
    """Plain values, as `to_dict` gives them, as TOML: single values first, then their tables."""
    lines = [
        f"{key} = {json.dumps(value, ensure_ascii=False)}"
        for key, value in values.items()
        if not isinstance(value, dict)
    ]
    tables = [
        f"\n[{prefix}{key}]\n{to_toml(value, prefix=f'{prefix}{key}.')}"
        for key, value in values.items()
        if isinstance(value, dict)
    ]
    return "".join(f"{line}\n" for line in lines) + "".join(tables)


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise UsageError(f"{where} must be a table, not {value!r}.")
        return build(hint, value, where=where)
    if typing.get_origin(hint) in (types.UnionType, typing.Union):  # | of two Literals is the latter
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        for option in options:
            try:
                return _convert(option, value, where)
            except UsageError as error:
                if dataclasses.is_dataclass(option) and isinstance(value, dict):
                    raise error
        raise UsageError(f"{where} must be {hint}, not {value!r}.")
    if typing.get_origin(hint) is typing.Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            raise UsageError(f"{where} must be one of {', '.join(map(repr, choices))}, not {value!r}.")
        return value
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise UsageError(f"{where} must be a list, not {value!r}.")
        return tuple(_convert(typing.get_args(hint)[0], item, where) for item in value)
    if typing.get_origin(hint) is dict:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise UsageError(f"{where} must be a table, not {value!r}.")
        item = typing.get_args(hint)[1]
        return {key: _convert(item, each, f"{where}.{key}") for key, each in value.items()}
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    raise UsageError(f"{where} must be {getattr(hint, '__name__', hint)}, not {value!r}.")
