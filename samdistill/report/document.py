"""A report: sections of HTML in one file that needs nothing else, online or off.

Text is escaped where it enters (`escape`, `table`, `facts`), the page's own policy allows no script but the
one it carries and no address but data URIs, and the file appears whole or not at all. Knows no metric.
"""

from __future__ import annotations

import base64
import hashlib
import html
import math
import os
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from samdistill._version import __version__
from samdistill.errors import UsageError
from samdistill.io.files import write_bytes

HERE = Path(__file__).parent
LONG = 38  # characters of a fact that takes a line to itself: a hash, a list
_MARK = b'name="generator" content="samdistill'  # of a report, near its beginning


@dataclass(frozen=True)
class Section:
    """A part of a report.

    Parameters
    ----------
    title
        Plain text; also the section's entry in the page's contents.
    body
        HTML. Whoever builds it has escaped what came from outside: use the builders of this package.
    """

    title: str
    body: str


def write_report(path: Path, title: str, sections: Sequence[Section], *, subtitle: str = "") -> None:
    """Write a report as one HTML file.

    Parameters
    ----------
    path
        Where; an older report there is replaced, at once and only by a complete one.
    title, subtitle
        Plain text above everything.
    sections
        In the order of the page.

    Raises
    ------
    UsageError
        As `check_report_place` does.
    """
    check_report_place(path)
    anchors = _anchors([section.title for section in sections])
    contents = "".join(
        f'<a href="#{anchor}">{escape(section.title)}</a>'
        for anchor, section in zip(anchors, sections, strict=True)
    )
    body = "\n".join(
        f'<section id="{anchor}"><h2>{escape(section.title)}</h2>{section.body}</section>'
        for anchor, section in zip(anchors, sections, strict=True)
    )
    script = (HERE / "report.js").read_text(encoding="utf-8")
    page = string.Template((HERE / "report.html").read_text(encoding="utf-8")).substitute(
        title=escape(title),
        subtitle=f"<p>{escape(subtitle)}</p>" if subtitle else "",
        contents=contents,
        body=body,
        style=(HERE / "report.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        version=__version__,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, page.encode())


def check_report_place(path: Path) -> None:
    """Refuse a place where a report would replace something else or cannot be written, before any work.

    Raises
    ------
    UsageError
        When something else than an older report or an empty file is there, or no file can be made there.
    """
    if path.is_dir():
        raise UsageError(f"{path} must be the report's file, not a folder. Name a file in it.")
    is_file = path.is_file() and not path.is_symlink()
    if os.path.lexists(path) and not (is_file and (path.stat().st_size == 0 or is_report(path))):
        raise UsageError(
            f"{path} must be a new file, an empty one or a report to replace, and is something else. "
            "Name another."
        )
    folder = next(one for one in path.absolute().parents if one.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{folder} must be a folder that allows writing, to put the report {path} in.")


def is_report(path: Path, title: str = "") -> bool:
    """Whether a file is a report of samdistill's, of any version, and its title begins so."""
    with path.open("rb") as page:
        start = page.read(1024)
    return _MARK in start and (not title or f"<title>{escape(title)}".encode() in start)


def escape(text: object) -> str:
    """Text as HTML shows it, in an element or a quoted attribute: nothing in it is markup any more."""
    # Surrogates are what undecodable file names carry; they have no UTF-8.
    return html.escape(str(text).encode("utf-8", "replace").decode("utf-8"), quote=True)


def number(value: float | None, digits: int = 3) -> str:
    """A number for people; an en dash where there is none (None, NaN, infinity)."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.{digits}f}"


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str = "") -> str:
    """A table of plain text and a note below it; the first column names its row, the others hold numbers."""
    for row in rows:
        if len(row) != len(headers):
            raise ValueError(f"rows must have {len(headers)} cells, one a header, not {len(row)}.")
    head = "".join(f'<th scope="col">{escape(header)}</th>' for header in headers)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    told = paragraph(caption) if caption else ""
    cells = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="scroll"><table>{cells}</table></div>{told}'


def facts(values: Mapping[str, object]) -> str:
    """Names and values, nested mappings flattened with dots: what a run or a bundle says of itself."""
    rows = "".join(
        f'<div class="{"wide" if len(name + value) > LONG else "short"}"><dt>{escape(name)}</dt>'
        f"<dd>{escape(value)}</dd></div>"
        for name, value in _flatten(values)
    )
    return f'<dl class="facts">{rows}</dl>'


def _flatten(values: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    flat: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat += _flatten(value, f"{name}.")
        elif isinstance(value, list | tuple):
            flat.append((name, ", ".join(str(one) for one in value) or "–"))
        else:
            flat.append((name, _plain(value)))
    return flat


def _plain(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _anchors(titles: Sequence[str]) -> list[str]:
    """An id for each title: readable, and never twice the same."""
    return [
        f"s{number}-{re.sub('[^a-z0-9]+', '-', title.lower()).strip('-')}".rstrip("-")
        for number, title in enumerate(titles, 1)
    ]
