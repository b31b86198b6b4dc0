"""The teacher against segment_anything's own predictor, prompt set by prompt set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the teacher needs the extra train")

from small_sam import small_teacher  # noqa: E402

from samdistill.errors import DeviceUnavailable, InputRejected  # noqa: E402
from samdistill.prompts import Prompts  # noqa: E402
from samdistill.teacher import ProposeConfig, Teacher  # noqa: E402
from samdistill.teacher import decoder as decoder_module  # noqa: E402
from samdistill.teacher_frame import TeacherFrame  # noqa: E402

TOLERANCE = 1e-4
SIZES = [(128, 128), (90, 128), (200, 77), (33, 300), (64, 50)]


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return small_teacher()


def picture(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 6, 3)).astype(np.uint8)
    rows, columns = (np.arange(n) * 6 // n for n in size)
    return np.ascontiguousarray(coarse[rows][:, columns])


def prompt_sets(size: tuple[int, int]) -> dict[str, Prompts]:
    """One set of every kind, in the frame of an image of that size."""
    h, w = size
    box = np.array([0.2 * w, 0.1 * h, 0.8 * w, 0.7 * h], np.float32).round()
    box[2:] = np.maximum(box[2:], box[:2] + 1)
    one = np.array([[0.5 * w, 0.4 * h]], np.float32)
    three = np.array([[0.5 * w, 0.4 * h], [0.3 * w, 0.3 * h], [0.9 * w, 0.9 * h]], np.float32)
    labels = np.array([1, 1, 0], np.int32)
    return {
        "box": Prompts(box=box),
        "one point": Prompts(points=one, point_labels=np.array([1], np.int32)),
        "points": Prompts(points=three, point_labels=labels),
        "box and points": Prompts(points=three, point_labels=labels, box=box),
        "box and one point": Prompts(points=one, point_labels=np.array([0], np.int32), box=box),
    }


def ask_predictor(
    teacher: Teacher, image: np.ndarray, one: Prompts, mask_input: np.ndarray | None, multimask: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The official predictor's full-size logits, predicted IoU and low-resolution logits."""
    from segment_anything import SamPredictor

    predictor = SamPredictor(teacher.model)
    predictor.set_image(image)
    box = None if one.box is None else one.box - np.array([0, 0, 1, 1], np.float32)
    return predictor.predict(
        point_coords=one.points,
        point_labels=one.point_labels,
        box=box,
        mask_input=mask_input,
        multimask_output=multimask,
        return_logits=True,
    )


def test_images_are_prepared_no_earlier_than_they_are_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    """1024 x 1024 in float32 is 12 MB an image: of thousands, few may be held."""
    teacher = small_teacher()
    prepare, waiting, most = teacher._prepare, 0, 0

    def counted(image: np.ndarray) -> Any:
        nonlocal waiting, most
        waiting += 1
        most = max(most, waiting)
        return prepare(image)

    def encoded(*_: Any) -> None:
        nonlocal waiting
        waiting = 0

    monkeypatch.setattr(teacher, "_prepare", counted)
    teacher.model.image_encoder.register_forward_hook(encoded)
    monkeypatch.setattr("samdistill.teacher_frame.EMBED_PIXELS", 4 * 128 * 128 + 1)
    assert len(teacher.embed([picture((20, 30), seed) for seed in range(11)])) == 11
    assert most == 4


@pytest.mark.parametrize(("side", "count"), [(256, 8), (1024, 1), (4096, 1)])
def test_fewer_images_are_embedded_at_a_time_where_they_are_larger(
    side: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, seen = small_teacher(), []
    monkeypatch.setattr(Teacher, "input_side", side)
    monkeypatch.setattr(teacher, "_prepare", lambda _: (torch.zeros(3, 1, 1), (1, 1)))
    monkeypatch.setattr(teacher.model.image_encoder, "forward", lambda x: seen.append(len(x)) or x)
    teacher.embed([picture((20, 30))] * 8)
    assert seen == [count] * (8 // count)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("with_mask", [False, True])
def test_one_call_gives_what_the_predictor_gives_set_by_set(
    teacher: Teacher, size: tuple[int, int], with_mask: bool
) -> None:
    """All sets of two images of unlike size share a call, with and without low-resolution logits."""
    images = [picture(size), picture((70, 110), seed=1)]
    sets = [prompt_sets(size), prompt_sets((70, 110))]
    prompts = [list(one.values()) for one in sets]
    embeddings = teacher.embed(images)
    rng = np.random.default_rng(0)
    previous = rng.normal(0, 4, (10, 32, 32)).astype(np.float32) if with_mask else None
    logits, scores = teacher.decode(embeddings, prompts, previous=previous)
    n = 0
    for embedding, image, own in zip(embeddings, images, prompts, strict=True):
        for one in own:
            mask_input = None if previous is None else previous[n][None]
            for multimask, rows in ((False, slice(0, 1)), (True, slice(1, 4))):
                full, iou, low = ask_predictor(teacher, image, one, mask_input, multimask)
                assert np.abs(logits[n, rows].numpy() - low).max() < TOLERANCE
                assert np.abs(scores[n, rows].numpy() - iou).max() < TOLERANCE
                assert np.abs(teacher.upscale(logits[n, rows], embedding).numpy() - full).max() < TOLERANCE
            n += 1


def test_vit_b_gives_what_the_predictor_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """The official architecture at its own size, random weights; its encoder runs once, for both."""
    from segment_anything import sam_model_registry

    torch.manual_seed(0)
    teacher = Teacher("sam_vit_b", sam_model_registry["vit_b"](), weights_sha256="random")
    image = picture((120, 200))
    seen: list[torch.Tensor] = []
    encoder = teacher.model.image_encoder
    plain_forward = type(encoder).forward

    def once(self: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
        seen.append(pixels)
        if len(seen) == 1:
            once.features = plain_forward(self, pixels)  # type: ignore[attr-defined]
        assert torch.equal(pixels, seen[0])
        return once.features  # type: ignore[attr-defined,no-any-return]

    monkeypatch.setattr(type(encoder), "forward", once)
    embeddings = teacher.embed([image])
    sets = {kind: one for kind, one in prompt_sets((120, 200)).items() if kind != "box and one point"}
    logits, scores = teacher.decode(embeddings, [list(sets.values())])
    for n, one in enumerate(sets.values()):
        full, iou, low = ask_predictor(teacher, image, one, None, True)
        assert np.abs(logits[n, 1:].numpy() - low).max() < TOLERANCE
        assert np.abs(scores[n, 1:].numpy() - iou).max() < TOLERANCE
        assert np.abs(teacher.upscale(logits[n, 1:], embeddings[0]).numpy() - full).max() < TOLERANCE
    assert len(seen) == 1 + len(sets)


def test_segment_returns_flattened_sets_at_each_images_size(teacher: Teacher) -> None:
    images = [picture((90, 128)), picture((64, 50), seed=1)]
    first, second = (prompt_sets(image.shape[:2]) for image in images)
    answer = teacher.segment(teacher.embed(images), [[first["box"], first["points"]], [second["one point"]]])
    assert [mask.shape for mask in answer.masks] == [(90, 128), (90, 128), (64, 50)]
    assert all(mask.dtype == np.bool_ for mask in answer.masks)
    assert answer.low_res_logits.shape == (3, 32, 32)
    assert answer.low_res_logits.dtype == answer.predicted_iou.dtype == np.float32


def test_points_alone_take_the_best_of_three_and_a_box_the_single_mask(teacher: Teacher) -> None:
    image = picture((90, 128))
    sets = prompt_sets((90, 128))
    prompts = [[sets["points"], sets["box"], sets["box and points"]]]
    embeddings = teacher.embed([image])
    logits, scores = (t.numpy() for t in teacher.decode(embeddings, prompts))
    best = [1 + int(scores[0, 1:].argmax()), 0, 0]
    for multimask, indices in (
        (None, best),
        (False, [0, 0, 0]),
        (True, [1 + int(row[1:].argmax()) for row in scores]),
    ):
        answer = teacher.segment(embeddings, prompts, multimask=multimask)
        for n, index in enumerate(indices):
            assert np.array_equal(answer.low_res_logits[n], logits[n, index])
            assert answer.predicted_iou[n] == scores[n, index]


def test_a_second_pass_takes_the_firsts_low_resolution_logits(teacher: Teacher) -> None:
    image = picture((90, 128))
    sets = prompt_sets((90, 128))
    embeddings = teacher.embed([image])
    first = teacher.segment(embeddings, [[sets["box"]]])
    second = teacher.segment(embeddings, [[sets["points"]]], previous=first.low_res_logits)
    _, iou, low = ask_predictor(teacher, image, sets["points"], first.low_res_logits, False)
    assert np.abs(second.low_res_logits - low).max() < TOLERANCE
    assert np.abs(second.predicted_iou - iou).max() < TOLERANCE


def test_padding_points_change_nothing(teacher: Teacher) -> None:
    image = picture((90, 128))
    one = prompt_sets((90, 128))["points"]
    assert one.points is not None
    assert one.point_labels is not None
    padded = Prompts(
        points=np.concatenate([one.points, np.zeros((2, 2), np.float32)]),
        point_labels=np.concatenate([one.point_labels, np.full(2, -1, np.int32)]),
    )
    embeddings = teacher.embed([image])
    logits, _ = teacher.decode(embeddings, [[one, padded]])
    assert torch.allclose(logits[0], logits[1], atol=1e-5)


def test_mask_logits_come_in_the_images_frame(teacher: Teacher) -> None:
    """What upscale makes of low-resolution logits leads back to much the same prompt."""
    size = (64, 128)
    embedding = teacher.embed([picture(size)])[0]
    y, x = np.mgrid[0:32, 0:32].astype(np.float32)
    low = (4 - ((x - 12) ** 2 + (y - 8) ** 2) / 20).astype(np.float32)  # the content is the upper half
    full = teacher.upscale(torch.from_numpy(low)[None], embedding)[0].numpy()
    back = TeacherFrame(embedding.image_size, teacher.input_side).low_res(full, low.shape)
    assert np.abs(back - low)[:15, 1:31].max() < 0.3
    np.testing.assert_allclose(back[17:], full.min(), rtol=1e-5)
    answer = teacher.segment([embedding], [[Prompts(mask_logits=full)]])
    assert answer.masks[0].shape == size


def test_no_prompt_sets_are_no_error(teacher: Teacher) -> None:
    embeddings = teacher.embed([picture((40, 40)), picture((50, 60))])
    assert teacher.segment(embeddings, [[], []]).masks == []
    answer = teacher.segment(embeddings, [[], [prompt_sets((50, 60))["box"]]])
    assert [mask.shape for mask in answer.masks] == [(50, 60)]


def test_more_sets_than_memory_allows_go_through_the_decoder_in_parts(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = ((40, 40), (50, 60))
    embeddings = teacher.embed([picture(size) for size in sizes])
    prompts = [list(prompt_sets(size).values()) for size in sizes]
    at_once = teacher.segment(embeddings, prompts)
    seen = []

    def decode(decoder: Any, features: torch.Tensor, *others: Any) -> Any:
        seen.append(len(features))
        return decoder_module.decode(decoder, features, *others)

    monkeypatch.setattr("samdistill.teacher.sam.decode", decode)
    monkeypatch.setattr("samdistill.teacher_frame.MOST_SETS", 4)
    # The images are smaller than the encoder's square, through which each map goes.
    monkeypatch.setattr("samdistill.teacher_frame.MOST_UPSCALED", 2 * teacher.input_side**2)
    drawn, upscale = [], teacher.upscale
    monkeypatch.setattr(teacher, "upscale", lambda maps, one: drawn.append(len(maps)) or upscale(maps, one))
    in_parts = teacher.segment(embeddings, prompts)
    assert max(drawn) == 2
    total = sum(map(len, prompts))
    assert seen == [4] * (total // 4) + [total % 4] * (total % 4 > 0)
    np.testing.assert_allclose(in_parts.low_res_logits, at_once.low_res_logits, atol=1e-4)
    np.testing.assert_allclose(in_parts.predicted_iou, at_once.predicted_iou, atol=1e-5)
    assert [mask.shape for mask in in_parts.masks] == [mask.shape for mask in at_once.masks]
    assert all((a == b).mean() > 0.999 for a, b in zip(in_parts.masks, at_once.masks, strict=True))
    again = teacher.segment(embeddings, prompts, previous=at_once.low_res_logits)
    assert len(again.masks) == total


def test_wrong_arguments_are_named(teacher: Teacher) -> None:
    embeddings = teacher.embed([picture((40, 40))])
    box = prompt_sets((40, 40))["box"]
    with pytest.raises(ValueError, match="one list an embedding, 1, not 2"):
        teacher.segment(embeddings, [[box], [box]])
    with pytest.raises(ValueError, match=r"previous must be float32 \(1, 32, 32\)"):
        teacher.segment(embeddings, [[box]], previous=np.zeros((2, 32, 32), np.float32))
    with pytest.raises(ValueError, match=r"mask_logits must be \(40, 40\), the image's size"):
        teacher.segment(embeddings, [[Prompts(mask_logits=np.zeros((41, 40), np.float32))]])
    with pytest.raises(DeviceUnavailable, match="CUDA device"):
        Teacher("small", teacher.model, weights_sha256="", device="cuda:7")
    for other in ("gpu", "mps", "meta"):
        with pytest.raises(DeviceUnavailable, match=f"device must be cpu, cuda or cuda:N, not '{other}'"):
            Teacher("small", teacher.model, weights_sha256="", device=other)


@pytest.mark.parametrize("part", ["output_hypernetworks_mlps", "iou_prediction_head"])
def test_an_answer_that_is_not_finite_is_no_empty_mask(part: str) -> None:
    teacher = small_teacher()
    embeddings = teacher.embed([picture((40, 40))])
    for weight in getattr(teacher.model.mask_decoder, part).parameters():
        weight.mul_(1e30)
    with pytest.raises(InputRejected, match="must answer with finite numbers"):
        teacher.segment(embeddings, [[prompt_sets((40, 40))["box"]]])
    with pytest.raises(InputRejected, match="must answer with finite numbers"):
        teacher.propose(embeddings[0], ProposeConfig(points_per_side=2, predicted_iou=0.0))


def medsam_script(model: Any, image: np.ndarray, box: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The reference: the steps of MedSAM's inference script, at the model's own input side."""
    from skimage.transform import resize
    from torch.nn import functional

    side = model.image_encoder.img_size
    height, width, _ = image.shape
    stretched = resize(image, (side, side), order=3, preserve_range=True, anti_aliasing=True).astype(np.uint8)
    spread = np.clip(stretched.max() - stretched.min(), a_min=1e-8, a_max=None)
    unit = (stretched - stretched.min()) / spread
    with torch.no_grad():
        features = model.image_encoder(torch.tensor(unit).float().permute(2, 0, 1)[None])
        scaled = torch.as_tensor(
            (box / np.array([width, height, width, height]) * side)[None], dtype=torch.float
        )
        sparse, dense = model.prompt_encoder(points=None, boxes=scaled[:, None], masks=None)
        low, _ = model.mask_decoder(
            image_embeddings=features,
            image_pe=model.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        up = functional.interpolate(low.sigmoid(), size=(height, width), mode="bilinear", align_corners=False)
    return low[0, 0].numpy(), up[0, 0].numpy() > 0.5


@pytest.mark.parametrize("size", [(128, 128), (90, 200)])
def test_medsam_gives_what_its_own_script_gives(size: tuple[int, int]) -> None:
    pytest.importorskip("skimage", reason="MedSAM's preprocessing needs scikit-image")
    medsam = small_teacher()
    medsam.preprocessing = "medsam"
    image = picture(size)
    box = np.array([10, 20, 100, 80], np.float32)
    answer = medsam.segment(medsam.embed([image]), [[Prompts(box=box)]])
    low, mask = medsam_script(medsam.model, image, box)
    assert np.abs(answer.low_res_logits[0] - low).max() < TOLERANCE
    assert np.array_equal(answer.masks[0], mask)


def test_medsam_takes_boxes_alone() -> None:
    pytest.importorskip("skimage", reason="MedSAM's preprocessing needs scikit-image")
    medsam = small_teacher()
    medsam.preprocessing = "medsam"
    embeddings = medsam.embed([picture((40, 40))])
    sets = prompt_sets((40, 40))
    for kind in ("one point", "box and points"):
        with pytest.raises(ValueError, match="a box alone for MedSAM"):
            medsam.segment(embeddings, [[sets[kind]]])
    with pytest.raises(ValueError, match="MedSAM"):
        medsam.segment(embeddings, [[sets["box"]]], previous=np.zeros((1, 32, 32), np.float32))
    with pytest.raises(ValueError, match="MedSAM"):
        medsam.propose(embeddings[0])
