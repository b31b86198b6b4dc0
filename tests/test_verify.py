"""Bundles that were damaged, swapped, cut or forged are found out: at opening or by `verify`."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bundles import rewrite

from samdistill.bundle import Bundle
from samdistill.errors import BundleError
from samdistill.golden import GoldenCase
from samdistill.predictor import Predictor
from samdistill.runtime.onnxruntime import installed_wheels
from samdistill.verify import verify


def test_a_good_bundle_verifies(tiny_bundle: Path) -> None:
    found = verify(tiny_bundle)
    assert found.files == 6
    assert found.bundle_sha256 == Predictor.load(tiny_bundle).bundle_sha256
    assert [case.name for case in found.golden] == ["endoscopy", "ultrasound", "xray"]
    assert all(case.passed for case in found.golden)


def test_the_golden_cases_of_the_committed_bundle_hold_every_class(tiny_bundle: Path) -> None:
    cases = [
        GoldenCase.from_npz(file.read_bytes(), file.name) for file in sorted(tiny_bundle.glob("golden/*"))
    ]
    assert np.any([case.masks.any(axis=(1, 2)) for case in cases], axis=0).all()


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["student.onnx", "golden/xray.npz", "MODEL_CARD.md"])
@pytest.mark.parametrize("place", [0, -1])
def test_one_changed_bit_in_any_file_is_found(tiny_bundle: Path, name: str, place: int) -> None:
    flip(tiny_bundle / name, place)
    with pytest.raises(BundleError, match=f"{name} must have the SHA-256"):
        verify(tiny_bundle)


def test_a_changed_network_never_opens(tiny_bundle: Path) -> None:
    flip(tiny_bundle / "student.onnx", 100)
    with pytest.raises(BundleError, match=r"student\.onnx must have the SHA-256"):
        Predictor.load(tiny_bundle)


def test_a_truncated_file_is_found(tiny_bundle: Path) -> None:
    content = (tiny_bundle / "student.onnx").read_bytes()
    (tiny_bundle / "student.onnx").write_bytes(content[:-1])
    with pytest.raises(BundleError, match=r"student\.onnx must have 605 bytes, not 604"):
        Predictor.load(tiny_bundle)


def test_a_file_that_has_grown_is_found_without_reading_all_of_it(tiny_bundle: Path) -> None:
    with (tiny_bundle / "student.onnx").open("r+b") as file:
        file.truncate(1 << 40)  # a terabyte, of holes
    changed = (
        r"student\.onnx must have 605 bytes, not more: it was changed after export\. Copy the bundle again"
    )
    with pytest.raises(BundleError, match=changed):
        Predictor.load(tiny_bundle)


def test_swapped_files_are_found(tiny_bundle: Path) -> None:
    one, other = tiny_bundle / "golden" / "xray.npz", tiny_bundle / "golden" / "ultrasound.npz"
    spare = one.with_suffix(".spare")
    one.rename(spare)
    other.rename(one)
    spare.rename(other)
    with pytest.raises(BundleError, match="must have"):
        verify(tiny_bundle)


def test_a_missing_file_is_found(tiny_bundle: Path) -> None:
    (tiny_bundle / "golden" / "xray.npz").unlink()
    with pytest.raises(BundleError, match=r"golden/xray\.npz cannot be read"):
        verify(tiny_bundle)


def test_a_file_that_the_manifest_does_not_list_is_found(tiny_bundle: Path) -> None:
    (tiny_bundle / "golden" / "extra.txt").write_text("hello")
    with pytest.raises(BundleError, match=r"golden/extra\.txt lies in the bundle"):
        verify(tiny_bundle)


def test_a_linked_folder_that_the_manifest_does_not_list_is_found(tiny_bundle: Path, tmp_path: Path) -> None:
    (tiny_bundle / "extra").symlink_to(tmp_path)
    with pytest.raises(BundleError, match=r"extra lies in the bundle"):
        verify(tiny_bundle)


def test_links_in_a_circle_are_no_file(tiny_bundle: Path) -> None:
    (tiny_bundle / "student.onnx").unlink()
    (tiny_bundle / "student.onnx").symlink_to("student.onnx")
    with pytest.raises(BundleError, match=r"student\.onnx cannot be read"):
        Bundle.open(tiny_bundle).read("student.onnx")


def test_a_length_that_nobody_has_takes_no_memory(tiny_bundle: Path) -> None:
    values = json.loads((tiny_bundle / "manifest.json").read_text())
    for record in values["files"]:
        record["bytes"] = 1 << 62
    (tiny_bundle / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(BundleError, match="it was cut short"):
        Bundle.open(tiny_bundle).read("student.onnx")


def test_a_link_out_of_the_bundle_is_not_followed(tiny_bundle: Path, tmp_path: Path) -> None:
    outside = tmp_path / "student.onnx"
    shutil.move(tiny_bundle / "student.onnx", outside)
    (tiny_bundle / "student.onnx").symlink_to(outside)
    with pytest.raises(BundleError, match="regular file inside the bundle"):
        Predictor.load(tiny_bundle)


def test_a_place_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="there is no such folder"):
        Bundle.open(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match=r"manifest\.json cannot be read"):
        Bundle.open(tmp_path / "empty")


def test_a_file_the_manifest_does_not_list_cannot_be_read(tiny_bundle: Path) -> None:
    (tiny_bundle / "extra").write_bytes(b"x")
    with pytest.raises(BundleError, match="must be listed"):
        Bundle.open(tiny_bundle).read("extra")


def test_a_forged_network_with_right_hashes_is_found_by_its_golden_cases(tiny_bundle: Path) -> None:
    """One class's bias is moved by 20 grey levels: masks are a little wrong, nothing else shows it."""
    model = onnx.load(tiny_bundle / "student.onnx")
    bias = model.graph.initializer[-1]
    values = onnx.numpy_helper.to_array(bias).copy()
    assert values.shape == (2,), "the last tensor must be the bias"
    values[1] += 2.0
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    onnx.save(model, tiny_bundle / "student.onnx")
    rewrite(tiny_bundle)
    Predictor.load(tiny_bundle)
    with pytest.raises(BundleError, match="golden cases come out otherwise"):
        verify(tiny_bundle)


def test_a_changed_threshold_with_right_hashes_is_found_by_its_golden_cases(tiny_bundle: Path) -> None:
    """The probability maps stay as they were; only masks tell."""

    def edit(values: dict[str, Any]) -> None:
        values["classes"][0]["threshold"] = 0.9

    rewrite(tiny_bundle, edit)
    with pytest.raises(BundleError, match="golden cases come out otherwise"):
        verify(tiny_bundle)


def test_probabilities_that_drift_without_changing_a_mask_are_found(tiny_bundle: Path) -> None:
    """Every logit grows by a twentieth: hardly a pixel changes sides, but no probability is right."""
    model = onnx.load(tiny_bundle / "student.onnx")
    for tensor in model.graph.initializer[-2:]:
        values = onnx.numpy_helper.to_array(tensor) * np.float32(1.05)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, tiny_bundle / "student.onnx")
    rewrite(tiny_bundle)
    with pytest.raises(BundleError, match="golden cases come out otherwise"):
        verify(tiny_bundle)


def test_a_golden_case_that_is_none_is_refused(tiny_bundle: Path) -> None:
    good = (tiny_bundle / "golden" / "xray.npz").read_bytes()
    # How the first entry is packed, in its own header and in the list: in a way that zipfile does not know.
    unknown, listed = bytearray(good), good.index(b"PK\x01\x02")
    unknown[8], unknown[listed + 10] = 99, 99
    for content in (b"", b"PK\x05\x06", incomplete(), bytes(unknown)):
        (tiny_bundle / "golden" / "xray.npz").write_bytes(content)
        rewrite(tiny_bundle)
        with pytest.raises(BundleError, match="is no golden case"):
            verify(tiny_bundle)


class Evil:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def test_a_bundle_whose_cases_prove_nothing_of_the_student_does_not_verify(tiny_bundle: Path) -> None:
    def edit(values: dict[str, Any]) -> None:
        for case in values["golden"]:
            case["part"] = "teacher"

    rewrite(tiny_bundle, edit)
    with pytest.raises(BundleError, match="golden must hold a case of the student"):
        verify(tiny_bundle)


def test_a_golden_case_is_never_unpickled(tiny_bundle: Path, tmp_path: Path) -> None:
    evil = np.array([Evil(tmp_path / "trace")], dtype=object)
    np.savez(tiny_bundle / "golden" / "xray.npz", pixels=evil, masks=evil, probability_maps=evil)
    rewrite(tiny_bundle)
    with pytest.raises(BundleError, match="is no golden case"):
        verify(tiny_bundle)
    assert not (tmp_path / "trace").exists()


def incomplete() -> bytes:
    file = io.BytesIO()
    np.savez(file, pixels=np.zeros((4, 4), np.uint8))
    return file.getvalue()


def test_a_golden_case_comes_back_from_its_file() -> None:
    random = np.random.default_rng(3)
    maps = random.random((3, 7, 5), np.float32)
    case = GoldenCase(random.integers(0, 255, (7, 5, 3), np.uint8), maps > 0.4, maps)
    back = GoldenCase.from_npz(case.to_npz(), "case")
    np.testing.assert_array_equal(back.pixels, case.pixels)
    np.testing.assert_array_equal(back.masks, case.masks)
    np.testing.assert_allclose(back.probability_maps, maps, atol=1 / 65535)
    assert case.to_npz() == case.to_npz()


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "samdistill", "verify", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_says_what_it_found(tiny_bundle: Path) -> None:
    done = run(tiny_bundle, "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["files"] == 6
    assert "Traceback" not in done.stderr


def test_a_precision_that_does_not_hold_here_leaves_the_others_to_be_verified(tiny_bundle: Path) -> None:
    """As int8 on a processor that saturates: its golden cases come out otherwise, fp32's as published."""

    def add_int8(values: dict[str, Any]) -> None:
        (own,) = values["engines"]
        values["engines"].insert(0, {**own, "precision": "int8", "max_probability_difference": 1e-12})

    rewrite(tiny_bundle, add_int8)
    done = run(tiny_bundle)
    assert done.returncode == 5
    assert "onnxruntime int8" in done.stderr and "name another with --precision" in done.stderr
    done = run(tiny_bundle, "--precision", "fp32", "--json")
    assert done.returncode == 0, done.stderr
    assert {case["engine"].split()[2] for case in json.loads(done.stdout)["golden"]} == {"fp32"}
    assert run(tiny_bundle, "--precision", "bf16").returncode == 2


def test_the_command_ends_with_5_for_a_corrupted_bundle(tiny_bundle: Path) -> None:
    flip(tiny_bundle / "student.onnx", 10)
    done = run(tiny_bundle)
    assert done.returncode == 5
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "student.onnx must have the SHA-256" in done.stderr


def test_the_command_ends_with_6_for_a_device_that_cannot_be_had(tiny_bundle: Path) -> None:
    if "onnxruntime-gpu" in installed_wheels():
        pytest.skip("here CUDA may be had")
    done = run(tiny_bundle, "--device", "cuda")
    assert done.returncode == 6
    assert "device cuda:0 needs CUDAExecutionProvider" in done.stderr
