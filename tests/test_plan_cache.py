"""The cache of TensorRT's plans: its key, who may write it, and nothing in use that was not proved here."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import fake_gpu
import numpy as np
import pytest
from bundles import colours, rewrite
from test_plans import Machine, with_engine
from test_plans import cache as cache
from test_plans import machine as machine

from samdistill.bundle import Bundle
from samdistill.errors import BundleError, UsageError
from samdistill.plans import Plan, is_kept, plan_for
from samdistill.predictor import Predictor
from samdistill.runtime import Network, cuda
from samdistill.runtime.cuda import find_gpu
from samdistill.verify import verify


def test_a_plan_is_built_proved_kept_and_found_again(
    tiny_bundle: Path, machine: Machine, cache: Path
) -> None:
    _, library = machine
    bundle = with_engine(tiny_bundle)
    image = colours(90, 120)
    wanted = Predictor.load(bundle).predict(image)
    first = Predictor.load(bundle, "cuda")  # proved when it was exported: auto takes it
    assert first.engine == "tensorrt fp32 (NVIDIA Fake, tensorrt 10.13.3.9)"
    np.testing.assert_array_equal(first.predict(image).masks, wanted.masks)
    assert library.built == ["tensorrt"]
    assert sorted(file.suffix for file in cache.iterdir()) == [".bin", ".json", ".plan"]
    assert (cache.stat().st_mode & 0o77) == 0
    Predictor.load(bundle, "cuda", runtime="tensorrt")
    assert library.built == ["tensorrt"]


@pytest.mark.parametrize("what", ["driver", "version", "gpu", "network"])
def test_what_the_key_holds_changes_it_and_the_new_plan_takes_the_old_ones_place(
    tiny_bundle: Path, machine: Machine, cache: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, library = machine
    bundle = with_engine(tiny_bundle)
    Predictor.load(bundle, "cuda")
    (old,) = cache.glob("*.json")
    if what == "driver":
        monkeypatch.setattr(cuda, "nvidia_driver", lambda: "NVIDIA Fake, 590.2")
    elif what == "version":
        library.__version__ = "10.14.0"
    elif what == "gpu":
        gpu.capability = (12, 0)
    else:
        file = bundle / "student.onnx"
        file.write_bytes(file.read_bytes() + b"\x72\x00")  # a field that ONNX passes over: another hash
        rewrite(bundle)
    find_gpu.cache_clear()
    Predictor.load(bundle, "cuda")
    assert library.built == ["tensorrt"] * 2
    records = list(cache.glob("*.json"))
    assert old not in records or what == "network"
    assert len(records) == (2 if what == "network" else 1)


def test_a_plan_that_fails_its_golden_cases_is_neither_used_nor_kept(
    tiny_bundle: Path, machine: Machine, cache: Path
) -> None:
    _, library = machine
    library.wrong = 0.5
    bundle = with_engine(tiny_bundle)
    with pytest.raises(BundleError, match="golden cases come out otherwise on student: tensorrt fp32"):
        Predictor.load(bundle, "cuda")
    assert list(cache.glob("*.plan")) == list(cache.glob("*.json")) == []


def test_a_plan_that_no_golden_case_proves_is_neither_used_nor_kept(
    tiny_bundle: Path, machine: Machine, cache: Path
) -> None:
    bundle = with_engine(tiny_bundle)

    def edit(values: dict[str, Any]) -> None:
        for case in values["golden"]:
            case["part"] = "teacher"

    rewrite(bundle, edit)
    with pytest.raises(BundleError, match="must hold a case for the student, or nothing proves it"):
        Predictor.load(bundle, "cuda")
    assert list(cache.glob("*.plan")) == list(cache.glob("*.json")) == []


def test_a_plan_changed_in_the_cache_is_refused(tiny_bundle: Path, machine: Machine, cache: Path) -> None:
    bundle = with_engine(tiny_bundle)
    Predictor.load(bundle, "cuda")
    (plan,) = cache.glob("*.plan")
    content = plan.read_bytes()
    plan.write_bytes(content[:-1])
    with pytest.raises(BundleError, match=r"must have the SHA-256 .* Delete it; it is built again"):
        Predictor.load(bundle, "cuda")
    plan.unlink()
    Predictor.load(bundle, "cuda")
    (record,) = cache.glob("*.json")
    for text in ("{}", '{"key": {}, "sha256": "../../elsewhere"}'):
        record.write_text(text)
        with pytest.raises(BundleError, match="is no record of a plan"):
            Predictor.load(bundle, "cuda")


def test_two_that_keep_the_same_plan_at_once_do_not_mix(
    tiny_bundle: Path, machine: Machine, cache: Path
) -> None:
    """A plan's file is named by its own hash, so that a record never speaks of another's."""
    bundle = Bundle.open(with_engine(tiny_bundle))
    made = plan_for(bundle, bundle.manifest.engines[1], "cuda")
    for content in (made.content, made.content + b"."):
        Plan(content, False, made.blueprint).keep(bundle.sha256)
    (record,) = cache.glob("*.json")
    kept = json.loads(record.read_text())["sha256"]
    assert plan_for(bundle, bundle.manifest.engines[1], "cuda").content == made.content + b"."
    assert (cache / f"{kept}.plan").is_file()


def test_a_plan_that_is_built_anew_takes_the_old_ones_place(
    tiny_bundle: Path, machine: Machine, cache: Path
) -> None:
    bundle = Bundle.open(with_engine(tiny_bundle))
    made = plan_for(bundle, bundle.manifest.engines[1], "cuda")
    for number in range(3):
        Plan(made.content + bytes([number]), False, made.blueprint).keep()
    (plan,) = cache.glob("*.plan")
    assert plan.read_bytes() == made.content + bytes([2])


def test_a_gpu_without_memory_for_another_thread_says_so(
    tiny_bundle: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor.load(with_engine(tiny_bundle), "cuda")
    monkeypatch.setattr(fake_gpu.FakeContext, "execute_async_v3", lambda self, stream: False)
    with pytest.raises(BundleError, match="the network failed in tensorrt"):
        predictor.predict(np.zeros((40, 60, 3), np.uint8))
    monkeypatch.setattr(fake_gpu.FakeEngine, "create_execution_context", lambda self, strategy: None)
    with pytest.raises(MemoryError, match="tensorrt has no memory for another thread"):
        Predictor.load(with_engine(tiny_bundle), "cuda").predict(np.zeros((40, 60, 3), np.uint8))


def test_a_cache_that_cannot_be_written_is_said_with_a_cure(
    tiny_bundle: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tiny_bundle / "student.onnx"))  # a file
    with pytest.raises(UsageError, match=r"plans are kept: Not a directory\. .*set XDG_CACHE_HOME"):
        Predictor.load(with_engine(tiny_bundle), "cuda")


def test_a_record_that_another_process_replaces_meanwhile_is_passed_over(
    tiny_bundle: Path, machine: Machine, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(with_engine(tiny_bundle))
    made = plan_for(bundle, bundle.manifest.engines[1], "cuda")
    made.keep()
    gone = cache / "gone.json"
    own = Path.glob
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [*own(self, pattern), gone])
    made.keep(bundle.sha256)
    assert is_kept(bundle, bundle.manifest.engines[1], "cuda")


def test_a_plan_that_another_bundle_proved_is_proved_again_but_not_built_again(
    tiny_bundle: Path, machine: Machine, tmp_path: Path
) -> None:
    """The network is the same; the golden cases, and what they may differ by, are each bundle's own."""
    _, library = machine
    strict = with_engine(tiny_bundle)
    lax = Path(shutil.copytree(strict, tmp_path / "lax"))
    anything = {"max_probability_difference": 1.0, "max_changed_pixels": 1.0}
    rewrite(lax, lambda values: values["engines"][1].update(anything))
    library.wrong = 0.5
    Predictor.load(lax, "cuda")
    opened = [Bundle.open(bundle) for bundle in (lax, strict)]

    def kept() -> list[bool]:
        return [is_kept(bundle, bundle.manifest.engines[1], "cuda") for bundle in opened]

    assert kept() == [True, False]
    with pytest.raises(BundleError, match="golden cases come out otherwise on student: tensorrt fp32"):
        Predictor.load(strict, "cuda")
    assert kept() == [True, False]
    library.wrong = 0.0
    Predictor.load(strict, "cuda")
    assert kept() == [True, True]
    assert library.built == ["tensorrt"]


@pytest.mark.parametrize("whose", ["anybody writes", "another's", "behind another's link"])
def test_a_cache_that_is_not_this_users_alone_is_not_used(
    tiny_bundle: Path, machine: Machine, cache: Path, whose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = with_engine(tiny_bundle, verified=False)
    opened = Bundle.open(bundle)
    made = plan_for(opened, opened.manifest.engines[1], "cuda")
    made.keep(opened.sha256)
    if whose == "anybody writes":
        cache.chmod(0o777)
    elif whose == "another's":
        monkeypatch.setattr(os, "getuid", lambda: cache.stat().st_uid + 1)
    elif os.getuid() != 0:
        pytest.skip("root alone can give a link away")
    else:
        cache.rename(cache.with_name("elsewhere"))
        cache.symlink_to(cache.with_name("elsewhere"))
        os.chown(cache, 12345, -1, follow_symlinks=False)
    for use in (
        lambda: Predictor.load(bundle, "cuda"),
        lambda: Predictor.load(bundle, "cuda", runtime="tensorrt"),
        lambda: verify(bundle, device="cuda"),
        lambda: made.keep(opened.sha256),
        lambda: made.blueprint.build(Network(b"", {}, "fp32")),
    ):
        with pytest.raises(BundleError, match=r"plans must be your own folder, .* Delete it"):
            use()
