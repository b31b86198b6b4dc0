"""A Triton model repository: its configurations are Triton's, and its front gives the predictor's masks."""

from __future__ import annotations

import importlib
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import fake_gpu
import numpy as np
import onnx
import pytest
from bundles import colours, rewrite
from small_sam import small_teacher
from teacher_bundles import give_teacher

from samdistill.bundle import Bundle
from samdistill.engines import OpenedPart
from samdistill.errors import BundleError, UsageError
from samdistill.export.triton import write_repository
from samdistill.predictor import Predictor
from samdistill.refine import RefineConfig
from samdistill.runtime import open_engine
from samdistill.runtime.cuda import find_gpu

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def schema() -> Any:
    """Triton's own schema of model configurations; the package around it needs grpc, the schema does not."""
    package = importlib.util.find_spec("tritonclient")
    assert package is not None
    assert package.submodule_search_locations is not None
    file = Path(package.submodule_search_locations[0], "grpc", "model_config_pb2.py")
    spec = importlib.util.spec_from_file_location("model_config_pb2", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed bundle with a small teacher."""
    place = tmp_path_factory.mktemp("bundle") / "b"
    shutil.copytree(HERE / "golden" / "tiny_bundle", place)
    give_teacher(place, small_teacher(), RefineConfig())
    rewrite(place, lambda values: values.update(name="Polyps, 64 px"))
    return place


@pytest.fixture
def repository(bundle: Path, tmp_path: Path) -> Path:
    names = write_repository(bundle, tmp_path / "models")
    assert names == [
        "Polyps__64_px",
        *(f"Polyps__64_px_{part}" for part in ("student", "encoder", "decoder")),
    ]
    return tmp_path / "models"


def config(schema: Any, repository: Path, name: str) -> Any:
    from google.protobuf import text_format

    return text_format.Parse((repository / name / "config.pbtxt").read_text(), schema.ModelConfig())


# --- a server: ONNX Runtime behind Triton's names


class Server(ModuleType):
    """`triton_python_backend_utils`, with the repository's networks opened by ONNX Runtime."""

    TRITONSERVER_MEMORY_CPU = 0

    def __init__(self, schema: Any, repository: Path) -> None:
        super().__init__("triton_python_backend_utils")
        self.asked: list[str] = []
        self.wrong = 0.0

        class Tensor:
            def __init__(self, name: str, array: Any) -> None:
                self._name, self._array = name, array

            def name(self) -> str:
                return self._name

            def as_numpy(self) -> Any:
                return self._array

        server = self

        class InferenceRequest:
            def __init__(
                self,
                model_name: str,
                requested_output_names: list[str],
                inputs: list[Any],
                preferred_memory: Any,
            ) -> None:
                self.model, self.outputs, self.inputs = model_name, requested_output_names, inputs

            def exec(self) -> Any:
                server.asked.append(self.model)
                described = config(schema, repository, self.model)
                arrays = {tensor.name(): tensor.as_numpy() for tensor in self.inputs}
                for one in described.input:
                    dims = list(arrays[one.name].shape)[1 if described.max_batch_size else 0 :]
                    assert len(dims) == len(one.dims)
                    assert all(wanted in (-1, side) for wanted, side in zip(one.dims, dims, strict=True))
                if described.max_batch_size and len(next(iter(arrays.values()))) > described.max_batch_size:
                    return SimpleNamespace(
                        has_error=lambda: True,
                        error=lambda: SimpleNamespace(message=lambda: "batch too large"),
                    )
                file = repository / self.model / "1" / "model.onnx"
                found = open_engine(file.read_bytes()).run(arrays)
                tensors = [Tensor(name, found[name] + np.float32(server.wrong)) for name in self.outputs]
                return SimpleNamespace(has_error=lambda: False, tensors=tensors)

        self.Tensor, self.InferenceRequest = Tensor, InferenceRequest
        self.TritonError = str
        self.PreferredMemory = lambda kind, index: (kind, index)
        self.InferenceResponse = lambda output_tensors, error=None: SimpleNamespace(
            tensors=output_tensors, error=error
        )
        self.get_output_tensor_by_name = self.get_input_tensor_by_name = lambda holder, name: next(
            (one for one in holder.tensors if one.name() == name), None
        )


@pytest.fixture
def server(schema: Any, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    made = Server(schema, repository)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", made)
    sys.modules.pop("samdistill.triton", None)
    yield made
    sys.modules.pop("samdistill.triton", None)


def front(schema: Any, repository: Path, name: str = "Polyps__64_px") -> Any:
    """What the Python backend does with a model: import its model.py and initialize the class in it."""
    from google.protobuf import json_format

    spec = importlib.util.spec_from_file_location("model", repository / name / "1" / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    described = json_format.MessageToJson(config(schema, repository, name), preserving_proto_field_name=True)
    model = module.TritonPythonModel()
    model.initialize(
        {
            "model_name": name,
            "model_repository": str(repository / name),
            "model_version": "1",
            "model_config": described,
        }
    )
    return model


def ask(model: Any, server: Any, image: Any, mode: str | None = None) -> Any:
    tensors = [server.Tensor("image", image)]
    if mode is not None:
        tensors.append(server.Tensor("mode", np.array([mode.encode()], np.object_)))
    (response,) = model.execute([SimpleNamespace(tensors=tensors)])
    return response


# --- the configurations


def test_every_configuration_is_tritons_and_says_what_the_graph_says(
    bundle: Path, repository: Path, schema: Any
) -> None:
    for part, batch in (("student", 8), ("encoder", 0), ("decoder", 0)):
        found = config(schema, repository, f"Polyps__64_px_{part}")
        assert (found.name, found.backend) == (f"Polyps__64_px_{part}", "onnxruntime")
        assert found.max_batch_size == batch
        (on_gpu,) = found.optimization.execution_accelerators.gpu_execution_accelerator
        assert (on_gpu.name, dict(on_gpu.parameters)) == ("cuda", {"use_tf32": "0"})
        content = (bundle / f"{part}.onnx").read_bytes()
        assert (repository / found.name / "1" / "model.onnx").read_bytes() == content
        engine = open_engine(content)
        for described, tensors in ((found.input, engine.inputs), (found.output, engine.outputs)):
            assert [one.name for one in described] == list(tensors)
            for one in described:
                name = schema.DataType.Name(one.data_type)
                wanted = {"uint8": "UINT8", "int64": "INT64", "bool": "BOOL", "float32": "FP32"}
                assert name == "TYPE_" + wanted[tensors[one.name].dtype.name]
                assert len(one.dims) == tensors[one.name].ndim - (1 if batch else 0)
    decoder = config(schema, repository, "Polyps__64_px_decoder")
    assert {one.name: list(one.dims) for one in decoder.input}["masks"] == [-1, 1, 32, 32]
    front_ = config(schema, repository, "Polyps__64_px")
    assert front_.backend == "python"
    assert [(one.name, one.optional) for one in front_.input] == [("image", False), ("mode", True)]
    assert [list(one.dims) for one in front_.output] == [[2, -1, -1]] * 2
    assert front_.parameters["bundle_sha256"].string_value == Predictor.load(bundle).bundle_sha256


def test_pixels_that_a_rule_makes_uint8_are_floats_to_the_server(
    tiny_bundle: Path, tmp_path: Path, schema: Any
) -> None:
    rewrite(
        tiny_bundle,
        lambda values: values.update(intensity={"kind": "window", "low": -100.0, "high": 300.0}, name="ct"),
    )
    write_repository(tiny_bundle, tmp_path / "models")
    found = config(schema, tmp_path / "models", "ct")
    assert schema.DataType.Name(found.input[0].data_type) == "TYPE_FP32"


def test_a_graph_that_is_not_what_the_manifest_says_is_not_served(tiny_bundle: Path, tmp_path: Path) -> None:
    model = onnx.load(tiny_bundle / "student.onnx")
    for node in model.graph.node:
        node.output[:] = ["other" if name == "logits" else name for name in node.output]
    model.graph.output[0].name = "other"
    onnx.save(model, tiny_bundle / "student.onnx")
    rewrite(tiny_bundle)
    with pytest.raises(BundleError, match="the student's tensors must be logits, not other"):
        write_repository(tiny_bundle, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_a_place_that_is_taken_stays(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine").write_text("mine")
    with pytest.raises(UsageError, match="must be a new or empty folder for a model repository"):
        write_repository(tiny_bundle, tmp_path / "models")
    assert [file.name for file in (tmp_path / "models").iterdir()] == ["mine"]


@pytest.mark.parametrize("inside", [".", "models"])
def test_a_repository_is_not_written_into_a_bundle(tiny_bundle: Path, inside: str) -> None:
    with pytest.raises(UsageError, match="must lie outside the bundle"):
        write_repository(tiny_bundle, tiny_bundle / inside)
    Bundle.open(tiny_bundle).check_files()


@pytest.mark.parametrize(("bundle", "models"), [("b", "b/models"), ("models/b", "models")])
def test_the_command_refuses_a_repository_in_or_around_its_bundle_before_any_work(
    tmp_path: Path, bundle: str, models: str
) -> None:
    words = ["export", tmp_path / "run", "--out", tmp_path / bundle, "--triton", tmp_path / models]
    command = [sys.executable, "-m", "samdistill", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "must lie outside the bundle" in done.stderr
    assert not any(tmp_path.iterdir())


def test_where_tensorrt_was_proved_here_its_plan_is_served(
    tiny_bundle: Path, tmp_path: Path, schema: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fake_gpu.install(monkeypatch)

    def edit(values: dict[str, Any]) -> None:
        values["engines"].append({**values["engines"][0], "runtime": "tensorrt", "device": "cuda"})

    rewrite(tiny_bundle, edit)
    write_repository(tiny_bundle, tmp_path / "before")
    assert list(tmp_path.glob("before/*_student/1/*.onnx"))
    Predictor.load(tiny_bundle, "cuda")
    names = write_repository(tiny_bundle, tmp_path / "models")
    found = config(schema, tmp_path / "models", names[1])
    assert (found.backend, list(found.instance_group[0].profile)) == ("tensorrt", ["0", "1"])
    assert not found.HasField("optimization")  # the plan is without TF32 itself
    (plan,) = (tmp_path / "cache" / "samdistill" / "plans").glob("*.plan")
    assert (tmp_path / "models" / names[1] / "1" / "model.plan").read_bytes() == plan.read_bytes()
    find_gpu.cache_clear()


# --- the front


def test_the_front_gives_the_predictors_masks_in_every_mode(
    bundle: Path, repository: Path, server: Server, schema: Any
) -> None:
    model = front(schema, repository)
    assert server.asked == []  # no network may be asked before the first request
    predictor = Predictor.load(bundle)
    image = colours(90, 120)
    for mode in (None, "fast", "refine"):
        wanted = predictor.predict(image, mode or "fast")  # type: ignore[arg-type]
        response = ask(model, server, image, mode)
        assert response.error is None
        masks, maps = (tensor.as_numpy() for tensor in response.tensors)
        assert [tensor.name() for tensor in response.tensors] == ["masks", "probability_maps"]
        np.testing.assert_array_equal(masks, wanted.masks)
        np.testing.assert_allclose(maps, wanted.probability_maps, atol=1e-6)
    grey = ask(model, server, image[:, :, :1])
    np.testing.assert_array_equal(grey.tensors[0].as_numpy(), predictor.predict(image[:, :, 0]).masks)
    assert set(server.asked) == {f"Polyps__64_px_{part}" for part in ("student", "encoder", "decoder")}


@pytest.mark.parametrize(
    ("image", "mode", "message"),
    [
        (np.zeros((5, 5, 2), np.uint8), None, "pixels must be"),
        (np.zeros((0, 5, 3), np.uint8), None, "pixels must be"),
        (colours(), "loudly", "mode must be one of"),
        (colours(), "auto", "mode must be fast or refine"),
    ],
)
def test_a_bad_request_is_answered_with_what_is_wrong_and_the_next_is_served(
    repository: Path, server: Server, schema: Any, image: Any, mode: str | None, message: str
) -> None:
    model = front(schema, repository)
    response = ask(model, server, image, mode)
    assert message in response.error
    assert response.tensors == []
    assert ask(model, server, colours()).error is None


@pytest.mark.parametrize(
    ("encoder", "decoder", "both"),
    [(None, None, None), (None, 0.1, 0.1), (0.25, None, 0.25), (0.25, 0.5, 0.75), (0.75, 0.75, 1.0)],
)
def test_a_teacher_may_be_off_by_what_its_encoder_and_its_decoder_may(
    tiny_bundle: Path, encoder: Any, decoder: Any, both: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", ModuleType("pb_utils"))
    monkeypatch.delitem(sys.modules, "samdistill.triton", raising=False)
    served = importlib.import_module("samdistill.triton")
    (record,) = Bundle.open(tiny_bundle).manifest.engines
    engines = {
        part: OpenedPart(None, replace(record, model=part, max_changed_pixels=allowed))  # type: ignore[arg-type]
        for part, allowed in (("encoder", encoder), ("decoder", decoder))
    }
    found = served._both(engines).record
    assert (found.model, found.max_changed_pixels, found.max_probability_difference) == (
        "encoder",
        both,
        None,
    )
    sys.modules.pop("samdistill.triton")


def test_a_server_that_computes_otherwise_gives_no_masks(
    repository: Path, server: Server, schema: Any
) -> None:
    server.wrong = 0.5
    model = front(schema, repository)
    for _ in range(2):
        assert "golden cases come out otherwise" in ask(model, server, colours()).error
    server.wrong = 0.0
    assert ask(model, server, colours()).error is None


def test_a_network_swapped_after_the_repository_was_written_is_refused(
    repository: Path, server: Server, schema: Any
) -> None:
    file = repository / "Polyps__64_px_decoder" / "1" / "model.onnx"
    file.write_bytes(file.read_bytes() + b"\x72\x00")
    with pytest.raises(BundleError, match="was changed after the repository was written"):
        front(schema, repository)


def test_a_manifest_changed_after_the_repository_was_written_is_refused(
    repository: Path, server: Server, schema: Any
) -> None:
    file = repository / "Polyps__64_px" / "1" / "manifest.json"
    values = json.loads(file.read_text())
    values["classes"][0]["threshold"] = 0.9
    file.write_text(json.dumps(values))
    with pytest.raises(BundleError, match="must have the SHA-256"):
        front(schema, repository)
