"""TensorRT's engines of a bundle, built from graphs that have passed the gate.

With a GPU they pass it too. TensorRT-RTX builds without one as well; what it built then is listed as
unverified, and stays so until golden cases come out on a machine with such a GPU. Knows neither student nor
teacher: what is on trial brings its own measure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from samdistill.bundle import Bundle
from samdistill.engines import open_record
from samdistill.errors import BundleError, DeviceUnavailable, UsageError
from samdistill.export.ladder import OnTrial, Proved, allowances, ranked
from samdistill.manifest import EngineRecord, TeacherRecord
from samdistill.plans import Blueprint, Plan, plans_folder
from samdistill.profiles import profiles
from samdistill.runtime import PLANNED, Engine, Network, is_installed, open_engine
from samdistill.runtime.cuda import Gpu, find_gpu
from samdistill.runtime.tensorrt import GENERATIONS, build, library_version
from samdistill.verify import engine_results

FLAVORS = {"standard": "tensorrt", "rtx": "tensorrt-rtx"}
USUAL = ("ampere", "ada", "blackwell")
"""Generations that TensorRT-RTX builds for where none is named."""
PRECISIONS = ("fp32", "fp16", "mixed")
"""Whose graphs it reads: its int8 has no zero points, and bf16 is in no graph."""


@dataclass(frozen=True)
class Planned:
    """Which of the two libraries builds, and for what; make one with `wanted`.

    Attributes
    ----------
    runtime, version
        "tensorrt" or "tensorrt-rtx".
    generations
        For TensorRT-RTX.
    gpu
        Of this machine; None: what is built cannot be run here.
    """

    runtime: str
    version: str
    generations: tuple[str, ...]
    gpu: Gpu | None

    @property
    def runs_here(self) -> bool:
        """Whether what is built runs on this machine."""
        if self.gpu is None or self.runtime == "tensorrt":
            return self.gpu is not None
        return any(self.gpu.capability in GENERATIONS[name] for name in self.generations)

    def __str__(self) -> str:
        name = f"{self.runtime} {self.version}"
        if self.runtime == "tensorrt":
            assert self.gpu is not None
            return f"{name} for {self.gpu.name}"
        return f"{name} for {', '.join(self.generations)}" + (
            "" if self.runs_here else "; unverified, since no such GPU is here"
        )


def wanted(flavor: str | None = None, gpus: str | None = None) -> Planned:
    """Find out what can be built here.

    Parameters
    ----------
    flavor
        Key of FLAVORS; None takes the first of the two that is installed.
    gpus
        Keys of GENERATIONS with commas between, for TensorRT-RTX; None takes USUAL.

    Raises
    ------
    UsageError
        For an unknown flavor or generation, and generations for TensorRT.
    DeviceUnavailable
        When the library is not installed, or TensorRT has no GPU to build on.
    BundleError
        When the cache that keeps what is built is not this user's alone.
    """
    if flavor is None:
        runtime = next((name for name in PLANNED if is_installed(name)), None)
        if runtime is None:
            raise DeviceUnavailable(
                "tensorrt or tensorrt-rtx must be installed for --trt. Run: pip install "
                "'samdistill[tensorrt-rtx]', which builds engines without a GPU too, or, beside the GPU they "
                "are for, 'samdistill[tensorrt]'."
            )
    elif flavor in FLAVORS:
        runtime = FLAVORS[flavor]
    else:
        raise UsageError(f"trt-flavor must be one of {', '.join(FLAVORS)}, not {flavor!r}.")
    names = USUAL if gpus is None else tuple(dict.fromkeys(name.strip() for name in gpus.split(",")))
    unknown = [name for name in names if name not in GENERATIONS]
    if unknown:
        raise UsageError(f"gpu must be some of {', '.join(GENERATIONS)}, not {unknown[0]!r}.")
    if "turing" in names and len(names) > 1:
        raise UsageError(
            f"turing must be named alone in gpu, not with {' and '.join(set(names) - {'turing'})}: what it "
            "cannot do (fp32 matrix products) would be built for none of them."
        )
    if gpus is not None and runtime == "tensorrt":
        raise UsageError(
            "gpu must not be given for tensorrt, which builds for the GPU of this machine. "
            "Use --trt-flavor rtx."
        )
    version = library_version(runtime)
    try:
        gpu = find_gpu()
    except DeviceUnavailable as error:
        if runtime == "tensorrt":
            raise DeviceUnavailable(
                f"tensorrt must have the GPU that its engines are for: {error} TensorRT-RTX builds without "
                "one: --trt-flavor rtx, after pip install 'samdistill[tensorrt-rtx]'."
            ) from error
        gpu = None
    if gpu is not None:
        plans_folder()  # before any work
    return Planned(runtime, version, names if runtime == "tensorrt-rtx" else (), gpu)


def with_plans(
    trial: OnTrial,
    proved: Proved,
    planned: Planned,
    *,
    size: int,
    teacher: TeacherRecord | None,
    floor: tuple[float, float],
    say: Callable[[str], None],
) -> Proved:
    """Build an engine of each graph that passed, and add those that pass themselves or cannot be run here.

    Parameters
    ----------
    size, teacher
        As for `profiles`.
    floor, say
        As for `ladder.climb`.
    """
    files, reports = dict(proved.files), list(proved.reports)
    passed: list[tuple[EngineRecord, Engine]] = []
    waiting: list[EngineRecord] = []
    for one in proved.engines:
        if one.runtime != "onnxruntime" or one.precision not in PRECISIONS:
            continue
        say(f"building the {trial.part} in {one.precision} with {planned}")
        network = Network(proved.files.get(one.file, trial.content), trial.data, one.precision)
        graph = (network.content, *network.data.values())
        sha256 = tuple(hashlib.sha256(content).hexdigest() for content in graph)
        try:
            made = _made(trial, network, sha256, planned, size=size, teacher=teacher)
        except (BundleError, DeviceUnavailable) as error:
            say(f"{trial.part} {one.precision} stays out: {error}")
            continue
        record = replace(
            one,
            runtime=planned.runtime,  # type: ignore[arg-type]
            device="cuda",
            parity={},
            verified=False,
            latency_ms=None,
        )
        if planned.runtime == "tensorrt-rtx":
            path = f"{trial.part}.{one.precision}.{planned.runtime}.plan"
            record = replace(
                record,
                plan=path,
                plan_gpus=planned.generations,  # type: ignore[arg-type]
                plan_version=planned.version,
            )
        if isinstance(made, bytes):
            assert record.plan is not None
            files[record.plan] = made
            waiting.append(record)
            continue
        device = f"cuda:{made.blueprint.gpu.index}"
        try:  # fp16 may overflow on a GPU, and nothing else: the rest is published
            engine = open_engine(made.content, device=device, runtime=planned.runtime)
            report = trial.measure(engine, one.precision)
            if report.failures():
                reports.append(report)
                reasons = "; ".join(report.failures())
                name = f"{trial.part} {one.precision} in {report.runtime}"
                say(f"{name} fails the gate and stays out: {reasons}")
                continue
            difference, changed = allowances(trial, engine, one.precision, floor)
        except (BundleError, DeviceUnavailable, MemoryError) as error:
            say(f"{trial.part} {one.precision} in {planned.runtime} stays out: {error}")
            continue
        reports.append(report)
        made.keep()
        if record.plan is not None:
            files[record.plan] = made.content
        record = replace(
            record,
            parity=report.to_dict(),
            verified=report.verified,
            max_probability_difference=difference,
            max_changed_pixels=changed,
        )
        passed.append((record, engine))
    waiting.sort(key=lambda record: PRECISIONS.index(record.precision), reverse=True)
    return Proved(files, (*proved.engines, *ranked(trial, passed), *waiting), tuple(reports))


def prove_for(bundle: Bundle) -> None:
    """Hold the engines that passed the gate on this machine's GPU against the bundle's golden cases too.

    Their plans are in the cache, and from here on as proved for this very bundle.

    Raises
    ------
    BundleError
        When a case comes out otherwise.
    """
    for one in bundle.manifest.engines:
        if one.device == "cuda" and one.parity:
            engine_results(bundle, open_record(bundle, one, device="cuda"), "cuda")


def _made(
    trial: OnTrial,
    network: Network,
    sha256: tuple[str, ...],
    planned: Planned,
    *,
    size: int,
    teacher: TeacherRecord | None,
) -> Plan | bytes:
    """Build: a plan of this machine, or bytes that only another can open."""
    shapes = profiles(trial.part, size=size, teacher=teacher)
    if planned.gpu is None or not planned.runs_here:
        plan, _ = build(planned.runtime, network, shapes, generations=planned.generations)
        return plan
    blueprint = Blueprint(planned.runtime, trial.part, size, teacher, sha256, planned.gpu)
    if planned.runtime == "tensorrt":
        return Plan(blueprint.build(network), False, blueprint)
    plan, _ = build(planned.runtime, network, shapes, generations=planned.generations)
    return Plan(plan, False, blueprint)
