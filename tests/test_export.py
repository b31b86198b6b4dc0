"""Export publishes what agrees with PyTorch, and nothing else; whenever it dies, no half bundle is left."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from colour_student import CLASS_NAMES, ColourStudent
from small_sam import small_teacher
from torch import nn

import samdistill.export.bundle as publishing
import samdistill.export.pieces as pieces
from samdistill.bundle import Bundle
from samdistill.errors import BundleError, InputRejected, UsageError
from samdistill.export.bundle import Source, check_target, licence_of, publish
from samdistill.export.golden import make_golden
from samdistill.export.onnx import export_onnx
from samdistill.export.parity import ParityError
from samdistill.golden import GoldenCase
from samdistill.intensity import IntensityRule
from samdistill.io.dataset import Case, open_dataset
from samdistill.predictor import Predictor
from samdistill.prompts import PromptConfig
from samdistill.refine import RefineConfig
from samdistill.teacher.checkpoints import KNOWN
from samdistill.verify import verify

HERE = Path(__file__).resolve().parent


def source(student: nn.Module | None = None) -> Source:
    return Source(student or ColourStudent(), CLASS_NAMES, False, IntensityRule(), 64, {"seed": 1})


@pytest.fixture(scope="module")
def cases(hospital: Path) -> list[Case]:
    return [case.without_labels() for case in open_dataset(hospital).cases[:4]]  # of other classes


@pytest.fixture(scope="module")
def model() -> bytes:
    return export_onnx(ColourStudent())


@pytest.fixture
def exported(model: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network is exported once for all tests that are about what comes after it."""
    monkeypatch.setattr(pieces, "export_onnx", lambda student: model)


def test_a_graph_edited_to_give_wrong_masks_is_not_published(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(student: nn.Module) -> bytes:
        graph = onnx.load_from_string(export_onnx(student))
        bias = graph.graph.initializer[-1]
        moved = onnx.numpy_helper.to_array(bias) + np.float32(0.7)
        bias.CopyFrom(onnx.numpy_helper.from_array(moved, bias.name))
        return graph.SerializeToString()

    monkeypatch.setattr(pieces, "export_onnx", wrong)
    with pytest.raises(ParityError):
        publish(source(), cases, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("exported")
def test_a_bundle_that_does_not_verify_is_not_published(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*arguments: Any, **options: Any) -> dict[str, tuple[str, GoldenCase]]:
        made = make_golden(*arguments, **options)
        return {
            name: (origin, GoldenCase(case.pixels, ~case.masks, case.probability_maps))
            for name, (origin, case) in made.items()
        }

    monkeypatch.setattr(pieces, "make_golden", wrong)
    with pytest.raises(BundleError, match="golden cases come out otherwise"):
        publish(source(), cases, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("exported")
def test_real_images_enter_a_bundle_only_on_request_and_the_card_counts_them(
    cases: list[Case], tmp_path: Path
) -> None:
    without = publish(source(), cases, tmp_path / "without")
    assert "| real images inside | none |" in (without.path / "MODEL_CARD.md").read_text()
    made = publish(source(), cases[:2], tmp_path / "bundle", include_images=True)
    golden = {case.name: case for case in Bundle.open(made.path).manifest.golden}
    assert list(golden) == ["endoscopy", "ultrasound", "xray", "image-1", "image-2"]
    for case, name in zip(cases, ("image-1", "image-2"), strict=False):
        assert golden[name].origin.startswith("real image of the run's validation part")
        stored = GoldenCase.from_npz((made.path / golden[name].file).read_bytes(), name)
        np.testing.assert_array_equal(stored.pixels, case.read_image())
    assert "| real images inside | 2 |" in (made.path / "MODEL_CARD.md").read_text()
    assert {result.name for result in made.verification.golden} == set(golden)
    assert not list(without.path.glob("golden/image*"))


@pytest.mark.usefixtures("exported")
def test_what_is_there_is_not_overwritten(cases: list[Case], tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    first = publish(source(), cases, out)
    with pytest.raises(UsageError, match="--force"):
        publish(source(), cases, out)
    second = publish(source(), cases, out, force=True, name="another")
    assert first.sha256 != second.sha256
    assert Predictor.load(out).bundle_sha256 == second.sha256
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.usefixtures("exported")
def test_what_is_no_bundle_is_never_touched(cases: list[Case], tmp_path: Path, force: bool) -> None:
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "thesis.tex").write_text("five years")
    for place in (out, out / "thesis.tex"):
        with pytest.raises(UsageError, match="is no bundle and stays"):
            publish(source(), cases, place, force=force)
    assert (out / "thesis.tex").read_text() == "five years"
    (out / "manifest.json").write_text('{"name": "a web page", "icons": []}')
    with pytest.raises(UsageError, match="is no bundle and stays"):
        publish(source(), cases, out, force=force)
    assert (out / "thesis.tex").read_text() == "five years"


def test_a_name_too_long_is_refused_before_any_work(cases: list[Case], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"name must have 1\.\.200 characters, not 201"):
        publish(source(), cases, tmp_path / "bundle", name=201 * "n")


@pytest.mark.usefixtures("exported")
def test_an_empty_folder_may_become_a_bundle(cases: list[Case], tmp_path: Path) -> None:
    publish(source(), cases, tmp_path)
    verify(tmp_path)


@pytest.mark.usefixtures("exported")
def test_an_empty_folder_may_be_called_a_dot(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bundle").mkdir()
    monkeypatch.chdir(tmp_path / "bundle")
    made = publish(source(), cases, Path())
    assert made.path == tmp_path / "bundle"
    assert Bundle.open(made.path).manifest.name == "bundle"


def test_the_licence_of_weights_from_a_file_is_told_of_the_official_one_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "sam_vit_b.pth"
    file.write_bytes(b"weights of one's own")
    for words in (str(file), f"sam_vit_b:{file}"):
        assert licence_of(words) == "not stated"
    for words in ("tiny", "sam_vit_b"):
        assert licence_of(words) == "Apache-2.0"
    official = replace(KNOWN["sam_vit_b"], sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    monkeypatch.setitem(KNOWN, "sam_vit_b", official)
    assert licence_of(str(file)) == "Apache-2.0"


def test_a_run_without_validation_images_is_not_published(tmp_path: Path) -> None:
    with pytest.raises(InputRejected, match="must have validation images"):
        publish(source(), [], tmp_path / "bundle")


def test_prompts_with_thresholds_of_other_classes_are_refused_before_the_work(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "student_piece", lambda *_, **__: pytest.fail("too late"))
    prompts = RefineConfig(PromptConfig(threshold=(0.5,) * (len(CLASS_NAMES) + 1)))
    with pytest.raises(UsageError, match=r"one number or 2, one a class, not 3"):
        publish(source(), cases, tmp_path / "bundle", teacher=small_teacher(), prompts=prompts)


def test_what_came_to_the_place_meanwhile_stays(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "bundle"

    def meanwhile(folder: Path) -> Any:
        out.mkdir()
        (out / "thesis.tex").write_text("years")
        return verify(folder)

    monkeypatch.setattr(publishing, "verify", meanwhile)
    with pytest.raises(UsageError, match="must be a new place for a bundle"):
        publish(source(), cases, out)
    assert (out / "thesis.tex").read_text() == "years"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.usefixtures("exported")
def test_a_bundle_that_holds_something_else_is_not_replaced(cases: list[Case], tmp_path: Path) -> None:
    out = publish(source(), cases, tmp_path / "bundle").path
    (out / "results").mkdir()
    (out / "results" / "0001.png").write_bytes(b"a mask")
    with pytest.raises(UsageError, match=r"Move results/0001\.png out of it"):
        check_target(out, force=True)
    (out / "results" / "0001.png").unlink()
    (out / "results").rmdir()
    check_target(out, force=True)


def test_a_place_where_nothing_can_be_put_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for out in (Path("/proc/bundle"), file / "bundle"):
        with pytest.raises(UsageError, match="must allow writing"):
            check_target(out, force=False)
    monkeypatch.setattr("os.path.ismount", lambda path: True)
    with pytest.raises(UsageError, match="must be no mount point"):
        check_target(tmp_path / "bundle", force=False)


@pytest.mark.parametrize("words", [{"name": "H\udcf4pital"}, {"licence": "a\x1b[2J"}])
def test_a_name_that_cannot_be_printed_is_refused_before_the_work(
    cases: list[Case], tmp_path: Path, words: dict[str, str]
) -> None:
    with pytest.raises(UsageError, match="must be printable text"):
        publish(source(), cases, tmp_path / "bundle", **words)  # type: ignore[arg-type]


SLOW_EXPORT = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import samdistill.export.bundle as publishing
import samdistill.export.pieces as pieces
from test_export import source
from samdistill.io.dataset import open_dataset
from samdistill.teacher import load_teacher

def wait(name):
    original = getattr(publishing, name)
    def waiting(*arguments, **options):
        print(name, flush=True)
        time.sleep(60)
        return original(*arguments, **options)
    setattr(publishing, name, waiting)

wait({moment!r})
cases = [case.without_labels() for case in open_dataset(Path({data!r})).cases[:2]]
teacher = load_teacher("tiny") if {teacher} else None
publishing.publish(source(), cases, Path({out!r}), force=True, teacher=teacher)
"""


@pytest.mark.parametrize(
    ("moment", "before", "teacher"),
    [("verify", False, False), ("_put", True, False), ("verify", True, True)],
)
@pytest.mark.usefixtures("exported")
def test_an_export_killed_at_any_moment_leaves_the_old_bundle_or_none(
    cases: list[Case], hospital: Path, tmp_path: Path, moment: str, before: bool, teacher: bool
) -> None:
    out = tmp_path / "bundle"
    old = publish(source(), cases, out).sha256 if before else None
    code = SLOW_EXPORT.format(
        tests=str(HERE), moment=moment, data=str(hospital), out=str(out), teacher=teacher
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline().strip() == moment
        process.send_signal(signal.SIGKILL)
        process.wait()
    if old is None:
        assert not out.exists()
    else:
        assert verify(out).bundle_sha256 == old
    assert verify(publish(source(), cases, out, force=True).path)


def test_a_bundle_is_made_again_bit_by_bit(cases: list[Case], tmp_path: Path) -> None:
    one, other = (publish(source(), cases, tmp_path / place, name="n") for place in "xy")
    assert one.sha256 == other.sha256
