"""Mode auto and quality in predictor and commands: by the bundle's rules, image by image, and told why."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import dicoms
import nibabel
import numpy as np
import pydicom
import pytest
from bundles import colours, expected, rewrite
from PIL import Image as PillowImage
from teacher_bundles import give_teacher
from test_inference import segment

from samdistill.bundled_teacher import BundledTeacher
from samdistill.errors import InputRejected, UsageError
from samdistill.evaluation import evaluate, score_case, summarize
from samdistill.export.fit_calibration import Pixels
from samdistill.export.fit_quality import Fitted, fit
from samdistill.export.fit_seen import see
from samdistill.export.pieces import Silent
from samdistill.io.dataset import open_dataset
from samdistill.manifest_quality import (
    Calibration,
    ClassRange,
    LinearRule,
    QualityRule,
    Reference,
    RoutingRule,
    ScoreRule,
)  # fmt: skip
from samdistill.metrics import found_dice
from samdistill.predictor import Predictor
from samdistill.prompts import PromptConfig
from samdistill.quality import unknown
from samdistill.refine import RefineConfig
from samdistill.refined import Refined
from samdistill.report.trust_page import trust_sections
from samdistill.routing import Budget
from samdistill.teacher import load_teacher

TINY = Path(__file__).parent / "golden" / "tiny_bundle"
CONFIG = RefineConfig(PromptConfig(per_component=True, min_area_px=4, points="none"), first_pass="box")
GAINS = tuple(float(v) for v in np.linspace(-0.1, 0.1, 21))
# Gain is expected of images whose two classes cover much.
BY_AREA = LinearRule(("area",), (0.4,), (0.1,), (0.1,), 0.0)


def records(**routing: Any) -> dict[str, Any]:
    """Rules made by hand, as the manifest holds them."""
    score = ScoreRule(LinearRule(("confidence",), (0.8,), (0.2,), (0.2,), 0.7), 8, 0.1, 0.75, 0.4)
    reference = Reference(8, (ClassRange((0.0, 1.0), (0, 99)),) * 2, (0.5,) * 48)
    rule = QualityRule(0.7, score, reference, {"area_off": 0.5}, score)
    told: dict[str, Any] = {
        "refine": True, "reason": "by hand", "rule": BY_AREA, "least_predicted_iou": 0.0, "images": 8,
        "gain_quantiles": GAINS, "gain_always": 0.0, "gain_auto": 0.1, "gain_error": 0.0, "share": 0.5,
    }  # fmt: skip
    calibration = Calibration((2.0, 0.5), 8, *((0.1, 0.1),) * 4)
    return {
        "calibration": asdict(calibration),
        "quality": asdict(rule),
        "routing": asdict(RoutingRule(**{**told, **routing})),
    }


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = Path(shutil.copytree(TINY, tmp_path_factory.mktemp("auto") / "bundle"))
    return give_teacher(bundle, load_teacher("tiny"), CONFIG)


def bundle_with(original: Path, folder: Path, **routing: Any) -> Path:
    bundle = Path(shutil.copytree(original, folder / "bundle"))
    rewrite(bundle, lambda values: values.update(records(**routing)))
    return bundle


@pytest.fixture(scope="module")
def ruled(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle_with(original, tmp_path_factory.mktemp("ruled"))


@pytest.fixture(scope="module")
def predictor(ruled: Path) -> Predictor:
    return Predictor.load(ruled, threads=1)


def small() -> Any:
    """A picture with a little of each class."""
    image = np.full((64, 64, 3), 60, np.uint8)
    image[4:14, 4:14], image[40:52, 40:52] = (200, 60, 60), (220, 220, 220)
    return image


def dark() -> Any:
    return np.full((64, 64, 3), 20, np.uint8)


# --- the predictor


def test_those_images_are_refined_of_which_a_gain_is_expected(predictor: Predictor) -> None:
    images = [colours(), small(), dark()]
    auto, fast, refine = (predictor.predict_batch(images, mode) for mode in ("auto", "fast", "refine"))
    assert [one.route.why for one in auto if one.route] == ["gain", "no gain", "empty"]
    assert [one.route.refine for one in auto if one.route] == [True, False, False]
    assert (refine[0].masks != fast[0].masks).any()
    np.testing.assert_array_equal(auto[0].masks, refine[0].masks)
    np.testing.assert_array_equal(auto[1].masks, fast[1].masks)
    assert auto[0].refined is not None
    assert auto[1].refined is None
    assert fast[0].route is None
    alone = predictor.predict(images[0], "auto")
    assert alone.route == auto[0].route
    assert alone.quality == auto[0].quality


def test_a_bundle_whose_rule_says_never_refines_none_and_opens_no_teacher(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor.load(bundle_with(original, tmp_path, refine=False), threads=1)
    monkeypatch.setattr(Predictor, "teacher", lambda self: pytest.fail("opened"))
    for budget in (None, Budget(share=0.9)):
        found = predictor.predict(colours(), "auto", budget=budget)
        assert found.route is not None
        assert found.route.why == "never"


def test_a_class_of_which_the_teacher_is_unsure_keeps_the_students_mask_in_mode_auto_alone(
    original: Path, tmp_path: Path
) -> None:
    predictor = Predictor.load(bundle_with(original, tmp_path, least_predicted_iou=1.0), threads=1)
    auto, refine = predictor.predict(colours(), "auto"), predictor.predict(colours(), "refine")
    assert auto.refined is not None
    assert refine.refined is not None
    sure = refine.refined.predicted_iou >= 1
    assert not sure.all()
    for channel, one in enumerate(sure):
        assert auto.refined.kept[channel] == (None if one else "doubtful")
    np.testing.assert_array_equal(auto.masks[~sure], predictor.predict(colours()).masks[~sure])


def test_a_budget_refines_fewer_and_no_budget_is_left_over_for_none(predictor: Predictor) -> None:
    found = [
        predictor.predict(colours(), "auto", budget=budget)
        for budget in (Budget(share=1.0), Budget(share=0.0), Budget(seconds=1e-9), Budget(seconds=1e9))
    ]
    assert [one.route.why for one in found if one.route] == ["gain", "budget", "budget", "gain"]


def test_a_budget_in_seconds_is_timed_on_what_the_run_does(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All passes, and the moved prompts where stability is asked for, which has a threshold of its own."""
    bundle = bundle_with(original, tmp_path)
    rewrite(bundle, lambda values: values["prompts"].update(second_pass="box"))
    predictor, sets, decode = Predictor.load(bundle, threads=1), [], BundledTeacher.decode

    def counted(self: BundledTeacher, embeddings: Any, prompts: Any, **options: Any) -> Any:
        sets.append(sum(map(len, prompts)))
        return decode(self, embeddings, prompts, **options)

    monkeypatch.setattr(BundledTeacher, "decode", counted)
    monkeypatch.setattr("samdistill.predictor.share_of", lambda budget, student, teacher: bool(teacher()))
    for stability, asked in ((False, [1, 1]), (True, [1, 1, 5]), (True, [])):
        predictor.least_gain(Budget(seconds=0.3), stability=stability)
        assert sets == asked
        sets.clear()


def test_an_image_of_which_the_prompts_leave_out_everything_is_not_told_as_refined(
    original: Path, tmp_path: Path
) -> None:
    bundle = bundle_with(original, tmp_path)
    rewrite(bundle, lambda values: values["prompts"]["prompts"].update(min_area_px=4096))
    found = Predictor.load(bundle, threads=1).predict(colours(), "auto")
    assert found.masks.any()
    assert found.refined is not None
    assert set(found.refined.kept) == {"discarded"}
    assert found.route is not None
    assert (found.route.refine, found.route.why) == (False, "empty")


def test_stability_is_asked_for_and_lies_between_0_and_1(predictor: Predictor) -> None:
    found = predictor.predict(colours(), "refine", stability=True)
    value = found.quality.numbers["stability"]
    assert value is not None
    assert 0 < value <= 1
    assert predictor.predict(colours(), "refine").quality.numbers["stability"] is None
    np.testing.assert_array_equal(found.masks, predictor.predict(colours(), "refine").masks)
    nothing = predictor.predict(dark(), "refine", stability=True).quality
    assert nothing.numbers["stability"] is None
    assert nothing.missing["stability"] == "there was nothing to ask about"


def test_every_answer_is_judged_and_a_bundle_without_rules_says_why_not(predictor: Predictor) -> None:
    found = predictor.predict(colours())
    assert found.quality.flag in ("accept", "review", "reject")
    assert found.quality.numbers["agreement"] is None
    assert found.quality.missing["agreement"] == "the teacher was not asked"
    refined = predictor.predict(colours(), "refine").quality
    assert refined.numbers["agreement"] is not None
    assert refined.missing["embedding_distance"] == "the bundle holds no training embeddings"
    assert predictor.predict(colours(), abstain=1.0).quality.flag == "reject"
    plain = Predictor.load(TINY, threads=1).predict(colours())
    assert plain.quality.flag is plain.quality.score is plain.calibrated_maps is None
    assert "without labelled validation images" in plain.quality.missing["score"]


def test_calibrated_maps_are_those_of_the_temperatures(predictor: Predictor) -> None:
    found = predictor.predict(colours())
    assert found.calibrated_maps is not None
    inside = np.clip(found.probability_maps.astype(np.float64), 1e-6, 1 - 1e-6)
    odds = (inside / (1 - inside)) ** (1 / np.array([2.0, 0.5])[:, None, None])
    np.testing.assert_allclose(found.calibrated_maps, odds / (1 + odds), atol=1e-5)


def test_auto_without_a_rule_is_refused(original: Path) -> None:
    with pytest.raises(UsageError, match="no routing rule"):
        Predictor.load(original, threads=1).predict(colours(), "auto")


def test_abstain_must_be_a_dice(predictor: Predictor) -> None:
    with pytest.raises(ValueError, match="abstain must be a Dice"):
        predictor.predict(colours(), abstain=70)


# --- fitting and evaluating


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures whose truth the student of the tests finds, but for a strip it does not."""
    folder = tmp_path_factory.mktemp("labelled")
    (folder / "images").mkdir()
    for name in ("red", "bright"):
        (folder / "masks" / name).mkdir(parents=True)
    for number in range(6):
        image = colours(64, 64 + 8 * number, seed=number)
        truth = expected(image)
        truth[:, : 2 * number] = False
        PillowImage.fromarray(image).save(folder / "images" / f"{number}.png")
        for name, mask in zip(("red", "bright"), truth, strict=True):
            PillowImage.fromarray(mask.astype(np.uint8) * 255).save(folder / "masks" / name / f"{number}.png")
    return folder


def test_fitting_gives_everything_a_bundle_of_its_own_needs(original: Path, labelled: Path) -> None:
    predictor = Predictor.load(original, threads=1)
    cases = open_dataset(labelled, class_names=predictor.class_names).cases
    found = fit(predictor, cases[:4], cases[4:], Silent())
    assert found.calibration is not None
    assert all(b <= a for a, b in zip(found.calibration.nll_before, found.calibration.nll_after, strict=True))
    assert found.quality is not None
    assert found.quality.reference.images == 2
    assert found.quality.reference.embedding_mean is not None
    assert set(found.quality.limits) == {
        "area_off", "components_off", "intensity_distance", "embedding_distance"
    }  # fmt: skip
    assert found.quality.student is not None
    assert found.quality.student.accept is not None
    assert set(found.quality.student.least) == {"confidence", "expected_dice", "sharpness"}
    assert found.routing is not None
    without = [case.without_labels() for case in cases]
    assert fit(predictor, without, cases, Silent()).calibration is None
    with pytest.raises(InputRejected, match="labelled training images"):
        fit(predictor, cases, without, Silent())


def test_what_can_be_told_of_few_validation_images_is_told_and_no_more(
    original: Path, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor.load(original, threads=1)
    cases = open_dataset(labelled, class_names=predictor.class_names).cases
    lines: list[str] = []
    told = Silent()
    monkeypatch.setattr(told, "on_message", lines.append)
    alone = fit(predictor, cases[:1], cases[4:], told)
    assert alone.quality is not None
    assert alone.quality.student is alone.quality.refined is None
    assert "validation images of fewer than 4 patients: no score, no flag" in lines
    whole = tmp_path / "whole"
    shutil.copytree(labelled, whole)
    (whole / "dataset.toml").write_text('classes = ["red", "bright"]\nignore_index = 9\n')
    for number in range(2):
        height, width = np.array(PillowImage.open(whole / "images" / f"{number}.png")).shape[:2]
        for name in predictor.class_names:
            nothing = np.full((height, width), 9, np.uint8)
            PillowImage.fromarray(nothing).save(whole / "masks" / name / f"{number}.png")
    spoiled = open_dataset(whole, class_names=predictor.class_names).cases
    found = fit(predictor, spoiled[:4], cases[4:], told)
    assert found.calibration is not None
    assert found.calibration.images == 2
    assert fit(predictor, spoiled[:2], cases[4:], told) == Fitted()
    assert "2 of them do not count: all their pixels are ignored" in lines


def test_an_image_whose_only_finding_was_missed_is_no_good_one_by_classes_that_are_nowhere() -> None:
    absent = np.array([0.0, 1.0, 1.0, 1.0])
    assert found_dice(absent, np.array([True, False, False, False])) == 0
    assert found_dice(np.ones(4), np.zeros(4, np.bool_)) == 1
    masks, truth = np.zeros((3, 9, 9), np.bool_), np.zeros((3, 9, 9), np.bool_)
    truth[0, 2:5, 2:5] = True
    scores = replace(
        score_case("a", "a", masks, truth), quality=replace(unknown("no"), score=0.1, flag="reject")
    )
    told = summarize([scores], class_names=("a", "b", "c"), mode="fast", seed=0).judged()
    assert told is not None
    assert told["bad"] == 1
    assert told["rmse"] == pytest.approx(0.1)


def test_cases_without_a_score_are_counted_beside_those_with_one() -> None:
    masks = np.ones((1, 9, 9), np.bool_)
    bare = replace(score_case("a", "a", masks, masks), quality=unknown("no"))
    scored = replace(bare, quality=replace(unknown("no"), score=0.9, flag="accept"))
    evaluation = summarize([bare, scored, bare], class_names=("a",), mode="refine", seed=0)
    told = evaluation.judged()
    assert told is not None
    assert told["unscored"] == 2
    assert told["flags"]["accept"]["cases"] == 1
    assert "2 cases have no score" in "".join(one.body for one in trust_sections(evaluation))


def test_what_is_kept_of_a_validation_image_does_not_grow_with_it(original: Path, tmp_path: Path) -> None:
    predictor = Predictor.load(original, threads=1)
    reference = Reference(1, 2 * (ClassRange((0.0, 1.0), (0, 9)),), 48 * (0.5,))
    kept = []
    for side in (64, 512):
        image, data = colours(side, side), tmp_path / str(side)
        for place, pixels in {"images": image, "masks": expected(image)[0].astype(np.uint8)}.items():
            (data / place).mkdir(parents=True)
            PillowImage.fromarray(pixels).save(data / place / "a.png")
        (case,) = open_dataset(data, class_names=predictor.class_names).cases
        kept.append(len(pickle.dumps(see(predictor, case, Pixels(), reference))))
    assert kept[1] < 1.1 * kept[0]


def test_an_evaluation_tells_calibration_flags_and_routes(predictor: Predictor, labelled: Path) -> None:
    cases = open_dataset(labelled, class_names=predictor.class_names).cases
    told = evaluate(predictor, cases, "auto").to_dict()
    assert set(told["calibration"]) == {"red", "bright"}
    for one in told["calibration"].values():
        assert 0 <= one["ece"] <= 1
        assert sum(point["share"] for point in one["bins"]) == pytest.approx(1)
    assert sum(one["cases"] for one in told["quality"]["flags"].values()) == 6
    assert all(case["quality"]["flag"] and case["routed"]["why"] == "gain" for case in told["cases"])


# --- the command


def infer(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "samdistill", "infer", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_infer_tells_which_images_were_refined_why_and_how_far_to_trust_them(
    ruled: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "patients"
    folder.mkdir()
    for name, image in (("anna", colours()), ("bert", small()), ("carl", dark())):
        PillowImage.fromarray(image).save(folder / f"{name}.png")
    done = infer(
        ruled, folder, "--out", tmp_path / "out", "--mode", "auto", "--probabilities", "--threads", 1
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [line["routed"]["why"] for line in lines] == [{"gain": 1}, {"no gain": 1}, {"empty": 1}]
    assert all(line["quality"]["flag"] and line["calibrated"] for line in lines)
    audit = (tmp_path / "out" / "audit.jsonl").read_text()
    assert not any(name in audit for name in ("anna", "bert", "carl", "patients"))
    assert [json.loads(line)["routed"]["refined"] for line in audit.splitlines()] == [1, 0, 0]
    assert set(json.loads(audit.splitlines()[0])["quality"]) == {"flag", "score", "reasons"}
    page = subprocess.run(
        [sys.executable, "-m", "samdistill", "report", tmp_path / "out", "--images", folder],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert page.returncode == 0, page.stderr
    assert "estimated Dice" in (tmp_path / "out" / "report.html").read_text()


def test_infer_opens_no_teacher_that_is_never_asked(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor.load(bundle_with(original, tmp_path, refine=False), threads=1)
    monkeypatch.setattr(Predictor, "teacher", lambda self: pytest.fail("opened"))
    PillowImage.fromarray(colours()).save(tmp_path / "a.png")
    (record,) = segment(predictor, tmp_path / "a.png", tmp_path / "out", mode="auto")
    assert record.routed is not None
    assert record.routed["why"] == {"never": 1}


def test_a_budget_in_seconds_gives_another_uid_where_it_lets_others_be_refined(
    ruled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the clock said belongs to the object, and is no setting: what is there is kept all the same."""
    path = dicoms.write(tmp_path / "a.dcm", colours())
    made, settings = [], set()
    for share in (0.0, 1.0):
        monkeypatch.setattr(Predictor, "_share", lambda self, *words, share=share: share)
        predictor, out = Predictor.load(ruled, threads=1), tmp_path / f"out{share}"
        (record,) = segment(predictor, path, out, mode="auto", budget="0.2s")
        made.append(pydicom.dcmread(out / "a.dcm"))
        settings.add(record.settings_sha256)
    assert made[0].PixelData != made[1].PixelData
    assert made[0].SOPInstanceUID != made[1].SOPInstanceUID
    told = [one.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0] for one in made]
    assert ["least_gain=null" in one.AlgorithmParameters for one in told] == [True, False]
    assert len(settings) == 1


def test_a_file_of_many_images_keeps_nothing_large_of_the_teachers_answers(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts may hold logits of the image's size, for each of a thousand slices."""
    held: list[Refined] = []
    monkeypatch.setattr("samdistill.inference.cases.told", lambda refined, names: held.extend(refined))
    volume = np.repeat(colours()[..., 0].T[..., None], 3, axis=2)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "a.nii")
    (record,) = segment(predictor, tmp_path / "a.nii", tmp_path / "out", mode="refine", overlay=True)
    assert (record.status, len(held)) == ("ok", 3)
    assert all(one.prompts == () and one.embedding is None for one in held)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--budget", "0.5"), "budget must be given with mode auto alone"),
        (("--mode", "auto", "--budget", "lots"), "budget must be a share"),
        (("--stability",), "stability must be asked for in mode refine or auto"),
        (("--abstain", "7"), "abstain must be a Dice"),
        (("--abstain", "0.6", "--tile", "64"), "abstain must be left out where tiles are cut"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_anything_is_written(
    ruled: Path, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    PillowImage.fromarray(dark()).save(tmp_path / "a.png")
    done = infer(ruled, tmp_path / "a.png", "--out", tmp_path / "out", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert not (tmp_path / "out").exists()
