"""What only a machine with an NVIDIA GPU can show: plans that run. Skips, and says so, where none is."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from bundles import colours
from teacher_bundles import graphs_of
from test_plans import with_engine

from samdistill import phantoms
from samdistill.bundled_teacher import BundledTeacher
from samdistill.export.low_precision import lower
from samdistill.export.pieces import teacher_record
from samdistill.export.teacher_parity import combinations
from samdistill.manifest import Part
from samdistill.plans import generation
from samdistill.predictor import Predictor
from samdistill.profiles import profiles
from samdistill.runtime import PLANNED, Engine, Network, is_installed, open_engine, tensorrt
from samdistill.runtime.cuda import find_gpu, nvidia_driver
from samdistill.teacher import Teacher, load_teacher

pytestmark = [
    pytest.mark.skipif(nvidia_driver() is None, reason="needs an NVIDIA GPU, and there is none here"),
    pytest.mark.timeout(1200),
]


@pytest.fixture(params=PLANNED)
def runtime(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    name: str = request.param
    if not is_installed(name):
        pytest.skip(f"{name} is not installed beside the GPU: pip install 'samdistill[{name}]'")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return name


def test_a_student_built_here_is_proved_kept_and_gives_the_cpus_masks(
    runtime: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    bundle = with_engine(tiny_bundle, runtime)
    on_gpu, on_cpu = Predictor.load(bundle, "cuda"), Predictor.load(bundle)
    assert on_gpu.runtime == runtime
    pictures = [colours(90, 120), colours(64, 250, seed=1), colours(300, 80, seed=2)]
    for one, other in zip(on_gpu.predict_batch(pictures), on_cpu.predict_batch(pictures), strict=True):
        np.testing.assert_allclose(one.probability_maps, other.probability_maps, atol=1e-3)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(on_gpu.predict, pictures * 4):
            assert found.masks.shape[0] == 2
    (plan,) = (tmp_path / "cache" / "samdistill" / "plans").glob("*.plan")
    before = plan.stat().st_mtime_ns
    Predictor.load(bundle, "cuda", runtime=runtime)
    assert plan.stat().st_mtime_ns == before


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_tiny_teacher_on_the_gpu_gives_pytorchs_masks(runtime: str, precision: str) -> None:
    teacher = load_teacher("tiny")
    record = teacher_record(teacher, "Apache-2.0")

    def opened(part: Part, content: bytes) -> Engine:
        network = Network(lower(content) if precision == "fp16" else content, {}, precision)
        generations = (generation(find_gpu()),) if runtime == "tensorrt-rtx" else ()
        shapes = profiles(part, size=224, teacher=record)
        plan, _ = tensorrt.build(runtime, network, shapes, generations=generations)
        return open_engine(plan, runtime=runtime, device="cuda")

    encoder, decoder = (opened(part, graph.content) for part, graph in graphs_of(teacher).items())
    _agree(
        teacher, BundledTeacher(record, encoder, decoder), least_dice=0.999 if precision == "fp32" else 0.97
    )


def _agree(teacher: Teacher, exported: BundledTeacher, *, least_dice: float) -> None:
    drawn = [
        phantoms.make("endoscopy", seed=4, index=i, size=size)
        for i, size in enumerate([(90, 120), (300, 256)])
    ]
    images = [one.image for one in drawn]
    sets = [combinations(one.masks[one.masks.any(axis=(1, 2)).argmax()]) for one in drawn]
    expected = teacher.segment(teacher.embed(images), sets).masks
    found = exported.segment(exported.embed(images), sets).masks
    for one, other in zip(found, expected, strict=True):
        assert 2 * (one & other).sum() >= least_dice * (one.sum() + other.sum())
