"""Engines against PyTorch eager in fp32, in turns in one process; fails below target.

Three cases: the student U-Net++/ResNet-34 at 224 x 224 (random weights: a network's time does not depend on
them), the embedded teacher's encoder, and its decoder with 32 prompt sets in one call against 32 calls. Each
engine's answer is checked first. What int8 does to masks is measured where trained weights are: by
`samdistill export`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch

from samdistill.bundled_teacher import BundledTeacher
from samdistill.export.onnx import export_onnx
from samdistill.export.pieces import teacher_record
from samdistill.export.quantize import quantize
from samdistill.export.teacher_onnx import SamEncoder, export_decoder, export_encoder
from samdistill.phantoms import make
from samdistill.prompts import Prompts
from samdistill.runtime import Engine, open_engine
from samdistill.teacher import load_teacher
from samdistill.teacher_frame import TeacherFrame
from samdistill.train.config import StudentConfig
from samdistill.train.student import Student

RESULTS = Path(__file__).parent / "results" / "engines.json"
SETS = 32


def in_turns(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, float]]:
    """Median and shortest time of each call, ms; one round is each once, after a round to warm up.

    Each is called twice and the second time counts: what the call before left spinning is not its own.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(rounds + 1):
        for name, call in calls.items():
            call()
            started = time.perf_counter()
            call()
            if round_:
                times[name].append(1000 * (time.perf_counter() - started))
    return {n: {"median_ms": float(np.median(t)), "shortest_ms": min(t)} for n, t in times.items()}


def checked(
    engine: Engine, inputs: dict[str, Any], output: str, expected: Any, share: float
) -> Callable[[], object]:
    """The engine at work: within a share of the largest value; int8 on random weights, finite."""
    found = engine.run(inputs)[output]
    assert np.isfinite(found).all()
    assert np.abs(found - expected).max() <= share * np.abs(expected).max(), engine.provider
    return lambda: engine.run(inputs)


def student(threads: int, rounds: int) -> dict[str, Any]:
    """PyTorch eager fp32 against every CPU engine."""
    torch.manual_seed(0)
    net = Student(StudentConfig(encoder="resnet34", size=224, encoder_weights="none"), 1).eval()
    content = export_onnx(net)
    pictures = [make("endoscopy", seed=7, index=i, size=(224, 224)).image for i in range(4)]
    low = quantize(content, pictures, size=224)
    pixels = np.ascontiguousarray(pictures[0].transpose(2, 0, 1)[None])
    tensor = torch.from_numpy(pixels)
    with torch.inference_mode():
        expected = net(tensor).numpy()

    def eager() -> None:
        with torch.inference_mode():
            net(tensor)

    calls: dict[str, Callable[[], object]] = {"PyTorch eager fp32": eager}
    for runtime, precision, graph, share in (
        ("onnxruntime", "fp32", content, 1e-3),
        ("onnxruntime", "int8", low, 2.0),
        ("openvino", "fp32", content, 1e-3),
        ("openvino", "bf16", content, 0.2),
        ("openvino", "int8", low, 2.0),
    ):
        engine = open_engine(graph, runtime=runtime, precision=precision, threads=threads)
        calls[f"{runtime} {precision}"] = checked(engine, {"pixels": pixels}, "logits", expected, share)
    return in_turns(calls, rounds)


def encoder(threads: int, rounds: int) -> dict[str, Any]:
    """The embedded teacher's encoder: PyTorch eager fp32 against every CPU engine."""
    teacher = load_teacher("tiny")
    content = export_encoder(teacher).content
    image = make("endoscopy", seed=7).image
    frame = TeacherFrame((image.shape[0], image.shape[1]), teacher.input_side)
    inputs = {"pixels": frame.pixels(image)[None], "input_size": np.array([frame.input_size])}
    net, tensors = SamEncoder(teacher).eval(), [torch.from_numpy(value) for value in inputs.values()]
    with torch.inference_mode():
        expected = net(*tensors).numpy()

    def eager() -> None:
        with torch.inference_mode():
            net(*tensors)

    calls: dict[str, Callable[[], object]] = {"PyTorch eager fp32": eager}
    for runtime, precision, share in (
        ("onnxruntime", "fp32", 1e-3),
        ("openvino", "fp32", 1e-3),
        ("openvino", "bf16", 0.05),
    ):
        engine = open_engine(content, runtime=runtime, precision=precision, threads=threads)
        calls[f"{runtime} {precision}"] = checked(engine, inputs, "embeddings", expected, share)
    return in_turns(calls, rounds)


def decoder(threads: int, rounds: int) -> dict[str, Any]:
    """32 sets in one call of the bundle's teacher against 32 calls, in each engine."""
    teacher = load_teacher("tiny")
    content, record = export_decoder(teacher).content, teacher_record(teacher, "none")
    encoder = open_engine(export_encoder(teacher).content, threads=threads)
    image = make("endoscopy", seed=7).image
    sets = [Prompts(box=np.array([20 + i, 20, 120 + 3 * i, 200], np.float32)) for i in range(SETS)]
    calls: dict[str, Callable[[], object]] = {}
    for runtime in ("onnxruntime", "openvino"):
        opened = BundledTeacher(record, encoder, open_engine(content, runtime=runtime, threads=threads))
        ask = partial(opened.decode, opened.embed([image]))
        alone = np.concatenate([ask([[one]])[0] for one in sets])
        together, _ = ask([sets])
        assert np.abs(together - alone).max() <= 1e-3 * np.abs(alone).max(), runtime
        calls[f"{runtime} one call"] = partial(ask, [sets])
        calls[f"{runtime} {SETS} calls"] = lambda ask=ask: [ask([[one]]) for one in sets]  # type: ignore[misc]
    return in_turns(calls, rounds)


def main() -> int:
    """Run all; 1 when a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=11)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    options = (arguments.threads, arguments.rounds)
    cases = {"student": student(*options), "encoder": encoder(*options), "decoder": decoder(*options)}
    ratios: dict[str, dict[str, float]] = {}
    together: dict[str, dict[str, float]] = {}
    for kind in ("median_ms", "shortest_ms"):
        own = ratios[kind] = {}
        for name in ("student", "encoder"):
            times = {engine: found[kind] for engine, found in cases[name].items()}
            eager = times.pop("PyTorch eager fp32")
            own[name] = eager / min(times.values())
        times = {engine: found[kind] for engine, found in cases["decoder"].items()}
        runtimes = ("onnxruntime", "openvino")
        together[kind] = {r: times[f"{r} {SETS} calls"] / times[f"{r} one call"] for r in runtimes}
        own["decoder"] = min(times[f"{r} {SETS} calls"] for r in runtimes) / min(
            times[f"{r} one call"] for r in runtimes
        )
    targets = {"student": 5.0, "encoder": 2.0, "decoder": 1.2}
    document = {
        "machine": harness.machine(),
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "cases": cases,
        "best_engine_against_eager": ratios,
        "decoder_one_call_against_32_in_each_engine": together,
        "targets": targets,
    }
    several = "" if arguments.threads == 1 else f"_{arguments.threads}_threads"
    harness.save(document, RESULTS.with_stem(RESULTS.stem + several))
    for name, target in targets.items():
        print(f"{name}: {ratios['median_ms'][name]:.2f}x of medians (to reach: {target}x)")
    for runtime, ratio in together["median_ms"].items():
        print(f"decoder in {runtime}: one call {ratio:.2f}x as fast as {SETS}")
    return 0 if all(ratios["median_ms"][name] >= target for name, target in targets.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
