"""Which of a bundle's engines runs a network here: the fastest that was proved and can be had.

Knows no image; the libraries are behind `runtime`.
"""

from __future__ import annotations

from dataclasses import dataclass

from samdistill import plans
from samdistill.bundle import Bundle
from samdistill.errors import BundleError, DeviceUnavailable, UsageError
from samdistill.manifest import EngineRecord, Part
from samdistill.plans import Plan
from samdistill.runtime import PLANNED, RUNTIMES, Device, Engine, is_installed, open_engine
from samdistill.runtime.cuda import find_gpu


@dataclass(frozen=True)
class OpenedPart:
    """A network that runs.

    Attributes
    ----------
    engine
        Opened.
    record
        Which of the manifest's engines it is.
    plan
        What was opened, for TensorRT's engines: to be proved before it is used, unless it has been.
    """

    engine: Engine
    record: EngineRecord
    plan: Plan | None = None

    def __str__(self) -> str:
        return f"{self.record.runtime} {self.record.precision} ({self.engine.provider})"


def candidates(
    bundle: Bundle, part: Part, *, device: str, runtime: str = "auto", precision: str | None = None
) -> list[EngineRecord]:
    """List the engines that may run a network on a device, the fastest first.

    Proved ones, when exported or on this machine, come before those that were only compared in numbers. Where
    none was proved on a GPU, ONNX Runtime's fp32 graph is what may run there; `verify` proves it on the spot.

    Raises
    ------
    UsageError
        When the runtime is unknown, or the bundle has no such engine.
    """
    if runtime != "auto" and runtime not in RUNTIMES:
        raise UsageError(f"runtime must be auto or one of {', '.join(RUNTIMES)}, not {runtime!r}.")
    kind = Device.parse(device).kind
    own = [engine for engine in bundle.manifest.engines if engine.model == part]
    found = [engine for engine in own if engine.device == kind]
    if kind == "cuda":
        found += [e for e in own if (e.runtime, e.precision, e.device) == ("onnxruntime", "fp32", "cpu")]
    found = [
        engine
        for engine in sorted(found, key=lambda engine: not is_proved(bundle, engine, device))
        if runtime in ("auto", engine.runtime) and precision in (None, engine.precision)
    ]
    if not found:
        have = sorted({f"{engine.runtime} {engine.precision}" for engine in own})
        wanted = " ".join(word for word in (runtime, precision) if word and word != "auto")
        raise UsageError(
            f"runtime must be one the bundle has for its {part} on {kind}: {', '.join(have)}, not {wanted}. "
            "Export again with the engine that is wanted."
        )
    return found


def precision_of(bundle: Bundle, part: Part, precision: str | None) -> str | None:
    """What a precision asks of a network: nothing of a teacher's that the bundle does not have in it."""
    held = any((one.model, one.precision) == (part, precision) for one in bundle.manifest.engines)
    return precision if held or part == "student" else None


def is_proved(bundle: Bundle, record: EngineRecord, device: str) -> bool:
    """Whether an engine passed the gate on trained weights, or on this machine if its graph did elsewhere."""
    if record.verified or record.runtime not in PLANNED:
        return record.verified
    return _has_proved_graph(bundle, record) and plans.is_kept(bundle, record, device)


def _has_proved_graph(bundle: Bundle, record: EngineRecord) -> bool:
    return any(one.verified and one.file == record.file for one in bundle.manifest.engines)


def _waiting(bundle: Bundle, records: list[EngineRecord], device: str) -> str:
    """What to do about plans that "auto" passed over, where a GPU here may prove them; else ""."""
    names = " and ".join(sorted({one.runtime for one in records if _has_proved_graph(bundle, one)}))
    if not names:
        return ""
    try:
        find_gpu(Device.parse(device).index)
    except DeviceUnavailable:
        return ""
    return f" {names} is here, to be proved once: run `samdistill verify BUNDLE --device {device}`."


def open_part(
    bundle: Bundle,
    part: Part,
    *,
    device: str = "cpu",
    runtime: str = "auto",
    precision: str | None = None,
    threads: int | None = None,
) -> OpenedPart:
    """Open a network of a bundle.

    Parameters
    ----------
    device
        "cpu", "cuda" or "cuda:N"; never another one in its place.
    runtime
        Key of runtime.RUNTIMES; or "auto": the fastest that can be had; of those built without a GPU
        only what was proved here.
    precision
        One of manifest.Precision, or None for the fastest.
    threads
        CPU threads within one call; None lets the runtime choose.

    Raises
    ------
    UsageError
        When the bundle has no such engine.
    DeviceUnavailable
        When the library or the device cannot be had.
    BundleError
        When a file is damaged, or its network not what the manifest says.
    """
    found = candidates(bundle, part, device=device, runtime=runtime, precision=precision)
    here = [one for one in found if is_installed(one.runtime)]
    passed_over: list[EngineRecord] = []
    if runtime == "auto":
        passed_over = [one for one in here if one.runtime in PLANNED and not is_proved(bundle, one, device)]
        here = [one for one in here if one not in passed_over]
    if not here:
        missing = sorted({one.runtime for one in found} - {one.runtime for one in passed_over})
        if missing:
            extras = {"onnxruntime": "cpu" if device == "cpu" else "gpu"}
            cure = " or ".join(f"'samdistill[{extras.get(name, name)}]'" for name in missing)
            raise DeviceUnavailable(
                f"{' or '.join(missing)} must be installed to run this bundle on {device}. Run: pip install "
                f"{cure}; `samdistill doctor` says more.{_waiting(bundle, passed_over, device)}"
            )
        find_gpu(Device.parse(device).index)  # without one, says so
        name = passed_over[0].runtime
        raise DeviceUnavailable(
            f"the bundle's {part} in {name} must be proved on this machine before auto takes it. Name it, "
            f"which proves it: --runtime {name}."
        )
    errors = []
    for record in here:
        try:
            return open_record(bundle, record, device=device, threads=threads)
        except DeviceUnavailable as error:  # a processor without bf16, say: the next does on the same device
            errors.append(error)
    raise DeviceUnavailable(f"{errors[0]}{_waiting(bundle, passed_over, device)}") from errors[0]


def open_record(
    bundle: Bundle, record: EngineRecord, *, device: str, threads: int | None = None
) -> OpenedPart:
    """Open one of the manifest's engines; errors as for `open_part`."""
    if record.runtime in PLANNED:
        plan: Plan | None = plans.plan_for(bundle, record, device)
    else:
        plan = None
    data = {} if plan or record.data is None else {record.data: bundle.read(record.data)}
    engine = open_engine(
        plan.content if plan else bundle.read(record.file),
        device=device,
        runtime=record.runtime,
        threads=threads,
        precision=record.precision,
        data=data,
    )
    network = bundle.manifest.models.of(record.model)
    for kind, names, tensors in (
        ("inputs", network.inputs, engine.inputs),
        ("outputs", network.outputs, engine.outputs),
    ):
        if set(names) != set(tensors):
            raise BundleError(
                f"the {record.model}'s {kind} must be {', '.join(names)}, not {', '.join(tensors)}."
            )
    return OpenedPart(engine, record, plan)
