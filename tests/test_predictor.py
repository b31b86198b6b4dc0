"""The predictor gives the masks its bundle promises: alone, in batches, in threads, out of a pickle."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bundles import colours, expected, rewrite

from samdistill.errors import BundleError, DeviceUnavailable, UsageError
from samdistill.manifest import CleaningRule
from samdistill.predictor import Predictor, masks_of
from samdistill.routing import Budget
from samdistill.runtime import onnxruntime as door
from samdistill.runtime import open_engine

SIZES = [(64, 64), (64, 100), (100, 64), (70, 64), (200, 310), (64, 64), (33, 500), (64, 100), (1, 1)]


@pytest.fixture
def predictor(tiny_bundle: Path) -> Predictor:
    return Predictor.load(tiny_bundle, threads=1)


def test_masks_are_what_the_student_is_known_to_find(predictor: Predictor) -> None:
    image = colours()
    segmentation = predictor.predict(image)
    np.testing.assert_array_equal(segmentation.masks, expected(image))
    assert segmentation.masks.dtype == np.bool_
    assert segmentation.probability_maps.dtype == np.float32
    assert segmentation.class_names == ("red", "bright")
    assert segmentation.mode == "fast"


def test_classes_that_may_not_overlap_share_no_pixel_and_the_labels_say_the_same(
    predictor: Predictor,
) -> None:
    segmentation = predictor.predict(colours())
    both = (segmentation.probability_maps > 0.5).all(axis=0)
    assert both.sum() > 900, "the picture must hold pixels that both classes claim"
    assert not segmentation.masks.all(axis=0).any()
    assert segmentation.masks.any(axis=0)[both].all()
    labels = segmentation.labels()
    assert labels.dtype == np.int32
    for class_id, mask in enumerate(segmentation.masks, 1):
        np.testing.assert_array_equal(labels == class_id, mask)


def test_classes_that_may_overlap_keep_every_pixel_and_have_no_labels(tiny_bundle: Path) -> None:
    rewrite(tiny_bundle, lambda values: values.update(multi_label=True))
    image = colours()
    segmentation = Predictor.load(tiny_bundle).predict(image)
    np.testing.assert_array_equal(segmentation.masks, expected(image, multi_label=True))
    with pytest.raises(UsageError, match="do not overlap"):
        segmentation.labels()


@pytest.mark.parametrize("size", SIZES)
def test_masks_have_the_size_of_their_image(predictor: Predictor, size: tuple[int, int]) -> None:
    segmentation = predictor.predict(colours(*size))
    assert segmentation.masks.shape == segmentation.probability_maps.shape == (2, *size)
    assert 0 <= segmentation.probability_maps.min() <= segmentation.probability_maps.max() <= 1


def test_padding_does_not_leak_into_the_masks(predictor: Predictor) -> None:
    image = colours(64, 65)  # padded from 65 to 96 columns
    np.testing.assert_array_equal(predictor.predict(image).masks, expected(image))


def test_a_batch_of_mixed_sizes_gives_what_each_image_gives_alone_in_order(predictor: Predictor) -> None:
    images = [colours(*size, seed=i) for i, size in enumerate(SIZES)]
    together = predictor.predict_batch(images, batch_size=2)
    for image, one in zip(images, together, strict=True):
        alone = predictor.predict(image)
        np.testing.assert_array_equal(one.masks, alone.masks)
        np.testing.assert_allclose(one.probability_maps, alone.probability_maps, atol=1e-6)


def test_images_of_one_padded_size_go_through_the_network_together(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    run = predictor._engine.run
    monkeypatch.setattr(
        predictor._engine, "run", lambda given: calls.append(len(given["pixels"])) or run(given)
    )
    predictor.predict_batch([colours(64, 64), colours(64, 100), colours(60, 60), colours(64, 97)])
    assert calls == [2, 2]


def test_no_image_gives_no_segmentation(predictor: Predictor) -> None:
    assert predictor.predict_batch([]) == []


def test_the_threshold_is_strict() -> None:
    maps = np.array([[[0.5, np.nextafter(np.float32(0.5), np.float32(1))]]], np.float32)
    np.testing.assert_array_equal(masks_of(maps, thresholds=(0.5,), multi_label=False), [[[False, True]]])


@pytest.mark.parametrize("cleaning", [None, CleaningRule(keep="largest")])
def test_nan_is_no_empty_mask(cleaning: CleaningRule | None) -> None:
    with pytest.raises(ValueError, match="not NaN"):
        masks_of(
            np.full((1, 2, 2), np.nan, np.float32), thresholds=(0.5,), multi_label=False, cleaning=cleaning
        )


def test_each_class_has_its_own_threshold_and_ties_go_to_the_first() -> None:
    maps = np.array([[[0.6, 0.4, 0.9]], [[0.6, 0.4, 0.95]]], np.float32)
    masks = masks_of(maps, thresholds=(0.3, 0.5), multi_label=False)
    np.testing.assert_array_equal(masks, [[[True, True, False]], [[False, False, True]]])


def test_cleaning_is_done_when_the_manifest_asks() -> None:
    maps = np.zeros((1, 8, 8), np.float32)
    maps[0, 0, 0] = maps[0, 4:, 4:] = 0.9
    cleaned = masks_of(maps, thresholds=(0.5,), multi_label=False, cleaning=CleaningRule("all", 2))
    assert cleaned.sum() == 16


def test_grey_pixels_do_as_well_as_colour(predictor: Predictor) -> None:
    grey = colours()[:, :, 1].copy()
    three = np.repeat(grey[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(predictor.predict(grey).masks, predictor.predict(three).masks)


def test_the_bundles_intensity_rule_makes_deep_pixels_small(tiny_bundle: Path) -> None:
    rewrite(tiny_bundle, lambda v: v.update(intensity={"kind": "window", "low": 1000.0, "high": 1255.0}))
    image = colours()
    deep = image.astype(np.uint16) + 1000
    np.testing.assert_array_equal(Predictor.load(tiny_bundle).predict(deep).masks, expected(image))


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        ([[1, 2], [3, 4]], TypeError, "image must be an array"),
        (np.zeros((4, 4, 4), np.uint8), ValueError, "image: pixels must be"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, "image: pixels must be"),
        (np.zeros((4, 4), np.uint16), ValueError, "image: pixels must be uint8"),
        (np.full((4, 4), np.nan, np.float32), ValueError, "image: pixels must be uint8"),
    ],
)
def test_what_is_no_image_is_refused(
    predictor: Predictor, image: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        predictor.predict(image)


def test_a_bad_image_in_a_batch_is_named_by_its_place(predictor: Predictor) -> None:
    with pytest.raises(ValueError, match=r"images\[1\]: pixels must be"):
        predictor.predict_batch([colours(), np.zeros((3, 3, 2), np.uint8)])


@pytest.mark.parametrize("mode", ["refine", "auto"])
def test_modes_that_need_a_teacher_say_that_there_is_none(predictor: Predictor, mode: Any) -> None:
    with pytest.raises(UsageError, match="this bundle has no teacher"):
        predictor.predict(colours(), mode)


@pytest.mark.parametrize(
    ("wishes", "error", "message"),
    [
        ({"images": colours()}, TypeError, "a list of images, not one"),
        ({"mode": "auto", "budget": 0.4}, TypeError, r"routing\.Budget, not 0\.4"),
        ({"budget": Budget(share=0.4)}, UsageError, "budget must be given with mode auto alone"),
        ({"stability": True}, UsageError, "it is the teacher's"),
    ],
)
def test_wishes_are_not_passed_over(
    predictor: Predictor, wishes: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        predictor.predict_batch(**{"images": [colours()], **wishes})


def test_an_unknown_mode_is_refused(predictor: Predictor) -> None:
    with pytest.raises(UsageError, match="mode must be one of fast, refine, auto, not 'slow'"):
        predictor.predict(colours(), "slow")  # type: ignore[arg-type]


def test_many_threads_get_what_one_gets(predictor: Predictor) -> None:
    images = [colours(64 + i % 5, 80 + i % 3, seed=i) for i in range(48)]
    alone = [predictor.predict(image) for image in images]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(predictor.predict, images))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.probability_maps, other.probability_maps)
        np.testing.assert_array_equal(one.masks, other.masks)


def test_a_pickled_predictor_opens_its_bundle_again(predictor: Predictor) -> None:
    content = pickle.dumps(predictor)
    assert len(content) < 2000, "the network itself must not travel"
    other = pickle.loads(content)
    image = colours(90, 70)
    np.testing.assert_array_equal(
        predictor.predict(image).probability_maps, other.predict(image).probability_maps
    )
    assert other._threads == 1


def test_a_pickled_predictor_refuses_a_bundle_that_has_changed(tiny_bundle: Path) -> None:
    content = pickle.dumps(Predictor.load(tiny_bundle))
    rewrite(tiny_bundle, lambda values: values.update(name="another"))
    with pytest.raises(BundleError, match="must have the SHA-256"):
        pickle.loads(content)


def test_a_bundle_can_be_pinned_from_outside(tiny_bundle: Path) -> None:
    sha256 = Predictor.load(tiny_bundle).bundle_sha256
    Predictor.load(tiny_bundle, expect_sha256=sha256.upper())
    with pytest.raises(BundleError, match=f"must have the SHA-256 {'0' * 64}, not {sha256}"):
        Predictor.load(tiny_bundle, expect_sha256="0" * 64)


def edit_graph(bundle: Path, edit: Any) -> None:
    """Change the network and make the hashes right again."""
    model = onnx.load(bundle / "student.onnx")
    edit(model.graph)
    onnx.save(model, bundle / "student.onnx")
    rewrite(bundle)


def poison(graph: onnx.GraphProto) -> None:
    """Make every logit NaN."""
    bias = graph.initializer[-1]
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(bias.dims, np.nan, np.float32), bias.name))


def test_a_network_that_answers_nan_gives_no_mask(tiny_bundle: Path) -> None:
    edit_graph(tiny_bundle, poison)
    with pytest.raises(BundleError, match="logits must be finite"):
        Predictor.load(tiny_bundle).predict(colours())


def rename_output(graph: onnx.GraphProto) -> None:
    graph.node[-1].output[0] = graph.output[0].name = "masks"


def test_a_network_with_other_tensors_than_promised_is_refused(tiny_bundle: Path) -> None:
    edit_graph(tiny_bundle, rename_output)
    with pytest.raises(BundleError, match="student's outputs must be logits, not masks"):
        Predictor.load(tiny_bundle)


def test_a_network_with_another_number_of_classes_is_refused(tiny_bundle: Path) -> None:
    rewrite(tiny_bundle, lambda values: values["classes"].pop())
    with pytest.raises(BundleError, match="logits must have the shape"):
        Predictor.load(tiny_bundle).predict(colours())


def test_bytes_that_are_no_network_are_refused(tiny_bundle: Path) -> None:
    (tiny_bundle / "student.onnx").write_bytes(b"no network")
    rewrite(tiny_bundle)
    with pytest.raises(BundleError, match="cannot open the network"):
        Predictor.load(tiny_bundle)


@pytest.mark.skipif("onnxruntime-gpu" in door.installed_wheels(), reason="here CUDA may be had")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_device_that_cannot_be_had_is_an_error_and_never_the_cpu(tiny_bundle: Path, device: str) -> None:
    with pytest.raises(DeviceUnavailable, match=r"device cuda:\d needs CUDAExecutionProvider"):
        Predictor.load(tiny_bundle, device)


def test_a_provider_that_falls_back_in_silence_is_found_out(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime opens on the CPU, without an exception, where CUDA's libraries do not load."""
    import onnxruntime

    offered = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: offered)
    opened = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda model, options, **_: opened(model, options, providers=offered[1:]),
    )
    with pytest.raises(DeviceUnavailable, match=r"fell back to \['CPUExecutionProvider'\]"):
        Predictor.load(tiny_bundle, "cuda")


@pytest.mark.parametrize(
    ("wheels", "message"),
    [
        (("onnxruntime", "onnxruntime-gpu"), "must not be installed together.*pip uninstall -y"),
        ((), "onnxruntime must be installed.*pip install 'samdistill"),
    ],
)
def test_both_wheels_or_none_is_an_error_that_says_the_cure(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, wheels: tuple[str, ...], message: str
) -> None:
    def distribution(name: str) -> str:
        if name not in wheels:
            raise metadata.PackageNotFoundError(name)
        return name

    monkeypatch.setattr(door.metadata, "distribution", distribution)
    if not wheels:
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(DeviceUnavailable, match=message):
        Predictor.load(tiny_bundle)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "device must be cpu, cuda or cuda:N, not 'gpu'"),
        ({"device": "cuda:"}, "device must be"),
        ({"runtime": "torch"}, "runtime must be auto or one of onnxruntime, openvino, tensorrt"),
        ({"threads": 0}, "threads must be at least 1"),
    ],
)
def test_unknown_devices_and_runtimes_are_refused(
    tiny_bundle: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        Predictor.load(tiny_bundle, **options)


def test_an_engine_says_what_it_is(tiny_bundle: Path) -> None:
    engine = open_engine((tiny_bundle / "student.onnx").read_bytes())
    assert (engine.runtime, engine.provider) == ("onnxruntime", "CPUExecutionProvider")
    with pytest.raises(BundleError, match="the network failed"):
        engine.run({"pixels": np.zeros((1, 3, 64), np.uint8)})


def test_predicting_loads_neither_torch_nor_numba_nor_scipy(tiny_bundle: Path) -> None:
    code = (
        "import json, sys; import numpy as np; from samdistill.predictor import Predictor; "
        "Predictor.load(sys.argv[1]).predict(np.zeros((40, 50, 3), np.uint8)); "
        "print(json.dumps(sorted({'torch', 'numba', 'scipy', 'matplotlib', 'onnx'} & set(sys.modules))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tiny_bundle], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == []
