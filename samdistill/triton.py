"""The front of a bundle in Triton Inference Server: raw pixels in, masks out, networks run by the server.

Runs inside the server's Python backend, where `model.py` imports it; the only module that imports
triton_python_backend_utils, which is nowhere else to be had. Everything between pixels and masks is the
predictor's. `samdistill.export.triton` writes the repository that this reads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

from samdistill.bundle import Bundle
from samdistill.bundled_teacher import PARTS, BundledTeacher, answered
from samdistill.engines import OpenedPart
from samdistill.errors import BundleError, SamdistillError
from samdistill.golden import GoldenResult, TeacherCase, compare_teacher
from samdistill.manifest import GoldenRecord, Part
from samdistill.predictor import Predictor
from samdistill.proof import golden_results
from samdistill.runtime import Arrays, TensorType
from samdistill.segmentation import parse_mode


class ServedEngine:
    """A network that the server runs; an `Engine`.

    Parameters
    ----------
    model
        Its name on the server.
    inputs, outputs
        Name -> [dtype, rank].
    """

    runtime = "triton"

    def __init__(
        self, model: str, inputs: Mapping[str, tuple[str, int]], outputs: Mapping[str, tuple[str, int]]
    ) -> None:
        self.provider = model
        self.inputs, self.outputs = _types(inputs), _types(outputs)

    def run(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Compute every output from every input.

        Raises
        ------
        BundleError
            When the server cannot.
        """
        asked = pb_utils.InferenceRequest(
            model_name=self.provider,
            requested_output_names=list(self.outputs),
            inputs=[
                pb_utils.Tensor(name, np.ascontiguousarray(inputs[name], dtype=type_.dtype))
                for name, type_ in self.inputs.items()
            ],
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
        )
        answer = asked.exec()
        if answer.has_error():
            raise BundleError(f"{self.provider} failed on the server: {answer.error().message()}.")
        return {
            name: np.array(pb_utils.get_output_tensor_by_name(answer, name).as_numpy())
            for name in self.outputs
        }


class TritonPythonModel:
    """What the Python backend calls; the names are Triton's."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the manifest that lies beside `model.py` and check the files of the networks it speaks of.

        Raises
        ------
        BundleError
            When one of them is another than the repository was written with.
        """
        models = Path(args["model_repository"])
        folder = models / args["model_version"]
        parameters = json.loads(args["model_config"])["parameters"]
        bundle = Bundle.open(folder, expect_sha256=parameters["bundle_sha256"]["string_value"])
        engines: dict[Part, OpenedPart] = {}
        for part, network in json.loads(parameters["networks"]["string_value"]).items():
            for file, sha256 in network["files"].items():
                _check(models.parent / network["model"] / "1" / file, sha256)
            engine = ServedEngine(network["model"], network["inputs"], network["outputs"])
            wanted = (part, *network["engine"])
            record = next(
                one for one in bundle.manifest.engines if (one.model, one.runtime, one.precision) == wanted
            )
            engines[part] = OpenedPart(engine, record)
        self._bundle, self._engines = bundle, engines
        teacher = None
        if bundle.manifest.teacher is not None:
            teacher = BundledTeacher(bundle.manifest.teacher, *(engines[part].engine for part in PARTS))
        self._teacher = teacher
        self._predictor = Predictor(bundle, engines["student"], threads=None, device="cpu", teacher=teacher)
        self._proved, self._proving = False, Lock()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer requests, each with one image; at the first the bundle's golden cases have to come out."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            self._prove()
            image = pb_utils.get_input_tensor_by_name(request, "image").as_numpy()
            if image.ndim == 3 and image.shape[2] == 1:
                image = image[:, :, 0]
            mode = pb_utils.get_input_tensor_by_name(request, "mode")
            name = "fast" if mode is None else mode.as_numpy().ravel()[0].decode()
            found = self._predictor.predict(image, parse_mode(name))
        except (SamdistillError, ValueError, TypeError, MemoryError) as error:
            return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(str(error)))
        return pb_utils.InferenceResponse(
            output_tensors=[
                pb_utils.Tensor("masks", found.masks),
                pb_utils.Tensor("probability_maps", found.probability_maps),
            ]
        )

    def _prove(self) -> None:
        """Compute the golden cases through the server, once; a server that fails them gives no masks."""
        with self._proving:
            if self._proved:
                return
            golden_results(self._bundle, self._engines["student"], self._predictor.golden_result)
            if self._teacher is not None:
                compute = partial(_teacher_result, self._bundle, self._teacher)
                golden_results(self._bundle, _both(self._engines), compute)
            self._proved = True


def _both(engines: Mapping[Part, OpenedPart]) -> OpenedPart:
    """The encoder, allowed to be off by what it and the decoder may: here both compute a golden case."""
    pair = [engines[part].record for part in PARTS]
    allowed: dict[str, Any] = {}
    for name in ("max_probability_difference", "max_changed_pixels"):
        known = [value for one in pair if (value := getattr(one, name)) is not None]
        allowed[name] = min(1.0, sum(known)) if known else None
    return replace(engines["encoder"], record=replace(pair[0], **allowed))


def _teacher_result(bundle: Bundle, teacher: BundledTeacher, record: GoldenRecord) -> GoldenResult:
    asked = TeacherCase.from_npz(bundle.read(record.file), record.file)
    return compare_teacher(answered(teacher, asked), asked, record)


def _types(tensors: Mapping[str, tuple[str, int]]) -> Mapping[str, TensorType]:
    return {name: TensorType(np.dtype(dtype), rank) for name, (dtype, rank) in tensors.items()}


def _check(file: Path, sha256: str) -> None:
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != sha256:
        raise BundleError(
            f"{file} must have the SHA-256 {sha256}, not {found}: it was changed after the repository was "
            "written. Export it again."
        )
