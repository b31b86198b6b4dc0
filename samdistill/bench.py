"""How fast a bundle's engines are on this machine: latency, throughput, memory, and whether the masks hold.

Each engine runs in a process of its own, so that memory is its own and none warms another's caches. The
pictures are the bundle's golden cases, and an engine that does not give the masks published with them gets no
figures: no image is needed. Knows no output format.
"""

from __future__ import annotations

import multiprocessing
import re
import resource
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from samdistill.bundle import Bundle
from samdistill.bundled_teacher import answered, golden_teacher
from samdistill.engines import OpenedPart, candidates, open_record
from samdistill.errors import BundleError, DeviceUnavailable, SamdistillError, SomeInputsFailed
from samdistill.geometry import ModelFrame
from samdistill.golden import GoldenCase, TeacherCase
from samdistill.manifest import EngineRecord, Part
from samdistill.metrics import dice_per_class
from samdistill.predictor import Predictor
from samdistill.runtime import PLANNED, Device, Engine
from samdistill.runtime.cuda import used_mb
from samdistill.teacher_frame import TeacherFrame, prompt_arrays
from samdistill.verify import engine_results

Inputs = dict[str, npt.NDArray[Any]]
BATCH = 4  # images or prompt sets a call, for throughput


@dataclass(frozen=True)
class EngineTiming:
    """What one engine does here.

    Attributes
    ----------
    model, runtime, precision, verified
        As in the manifest.
    provider
        What really computes.
    latency_ms, p95_ms
        Of one image (decoder: one prompt set): median and 95th percentile.
    per_second
        Images (sets) a second, several in a call.
    memory_mb
        Peak of the process beyond what it had before the engine opened; of a plan what the GPU holds more.
    dice
        Mean Dice of its masks against those PyTorch gave when the bundle was published.
    error
        Why there are no figures; None where there are.
    exit_code
        Of that error, as `errors` has them; 3 for want of memory; 0 without one.
    """

    model: str
    runtime: str
    precision: str
    verified: bool
    provider: str = ""
    latency_ms: float = 0.0
    p95_ms: float = 0.0
    per_second: float = 0.0
    memory_mb: float = 0.0
    dice: float = 0.0
    error: str | None = None
    exit_code: int = 0


def bench(
    bundle: Path | str,
    *,
    device: str = "cpu",
    threads: int | None = None,
    runs: int = 20,
    expect_sha256: str | None = None,
) -> list[EngineTiming]:
    """Time every engine of a bundle that may run on a device.

    A script calls it below `if __name__ == "__main__":`, since each process that is started reads it anew.

    Parameters
    ----------
    bundle, device, threads, expect_sha256
        As for `Predictor.load`.
    runs
        Timed calls an engine, after two to warm up.

    Returns
    -------
    list
        By network, the fastest first; engines that do not open last.

    Raises
    ------
    BundleError
        When the bundle is damaged.
    ValueError
        When runs is below 1.
    """
    if runs < 1:
        raise ValueError(f"runs must be at least 1, not {runs}.")
    opened = Bundle.open(bundle, expect_sha256=expect_sha256)
    parts: tuple[Part, ...] = ("student", "encoder", "decoder")
    timings = []
    # A fresh process each, since a forked one would carry this one's memory and threads.
    context = multiprocessing.get_context("spawn")
    for part in parts if opened.manifest.teacher else parts[:1]:
        own = []
        for record in candidates(opened, part, device=device):
            job = (str(opened.root), opened.sha256, record, device, threads, runs)
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                try:
                    own.append(pool.submit(_timed, *job).result())
                except BrokenProcessPool:  # a Pool would wait for it for ever
                    own.append(_failed(record, "its process died, for want of memory?"))
        timings += sorted(own, key=lambda one: (one.error is not None, one.latency_ms))
    return timings


def raise_for_failures(found: Sequence[EngineTiming]) -> None:
    """Tell whoever relies on the figures that some are missing.

    An engine that cannot be had here is no failure where another runs its network, as in `verify`.

    Raises
    ------
    BundleError
        When an engine is damaged, or does not give the masks that were published.
    DeviceUnavailable
        When nothing runs one of the networks here.
    SomeInputsFailed
        When an engine failed otherwise, for want of memory say.
    """
    failed = [one for one in found if one.error is not None]
    wrong = [one for one in failed if one.exit_code == BundleError.exit_code]
    if wrong:
        raise BundleError(
            f"{_names(wrong)} must give the masks that were published, and did not. "
            "Do not use these engines here; `samdistill verify` says more."
        )
    idle = {one.model for one in failed} - {one.model for one in found if one.error is None}
    if idle:
        raise DeviceUnavailable(
            f"{' and '.join(sorted(idle))} must have an engine that runs here, and none does. "
            "`samdistill doctor` says what is missing."
        )
    other = [one for one in failed if one.exit_code != DeviceUnavailable.exit_code]
    if other:
        raise SomeInputsFailed(f"{_names(other)} failed; the other engines were timed.")


def _names(found: Sequence[EngineTiming]) -> str:
    return ", ".join(f"{one.model} {one.runtime} {one.precision}" for one in found)


def _timed(
    root: str, sha256: str, record: EngineRecord, device: str, threads: int | None, runs: int
) -> EngineTiming:
    """Time one engine; runs in a process of its own."""
    try:
        bundle = Bundle.open(root, expect_sha256=sha256)
        on_gpu = record.runtime in PLANNED
        index = Device.parse(device).index
        before = used_mb(index) if on_gpu else _peak_mb()
        opened = open_record(bundle, record, device=device, threads=threads)
        engine = opened.engine
        one, several = _inputs(bundle, record.model, 1), _inputs(bundle, record.model, BATCH)
        times = _times(engine, one, runs)
        throughput = BATCH / float(np.median(_times(engine, several, max(3, runs // 4))))
        memory = (used_mb(index) if on_gpu else _peak_mb()) - before
        engine_results(bundle, opened, device)  # opens what computes beside it, so that memory is read before
        return EngineTiming(
            *_known(record),
            provider=engine.provider,
            latency_ms=1000 * float(np.median(times)),
            p95_ms=1000 * float(np.percentile(times, 95)),
            per_second=throughput,
            memory_mb=memory,
            dice=_dice(bundle, opened, device),
        )
    except SamdistillError as error:
        return _failed(record, str(error), error.exit_code)
    except MemoryError as error:
        return _failed(record, str(error) or "out of memory")


def _failed(record: EngineRecord, error: str, exit_code: int = SomeInputsFailed.exit_code) -> EngineTiming:
    return EngineTiming(*_known(record), error=error, exit_code=exit_code)


def _known(record: EngineRecord) -> tuple[str, str, str, bool]:
    return record.model, record.runtime, record.precision, record.verified


def _times(engine: Engine, inputs: Inputs, runs: int) -> list[float]:
    times = []
    for run in range(runs + 2):
        started = time.perf_counter()
        engine.run(inputs)
        if run >= 2:
            times.append(time.perf_counter() - started)
    return times


def _inputs(bundle: Bundle, part: Part, count: int) -> Inputs:
    """Inputs of one call with `count` images or prompt sets."""
    manifest = bundle.manifest
    names = manifest.models.of(part).inputs
    if part == "student":
        case = next(case for case in manifest.golden if case.part == "student")
        image = manifest.intensity.apply(GoldenCase.from_npz(bundle.read(case.file), case.file).pixels)
        frame = ModelFrame.of((image.shape[0], image.shape[1]), manifest.input.size, manifest.input.multiple)
        return {names[0]: np.repeat(frame.pixels(image)[None], count, axis=0)}
    teacher = manifest.teacher
    assert teacher is not None
    asked = _teacher_case(bundle)
    size = (asked.pixels.shape[0], asked.pixels.shape[1])
    frame_ = TeacherFrame(size, teacher.side, teacher.preprocessing)
    if part == "encoder":
        inputs: Inputs = {
            "pixels": np.repeat(frame_.pixels(asked.pixels)[None], count, axis=0),
            "input_size": np.repeat(np.array([frame_.input_size], np.int64), count, axis=0),
        }
        return {name: inputs[name] for name in names}
    sets = asked.prompts()[:1] * count
    height, width = teacher.mask_size
    return {
        "embeddings": np.random.default_rng(0).normal(size=(1, *teacher.embedding)).astype(np.float32),
        "image_index": np.zeros(count, np.int64),
        **prompt_arrays([frame_], [sets], (height, width))._asdict(),
        "multimask": np.zeros(count, np.bool_),
    }


def _teacher_case(bundle: Bundle) -> TeacherCase:
    case = next(case for case in bundle.manifest.golden if case.part == "teacher")
    return TeacherCase.from_npz(bundle.read(case.file), case.file)


def _dice(bundle: Bundle, opened: OpenedPart, device: str) -> float:
    """Mean Dice of an engine's golden masks against those published."""
    if opened.record.model == "student":
        predictor = Predictor(bundle, opened, threads=None, device=device)
        dices = []
        for golden in bundle.manifest.golden:
            if golden.part == "student":
                case = GoldenCase.from_npz(bundle.read(golden.file), golden.file)
                dices.append(dice_per_class(predictor.predict(case.pixels).masks, case.masks))
        return float(np.mean(dices))
    asked = _teacher_case(bundle)
    found = answered(golden_teacher(bundle, opened), asked)
    return float(np.mean(dice_per_class(found.masks, asked.masks)))


def _peak_mb() -> float:
    """Of this process alone: `resource` begins with the peak of the one that started it, on Linux."""
    status = Path("/proc/self/status")
    told = re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(), re.MULTILINE) if status.is_file() else None
    if told is not None:
        return int(told[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
