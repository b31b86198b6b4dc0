"""Segments files into files: several workers at once, bounded memory, records in order.

A worker takes a group of files, reads them and has them segmented together; a writer encodes what was found
and waits for the disk, several at once, since a disk flushes many files in little more than the time of one.
The group goes over as a whole: threads that hand on file by file mostly wait for each other. A file that
cannot be segmented is recorded as failed and never gets a mask; the others go on. Knows no network and no
terminal.
"""

from __future__ import annotations

import importlib.util
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from samdistill.errors import DeviceUnavailable, InputRejected, SomeInputsFailed, UsageError
from samdistill.inference.cases import Case
from samdistill.inference.jobs import (
    BATCH,
    LARGE_BYTES,
    Job,
    Run,
    failed,
    needs_tiles,
    open_case,
    predict,
    timed,
    written,
)
from samdistill.inference.listings import (
    remove_listings,
    remove_lists_of_shards,
    set_aside_others,
    write_listings,
)
from samdistill.inference.outputs import (
    Options,
    plan,
    remove_stale,
    require_all,
    require_apart,
    require_own,
    still_holds,
)
from samdistill.inference.records import (
    AUDIT,
    BEGUN,
    RESULTS,
    Audit,
    Outcome,
    Record,
    Summary,
    Tell,
    earlier_files,
    earlier_records,
    journal,
)
from samdistill.inference.sources import Shard, Source
from samdistill.inference.videos import segment_video
from samdistill.io.files import locked, sync_folder
from samdistill.io.stack import LIBRARIES, format_of
from samdistill.io.video import LIBRARY, is_video
from samdistill.judging import check_abstain
from samdistill.predictor import BATCH_PIXELS, Pixels, Predictor, Segmentation
from samdistill.profiles import LARGEST_BATCH
from samdistill.runtime import PLANNED

WAITING = 3  # groups a worker may be ahead


def segment_files(
    predictor: Predictor,
    sources: Sequence[Source],
    out: Path,
    *,
    options: Options | None = None,
    shard: Shard | None = None,
    resume: bool = False,
    workers: int = 1,
    batch: int = BATCH,
    tell: Tell = lambda outcome: None,
) -> Summary:
    """Segment files into files.

    Parameters
    ----------
    predictor
        The opened bundle.
    sources
        As `gather` finds them.
    out
        Masks go to `<out>/<relative path>` in the input's format, see docs/formats.md; results.jsonl and
        audit.jsonl beside them.
    options
        What is wanted; None: the masks.
    shard
        Which part of the sources; the lists then bear its name.
    resume
        Keep what an earlier run made of the same bytes with the same bundle and settings.
    workers
        Threads that read, segment and write.
    batch
        At most so many images in one call of the network.
    tell
        Gets what came of each file, in order, as soon as it is there.

    Returns
    -------
    Summary
        How many of what.

    Raises
    ------
    UsageError
        For a mode the bundle cannot do, for `abstain` where it judges nothing, for a batch that the engine
        does not take, while another run writes to `out`, and as `plan`, `require_own` and `require_all`;
        before anything is written or removed.
    ModuleNotFoundError
        When a file's format needs a library that is not installed; likewise.
    DeviceUnavailable
        When the GPU is lost in the middle; what is done then is kept as after an interruption.
    OSError
        When no file can be written any more, since the disk is full, say; likewise.
    """
    options = options or Options()
    if options.abstain is not None and options.tile_px is not None:
        raise UsageError("abstain must be left out where tiles are cut: such images have no score.")
    check_abstain(predictor.manifest, options.abstain, options.mode)
    predictor.require_mode(options.mode)
    if predictor.runtime in PLANNED and batch > LARGEST_BATCH:  # or every group would fail, and go one by one
        runtime = predictor.runtime
        raise UsageError(f"batch must be at most {LARGEST_BATCH} in {runtime}, not {batch}. Lower it.")
    outputs = planned = plan(sources, out, predictor, options)
    written = earlier_files(out)
    require_all(sources, out, written)
    if shard is not None:
        sources = shard.of(sources)
        outputs = {source: outputs[source] for source in sources if source in outputs}
    _require_libraries(sources)
    require_own(outputs, out, written)
    out.mkdir(parents=True, exist_ok=True)

    def name(file: str) -> str:
        return file if shard is None else file.replace(".", f"-{shard}.", 1)

    refusal = (
        f"--out must not be written to by two runs at once: another one is writing to {out}. "
        "Wait for it, or name another folder."
    )
    # Shards share the folder; two of one number are told by their audit. Without locks nothing is held.
    with locked(out, refusal, shared=shard is not None), locked(out / name(AUDIT), refusal):
        require_apart(planned, out / name(AUDIT))
        run = Run(predictor, out, options, outputs)
        earlier = earlier_records(out)
        kept = _kept(run, sources, earlier) if resume else {}
        fresh = [source for number, source in enumerate(sources, 1) if number not in kept]
        try:
            remove_stale(fresh, planned, out, predictor, options, earlier, written)
        except OSError as error:  # which names a file
            raise UsageError(
                f"--out must let an earlier run's outputs be removed, and does not: {error.strerror}. "
                "Give access to all of it, or name another folder."
            ) from error
        if shard is not None:
            set_aside_others(out, name, shard, sources)
        remove_listings(out, name, report=bool(written and fresh))
        summary = Summary(len(sources))
        audit = Audit(out / name(AUDIT), run.facts)
        try:
            with journal(out / name(RESULTS), kept, _begun(run, fresh)) as lines, warnings.catch_warnings():
                # What pydicom and highdicom warn of may quote a patient's name.
                warnings.simplefilter("ignore")
                if shard is None:
                    remove_lists_of_shards(out)  # now that what is kept of them is written

                def settle(outcome: Outcome) -> None:
                    if outcome.exit != "kept":
                        lines.add(outcome.number, outcome.record)
                    audit.add(outcome)
                    summary.count(outcome)
                    tell(outcome)

                _work(run, sources, kept, workers, batch, settle)
                for folder in {file.parent for one in outputs.values() for file in one.files}:
                    if folder.is_dir():
                        sync_folder(folder)
        finally:
            audit.close()
        write_listings(out, name, predictor.class_names, options)
        return summary


def raise_for_failures(summary: Summary) -> None:
    """End a run in which something failed.

    Raises
    ------
    InputRejected
        When all failed; with the reason when there was only one.
    SomeInputsFailed
        When some of several failed.
    """
    if not summary.failed:
        return
    if summary.total == 1:
        raise InputRejected(summary.reason or "the input failed.")
    if summary.failed == summary.total:
        raise InputRejected(f"all {summary.total} inputs failed.")
    raise SomeInputsFailed(f"{summary.failed} of {summary.total} inputs failed; the others are done.")


def _work(
    run: Run,
    sources: Sequence[Source],
    kept: dict[int, Record],
    workers: int,
    batch: int,
    settle: Callable[[Outcome], None],
) -> None:
    """Hand groups of files to the workers, and settle what came of them in order."""
    waiting: deque[Future[Future[list[Outcome]]]] = deque()
    ready: deque[Outcome] = deque()
    pool = ThreadPoolExecutor(workers, "samdistill")

    def drain(ahead: int) -> None:
        """Settle until at most so many groups are on their way."""
        while len(waiting) > ahead:
            ready.extend(waiting[0].result().result())
            waiting.popleft()
            while ready:
                settle(ready.popleft())

    try:
        for files in _groups(sources, kept, max(1, min(batch, len(sources) // (2 * workers)))):
            if run.lost is not None:
                break
            waiting.append(pool.submit(_segment_group, run, files, kept))
            drain(WAITING * workers)
        drain(0)
        if isinstance(run.lost, OSError):
            told = f"{run.lost.strerror}. With --resume what is done is kept"
            raise OSError(run.lost.errno, told) from run.lost
        if run.lost is not None:
            raise DeviceUnavailable(f"{run.lost} With --resume what is done is kept.") from run.lost
    except BaseException:
        # Interrupted: what is segmented is written, nothing else is begun, and what is done is listed.
        run.stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
        for group in waiting:
            if not group.cancelled() and not group.exception():
                ready.extend(group.result().result())
        while ready:
            settle(ready.popleft())
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        run.writers.shutdown(wait=True)


def _groups(
    sources: Sequence[Source], kept: dict[int, Record], size: int
) -> Iterator[list[tuple[int, Source]]]:
    """Numbered sources in groups; kept ones cost nothing, and do not count."""
    group: list[tuple[int, Source]] = []
    costly = 0
    for number, source in enumerate(sources, 1):
        group.append((number, source))
        costly += number not in kept
        if costly == size or len(group) == 16 * size:
            yield group
            group, costly = [], 0
    if group:
        yield group


def _segment_group(
    run: Run, group: list[tuple[int, Source]], kept: dict[int, Record]
) -> Future[list[Outcome]]:
    """Segment some files; those of one image go through the network together. Writers do the rest."""
    outcomes: dict[int, Outcome] = {}
    held: list[tuple[Job, Pixels]] = []
    segmented: list[Job] = []

    def flush() -> None:
        for job, error in _segment_singles(run, held):
            if error:
                outcomes[job.number] = failed(run, job, error)
            else:
                done(job)
        held.clear()

    def done(job: Job) -> None:
        assert job.case is not None
        if job.case.held_bytes > LARGE_BYTES:
            outcomes[job.number] = written(run, job)
        else:
            segmented.append(job)

    def settled() -> list[Outcome]:
        outcomes.update((job.number, written(run, job)) for job in segmented)
        return [outcomes[number] for number, _ in group if number in outcomes]

    for number, source in group:
        if run.stop.is_set():
            break
        if number in kept:
            outcomes[number] = Outcome(number, kept[number], None, "kept", {})
            continue
        job = Job(number, source)
        if source.problem is None and is_video(source.path):
            outcome = segment_video(run, job)
            if outcome is not None:
                outcomes[number] = outcome
            continue
        try:
            case = open_case(run, job)
            if len(case.stack) == 1 and not needs_tiles(run, case):
                with timed(job, "read"):
                    held.append((job, case.stack.image()))
            else:
                if not _segment_stack(run, job, case):
                    break
                done(job)
        except Exception as error:  # noqa: BLE001  (no file stops the rest)
            outcomes[number] = failed(run, job, error)
        if sum(pixels.shape[0] * pixels.shape[1] for _, pixels in held) > BATCH_PIXELS:
            flush()
    flush()
    return run.writers.submit(settled)


def _segment_singles(run: Run, held: list[tuple[Job, Pixels]]) -> Iterator[tuple[Job, Exception | None]]:
    """Segment images together; where that fails, one by one, so that each failure is its own file's."""
    if not held or run.stop.is_set():
        return
    started = time.perf_counter()
    try:
        answers: list[Segmentation | None] = list(predict(run, [pixels for _, pixels in held]))
    except Exception:  # noqa: BLE001  (whose fault it is shows below)
        answers = [None] * len(held)
    share = (time.perf_counter() - started) * 1000 / len(held)
    for (job, pixels), answer in zip(held, answers, strict=True):
        if run.stop.is_set():
            return
        job.timings_ms["segment"] += share
        try:
            assert job.case is not None
            job.case.add(0, pixels, answer or predict(run, [pixels])[0])
            yield job, None
        except Exception as error:  # noqa: BLE001
            yield job, error


def _segment_stack(run: Run, job: Job, case: Case) -> bool:
    """Segment the images of one file, some at a time; False when the run was interrupted amid them."""
    height, width = case.stack.size
    together = max(1, min(BATCH, BATCH_PIXELS // (height * width)))
    for start in range(0, len(case.stack), together):
        if run.stop.is_set():
            return False
        indices = range(start, min(start + together, len(case.stack)))
        with timed(job, "read"):
            images = [case.stack.image(index) for index in indices]
        with timed(job, "segment"):
            for index, pixels, answer in zip(indices, images, predict(run, images), strict=True):
                case.add(index, pixels, answer)
    return True


def _kept(run: Run, sources: Sequence[Source], earlier: Mapping[str, Record]) -> dict[int, Record]:
    """Records of an earlier run that still hold, by the number of their source."""
    kept = {}
    for number, source in enumerate(sources, 1):
        record = earlier.get(str(source.relative))
        if source in run.outputs and record is not None and still_holds(
            record, source, run.out, run.predictor.bundle_sha256, run.settings_sha256
        ):  # fmt: skip
            kept[number] = record
    return kept


def _begun(run: Run, sources: Sequence[Source]) -> Iterator[Record]:
    """What is to be written, for the journal."""
    for source in sources:
        if source in run.outputs:
            wanted = run.outputs[source].wanted(run.options)
            files = dict.fromkeys((file.relative_to(run.out).as_posix() for file in wanted), "")
            yield Record(
                str(source.relative), BEGUN, run.predictor.bundle_sha256, run.options.mode, files=files
            )


def _require_libraries(sources: Sequence[Source]) -> None:
    """Make sure, before anything is done, that every file's format can be read."""
    paths = [source.path for source in sources if source.problem is None]
    wanted = [library for kind in {format_of(path) for path in paths} if kind for library in LIBRARIES[kind]]
    if any(is_video(path) for path in paths):
        wanted.append(LIBRARY)
    for library in wanted:
        if importlib.util.find_spec(library) is None:
            raise ModuleNotFoundError(f"No module named {library!r}", name=library)
