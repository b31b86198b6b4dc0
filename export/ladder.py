"""The precisions of a network: each is tried, proved, and where it fails the next safer one is.

int8 -> fp16 -> bf16 -> mixed -> fp32. What fails the gate is never published; fp32 was proved before anything
else. Knows neither student nor teacher: what is on trial brings its own measure.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from samdistill.errors import BundleError, DeviceUnavailable
from samdistill.export.low_precision import lower
from samdistill.export.parity import ParityReport
from samdistill.manifest import EngineRecord, ModelRecord, Part, Precision
from samdistill.runtime import Arrays, Engine, open_engine

LADDER: tuple[Precision, ...] = ("int8", "fp16", "bf16", "mixed", "fp32")
ROUNDS = 20  # of all engines in turns, the first not counted
LONGEST_S = 5.0  # after which no further round begins
CALLS = 3  # of one engine in a round: threads of the one before may still spin
SLACK = 1.5  # by which golden cases may differ more on another machine
MOST = (0.5, 0.1)  # difference of a probability, share of changed pixels: an engine beyond stays out


@dataclass(frozen=True, eq=False)
class OnTrial:
    """A network and how to judge an engine that runs it.

    Attributes
    ----------
    part, model, content, data
        The network in fp32: its record, its graph, and the weights beside it by file name.
    measure
        The gate.
    golden
        How far an engine is off in the golden cases: a probability's difference and the share of changed
        pixels.
    example
        Inputs of one call, for its latency.
    quantize
        Makes the int8 graph; None: int8 is not for this network.
    """

    part: Part
    model: ModelRecord
    content: bytes
    data: dict[str, bytes]
    measure: Callable[[Engine, Precision], ParityReport]
    golden: Callable[[Engine], tuple[float, float]]
    example: Arrays
    quantize: Callable[[], bytes] | None = None


@dataclass(frozen=True)
class Proved:
    """What a climb gave.

    Attributes
    ----------
    files
        New graphs, path in the bundle -> content.
    engines
        The fastest first.
    reports
        Of the gate, those that failed included; not of engines that passed it and failed the golden cases.
    """

    files: dict[str, bytes]
    engines: tuple[EngineRecord, ...]
    reports: tuple[ParityReport, ...]


def climb(
    trial: OnTrial,
    *,
    precisions: Sequence[Precision],
    openvino: bool,
    floor: tuple[float, float],
    say: Callable[[str], None],
) -> Proved:
    """Prove a network in fp32 and in the precisions that were asked for, or the next that pass.

    Parameters
    ----------
    precisions
        Asked for, besides fp32.
    openvino
        Prove OpenVINO's engines too.
    floor
        What every golden case allows: a probability's difference, and the share of changed pixels.
    say
        Told what fails and what is tried next.

    Raises
    ------
    ParityError
        When fp32 does not pass.
    """
    climber = _Climber(trial, openvino, floor, say)
    for report in climber.attempt("fp32"):
        report.require()
    tried: set[Precision] = set()
    for wanted in precisions:
        if wanted == "int8" and trial.quantize is None:
            continue
        for step in LADDER[LADDER.index(wanted) :]:
            if step in climber.done:
                break
            if step in tried:  # and said to be wanting
                continue
            tried.add(step)
            try:
                failed = [report for report in climber.attempt(step) if report.failures()]
            except (DeviceUnavailable, BundleError) as error:
                say(f"{trial.part} {step} cannot run here: {error}")
                if step in climber.done:  # in the runtime before
                    break
                continue
            for report in failed:
                reasons = "; ".join(report.failures())
                say(f"{trial.part} {step} in {report.runtime} fails the gate and stays out: {reasons}")
            if step in climber.done:
                break
            say(f"{trial.part}: stepping up from {step}")
    return climber.proved()


class _Climber:
    def __init__(
        self, trial: OnTrial, openvino: bool, floor: tuple[float, float], say: Callable[[str], None]
    ) -> None:
        self.trial, self.openvino, self.floor, self.say = trial, openvino, floor, say
        self.files: dict[str, bytes] = {}
        self.passed: list[tuple[EngineRecord, Engine]] = []
        self.reports: list[ParityReport] = []
        self.done: set[Precision] = set()

    def attempt(self, precision: Precision) -> list[ParityReport]:
        """Prove each engine of a precision; those that pass are kept, and their file."""
        trial, model = self.trial, self.trial.model
        runtimes = ["onnxruntime"] if precision != "bf16" else []
        if self.openvino and precision in ("fp32", "bf16", "int8"):
            runtimes.append("openvino")
        if not runtimes:
            raise DeviceUnavailable("no engine that was asked for computes in bf16 on a CPU; use --openvino.")
        file, content, data = model.file, trial.content, model.data
        if precision in ("fp16", "mixed", "int8"):
            if data is not None:
                raise DeviceUnavailable("its weights lie beside the graph, which only fp32 and bf16 know.")
            file, data = f"{trial.part}.{precision}.onnx", None
            content = self._graph(precision)
        reports = []
        for runtime in runtimes:
            engine = open_engine(
                content, runtime=runtime, precision=precision, data=trial.data if data else {}
            )
            report = trial.measure(engine, precision)
            reports.append(report)
            if report.failures():
                self.reports.append(report)
                continue
            try:
                difference, changed = allowances(trial, engine, precision, self.floor)
            except BundleError as error:
                self.say(f"{trial.part} {precision} in {runtime} stays out: {error}")
                continue
            self.reports.append(report)
            record = EngineRecord(
                trial.part,
                runtime,  # type: ignore[arg-type]
                "cpu",
                precision,
                file,
                report.to_dict(),
                data=data,
                verified=report.verified,
                max_probability_difference=difference,
                max_changed_pixels=changed,
            )
            self.passed.append((record, engine))
            self.done.add(precision)
            if content is not trial.content:
                self.files[file] = content
        return reports

    def _graph(self, precision: Precision) -> bytes:
        if precision == "int8":
            assert self.trial.quantize is not None
            return self.trial.quantize()
        return lower(self.trial.content, keep_ends=precision == "mixed")

    def proved(self) -> Proved:
        """The engines, the fastest first."""
        return Proved(self.files, ranked(self.trial, self.passed), tuple(self.reports))


def ranked(trial: OnTrial, passed: Sequence[tuple[EngineRecord, Engine]]) -> tuple[EngineRecord, ...]:
    """Engines of one device, of several with their times and the fastest first."""
    engines = [engine for _, engine in passed]
    latencies = latencies_ms(engines, trial.example) if len(engines) > 1 else [None] * len(engines)
    records = [
        replace(record, latency_ms=latency) for (record, _), latency in zip(passed, latencies, strict=True)
    ]
    return tuple(sorted(records, key=lambda record: record.latency_ms or 0.0))


def allowances(
    trial: OnTrial, engine: Engine, precision: Precision, floor: tuple[float, float]
) -> tuple[float | None, float | None]:
    """What an engine's golden cases may differ by, where that is more than every case allows.

    Raises
    ------
    BundleError
        When they differ by more than any engine's may: no bundle with it would verify.
    """
    if precision == "fp32":  # more would hide a case that is wrong itself
        return None, None
    measured = trial.golden(engine)
    if any(not found <= most for found, most in zip(measured, MOST, strict=True)):
        raise BundleError(
            f"in golden cases a probability differs by {measured[0]:.3g} and {measured[1]:.1%} of a mask's "
            f"pixels (at most {MOST[0]} and {MOST[1]:.0%})"
        )
    difference, changed = (
        min(most, SLACK * found) if SLACK * found > least else None
        for found, least, most in zip(measured, floor, MOST, strict=True)
    )
    return difference, changed


def latencies_ms(engines: Sequence[Engine], example: Arrays) -> list[float]:
    """The shortest call of each engine, in turns: what else the machine does meets all of them alike."""
    shortest = [math.inf] * len(engines)
    began = time.perf_counter()
    for turn in range(1 + ROUNDS):
        for index, engine in enumerate(engines):
            for _ in range(CALLS):
                started = time.perf_counter()
                engine.run(example)
                if turn:
                    shortest[index] = min(shortest[index], time.perf_counter() - started)
        if turn and time.perf_counter() - began > LONGEST_S:
            break
    return [round(max(0.01, 1000 * one), 2) for one in shortest]
