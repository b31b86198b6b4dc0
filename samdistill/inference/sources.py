"""Which files are to be segmented: files, folders, patterns; and one machine's part of them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from samdistill.errors import UsageError
from samdistill.inference.records import AUDIT, is_list
from samdistill.io.dataset_toml import DATASET_TOML
from samdistill.io.files import walk_visible
from samdistill.io.stack import format_of
from samdistill.io.video import is_video

# Pictures and videos by their names, though no reader's: they are tried, and fail, rather than be left out.
_OTHERS = (
    ".jpe",
    ".jfif",
    ".jp2",
    ".j2k",
    ".j2c",
    ".jpx",
    ".gif",
    ".webp",
    ".heic",
    ".heif",
    ".avif",
    ".tga",
    ".ppm",
    ".pgm",
    ".pbm",
    ".pnm",
    ".mha",
    ".mhd",
    ".nrrd",
    ".hdr",
    ".img",
    ".mgz",
    ".svs",
    ".ndpi",
    ".mts",
    ".m2ts",
    ".vob",
    ".flv",
    ".3gp",
    ".ogv",
    ".asf",
)
_PACKET, _SYNC = 188, b"G"  # an MPEG transport stream's, and what each begins with (ISO/IEC 13818-1, 2.4.3.2)


@dataclass(frozen=True)
class Source:
    """One file to segment.

    Attributes
    ----------
    path
        The file.
    relative
        What its outputs are named after: its path below the folder it was found in, or below the fixed part
        of the pattern; its name where it was given itself.
    problem
        Why there is nothing to read; None where there is.
    """

    path: Path
    relative: PurePosixPath
    problem: str | None = None


@dataclass(frozen=True)
class Shard:
    """One of several parts of the inputs: every `count`-th, starting with the `index`-th of 1..count."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read "i/n".

        Raises
        ------
        UsageError
            When it is none, or i is not one of 1..n.
        """
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise UsageError(f"shard must be i/n with i one of 1..n, as 1/4, not {text!r}.")
        return cls(int(match[1]), int(match[2]))

    def of(self, sources: Sequence[Source]) -> list[Source]:
        """The part."""
        return list(sources[self.index - 1 :: self.count])

    def __str__(self) -> str:
        return f"{self.index}-of-{self.count}"


def gather(inputs: Sequence[str], out: Path) -> list[Source]:
    """Find the files.

    Parameters
    ----------
    inputs
        Files, folders (searched through, hidden names left out; of a data folder, which has masks/,
        dataset.toml or nothing else to segment beside them, its images/) and patterns with * ? [ ] or **.
    out
        The output folder; what lies in it is no input.

    Returns
    -------
    list
        In the order given, folders and patterns sorted; each file once. An input that is nothing, holds no
        picture, or is a link to a folder within another, is there with its `problem`, and so is a folder that
        cannot be listed.
    """
    sources: dict[tuple[Path, PurePosixPath], Source] = {}
    for text in inputs:
        if not text:
            raise UsageError("an input must have a name, not none; the current folder is called '.'.")
        try:
            found = _sources_of(text, out)
        except PermissionError as error:  # it lies in a folder that may not be entered
            found = [Source(Path(text), PurePosixPath(text), f"{text} cannot be read: {error.strerror}.")]
        for source in found:
            there = source.path.resolve() if os.path.exists(source.path) else source.path  # noqa: PTH110
            sources.setdefault((there, source.relative), source)
    return list(sources.values())


def _sources_of(text: str, out: Path) -> list[Source]:
    """What one input stands for."""
    inside = out.resolve()
    given, unread, matches = Path(text), dict[Path, str](), list[Path]()
    if given.is_dir():
        root = root_of(given, out)
        found = [*_walk(root, unread), *unread]
    elif given.exists():
        root, found = given.parent, [given]
    else:
        root, pattern = _split_pattern(given)
        matches = sorted(root.glob(pattern)) if pattern else []
        found = [file for file in matches if not _is_folder(file) and _is_input(file, file.relative_to(root))]
        if "**" in pattern:  # which passes over what it cannot list, and over links to folders
            found += [*_walk(root, unread, files=False), *unread]
    listed = found
    if not given.is_file():
        found = [file for file in listed if not file.resolve().is_relative_to(inside)]
    if not found:
        problem = f"{text} holds no picture." if given.is_dir() else f"{text} does not exist."
        if listed:
            problem = f"{text} holds nothing but what lies in the output folder. Name another --out."
        elif matches:
            problem = f"{text} matches no picture. A folder must be named itself, or its files as DIR/**/*."
        return [Source(given, PurePosixPath(text), problem)]
    linked = {
        file: f"{file} is a link to a folder, which is not followed." for file in found if _is_folder(file)
    }
    return [
        Source(file, PurePosixPath(file.relative_to(root).as_posix()), unread.get(file, linked.get(file)))
        for file in found
    ]


def _walk(root: Path, unread: dict[Path, str], *, files: bool = True) -> list[Path]:
    """The inputs below a folder, and the links to folders, which nobody may overlook; these alone on request.

    What cannot be listed goes into `unread`, with the reason.
    """
    found = []

    def cannot(error: OSError) -> None:
        unread[Path(error.filename)] = f"{error.filename} cannot be read: {error.strerror}."

    for base, folders, names in walk_visible(root, cannot):
        if files:
            found += [base / name for name in names if _is_input(base / name, Path(name))]
        found += [base / name for name in folders if (base / name).is_symlink()]
    return found


def _is_input(path: Path, relative: Path) -> bool:
    """Whether a file's name or content says so, or it cannot be read, and nothing says that it is none."""
    if any(part.startswith(".") for part in relative.parts):
        return False
    if path.name.lower().endswith(_OTHERS) or _is_transport_stream(path):
        return True
    unknown = not path.suffix or path.suffix[1:].isdigit()  # as DICOM on a disc: IM0002, 1.2.840.10008
    return is_video(path) or format_of(path) is not None or (unknown and not os.access(path, os.R_OK))


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112  # False in a folder that may not be entered, where pathlib raises


def _is_transport_stream(path: Path) -> bool:
    """Whether a file called .ts is a recording: so are programs and translations."""
    try:
        if path.suffix.lower() != ".ts" or not path.is_file():
            return False
        with path.open("rb") as file:
            start = file.read(_PACKET + 1)
    except OSError:
        return True
    return start[:1] == start[_PACKET:] == _SYNC


def root_of(folder: Path, out: Path | None = None) -> Path:
    """Where a folder's pictures lie: in its images/ if it is a data folder, else anywhere in it.

    Parameters
    ----------
    folder
        What was named.
    out
        The output folder, whose pictures are no inputs.
    """
    images = folder / "images"
    if not _is_folder(images):  # or the folder may not be entered, which shows when it is gone through
        return folder
    if (folder / "masks").is_dir() or (folder / DATASET_TOML).is_file() or _is_alone(images, out):
        return images
    return folder


def _is_alone(images: Path, out: Path | None) -> bool:
    """Whether nothing is to be segmented beside images/, which may be called so by chance.

    What lies in the output folder, or in one that a run wrote to, does not count.
    """
    unread: list[OSError] = []
    for base, folders, names in walk_visible(images.parent, unread.append):
        if base == images.parent:
            folders.remove(images.name)
        if (out is not None and base.resolve() == out.resolve()) or any(is_list(one, AUDIT) for one in names):
            folders.clear()
        elif any(_is_input(base / one, Path(one)) for one in names) or any(
            (base / one).is_symlink() for one in folders
        ):
            return False
    return not unread


def _split_pattern(path: Path) -> tuple[Path, str]:
    """The folders before the first part with a wildcard, and the rest; an empty rest where there is none."""
    for place, part in enumerate(path.parts):
        if any(sign in part for sign in "*?[") and not Path(*path.parts[: place + 1]).exists():
            return Path(*path.parts[:place]), "/".join(path.parts[place:])
    return path.parent, ""
