"""A graph may keep its weights beside it only where the manifest says so: libraries would open any file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bundles import rewrite
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from samdistill.errors import BundleError
from samdistill.predictor import Predictor
from samdistill.runtime import is_installed, open_engine
from samdistill.runtime.onnx_file import external_files

RUNTIMES = [
    "onnxruntime",
    pytest.param(
        "openvino", marks=pytest.mark.skipif(not is_installed("openvino"), reason="needs the extra openvino")
    ),
]


def outside(tensor: TensorProto, location: str) -> bytes:
    """Move a tensor's values out of the graph; what the other file is to hold."""
    values = numpy_helper.to_array(tensor).tobytes()
    for field in ("raw_data", "float_data"):
        tensor.ClearField(field)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("offset", "0"), ("location", location), ("length", str(len(values)))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return values


def with_weights_at(bundle: Path, location: str, runtime: str) -> bytes:
    """Forge a bundle whose student has a weight elsewhere."""
    file = bundle / "student.onnx"
    model = onnx.load(file)
    values = outside(max(model.graph.initializer, key=lambda one: np.prod(one.dims)), location)
    file.write_bytes(model.SerializeToString())
    rewrite(bundle, lambda manifest: manifest["engines"][0].update(runtime=runtime))
    return values


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("location", ["weights.bin", "../weights.bin", "deep/weights.bin", "manifest.json"])
def test_weights_that_the_manifest_does_not_give_the_network_are_not_read(
    tiny_bundle: Path, location: str, runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = with_weights_at(tiny_bundle, location, runtime)
    monkeypatch.chdir(tiny_bundle)  # from where libraries would look
    if location != "manifest.json":
        (tiny_bundle / location).resolve().parent.mkdir(exist_ok=True)
        (tiny_bundle / location).resolve().write_bytes(values)
    with pytest.raises(BundleError, match=rf"must have its weights in itself, not in '{location}'"):
        Predictor.load(tiny_bundle, runtime=runtime)


@pytest.mark.parametrize(("location", "data"), [("w.bin", "deep/w.bin"), ("../w.bin", "w.bin")])
def test_weights_lie_where_the_manifest_says_or_nowhere(tiny_bundle: Path, location: str, data: str) -> None:
    values = with_weights_at(tiny_bundle, location, "onnxruntime")
    (tiny_bundle / data).parent.mkdir(exist_ok=True)
    (tiny_bundle / data).write_bytes(values)

    def edit(manifest: dict[str, Any]) -> None:
        manifest["files"].append({"path": data, "sha256": "0" * 64, "bytes": 0})
        manifest["engines"][0]["data"] = data

    rewrite(tiny_bundle, edit)
    with pytest.raises(BundleError, match=f"in itself or in {data}, not in '{location}'"):
        Predictor.load(tiny_bundle)


def tensor(location: str) -> TensorProto:
    made = numpy_helper.from_array(np.ones(4, np.float32), "w")
    outside(made, location)
    return made


def test_every_place_of_a_graph_that_holds_tensors_is_looked_at() -> None:
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    sparse = onnx.SparseTensorProto(values=tensor("sparse"), indices=tensor("indices"), dims=[4])
    inner = helper.make_graph([], "inner", [], [value], [tensor("inner")])
    nodes = [
        helper.make_node("Constant", [], ["a"], value=tensor("constant")),
        helper.make_node("Constant", [], ["b"], sparse_value=sparse),
        helper.make_node("If", ["c"], ["d"], then_branch=inner, else_branch=inner),
        helper.make_node("Own", [], ["e"], tensors=[tensor("list")], graphs=[inner]),
    ]
    function = helper.make_function(
        "d", "F", [], ["z"], [helper.make_node("Constant", [], ["z"], value=tensor("function"))], []
    )
    graph = helper.make_graph(nodes, "g", [], [value], [tensor("first"), tensor("second")])
    graph.sparse_initializer.append(sparse)
    model = helper.make_model(graph, functions=[function])
    model.training_info.add().algorithm.CopyFrom(helper.make_graph([], "train", [], [], [tensor("training")]))
    found = external_files(model.SerializeToString())
    assert found == {
        *("sparse", "indices", "inner", "constant", "list", "function", "first", "second", "training")
    }
    model.graph.name = "x" * 70000  # a length of three bytes
    assert external_files(model.SerializeToString()) == found


def test_a_graph_with_its_weights_in_itself_names_nothing(tiny_bundle: Path) -> None:
    content = (tiny_bundle / "student.onnx").read_bytes()
    assert external_files(content) == set()
    for damaged in (content[:-1], content[: len(content) // 2], b"\x0b" + content, b"\xff" * 20):
        with pytest.raises(BundleError, match="no ONNX file"):
            external_files(damaged)
        with pytest.raises(BundleError, match="cannot open the network"):
            open_engine(damaged)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_bytes_of_any_kind_are_read_or_refused(content: bytes) -> None:
    try:
        assert isinstance(external_files(content), set)
    except BundleError as error:
        assert "no ONNX file" in str(error)
