"""The student as an ONNX graph: uint8 pixels in, float32 logits out, any batch, any multiple of 32 px.

Knows no run and no bundle. That the graph computes what the student computes is for `parity` to say.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from torch import nn

from samdistill.errors import BundleError, SamdistillError, UsageError

OPSET = 18
INPUT, OUTPUT = "pixels", "logits"
MULTIPLE = 32
LARGEST_PX = 8192
MAX_BYTES = (1 << 31) - (1 << 20)  # of a protobuf


@contextmanager
def writing(what: str) -> Iterator[None]:
    """Say in one line what one of ONNX's libraries cannot do; their exceptions have no base in common.

    Raises
    ------
    BundleError
        For any exception but our own, a library that is not installed, and want of memory or disk.
    """
    try:
        yield
    except (SamdistillError, MemoryError, OSError, ModuleNotFoundError):
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise BundleError(
            f"{what} cannot be written as ONNX: {reason}. Install the versions that constraints.txt names; "
            "where these are, SAMDISTILL_DEBUG=1 shows where it fails."
        ) from error


@writing("the student")
def export_onnx(student: nn.Module) -> bytes:
    """Export a student.

    Parameters
    ----------
    student
        In eval mode on the CPU; its forward takes uint8 (N, 3, H, W), H and W multiples of 32, and gives
        float32 (N, C, H, W). It is left as it is.

    Returns
    -------
    bytes
        One self-contained ONNX file with the input "pixels" and the output "logits"; it names no path and no
        line of the machine it was made on.

    Raises
    ------
    UsageError
        When the student is larger than an ONNX file may be.
    BundleError
        When it cannot be exported.
    """
    fixed = with_fixed_padding(student)
    dim = torch.export.Dim
    sides = {
        2: MULTIPLE * dim("h", max=LARGEST_PX // MULTIPLE),
        3: MULTIPLE * dim("w", max=LARGEST_PX // MULTIPLE),
    }
    # An axis that is exemplified by 1 is taken for a constant, and equal sides for one side.
    example = torch.zeros(2, 3, 2 * MULTIPLE, 3 * MULTIPLE, dtype=torch.uint8)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's own deprecations, nothing a user can change
        program = torch.onnx.export(
            fixed,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: dim("batch"), **sides},),
            external_data=False,
            verbose=False,
        )
        assert program is not None
        graph = program.model_proto
    if graph.ByteSize() > MAX_BYTES:
        raise UsageError(f"the student must fit into 2 GiB as ONNX, not {graph.ByteSize() / 2**30:.1f} GiB.")
    return cleaned(graph, axes={0: "batch", 2: "height", 3: "width"})


def cleaned(graph: Any, *, axes: Mapping[int, str] | None = None, slim: bool = True) -> bytes:
    """Write a graph to bytes without anything that tells of the machine it was made on.

    Parameters
    ----------
    graph
        ModelProto.
    axes
        Names of free axes of every input and output.
    slim
        Simplify it first; not for one whose weights lie in another file.
    """
    import onnxslim

    if slim:
        graph = onnxslim.slim(graph)
    _known_gelu(graph.graph)
    del graph.metadata_props[:], graph.graph.metadata_props[:]
    del graph.graph.value_info[:]  # shapes in between, which any runtime works out
    for node in graph.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*graph.graph.input, *graph.graph.output, *graph.graph.initializer):
        del value.metadata_props[:]
    for value in (*graph.graph.input, *graph.graph.output):
        for axis, name in (axes or {}).items():
            value.type.tensor_type.shape.dim[axis].dim_param = name
    if slim:
        onnx.checker.check_model(graph, full_check=True)
    content: bytes = graph.SerializeToString(deterministic=True)
    return content


def _known_gelu(graph: onnx.GraphProto) -> None:
    """Write x (0.5 (1 + erf ...)) as (x (1 + erf ...)) 0.5: ONNX Runtime computes that, a GELU, in one go."""
    writers = {node.output[0]: node for node in graph.node}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def follow(node: onnx.NodeProto, kind: str) -> tuple[onnx.NodeProto, str] | None:
        """The one node that reads another, and its other input."""
        found = readers.get(node.output[0], [])
        if len(found) != 1 or found[0].op_type != kind:
            return None
        others = [name for name in found[0].input if name != node.output[0]]
        return (found[0], others[0]) if len(others) == 1 else None

    for erf in graph.node:
        shifted = follow(erf, "Add") if erf.op_type == "Erf" else None
        half = follow(shifted[0], "Mul") if shifted else None
        whole = follow(half[0], "Mul") if half else None
        if shifted and half and whole and half[1] not in writers:
            scaled = writers.get(erf.input[0])
            if scaled is not None and whole[1] in scaled.input:
                half[0].input[:] = [whole[1], shifted[0].output[0]]
                whole[0].input[:] = [half[0].output[0], half[1]]


def with_fixed_padding(student: nn.Module) -> nn.Module:
    """Copy a student, its "same"-padded convolutions padded by constants.

    timm's `Conv2dSame` works its padding out from the size of each input. For sides that are multiples of 32
    it is always the same, and a graph with constants is exported in seconds instead of minutes, runs faster
    and is read by every runtime.
    """
    copied = copy.deepcopy(student).eval()
    for parent in list(copied.modules()):
        for name, child in parent.named_children():
            # By name, since importing timm takes seconds and most students have none of it.
            if isinstance(child, nn.Conv2d) and type(child).__name__ == "Conv2dSame":
                setattr(parent, name, _fixed(child))
    return copied


def _fixed(same: nn.Conv2d) -> nn.Module:
    """Output ceil(side / stride) of an even side needs (kernel - 1) x dilation + 1 - stride of padding."""
    padding: list[int] = []
    for kernel, stride, dilation in zip(
        reversed(same.kernel_size), reversed(same.stride), reversed(same.dilation), strict=True
    ):
        total = max((kernel - 1) * dilation + 1 - stride, 0)
        padding += [total // 2, total - total // 2]
    size = (same.kernel_size[0], same.kernel_size[1])
    convolution = nn.Conv2d(
        same.in_channels,
        same.out_channels,
        size,
        (same.stride[0], same.stride[1]),
        0,
        (same.dilation[0], same.dilation[1]),
        same.groups,
        same.bias is not None,
    )
    convolution.weight, convolution.bias = same.weight, same.bias
    return nn.Sequential(nn.ZeroPad2d((padding[0], padding[1], padding[2], padding[3])), convolution)
