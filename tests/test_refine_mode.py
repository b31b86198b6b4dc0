"""Mode refine: the bundle's teacher answers as training's does; where the student's mask stands is said."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from bundles import colours, expected, rewrite
from colour_student import ColourStudent
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PillowImage
from teacher_bundles import give_teacher

import samdistill.refined as refined_module
from samdistill import phantoms
from samdistill.bundled_teacher import BundledEmbedding
from samdistill.components import label
from samdistill.config import to_dict
from samdistill.errors import BundleError, UsageError
from samdistill.inference import Options, gather, segment_files
from samdistill.intensity import IntensityRule
from samdistill.io.dataset import open_dataset
from samdistill.phantoms.folder import write
from samdistill.predictor import Predictor
from samdistill.prompts import PromptConfig
from samdistill.refine import BURDEN, RefineConfig
from samdistill.refined import Refined, config_of, refine_images, told
from samdistill.segmentation import masks_of
from samdistill.teacher import load_teacher
from samdistill.teacher.cache import EmbeddingCache
from samdistill.teacher_frame import TeacherFrame, TeacherMasks
from samdistill.train.embedded import EmbeddedCases
from samdistill.train.pseudo import TeacherRefiner, whole_images

TINY = Path(__file__).parent / "golden" / "tiny_bundle"
CONFIG = RefineConfig(PromptConfig(count=3, per_component=True, min_area_px=4), second_pass="points")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = tmp_path_factory.mktemp("refine") / "bundle"
    shutil.copytree(TINY, bundle)
    return give_teacher(bundle, load_teacher("tiny"), CONFIG)


@pytest.fixture
def bundle(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "bundle"))


@pytest.fixture(scope="module")
def predictor(original: Path) -> Predictor:
    return Predictor.load(original, threads=1)


def dark(height: int = 64, width: int = 80) -> Any:
    """A picture in which the student finds nothing."""
    return np.full((height, width, 3), 20, np.uint8)


def counted(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """How many images the encoder and prompt sets the decoder got in each call, from now on."""
    calls: dict[str, list[int]] = {"encoder": [], "decoder": []}
    teacher = predictor.teacher()
    for part, name in (("encoder", "pixels"), ("decoder", "image_index")):
        engine = getattr(teacher, f"_{part}")

        def run(inputs: Any, own: Any = engine.run, part: str = part, name: str = name) -> Any:
            calls[part].append(len(inputs[name]))
            return own(inputs)

        monkeypatch.setattr(engine, "run", run)
    return calls


def test_masks_are_those_of_training_with_the_same_student_and_teacher(
    predictor: Predictor, tmp_path: Path
) -> None:
    write(tmp_path / "data", "endoscopy", 5, seed=3, size=(90, 120))
    cases = [case.without_labels() for case in open_dataset(tmp_path / "data").cases]
    images = [case.read_image() for case in cases]
    embedded = EmbeddedCases(load_teacher("tiny"), EmbeddingCache(tmp_path / "cache"), cases, IntensityRule())
    with torch.no_grad():
        wanted = whole_images(
            ColourStudent(), TeacherRefiner(embedded, CONFIG), range(5), images, size=64, batch=2
        )
    found = predictor.predict_batch(images, "refine")
    asked = 0
    for one, other in zip(found, wanted, strict=True):
        assert one.refined is not None
        claimed = other.masks.sum(axis=0) > 1
        for c, why in enumerate(one.refined.kept):
            assert (why in (None, "overlapped")) == bool(other.prompts[c] and other.masks[c].any())
            if why is None:
                asked += 1
                assert one.refined.predicted_iou[c] == pytest.approx(other.predicted_iou[c], abs=0.01)
                # Training's embeddings are kept in half precision; nothing else may differ.
                differ = (one.masks[c] != other.masks[c]) & ~claimed
                assert differ.mean() < 0.005
    assert asked >= 5


def test_all_classes_and_components_of_all_images_take_one_call_a_pass_and_one_embedding_an_image(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counted(predictor, monkeypatch)
    images = [colours(64, 96), dark(), colours(64, 90)]
    found = predictor.predict_batch(images, "refine")
    sets = [sum(len(own) for own in one.refined.prompts) for one in found if one.refined is not None]
    assert sets[1] == 0
    assert min(sets[0], sets[2]) >= 2
    assert sum(calls["encoder"]) == 2, "each image once, the dark one not at all"
    assert calls["decoder"] == [sum(sets), sum(sets)], "one call a pass"


def test_a_set_for_each_component(predictor: Predictor) -> None:
    one = predictor.predict(colours(64, 96), "refine")
    assert one.refined is not None
    for sets, mask in zip(one.refined.prompts, one.probability_maps > 0.5, strict=True):
        assert len(sets) == np.count_nonzero(label(mask).area_px >= 4)


def test_the_answer_is_the_same_alone_and_in_company_and_out_of_a_pickle(predictor: Predictor) -> None:
    images = [phantoms.make("endoscopy", seed=2, index=i, size=(64 + 7 * i, 90)).image for i in range(3)]
    together = predictor.predict_batch(images, "refine")
    again = pickle.loads(pickle.dumps(predictor))
    for image, one in zip(images, together, strict=True):
        for other in (predictor.predict(image, "refine"), again.predict(image, "refine")):
            assert one.mode == other.mode == "refine"
            assert (one.masks != other.masks).mean() < 1e-3
            np.testing.assert_array_equal(one.probability_maps, predictor.predict(image).probability_maps)


def test_the_teacher_runs_in_the_precision_that_was_asked_for(bundle: Path) -> None:
    def add_low(values: dict[str, Any]) -> None:
        """The encoder in fp16, the fastest it has; the student and the decoder in fp32 alone."""
        own = next(one for one in values["engines"] if one["model"] == "encoder")
        values["engines"].insert(0, {**own, "precision": "fp16"})
        student = next(one for one in values["engines"] if one["model"] == "student")
        values["engines"].append({**student, "precision": "fp16"})

    rewrite(bundle, add_low)
    for asked, encoder in ((None, "fp16"), ("fp16", "fp16"), ("fp32", "fp32")):
        predictor = Predictor.load(bundle, threads=1, precision=asked)
        for one in (predictor, pickle.loads(pickle.dumps(predictor))):
            found = {part: opened.record.precision for part, opened in one.teacher().parts.items()}
            assert found == {"encoder": encoder, "decoder": "fp32"}, asked


def test_an_empty_prediction_keeps_the_students_answer_and_asks_nobody(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counted(predictor, monkeypatch)
    one = predictor.predict(dark(), "refine")
    assert calls == {"encoder": [], "decoder": []}
    assert not one.masks.any()
    assert one.refined is not None
    assert one.refined.kept == ("empty", "empty")
    assert not one.refined.any
    assert np.isnan(one.refined.predicted_iou).all()


def test_a_class_without_pixels_of_its_own_keeps_the_students_mask(bundle: Path) -> None:
    values = json.loads((bundle / "manifest.json").read_text())
    values["prompts"] = to_dict(BURDEN)
    values["multi_label"] = True
    (bundle / "manifest.json").write_text(json.dumps(values))
    image = dark(64, 64)
    image[10:40, 10:50] = (220, 220, 220)  # bright
    image[20:30, 20:40] = (255, 190, 190)  # red within it
    predictor = Predictor.load(bundle)
    one, student = predictor.predict(image, "refine"), predictor.predict(image)
    assert one.refined is not None
    assert one.refined.kept == ("unprompted", None)
    np.testing.assert_array_equal(one.masks[0], student.masks[0])
    assert one.masks[0].any()


class Says:
    """A teacher whose answers are given."""

    def __init__(self, *masks: Any, predicted_iou: float = 0.9) -> None:
        self.masks, self.predicted_iou = list(masks), predicted_iou

    def embed(self, images: Any) -> Any:
        side = images[0].shape[0]
        return [BundledEmbedding(np.zeros((4, 8, 8), np.float32), TeacherFrame((side, side), 64))]

    def segment(self, *_: Any, **__: Any) -> TeacherMasks:
        count = len(self.masks)
        sure = np.full(count, self.predicted_iou, np.float32)
        return TeacherMasks(self.masks, np.zeros((count, 16, 16), np.float32), sure)


def refined_by(teacher: Says, maps: Any, prompts: PromptConfig) -> tuple[Any, Any, Refined]:
    """The student's masks, the final ones, and what was asked; classes do not overlap."""
    manifest: Any = SimpleNamespace(
        prompts=RefineConfig(prompts),
        teacher=SimpleNamespace(preprocessing="sam"),
        cleaning=None,
        multi_label=False,
    )
    fast = masks_of(maps, thresholds=(0.5,) * len(maps), multi_label=False)
    image = np.zeros((*maps.shape[1:], 3), np.uint8)
    bundled: Any = teacher
    ((masks, refined),) = refine_images(bundled, manifest, [image], [maps], [fast])
    return fast, masks, refined


def square(start: int, stop: int, value: float = 1.0) -> Any:
    map_ = np.zeros((32, 32), np.float32)
    map_[start:stop, start:stop] = value
    return map_


def test_a_class_that_others_would_take_whole_keeps_the_students_mask() -> None:
    maps = np.stack([square(4, 10, 0.6), square(12, 24, 0.9)])
    teacher = Says(square(13, 16) > 0, square(6, 24) > 0)  # the first class within the second
    fast, masks, refined = refined_by(teacher, maps, PromptConfig(points="none"))
    assert refined.kept == ("overlapped", None)
    np.testing.assert_array_equal(masks[0], fast[0])
    np.testing.assert_array_equal(masks[1], (square(6, 24) > 0) & ~fast[0])


@settings(max_examples=100)
@given(st.integers(0, 2**32 - 1), st.integers(2, 5))
def test_no_class_that_the_student_found_is_lost_where_classes_may_not_overlap(seed: int, count: int) -> None:
    random = np.random.default_rng(seed)
    maps = random.choice(np.array([0.1, 0.6, 0.7], np.float32), (count, 2, 3))
    thresholds = random.choice([0.05, 0.5, 0.65], count)
    student = masks_of(maps, thresholds=tuple(thresholds), multi_label=False)
    asked = student.any(axis=(1, 2)) & (random.random(count) < 0.7)
    answers = random.random((count, 2, 3)) < 0.5
    given = np.where((asked & answers.any(axis=(1, 2)))[:, None, None], answers, student)
    kept: Any = [None if one else "doubtful" for one in asked & answers.any(axis=(1, 2))]
    found = refined_module._apart(given, student, maps, kept)
    assert found.sum(axis=0).max() <= 1
    for mask, own, why in zip(found, student, kept, strict=True):
        assert mask.any() or not own.any()
        assert why != "overlapped" or np.array_equal(mask, own)


def test_what_the_prompts_leave_out_was_found_all_the_same() -> None:
    maps = np.stack([square(4, 7, 0.9), np.zeros((32, 32), np.float32), square(12, 24, 0.9)])
    fast, masks, refined = refined_by(Says(maps[2] > 0), maps, PromptConfig(points="none", min_area_px=40))
    assert refined.kept == ("discarded", "empty", None)
    np.testing.assert_array_equal(masks, fast)
    assert told([refined], ("a", "b", "c"))["a"]["kept"] == {"discarded": 1}


def test_a_teacher_that_is_not_sure_at_all_is_doubted_only_where_that_was_asked_for() -> None:
    teacher = Says(square(6, 24) > 0, predicted_iou=-0.02)  # the head that estimates it knows no bounds
    _, masks, refined = refined_by(teacher, square(12, 24, 0.9)[None], PromptConfig(points="none"))
    assert refined.kept == (None,)
    np.testing.assert_array_equal(masks[0], square(6, 24) > 0)


def test_a_teacher_that_answers_with_nothing_leaves_the_students_mask(bundle: Path) -> None:
    rewrite(bundle, lambda values: values["teacher"].update(mask_threshold=1e6))
    predictor = Predictor.load(bundle)
    one, student = predictor.predict(colours(), "refine"), predictor.predict(colours())
    assert one.refined is not None
    assert one.refined.kept == ("unanswered", "unanswered")
    np.testing.assert_array_equal(one.masks, student.masks)
    np.testing.assert_array_equal(one.refined.agreement, [0, 0])


@pytest.mark.parametrize("multi_label", [False, True])
def test_classes_overlap_only_where_they_may(bundle: Path, multi_label: bool) -> None:
    rewrite(bundle, lambda values: values["teacher"].update(mask_threshold=-1e6))
    rewrite(bundle, lambda values: values.update(multi_label=multi_label))
    one = Predictor.load(bundle).predict(colours(), "refine")
    if multi_label:
        assert one.masks.all(), "this teacher gives every class every pixel"
    else:
        assert (one.masks.sum(axis=0) == 1).all()
        np.testing.assert_array_equal(
            one.masks.argmax(axis=0), one.probability_maps.argmax(axis=0), "the more probable has the pixel"
        )


def test_the_bundles_cleaning_is_done_on_the_teachers_masks(bundle: Path) -> None:
    image = dark(64, 128)
    image[10:30, 10:30] = image[10:50, 80:120] = (200, 60, 60)
    before = Predictor.load(bundle).predict(image, "refine").masks[0]
    assert len(label(before)) >= 2
    rewrite(bundle, lambda values: values.update(cleaning={"keep": "largest", "min_area_px": 0}))
    after = Predictor.load(bundle).predict(image, "refine").masks[0]
    found = label(before)
    np.testing.assert_array_equal(after, found.labels == 1 + found.area_px.argmax())


def test_medsam_gets_the_boxes_alone(predictor: Predictor) -> None:
    record = predictor.manifest.teacher
    assert record is not None
    manifest = replace(predictor.manifest, teacher=replace(record, preprocessing="medsam"))
    assert config_of(manifest) == RefineConfig(CONFIG.prompts, first_pass="box")
    assert config_of(predictor.manifest) == CONFIG


def test_what_is_told_of_several_images_counts_them(predictor: Predictor) -> None:
    found = predictor.predict_batch([colours(), dark(), dark()], "refine")
    refined = [one.refined for one in found if one.refined is not None]
    red = told(refined, predictor.class_names)["red"]
    assert (red["teacher"], red["kept"]) == (1, {"empty": 2})
    assert red["predicted_iou"] == pytest.approx(float(refined[0].predicted_iou[0]), abs=1e-6)
    assert told(refined[1:], predictor.class_names)["red"]["agreement"] is None


def test_fast_asks_no_teacher_and_does_not_open_it(bundle: Path) -> None:
    (bundle / "encoder.onnx").write_bytes(b"damaged")
    predictor = Predictor.load(bundle)
    image = colours()
    one = predictor.predict(image)
    assert one.refined is None
    np.testing.assert_array_equal(one.masks, expected(image))
    with pytest.raises(BundleError, match=r"encoder\.onnx must have"):
        predictor.predict(image, "refine")


def test_a_bundle_without_a_teacher_says_what_to_do(tiny_bundle: Path) -> None:
    with pytest.raises(UsageError, match=r"this bundle has no teacher.*again with --teacher"):
        Predictor.load(tiny_bundle).predict(colours(), "refine")


def test_refining_loads_neither_torch_nor_numba_nor_scipy(bundle: Path) -> None:
    code = (
        "import json, sys; import numpy as np; from samdistill.predictor import Predictor; "
        "image = np.full((64, 80, 3), 20, np.uint8); image[9:40, 9:50] = (200, 60, 60); "
        "one = Predictor.load(sys.argv[1]).predict(image, 'refine'); assert one.refined.any; "
        "print(json.dumps(sorted({'torch', 'numba', 'scipy', 'matplotlib', 'onnx'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code, bundle], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


# --- as a user calls it


def samdistill(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "samdistill", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_infer_writes_the_refined_masks_says_what_was_kept_and_draws_the_prompts(
    bundle: Path, predictor: Predictor, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    image = colours(70, 90)
    PillowImage.fromarray(image).save(tmp_path / "in" / "a.png")
    PillowImage.fromarray(dark()).save(tmp_path / "in" / "b.png")
    done = samdistill(
        "infer", bundle, tmp_path / "in", "--out", tmp_path / "out", "--mode", "refine", "--overlay"
    )
    assert done.returncode == 0, done.stderr
    one = predictor.predict(image, "refine")
    found = np.asarray(PillowImage.open(tmp_path / "out" / "a.png"))
    np.testing.assert_array_equal(found, one.labels())
    a, b = (json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines())
    assert one.refined is not None
    assert a["mode"] == "refine"
    assert a["refined"] == told([one.refined], predictor.class_names)
    assert b["refined"]["red"] == {
        "teacher": 0,
        "kept": {"empty": 1},
        "predicted_iou": None,
        "agreement": None,
    }
    overlay = np.asarray(PillowImage.open(tmp_path / "out" / "overlays" / "a.png")).astype(int)
    x, y = one.refined.prompts[0][0].points[0].round().astype(int)  # type: ignore[index]
    colour = predictor.manifest.classes[0].colour
    assert np.abs(overlay[y, x] - colour).max() <= 2, "a disc of the class's colour on its first point"


def test_infer_refuses_before_anything_is_written_where_there_is_no_teacher(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    PillowImage.fromarray(dark()).save(tmp_path / "a.png")
    done = samdistill("infer", tiny_bundle, tmp_path / "a.png", "--out", tmp_path / "out", "--mode", "refine")
    assert done.returncode == 2
    assert "no teacher" in done.stderr
    assert "--teacher" in done.stderr
    assert not (tmp_path / "out").exists()


def test_evaluate_scores_the_refined_masks_and_counts_whose_they_are(
    bundle: Path, predictor: Predictor, tmp_path: Path
) -> None:
    for folder in ("images", "masks"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for name, image in (("a", colours()), ("b", dark(64, 64))):
        PillowImage.fromarray(image).save(tmp_path / "data" / "images" / f"{name}.png")
        truth = predictor.predict(image, "refine").labels().astype(np.uint8)
        PillowImage.fromarray(truth).save(tmp_path / "data" / "masks" / f"{name}.png")
    (tmp_path / "data" / "dataset.toml").write_text('classes = ["red", "bright"]\n')
    done = samdistill("evaluate", bundle, tmp_path / "data", "--mode", "refine", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["mode"], result["dice"]) == ("refine", 1.0)
    assert result["refined"]["red"] == {"teacher": 1, "empty": 1}
    assert result["cases"][1]["refined"] == {"red": "empty", "bright": "empty"}
    fast = json.loads(samdistill("evaluate", bundle, tmp_path / "data", "--json").stdout)
    assert fast["dice"] < 1
    assert "refined" not in fast


def test_resuming_with_another_engine_of_the_teacher_redoes_everything(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The student's engine and the bundle are the same: only the decoder runs in another library."""

    def add_openvino(values: dict[str, Any]) -> None:
        own = next(one for one in values["engines"] if one["model"] == "decoder")
        values["engines"].insert(0, {**own, "runtime": "openvino"})

    rewrite(bundle, add_openvino)
    (tmp_path / "in").mkdir()
    PillowImage.fromarray(colours()).save(tmp_path / "in" / "a.png")
    out = tmp_path / "out"

    def kept() -> int:
        fresh = Predictor.load(bundle, threads=1)
        sources = gather([str(tmp_path / "in")], out)
        return segment_files(fresh, sources, out, options=Options("refine"), resume=True).kept

    assert (kept(), kept()) == (0, 1)
    monkeypatch.setattr("samdistill.engines.is_installed", lambda runtime: runtime == "onnxruntime")
    assert (kept(), kept()) == (0, 1)
    engines = [json.loads(line)["engines"] for line in (out / "audit.jsonl").read_text().splitlines()]
    assert [one["decoder"].split()[0] for one in engines] == ["openvino"] * 2 + ["onnxruntime"] * 2
    assert {one["student"] for one in engines} == {"onnxruntime fp32 (CPUExecutionProvider)"}
