"""What is written for each file, where, and what an earlier run left there."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from samdistill._version import __version__
from samdistill.errors import UsageError
from samdistill.inference.records import RESULTS, Record
from samdistill.inference.sources import Source
from samdistill.io.files import remove_leftovers, sha256_file
from samdistill.io.stack import Format, format_of, stem
from samdistill.io.video import is_video
from samdistill.predictor import Mode, Predictor
from samdistill.routing import Budget
from samdistill.runtime import PACKAGES

FRAMES = "frames.csv"  # of a video, in the folder of its masks
OVERLAYS, PROBABILITIES, CONTOURS = "overlays", "probabilities", "contours"
SEGMENTS, LABELS = "segments", "labels"
SMALLEST_TILE_PX = 64


@dataclass(frozen=True)
class Options:
    """What is wanted of each file.

    Attributes
    ----------
    mode
        "fast", "refine" or "auto", as the bundle can.
    overlay, probabilities, contours, measurements
        Whether to write them beside the masks.
    png
        Masks as PNG whatever the input; it must then hold one image.
    tile_px
        Images of which a side is longer are cut into overlapping tiles of this side; None: never.
    budget
        How much mode "auto" may spend on the teacher, as `routing.Budget.parse` reads it; None: no limit.
    abstain
        Images with a lower score are flagged "reject"; None leaves it at the bundle's own threshold.
    stability
        Where the teacher is asked, ask once more with prompts moved a little.
    """

    mode: Mode = "fast"
    overlay: bool = False
    probabilities: bool = False
    contours: bool = False
    measurements: bool = False
    png: bool = False
    tile_px: int | None = None
    budget: str | None = None
    abstain: float | None = None
    stability: bool = False

    def __post_init__(self) -> None:
        if self.budget is not None and self.mode != "auto":
            raise UsageError(f"budget must be given with mode auto alone, not with {self.mode}.")
        self.parsed_budget()  # says now what is wrong with it
        if self.abstain is not None and not 0 <= self.abstain <= 1:
            raise UsageError(f"abstain must be a Dice, 0..1, not {self.abstain}.")
        if self.stability and self.mode == "fast":
            raise UsageError("stability must be asked for in mode refine or auto: it is the teacher's.")
        if self.tile_px is not None and self.tile_px < SMALLEST_TILE_PX:
            raise UsageError(f"tile must be at least {SMALLEST_TILE_PX} px, not {self.tile_px}.")
        if self.tile_px is not None and self.mode != "fast":
            raise UsageError(f"mode must be fast where tiles are cut, not {self.mode}.")

    def parsed_budget(self) -> Budget | None:
        """The budget as a predictor takes it."""
        return None if self.budget is None else Budget.parse(self.budget)

    def settings(self, predictor: Predictor) -> dict[str, str]:
        """Everything beside file and bundle that the outputs depend on, name -> value."""
        wanted = {key: json.dumps(value).strip('"') for key, value in asdict(self).items()}
        return {**wanted, **engines_of(predictor, self.mode), "samdistill": __version__}


def engines_of(predictor: Predictor, mode: Mode) -> dict[str, str]:
    """What computes in a mode: network -> its engine, and runtime -> the library's version."""
    found = {"student": predictor.engine}
    runtimes = {predictor.runtime}
    if predictor.asks_teacher(mode):
        for part, opened in predictor.teacher().parts.items():
            found[part] = str(opened)
            runtimes.add(opened.record.runtime)
    for runtime in sorted(runtimes):
        found[runtime] = str(getattr(sys.modules.get(PACKAGES[runtime]), "__version__", "unknown"))
    return found


def settings_sha256(settings: Mapping[str, str]) -> str:
    """Name a set of settings by its hash."""
    return hashlib.sha256(json.dumps(dict(sorted(settings.items()))).encode()).hexdigest()


@dataclass(frozen=True)
class Outputs:
    """Where the outputs of a file go, wanted or not.

    Attributes
    ----------
    masks
        Class name -> file where classes may overlap, else "labels" -> the one file; of DICOM "segments".
    probabilities
        Class name, or "segments", -> file.
    overlay, contours
        Files.
    """

    masks: dict[str, Path]
    probabilities: dict[str, Path]
    overlay: Path
    contours: Path

    @property
    def files(self) -> tuple[Path, ...]:
        """All of them."""
        return *self.masks.values(), *self.probabilities.values(), self.overlay, self.contours

    def wanted(self, options: Options) -> tuple[Path, ...]:
        """Those that are written if all goes well."""
        return (
            *self.masks.values(),
            *(self.probabilities.values() if options.probabilities else ()),
            *((self.overlay,) if options.overlay else ()),
            *((self.contours,) if options.contours else ()),
        )

    def remove(self) -> None:
        """Remove what is there of them."""
        for file in self.files:
            _remove(file)


def _remove(file: Path) -> None:
    """Remove an output, or a video's folder of them, where it is there."""
    try:
        file.unlink()
    except FileNotFoundError:
        pass
    except (IsADirectoryError, PermissionError):
        if (file / FRAMES).is_file():
            shutil.rmtree(file)
        elif not file.is_dir():
            raise
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # such a one cannot be there
            raise


def kind_of(path: Path) -> Format | Literal["video"] | None:
    """Tell by its name what a file is."""
    return "video" if is_video(path) else format_of(path)


def outputs_of(
    relative: PurePosixPath,
    kind: Format | Literal["video"],
    out: Path,
    predictor: Predictor,
    options: Options,
) -> Outputs:
    """Name the outputs of a file of this kind; a video's masks are folders, with the suffix the file has."""
    name = stem(str(relative))
    of_maps = {"picture": ".png", "nifti": ".nii", "dicom": ".dcm", "video": ""}[kind]
    if relative.name.lower().endswith(".nii.gz"):
        of_maps = ".nii.gz"
    suffix = ".png" if options.png and kind != "video" else of_maps
    if suffix == ".dcm":
        masks = {SEGMENTS: out / f"{name}.dcm"}
    elif predictor.manifest.multi_label:
        masks = {label: out / label / f"{name}{suffix}" for label in predictor.class_names}
    else:
        masks = {LABELS: out / f"{name}{suffix}"}
    if of_maps == ".dcm":
        maps = {SEGMENTS: out / PROBABILITIES / f"{name}.dcm"}
    else:
        maps = {label: out / PROBABILITIES / label / f"{name}{of_maps}" for label in predictor.class_names}
    return Outputs(masks, maps, out / OVERLAYS / f"{name}.png", out / CONTOURS / f"{name}.geojson")


def plan(
    sources: Sequence[Source], out: Path, predictor: Predictor, options: Options
) -> dict[Source, Outputs]:
    """Decide where the outputs of each file go.

    Raises
    ------
    UsageError
        When two files would write one, or a file would be written over.
    """
    readable = [source for source in sources if source.problem is None]
    taken: dict[Path, Source] = {}
    inputs = {source.path.resolve(): source for source in readable}
    # A link is an input as the file that it leads to is.
    inputs |= {source.path.parent.resolve() / source.path.name: source for source in readable}
    outputs: dict[Source, Outputs] = {}
    folders: dict[
        Path, Path
    ] = {}  # as they are named -> as they are; a link in them is replaced, not followed
    for source in readable:
        kind = kind_of(source.path) or "picture"
        outputs[source] = outputs_of(source.relative, kind, out, predictor, options)
        for file in outputs[source].files:
            other = taken.get(file)
            if other is source:
                raise UsageError(
                    f"no class may be named {file.relative_to(out).parts[0]!r}: its masks would lie where "
                    "other outputs do. Rename the class and export the run again."
                )
            if other is not None:
                raise UsageError(
                    f"{other.path} and {source.path} must not have one output: both would write {file}. "
                    "Rename one, or segment them into two folders."
                )
            taken[file] = source
            folder = folders.get(file.parent)
            if folder is None:
                folder = folders[file.parent] = file.parent.resolve()
            over = inputs.get(folder / file.name)
            if over is not None:
                raise UsageError(f"--out must not lead to an input: {over.path} would be written over.")
    for folder in folders:
        above = next((one for one in (folder, *folder.parents) if one in taken), None)
        if above is not None:
            inner = next(source for file, source in taken.items() if file.parent == folder)
            raise UsageError(
                f"{taken[above].path} and {inner.path} must not have one output: {above} would be the "
                "one's mask and a folder of the other's. Rename one, or segment them into two folders."
            )
    return outputs


def require_own(outputs: Mapping[Source, Outputs], out: Path, written: Mapping[str, str]) -> None:
    """Refuse to write over what earlier runs cannot have written.

    `infer DATA --out DATA/masks` would replace masks that somebody drew: they lie where outputs go.

    Parameters
    ----------
    outputs
        Of the files that are to be segmented.
    written
        As `records.earlier_files` finds it.

    Raises
    ------
    UsageError
        When a file is in the way that no list of a run names.
    """
    for planned in outputs.values():
        for file in planned.files:
            if os.path.lexists(file) and file.relative_to(out).as_posix() not in written:
                raise UsageError(
                    f"--out must not hold {file.relative_to(out)}, which no run wrote, as far as {RESULTS} "
                    "tells: it would be lost. Name another folder, or move it away."
                )


def require_all(sources: Sequence[Source], out: Path, written: Mapping[str, str]) -> None:
    """Refuse to forget inputs of earlier runs whose outputs would stay.

    Nothing would tell any more how far to trust these: results.jsonl is of the inputs that are named.

    Parameters
    ----------
    sources
        All that are named, in this shard or not.
    written
        As `records.earlier_files` finds it.

    Raises
    ------
    UsageError
        When there are such inputs.
    """
    named = {str(source.relative) for source in sources}
    named.update(source.path.name for source in sources if source.problem is not None)
    for file, name in written.items():
        if name not in named and os.path.lexists(out / file):
            raise UsageError(
                f"--out must not hold {file}, which an earlier run made of {name}, unless that is named too: "
                f"{RESULTS} would tell of it no more. Name another folder or all earlier inputs, or remove "
                "what was made of the others."
            )


def require_apart(outputs: Mapping[Source, Outputs], known: Path) -> None:
    """Refuse outputs that differ in upper and lower case alone where the file system takes them for one.

    Network shares and disks of Windows and macOS do; `known` is a file that is there, with small letters.

    Raises
    ------
    UsageError
        When one output would replace another.
    """
    if not known.with_name(known.name.upper()).exists():
        return
    taken: dict[str, Source] = {}
    for source, planned in outputs.items():
        for file in planned.files:
            other = taken.setdefault(str(file).casefold(), source)
            if other is not source:
                raise UsageError(
                    f"{other.path} and {source.path} must not have one output: to {known.parent} their names "
                    "are the same. Rename one, or write to a disk that tells upper from lower case."
                )


def still_holds(record: Record | None, source: Source, out: Path, bundle_sha256: str, settings: str) -> bool:
    """Whether an earlier record is of these very bytes, bundle and settings, and its files are whole."""
    if record is None or (record.bundle_sha256, record.settings_sha256) != (bundle_sha256, settings):
        return False
    try:
        if sha256_file(source.path) != record.input_sha256:
            return False
        return all(sha256_file(out / file) == sha256 for file, sha256 in (record.files or {}).items())
    except OSError:
        return False


def remove_stale(
    sources: Sequence[Source], outputs: Mapping[Source, Outputs], out: Path, predictor: Predictor,
    options: Options, earlier: Mapping[str, Record], written: Mapping[str, str],
) -> None:  # fmt: skip
    """Remove what earlier runs left under the names of these sources, and half files of killed ones.

    Of a file that is missing now the outputs go too, so that they do not stay beside its failure; but never a
    file that is an input, that another input's output is to be, or that no run wrote. What an earlier run
    wrote elsewhere, with other options or another bundle, goes by its record.

    Parameters
    ----------
    sources
        Those to be segmented.
    outputs
        Of all sources, in this shard or not, kept or not.
    earlier, written
        As `records.earlier_records` and `records.earlier_files` find them.
    """
    found = [record for source in sources if (record := earlier.get(str(source.relative))) is not None]
    missing = [source for source in sources if source not in outputs]
    if found or missing:
        # However they were named: what an old record calls its output may be an input by now.
        spared = {source.path.resolve() for source in (*sources, *outputs)}
        spared.update(file for one in outputs.values() for file in one.files)
        for record in found:
            _remove_recorded(record, out, spared)
        for source in missing:
            kind = kind_of(source.path)
            if kind is not None:
                for file in outputs_of(PurePosixPath(source.path.name), kind, out, predictor, options).files:
                    ours = file.relative_to(out).as_posix() in written
                    if ours and not spared & {file, file.resolve()}:
                        _remove(file)
    names: dict[Path, set[str]] = {}
    for source in sources:
        if source in outputs:
            outputs[source].remove()
            for file in outputs[source].files:
                names.setdefault(file.parent, set()).add(file.name)
    for folder, known in names.items():
        remove_leftovers(folder, known)


def _remove_recorded(record: Record, out: Path, spared: Collection[Path]) -> None:
    """Remove the files of a record that still are what it says; a list may come from anywhere."""
    root = out.resolve()
    for name, sha256 in (record.files or {}).items():
        file = out / name
        if file in spared or file.parent in spared:
            continue
        with contextlib.suppress(OSError, ValueError):
            real = file.resolve()
            if real in spared:
                continue
            if real.is_relative_to(root) and sha256_file(file) == sha256:
                file.unlink()
                if file.parent != out:
                    file.parent.rmdir()  # a video's, once it is empty
