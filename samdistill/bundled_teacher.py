"""A bundle's teacher: SAM's encoder and decoder in one runtime, numerically as `samdistill.teacher.Teacher`.

numpy, one runtime, no torch. The encoder is the dear part, so an image is embedded once and prompted often;
the prompt sets of a whole batch of images go through the decoder together: on a GPU at once, on a CPU as many
at a time as stay in its cache. Knows no class and no student.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from samdistill.arrays import Image, Mask, check_image
from samdistill.bundle import Bundle
from samdistill.engines import OpenedPart, open_part, precision_of
from samdistill.errors import BundleError, UsageError
from samdistill.golden import GoldenResult, TeacherCase, compare_teacher
from samdistill.manifest import GoldenRecord, Part, TeacherRecord
from samdistill.prompts import Prompts
from samdistill.proof import prove
from samdistill.runtime import Arrays, Engine
from samdistill.teacher_frame import (
    TeacherFrame,
    TeacherMasks,
    most_embedded,
    most_sets,
    most_upscaled,
    parts,
    prompt_arrays,
    wants_best_of_three,
)

PARTS: tuple[Part, Part] = ("encoder", "decoder")
DECODED = ("low_res_logits", "predicted_iou")
KEYS_BYTES = 5 << 20
"""Of the image keys of all prompt sets that a CPU decodes at a time, since they are read and written many
times: one set at a time pays for the call, many go through main memory (`benchmarks/bench_engines.py`)."""


@dataclass(frozen=True, eq=False)
class BundledEmbedding:
    """What the encoder made of one image.

    Attributes
    ----------
    features
        (C, h, w) float32.
    frame
        How the image lies in it.
    """

    features: npt.NDArray[np.float32]
    frame: TeacherFrame

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the image."""
        return self.frame.image_size


class BundledTeacher:
    """A bundle's encoder and decoder; safe to use from several threads. Make one with `load`.

    Parameters
    ----------
    record
        What the manifest says of the teacher.
    encoder, decoder
        Its networks, opened.

    Attributes
    ----------
    parts
        Which of the bundle's engines compute, by network; empty where they were opened otherwise.
    """

    def __init__(self, record: TeacherRecord, encoder: Engine, decoder: Engine) -> None:
        self.record = record
        self._encoder = encoder
        self._decoder = decoder
        self.parts: dict[Part, OpenedPart] = {}

    @classmethod
    def load(
        cls,
        bundle: Path | str | Bundle,
        device: str = "cpu",
        runtime: str = "auto",
        *,
        threads: int | None = None,
        precision: str | None = None,
        expect_sha256: str | None = None,
    ) -> BundledTeacher:
        """Open a bundle's teacher; parameters as for `Predictor.load`.

        A network that the bundle does not have in the precision, as no teacher's is in int8, is opened in its
        fastest; `parts` says which.

        Raises
        ------
        UsageError
            When the bundle has no teacher.
        BundleError, DeviceUnavailable
            As for `Predictor.load`.
        """
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle, expect_sha256=expect_sha256)
        record = opened.manifest.teacher
        if record is None:
            raise UsageError(
                f"{opened.root} must hold a teacher, and was exported without. "
                "Export it again with --teacher."
            )
        parts = {
            part: open_part(
                opened,
                part,
                device=device,
                runtime=runtime,
                precision=precision_of(opened, part, precision),
                threads=threads,
            )
            for part in PARTS
        }
        teacher = cls(record, *(one.engine for one in parts.values()))
        teacher.parts = parts
        for one in parts.values():
            prove(opened, one, partial(golden_result, opened, one))
        return teacher

    def embed(self, images: Sequence[Image]) -> list[BundledEmbedding]:
        """Run the encoder.

        Parameters
        ----------
        images
            uint8 (H, W, 3) RGB each, of any sizes; as the bundle's intensity rule makes them.

        Returns
        -------
        list
            One embedding an image, in their order.

        Raises
        ------
        ValueError
            When an image is none.
        BundleError
            When the network fails or answers with NaN or infinity.
        """
        record = self.record
        frames = [
            TeacherFrame((image.shape[0], image.shape[1]), record.side, record.preprocessing)
            for image in map(check_image, images)
        ]
        step = most_embedded(record.side)
        embeddings: list[BundledEmbedding] = []
        for start in range(0, len(images), step):
            part = frames[start : start + step]
            inputs: dict[str, npt.NDArray[Any]] = {
                "pixels": np.stack([f.pixels(i) for f, i in zip(part, images[start:], strict=False)]),
                "input_size": np.array([frame.input_size for frame in part], np.int64),
            }
            features = self._run(self._encoder, inputs, {"embeddings": (len(part), *record.embedding)})
            embeddings += [
                BundledEmbedding(one, frame) for one, frame in zip(features["embeddings"], part, strict=True)
            ]
        return embeddings

    def segment(
        self,
        embeddings: Sequence[BundledEmbedding],
        prompts: Sequence[Sequence[Prompts]],
        *,
        multimask: bool | None = None,
        previous: npt.NDArray[np.float32] | None = None,
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> TeacherMasks:
        """Segment every prompt set of every image.

        Parameters
        ----------
        embeddings, prompts, multimask, previous
            As for `decode`.
        sizes
            (height, width) of each image's masks; None: the image's own. Prompts stay in the image's frame.

        Returns
        -------
        TeacherMasks
            One answer a prompt set, all of the first image before those of the second: `masks`, (H, W) bool
            each, `low_res_logits` and `predicted_iou` as of `decode`.

        Raises
        ------
        ValueError
            When prompts or `previous` do not go with the embeddings.
        BundleError
            When the network fails or answers with NaN or infinity.
        """
        logits, predicted_iou = self.decode(embeddings, prompts, multimask=multimask, previous=previous)
        masks: list[Mask] = []
        for number, (embedding, each) in enumerate(zip(embeddings, prompts, strict=True)):
            own = logits[len(masks) : len(masks) + len(each)]
            size = embedding.image_size if sizes is None else sizes[number]
            for part in parts(len(each), most_upscaled(size, self.record.side)):
                maps = embedding.frame.upscale(own[part], size)
                masks.extend(maps > np.float32(self.record.mask_threshold))
        return TeacherMasks(masks, logits, predicted_iou)

    def decode(
        self,
        embeddings: Sequence[BundledEmbedding],
        prompts: Sequence[Sequence[Prompts]],
        *,
        multimask: bool | None = None,
        previous: npt.NDArray[np.float32] | None = None,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Do what the network does of `segment`.

        Parameters
        ----------
        embeddings
            One an image.
        prompts
            For each image its prompt sets, in the image's frame.
        multimask
            True: the best of three masks by predicted IoU; False: the single mask; None: the best of three
            where a set is ambiguous, that is points alone, without box or mask.
        previous
            (N, 4h, 4w) float32 low-resolution logits of an earlier answer to the same sets in flattened
            order; they take the place of `mask_logits`.

        Returns
        -------
        tuple
            (N, 4h, 4w) float32 logits in the low-resolution frame, (N,) float32 predicted IoU.
        """
        record = self.record
        height, width = record.mask_size
        arrays = prompt_arrays([one.frame for one in embeddings], prompts, (height, width), previous)
        n = len(arrays.points)
        if n == 0:
            return np.zeros((0, height, width), np.float32), np.zeros(0, np.float32)
        inputs = {
            "embeddings": np.stack([one.features for one in embeddings]),
            "image_index": np.repeat(np.arange(len(prompts)), [len(each) for each in prompts]),
            **arrays._asdict(),
            "multimask": wants_best_of_three(prompts, multimask, has_previous=previous is not None),
        }
        answers = [self._decode(inputs, part) for part in self._parts_of(n)]
        logits, predicted_iou = (np.concatenate([one[name] for one in answers]) for name in DECODED)
        return logits, predicted_iou

    def _parts_of(self, n: int) -> list[slice]:
        """N prompt sets as the decoder takes them."""
        most = most_sets(self.record.embedding)
        if self._decoder.provider.startswith("CPU"):
            most = max(1, KEYS_BYTES // (4 * math.prod(self.record.embedding)))
        return parts(n, most)

    def _decode(self, inputs: Arrays, part: slice) -> dict[str, npt.NDArray[np.float32]]:
        """Decode some of the prompt sets, whose images lie side by side."""
        own = {name: array[part] for name, array in inputs.items() if name != "embeddings"}
        first, last = own["image_index"][[0, -1]]
        own["image_index"] = own["image_index"] - first
        own["embeddings"] = inputs["embeddings"][first : last + 1]
        n, size = part.stop - part.start, self.record.mask_size
        return self._run(self._decoder, own, dict(zip(DECODED, ((n, *size), (n,)), strict=True)))

    @staticmethod
    def _run(
        engine: Engine, inputs: Arrays, shapes: Mapping[str, tuple[int, ...]]
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Run a network on those inputs that it has; its answers must be finite and of these shapes."""
        missing = sorted(set(engine.inputs) - set(inputs))
        if missing:
            raise BundleError(f"the teacher's network asks for {missing[0]}, which nobody has.")
        answers = engine.run({name: inputs[name] for name in engine.inputs})
        for name, shape in shapes.items():
            if name not in answers or answers[name].shape != shape:
                found = answers[name].shape if name in answers else "nothing"
                raise BundleError(f"{name} must have the shape {shape}, not {found}.")
            if not np.isfinite(answers[name]).all():
                raise BundleError(
                    f"{name} must be finite, not NaN or infinite: the network is broken or overflows; "
                    "no mask is given."
                )
        return answers


def answered(teacher: BundledTeacher, case: TeacherCase) -> TeacherCase:
    """A teacher's own answers to a golden case."""
    (embedding,) = teacher.embed([case.pixels])
    return case.answered_by(lambda sets, multimask: teacher.segment([embedding], [sets], multimask=multimask))


def golden_teacher(bundle: Bundle, opened: OpenedPart) -> BundledTeacher:
    """An encoder or decoder beside ONNX Runtime's fp32 on the CPU, so that what is off is its own."""
    encodes = opened.record.model == "encoder"
    beside = open_part(bundle, "decoder" if encodes else "encoder", runtime="onnxruntime", precision="fp32")
    pair = (opened.engine, beside.engine) if encodes else (beside.engine, opened.engine)
    assert bundle.manifest.teacher is not None
    return BundledTeacher(bundle.manifest.teacher, *pair)


def golden_result(bundle: Bundle, opened: OpenedPart, record: GoldenRecord) -> GoldenResult:
    """Compute one of the teacher's golden cases again with an encoder or decoder."""
    asked = TeacherCase.from_npz(bundle.read(record.file), record.file)
    return compare_teacher(answered(golden_teacher(bundle, opened), asked), asked, record)
