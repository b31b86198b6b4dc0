"""A graph in fp16 with explicit casts: what multiplies runs low; LayerNorm, softmax and their like do not.

Casts are in the graph, since strongly typed engines compute what is written. Between two operations that run
low nothing is cast back and forth. Inputs and outputs keep their types. Knows no engine; whether the masks
survive is for the gate to say.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from samdistill.export.onnx import writing

HEAVY = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})
FOLLOWING = frozenset(
    {
        *(
            "Relu",
            "Add",
            "Mul",
            "Concat",
            "MaxPool",
            "Reshape",
            "Transpose",
            "Unsqueeze",
            "Squeeze",
            "Flatten",
        ),
        *("Slice", "Split", "Expand", "Identity", "DepthToSpace", "SpaceToDepth", "Resize"),
    }
)
LARGEST = 60000.0  # of a constant; fp16 ends at 65504


@writing("a network in fp16")
def lower(content: bytes, *, keep_ends: bool = False) -> bytes:
    """Write a graph in fp16.

    Parameters
    ----------
    content
        ONNX, fp32, without external data.
    keep_ends
        Leave the first multiplication and the last three in fp32: the precision "mixed".

    Returns
    -------
    bytes
        ONNX of the same inputs and outputs.

    Raises
    ------
    BundleError
        When the graph cannot be rewritten.
    """
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(content))
    heavy = [node.name for node in model.graph.node if node.op_type in HEAVY]
    kept = {*heavy[:1], *heavy[-3:]} if keep_ends else set()
    _Lowering(model.graph, kept).run()
    del model.graph.value_info[:]
    onnx.checker.check_model(model, full_check=True)
    lowered: bytes = model.SerializeToString(deterministic=True)
    return lowered


class _Lowering:
    """Walks a graph in order; each fp32 value may have a twin in fp16, made when somebody asks for it."""

    def __init__(self, graph: onnx.GraphProto, kept: Collection[str]) -> None:
        self.graph, self.kept = graph, kept
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        known = (*graph.value_info, *graph.input, *graph.output)
        self.floats = {v.name for v in known if v.type.tensor_type.elem_type == TensorProto.FLOAT}
        self.floats |= {n for n, t in self.constants.items() if t.data_type == TensorProto.FLOAT}
        self.low: dict[str, str] = {}  # fp32 name -> its twin
        self.high: set[str] = self.floats - {name for node in graph.node for name in node.output}
        self.nodes: list[onnx.NodeProto] = []

    def run(self) -> None:
        """Rewrite the graph."""
        for node in self.graph.node:
            (self._lower if self._runs_low(node) else self._keep)(node)
        for value in self.graph.output:
            if value.name in self.floats:
                self._as_high(value.name)
        used = {name for node in self.nodes for name in node.input}
        constants = [tensor for tensor in self.constants.values() if tensor.name in used]
        del self.graph.node[:], self.graph.initializer[:]
        self.graph.node.extend(self.nodes)
        self.graph.initializer.extend(constants)

    def _data(self, node: onnx.NodeProto) -> list[str]:
        """The inputs that carry data: of a Resize only the first."""
        inputs = node.input[:1] if node.op_type == "Resize" else node.input
        return [name for name in inputs if name in self.floats]

    def _runs_low(self, node: onnx.NodeProto) -> bool:
        data = self._data(node)
        if not data or any(not self._fits(name) for name in data):
            return False
        if node.op_type in HEAVY:
            return node.name not in self.kept
        computed = [name for name in data if name not in self.constants]
        return node.op_type in FOLLOWING and bool(computed) and all(name in self.low for name in computed)

    def _fits(self, name: str) -> bool:
        if name not in self.constants:
            return True
        values = numpy_helper.to_array(self.constants[name])
        return values.size == 0 or float(np.abs(values).max()) < LARGEST

    def _lower(self, node: onnx.NodeProto) -> None:
        data = set(self._data(node))
        lowered = onnx.NodeProto()
        lowered.CopyFrom(node)
        lowered.input[:] = [self._as_low(name) if name in data else name for name in node.input]
        for place, name in enumerate(node.output):
            if name in self.floats:
                self.low[name] = lowered.output[place] = f"{name}_fp16"
        self.nodes.append(lowered)

    def _keep(self, node: onnx.NodeProto) -> None:
        for name in node.input:
            if name in self.floats:
                self._as_high(name)
        self.high.update(node.output)
        self.nodes.append(node)

    def _as_low(self, name: str) -> str:
        if name not in self.low:
            self.low[name] = twin = f"{name}_fp16"
            if name in self.constants:
                values = numpy_helper.to_array(self.constants[name]).astype(np.float16)
                self.constants[twin] = numpy_helper.from_array(values, twin)
            else:
                self.nodes.append(helper.make_node("Cast", [name], [twin], to=TensorProto.FLOAT16))
        return self.low[name]

    def _as_high(self, name: str) -> None:
        if name not in self.high:
            self.high.add(name)
            self.nodes.append(helper.make_node("Cast", [self.low[name]], [name], to=TensorProto.FLOAT))
