"""Time folders: `segment_files` against the bare engine and against a plain script, image by image.

    python benchmarks/bench_pipeline.py BUNDLE [--runtime onnxruntime] [--count 500] [--rounds 3]

BUNDLE holds a light student. The bare engine gets the same tensors, already in memory, in the best of four
ways: all cores on one call, or one thread each on calls side by side, 4 or 8 images a call. The plain script
is what one writes first: Pillow, torch and segmentation_models_pytorch, one image after the other. All are
called in turns, and medians of the throughput are compared; the answers are checked against each other. So
are milliseconds of processor time an image, which say the same where other work loads the machine. Memory is
the resident set of this process, which torch is not loaded into.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from harness import machine, save

CORES = len(os.sched_getaffinity(0))
BATCHES = (4, 8)  # the folder's own, and a larger one: the bare engine's better one counts

PLAIN = """
import sys, time
from pathlib import Path
from samdistill.torchvision_cure import cure
cure()
import numpy as np, torch, segmentation_models_pytorch as smp
from PIL import Image
from samdistill.train import encoder
torch.set_num_threads(int(sys.argv[3]))
encoder.register()  # the light preset's, so that both compute the same network
model = smp.UnetPlusPlus(encoder.NAME, encoder_weights=None, classes=1,
                         decoder_channels=(64, 48, 32, 24, 16)).eval()
mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
folder, out, size = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[4])
out.mkdir()
def one(path):
    image = Image.open(path).convert("RGB")
    x = torch.from_numpy(np.asarray(image.resize((size, size)))).permute(2, 0, 1).float() / 255
    with torch.no_grad():
        logits = model(((x - mean) / std)[None])
    logits = torch.nn.functional.interpolate(logits, image.size[::-1], mode="bilinear")
    Image.fromarray(((logits[0, 0].sigmoid() > 0.5).numpy() * 255).astype(np.uint8)).save(out / path.name)
paths = sorted(folder.glob("*.png"))
one(paths[0])
start = time.perf_counter()
for path in paths:
    one(path)
print(len(paths) / (time.perf_counter() - start))
"""


def resident_mb() -> float:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    """Measure, check, print, write."""
    import numpy as np

    from samdistill.geometry import ModelFrame
    from samdistill.inference import gather, segment_files
    from samdistill.inference.workers import keep_freed_memory, share_threads
    from samdistill.io import read_image, read_mask
    from samdistill.phantoms.folder import write
    from samdistill.predictor import Predictor

    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--runtime", default="auto", help="auto: the bundle's fastest here.")
    parser.add_argument("--precision", help="fp32, ...; default: the fastest.")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--plain-count", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--predictions", type=int, default=10_000)
    parser.add_argument("--images", type=Path, help="Folder of 512 x 512 px PNGs, instead of phantoms.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "pipeline.json")
    arguments = parser.parse_args()
    keep_freed_memory()  # as the command does
    work = Path(tempfile.mkdtemp())
    images = arguments.images or work / "data" / "images"
    if arguments.images is None:
        write(work / "data", "endoscopy", arguments.count, size=(512, 512))
    sources = gather([str(images)], work / "out")[: arguments.count]
    workers, threads = share_threads(len(sources), "cpu", None)
    engine = {"runtime": arguments.runtime, "precision": arguments.precision}
    single = Predictor.load(arguments.bundle, threads=threads, **engine)
    wide = Predictor.load(arguments.bundle, threads=CORES, **engine)
    contract = single.manifest.input
    frame = ModelFrame.of((512, 512), contract.size, contract.multiple)
    tensors = np.stack([frame.pixels(read_image(source.path)) for source in sources])

    def bare_wide(batch: int) -> None:
        for start in range(0, len(tensors), batch):
            wide.student_logits(tensors[start : start + batch])

    def bare_side_by_side(batch: int) -> None:
        chunks = [tensors[start : start + batch] for start in range(0, len(tensors), batch)]
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(lambda chunk: single.student_logits(chunk).max(), chunks))

    memory: list[float] = []

    def ours() -> None:
        summary = segment_files(
            single, sources, work / "out", workers=workers, tell=lambda _: memory.append(resident_mb())
        )
        assert summary.done == len(sources)

    def ours_one_worker() -> None:
        assert segment_files(wide, sources, work / "out", workers=1).done == len(sources)

    plain = work / "plain"
    plain.mkdir()
    for source in sources[: arguments.plain_count]:
        shutil.copy(source.path, plain)
    calls = {
        **{f"bare, all cores, {batch} a call": partial(bare_wide, batch) for batch in BATCHES},
        **{f"bare, side by side, {batch} a call": partial(bare_side_by_side, batch) for batch in BATCHES},
        "folder": ours,
        "folder, one worker on all cores": ours_one_worker,
    }
    rates: dict[str, list[float]] = {name: [] for name in (*calls, "plain")}
    busy: dict[str, list[float]] = {name: [] for name in calls}
    ours()
    for _ in range(arguments.rounds):
        for name, call in calls.items():
            shutil.rmtree(work / "out", ignore_errors=True)
            start, busy_start = time.perf_counter(), time.process_time()
            call()
            rates[name].append(len(sources) / (time.perf_counter() - start))
            busy[name].append((time.process_time() - busy_start) / len(sources) * 1e3)
        shutil.rmtree(work / "plain_out", ignore_errors=True)
        words = [str(plain), str(work / "plain_out"), str(CORES), str(contract.size)]
        done = subprocess.run(
            [sys.executable, "-c", PLAIN, *words], capture_output=True, text=True, check=True
        )
        rates["plain"].append(float(done.stdout))
    for source in sources[::50]:
        answer = single.predict(read_image(source.path)).masks.any(axis=0)
        np.testing.assert_array_equal(read_mask(work / "out" / source.relative) > 0, answer)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    bare = max(medians[name] for name in medians if name.startswith("bare"))
    busy_medians = {name: statistics.median(values) for name, values in busy.items()}
    least = min(busy_medians[name] for name in medians if name.startswith("bare"))
    half = memory[len(memory) // 2 :]
    figures = {
        "engine": single.engine,
        "images_per_second": medians,
        "processor_ms_per_image": busy_medians,
        "bare_over_folder_processor_time": least / busy_medians["folder"],
        "folder_over_bare": medians["folder"] / bare,
        "folder_over_plain": medians["folder"] / medians["plain"],
        "folder_memory_mb": {"least": min(half), "most": max(half)},
        "predictions": predictions(single, read_image(sources[0].path), arguments.predictions),
        "cold_start_s": cold_start(arguments.bundle, sources[0].path, work, arguments.runtime),
    }
    shutil.rmtree(work)
    print(json.dumps(figures, indent=1))
    about = {"machine": machine(), "cores": CORES, "count": len(sources), "rounds": arguments.rounds}
    save({**about, **figures}, arguments.out)


def predictions(predictor, image, count: int) -> dict[str, float]:  # type: ignore[no-untyped-def]
    """Predict one image many times: identical answers, and memory after the first tenth and at the end."""
    first = predictor.predict(image)
    early = 0.0
    for number in range(count):
        answer = predictor.predict(image)
        assert (answer.probability_maps == first.probability_maps).all()
        if number == count // 10:
            early = resident_mb()
    end = resident_mb()
    return {"count": count, "memory_mb_after_a_tenth": early, "memory_mb": end, "growth": end / early - 1}


def cold_start(bundle: Path, image: Path, work: Path, runtime: str) -> float:
    """Median seconds from process start to file written, of seven."""
    times = []
    for _ in range(7):
        shutil.rmtree(work / "cold", ignore_errors=True)
        start = time.perf_counter()
        words = ["infer", str(bundle), str(image), "--out", str(work / "cold"), "--runtime", runtime]
        subprocess.run([sys.executable, "-m", "samdistill", *words], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    main()
