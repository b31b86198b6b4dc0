"""A model repository for Triton Inference Server, written from a bundle and validated against it.

One model a network (ONNX Runtime's backend, or TensorRT's where an engine of TensorRT was proved on this
machine), and in front of them one in the Python backend, which takes images and gives masks with the
predictor's own code (`samdistill.triton`). Names, types and shapes come out of the graphs themselves.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from samdistill import plans
from samdistill.bundle import Bundle
from samdistill.errors import BundleError, UsageError
from samdistill.io.files import atomic_folder, check_folder_place, sha256_file
from samdistill.manifest import MANIFEST, EngineRecord, Part
from samdistill.profiles import LARGEST_BATCH

MODEL = 'from samdistill.triton import TritonPythonModel\n\n__all__ = ["TritonPythonModel"]\n'


class Word(str):
    """A word of the configuration's own, written without quotes."""


# On a GPU the server's ONNX Runtime would take TF32 for fp32, as ours is told not to (`runtime.onnxruntime`).
FP32 = {
    "execution_accelerators": {
        "gpu_execution_accelerator": {"name": "cuda", "parameters": {"key": "use_tf32", "value": "0"}}
    }
}

TYPES = {
    np.dtype(np.uint8): Word("TYPE_UINT8"),
    np.dtype(np.int64): Word("TYPE_INT64"),
    np.dtype(np.bool_): Word("TYPE_BOOL"),
    np.dtype(np.float32): Word("TYPE_FP32"),
}


@dataclass(frozen=True)
class Tensor:
    """An input or output of a graph; -1 in its shape is free."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


def write_repository(bundle: Path | str, out: Path, *, expect_sha256: str | None = None) -> list[str]:
    """Write the repository.

    Parameters
    ----------
    bundle
        A published bundle.
    out
        A new or empty folder.
    expect_sha256
        As for `Predictor.load`.

    Returns
    -------
    list
        Names of the models, the front's first.

    Raises
    ------
    UsageError
        When something is in the way.
    BundleError
        When a graph's tensors are not those the manifest speaks of.
    """
    opened = Bundle.open(bundle, expect_sha256=expect_sha256)
    check_place(out, opened.root)
    name = re.sub(r"[^A-Za-z0-9_-]", "_", opened.manifest.name)
    parts: list[Part] = ["student"]
    if opened.manifest.teacher is not None:
        parts += ["encoder", "decoder"]
    networks: dict[str, Any] = {}
    with atomic_folder(out) as folder:
        for part in parts:
            networks[part] = _write_network(opened, part, folder, f"{name}_{part}")
        _write_front(opened, folder / name, name, networks)
    return [name, *(network["model"] for network in networks.values())]


def check_place(out: Path, bundle: Path) -> None:
    """Refuse a place that is taken, or lies in the bundle or around it, before any work is done."""
    if out.resolve().is_relative_to(bundle.resolve()) or bundle.resolve().is_relative_to(out.resolve()):
        raise UsageError(
            f"{out} must lie outside the bundle {bundle} and not around it: either folder holds nothing but "
            "what belongs to it. Name another."
        )
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise UsageError(f"{out} must be a new or empty folder for a model repository. Name another.")
    check_folder_place(out)


def _write_network(bundle: Bundle, part: Part, folder: Path, model: str) -> dict[str, Any]:
    """Write one network's model; what the front has to know of it."""
    record = bundle.manifest.models.of(part)
    content = bundle.read(record.file)
    graph = onnx.load_from_string(content).graph
    inputs = _tensors(graph.input, record.inputs, part)
    outputs = _tensors(graph.output, record.outputs, part)
    place = folder / model / "1"
    place.mkdir(parents=True)
    planned = _planned(bundle, part)
    if planned is None:
        backend, files = "onnxruntime", {"model.onnx": content}
        if record.data is not None:
            files[Path(record.data).name] = bundle.read(record.data)
    else:
        backend, files = "tensorrt", {"model.plan": plans.plan_for(bundle, planned, "cuda").content}
    for file, written in files.items():
        (place / file).write_bytes(written)
    # The student alone has the batch in front of everything: the server may put requests together.
    together = part == "student"
    config: dict[str, Any] = {
        "name": model,
        "backend": backend,
        "max_batch_size": LARGEST_BATCH if together else 0,
        "input": [_described(one, batched=together) for one in inputs],
        "output": [_described(one, batched=together) for one in outputs],
    }
    if planned is None:
        config["optimization"] = FP32
    if together:
        config["dynamic_batching"] = {}
        if planned is not None:
            config["instance_group"] = {"kind": Word("KIND_GPU"), "profile": ["0", "1"]}
    (folder / model / "config.pbtxt").write_text(text(config), encoding="utf-8")
    return {
        "model": model,
        "engine": ("onnxruntime", "fp32") if planned is None else ("tensorrt", planned.precision),
        "files": {file: sha256_file(place / file) for file in files},
        "inputs": {one.name: (one.dtype.name, len(one.shape)) for one in inputs},
        "outputs": {one.name: (one.dtype.name, len(one.shape)) for one in outputs},
    }


def _planned(bundle: Bundle, part: Part) -> EngineRecord | None:
    """The fastest engine of TensorRT that was proved on this machine, on trained weights."""
    own = [one for one in bundle.manifest.engines if (one.model, one.runtime) == (part, "tensorrt")]
    return next((one for one in own if one.verified and plans.is_kept(bundle, one, "cuda")), None)


def _write_front(bundle: Bundle, folder: Path, name: str, networks: Mapping[str, Any]) -> None:
    manifest = bundle.manifest
    place = folder / "1"
    place.mkdir(parents=True)
    (place / MANIFEST).write_bytes((bundle.root / MANIFEST).read_bytes())
    for case in manifest.golden:
        (place / case.file).parent.mkdir(parents=True, exist_ok=True)
        (place / case.file).write_bytes(bundle.read(case.file))
    (place / "model.py").write_text(MODEL, encoding="utf-8")
    count = len(manifest.classes)
    pixels = "TYPE_UINT8" if manifest.intensity.kind == "identity" else "TYPE_FP32"
    config = {
        "name": name,
        "backend": "python",
        "max_batch_size": 0,
        "input": [
            {"name": "image", "data_type": Word(pixels), "dims": [-1, -1, -1]},
            {"name": "mode", "data_type": Word("TYPE_STRING"), "dims": [1], "optional": True},
        ],
        "output": [
            {"name": "masks", "data_type": Word("TYPE_BOOL"), "dims": [count, -1, -1]},
            {"name": "probability_maps", "data_type": Word("TYPE_FP32"), "dims": [count, -1, -1]},
        ],
        "instance_group": {"kind": Word("KIND_CPU")},
        "parameters": [
            {"key": "bundle_sha256", "value": {"string_value": bundle.sha256}},
            {"key": "networks", "value": {"string_value": json.dumps(networks)}},
        ],
    }
    (folder / "config.pbtxt").write_text(text(config), encoding="utf-8")


def _tensors(values: Sequence[Any], names: Sequence[str], part: Part) -> list[Tensor]:
    found = []
    for value in values:
        type_ = value.type.tensor_type
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(type_.elem_type))
        if dtype not in TYPES:
            raise BundleError(f"the {part}'s {value.name} must be one of {list(TYPES)}, not {dtype}.")
        shape = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in type_.shape.dim)
        found.append(Tensor(value.name, dtype, shape))
    if [one.name for one in found] != list(names):
        raise BundleError(
            f"the {part}'s tensors must be {', '.join(names)}, not {', '.join(one.name for one in found)}."
        )
    return found


def _described(tensor: Tensor, *, batched: bool) -> dict[str, Any]:
    dims = tensor.shape[1:] if batched else tensor.shape
    return {"name": tensor.name, "data_type": TYPES[tensor.dtype], "dims": list(dims)}


def text(values: Mapping[str, Any], indent: str = "") -> str:
    """Protocol buffers' text format of plain values."""
    lines = []
    for key, value in values.items():
        if isinstance(value, list) and not any(isinstance(one, Mapping) for one in value):
            lines.append(f"{indent}{key}: [{', '.join(map(_scalar, value))}]")
            continue
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, Mapping):
                lines.append(f"{indent}{key} {{\n{text(one, indent + '  ')}{indent}}}")
            else:
                lines.append(f"{indent}{key}: {_scalar(one)}")
    return "".join(line + "\n" for line in lines)


def _scalar(value: Any) -> str:
    if isinstance(value, Word):
        return str(value)
    return json.dumps(value)
