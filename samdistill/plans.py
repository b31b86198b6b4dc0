"""TensorRT's plans for this machine: kept in a cache once proved, and found there, in a bundle, or built.

A plan belongs to its network, the library's version, the GPU and its driver; when any of these changes it is
built again, proved, and takes the old one's place. Opening a plan runs what is in it, so one is opened only
when the cache's records or the bundle's manifest hold its hash, and nobody else can write into the cache.
Knows no image; whoever opens a network for use proves it (`samdistill.proof`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from samdistill.bundle import Bundle
from samdistill.errors import BundleError, DeviceUnavailable, UsageError
from samdistill.io.files import write_bytes
from samdistill.manifest import EngineRecord, Part, TeacherRecord
from samdistill.profiles import profiles
from samdistill.runtime import Device, Network
from samdistill.runtime.cuda import Gpu, find_gpu, use
from samdistill.runtime.tensorrt import GENERATIONS, build, library_version


def cache_folder() -> Path:
    """Where what is made for this machine is kept: `samdistill` below XDG_CACHE_HOME or ~/.cache.

    As the XDG specification has it, a relative path counts as none.

    Raises
    ------
    UsageError
        When neither is known, as for a user whom the system does not know.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        return (base if base.is_absolute() else Path.home() / ".cache") / "samdistill"
    except RuntimeError as error:
        raise UsageError(
            "the cache folder must lie somewhere, and this user has no home folder. "
            "Set XDG_CACHE_HOME to the whole path of a folder that is writable."
        ) from error


@dataclass(frozen=True)
class Blueprint:
    """What a plan is made of, and for which GPU.

    Attributes
    ----------
    runtime, part, size, teacher
        As for `profiles`; runtime is one of runtime.PLANNED.
    sha256
        Of the network's files, graph first.
    gpu
        Of this machine.
    """

    runtime: str
    part: Part
    size: int
    teacher: TeacherRecord | None
    sha256: tuple[str, ...]
    gpu: Gpu

    @cached_property
    def key(self) -> dict[str, Any]:
        """What decides whether a plan does for this machine."""
        shapes = [dict(one.inputs) for one in profiles(self.part, size=self.size, teacher=self.teacher)]
        gpu = {name: value for name, value in asdict(self.gpu).items() if name != "index"}
        return {
            "network": list(self.sha256),
            "runtime": self.runtime,
            "version": library_version(self.runtime),
            **gpu,
            "shapes": hashlib.sha256(json.dumps(shapes).encode()).hexdigest(),
        }

    @property
    def record_file(self) -> Path:
        """Where the cache's record of its plan lies."""
        text = json.dumps(self.key, sort_keys=True).encode()
        return plans_folder() / f"{hashlib.sha256(text).hexdigest()[:32]}.json"

    def build(self, network: Network) -> bytes:
        """Make the plan for this machine's GPU; errors as for `runtime.tensorrt.build`."""
        timings = plans_folder() / f"timings-{self.key['version']}-{self.gpu.capability}.bin"
        known = timings.read_bytes() if timings.is_file() else b""
        use(self.gpu.index)
        plan, learned = build(
            self.runtime,
            network,
            profiles(self.part, size=self.size, teacher=self.teacher),
            generations=(generation(self.gpu),) if self.runtime == "tensorrt-rtx" else (),
            timings=known,
        )
        if learned:
            _write(timings, learned)
        return plan


def generation(gpu: Gpu) -> str:
    """Which of GENERATIONS a GPU belongs to.

    Raises
    ------
    DeviceUnavailable
        When TensorRT-RTX does not know it.
    """
    for name, capabilities in GENERATIONS.items():
        if gpu.capability in capabilities:
            return name
    raise DeviceUnavailable(
        f"the GPU must be one of {', '.join(GENERATIONS)} for tensorrt-rtx, not {gpu.name}. "
        "Use tensorrt, or --runtime onnxruntime."
    )


def plans_folder() -> Path:
    """The part of the cache that holds plans.

    Raises
    ------
    BundleError
        When others own it, or a link to it, or may do anything in it: then its records prove nothing.
    """
    folder = cache_folder() / "plans"
    if not hasattr(os, "getuid"):  # no POSIX: the system keeps a user's folders to that user
        return folder
    for place in (cache_folder(), folder):
        if place.is_symlink() and place.lstat().st_uid != os.getuid():
            raise _not_ours(folder, f"behind a link of user {place.lstat().st_uid}")
    if folder.exists():
        found = folder.stat()
        if found.st_uid != os.getuid() or found.st_mode & 0o077:
            mode = stat.S_IMODE(found.st_mode)
            raise _not_ours(folder, f"of user {found.st_uid} with the permissions {mode:03o}")
    return folder


def _not_ours(folder: Path, found: str) -> BundleError:
    return BundleError(
        f"{folder} must be your own folder, with the permissions 700, not {found}: opening a plan runs what "
        "is in it. Delete it, since plans are built again, or set XDG_CACHE_HOME to a folder of your own."
    )


@dataclass(frozen=True)
class Plan:
    """A plan that may be opened.

    Attributes
    ----------
    content
        Its bytes; their hash has been checked.
    proved
        Whether the bundle's golden cases came out on this machine.
    blueprint
        What it is made of.
    """

    content: bytes
    proved: bool
    blueprint: Blueprint

    def keep(self, proved_for: str | None = None) -> None:
        """Put it into the cache; what it replaces goes.

        Parameters
        ----------
        proved_for
            SHA-256 of the bundle whose golden cases came out; None: it is only not to be built again.

        Raises
        ------
        UsageError
            When the cache cannot be written.
        """
        sha256 = hashlib.sha256(self.content).hexdigest()
        record = self.blueprint.record_file
        before = _parse(record) if record.is_file() else {}
        proved = set(before.get("proved_for", ())) if before.get("sha256") == sha256 else set()
        _write(record.parent / f"{sha256}.plan", self.content)
        kept = {
            "key": self.blueprint.key,
            "sha256": sha256,
            "proved_for": sorted(proved | ({proved_for} if proved_for else set())),
        }
        _write(record, (json.dumps(kept, indent=1) + "\n").encode())
        old = before.get("sha256", sha256)
        if old != sha256 and not any(values["sha256"] == old for _, values in _records()):
            (record.parent / f"{old}.plan").unlink(missing_ok=True)
        mine = {name: self.blueprint.key[name] for name in ("network", "runtime", "name", "shapes")}
        for other, values in _records():
            if other != record and {name: values["key"].get(name) for name in mine} == mine:
                other.unlink(missing_ok=True)
                if values["sha256"] != sha256:
                    (record.parent / f"{values['sha256']}.plan").unlink(missing_ok=True)


def blueprint(bundle: Bundle, record: EngineRecord, device: str) -> Blueprint:
    """What one of a bundle's engines is made of here.

    Raises
    ------
    DeviceUnavailable
        When there is no such GPU, or the library is not installed.
    """
    manifest = bundle.manifest
    listed = {file.path: file.sha256 for file in manifest.files}
    sha256 = tuple(listed[path] for path in (record.file, record.data) if path is not None)
    gpu = find_gpu(Device.parse(device).index)
    return Blueprint(record.runtime, record.model, manifest.input.size, manifest.teacher, sha256, gpu)


def is_kept(bundle: Bundle, record: EngineRecord, device: str) -> bool:
    """Whether an engine has been proved on this machine, as it is now, by this bundle's golden cases.

    Another bundle may hold the same network and ask less of it, so what it proved counts for itself alone.

    Raises
    ------
    BundleError
        When the cache is not to be trusted, or damaged.
    """
    try:
        kept = blueprint(bundle, record, device).record_file
    except DeviceUnavailable:
        return False
    return kept.is_file() and bundle.sha256 in _parse(kept)["proved_for"]


def plan_for(bundle: Bundle, record: EngineRecord, device: str) -> Plan:
    """Find or build the plan of one of a bundle's engines: the cache's, the bundle's own, a new one.

    Raises
    ------
    DeviceUnavailable
        When library or GPU are missing.
    BundleError
        When a plan's hash is not what it was when it was kept or published, or none can be built; when the
        cache is not to be trusted.
    """
    wanted = blueprint(bundle, record, device)
    kept = _kept(wanted, bundle)
    if kept is not None:
        return kept
    travels = (
        record.plan is not None
        and record.plan_version == wanted.key["version"]
        and any(wanted.gpu.capability in GENERATIONS[name] for name in record.plan_gpus)
    )
    if travels and record.plan is not None:
        return Plan(bundle.read(record.plan), False, wanted)
    data = {} if record.data is None else {record.data: bundle.read(record.data)}
    network = Network(bundle.read(record.file), data, record.precision)
    return Plan(wanted.build(network), False, wanted)


def _kept(wanted: Blueprint, bundle: Bundle) -> Plan | None:
    record = wanted.record_file
    if not record.is_file():
        return None
    values = _parse(record)
    plan = record.parent / f"{values['sha256']}.plan"
    try:
        content = plan.read_bytes()
    except FileNotFoundError:  # somebody tidied up, or kept a newer one meanwhile
        return None
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != values["sha256"]:
        raise BundleError(
            f"{plan} must have the SHA-256 {values['sha256']}, not {sha256}: it was changed after it was "
            "kept, and is not opened. Delete it; it is built again."
        )
    return Plan(content, bundle.sha256 in values["proved_for"], wanted)


def _records() -> Iterator[tuple[Path, dict[str, Any]]]:
    for file in sorted(plans_folder().glob("*.json")):
        with contextlib.suppress(FileNotFoundError):  # replaced by somebody else meanwhile
            yield file, _parse(file)


def _parse(record: Path) -> dict[str, Any]:
    try:
        values = {"proved_for": [], **json.loads(record.read_bytes())}
        sound = isinstance(values["key"], dict) and isinstance(values["proved_for"], list)
        if sound and re.fullmatch("[0-9a-f]{64}", values["sha256"]):
            return values
    except (ValueError, KeyError, TypeError):
        pass
    raise BundleError(f"{record} is no record of a plan. Delete it; the plan is built again.")


def _write(file: Path, content: bytes) -> None:
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        plans_folder()  # somebody else may have been quicker
        write_bytes(file, content)
    except OSError as error:
        raise UsageError(
            f"{file.parent} cannot be written, where plans are kept: {error.strerror}. Free space, or set "
            "XDG_CACHE_HOME to a folder of your own."
        ) from error
