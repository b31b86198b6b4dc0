"""Imports point down only, each heavy library has one door, and base loads neither torch nor numba."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Top to bottom, as in docs/architecture.md; a module may import its own layer and those below.
LAYERS: list[set[str]] = [
    {"cli", "__main__"},
    {"export"},
    {"train"},
    {"teacher"},
    {"matching", "kernels", "torchvision_cure"},
    {"triton"},
    {"report", "evaluation", "inference", "trust", "verify", "bench", "doctor"},
    {"predictor", "bundled_teacher", "judging", "refined", "segmentation"},
    {"proof"},
    {"engines"},
    {"plans"},
    {"bundle", "golden", "profiles"},
    {"runtime", "io", "calibration", "quality", "routing", "phantoms"},
    {"manifest", "manifest_quality", "manifest_records"},
    {"refine"},
    {"teacher_frame"},
    {"prompts", "proposals"},
    {"components", "geometry", "metrics", "statistics", "intensity", "config"},
    {"arrays", "errors"},
    {"_core", "_version"},
]
DOORS = {
    "onnxruntime": {"samdistill/runtime/onnxruntime.py", "export/quantize.py"},
    "openvino": {"samdistill/runtime/openvino.py"},
    "cuda": {"samdistill/runtime/cuda.py"},
    "tensorrt": {"samdistill/runtime/tensorrt.py"},
    "tensorrt_rtx": {"samdistill/runtime/tensorrt.py"},
    "segment_anything": {"samdistill/teacher/"},
    "numba": {"samdistill/kernels.py"},
    "nibabel": {"samdistill/io/nifti.py"},
    "pydicom": {"samdistill/io/dicom.py"},
    "cv2": {"samdistill/io/video.py", "samdistill/teacher/tiny/"},
    "scipy": {"samdistill/metrics.py", "samdistill/train/random_walker.py"},
    "lightning_fabric": {"samdistill/train/"},
    "onnx": {"export/"},
    "triton_python_backend_utils": {"samdistill/triton.py"},
}


def modules() -> list[tuple[str, Path]]:
    found = []
    for top, prefix in (("samdistill", "samdistill"), ("export", "samdistill.export")):
        for path in sorted((ROOT / top).rglob("*.py")):
            relative = path.relative_to(ROOT / top).with_suffix("")
            parts = [part for part in relative.parts if part != "__init__"]
            found.append((".".join([prefix, *parts]), path))
    return found


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the layer"
            assert node.module is not None
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def layer(module: str) -> int | None:
    parts = module.split(".")
    if parts[0] != "samdistill" or len(parts) < 2:
        return None
    for number, members in enumerate(LAYERS):
        if parts[1] in members:
            return number
    if parts[1] in ("__version__", "__init__"):
        return None
    raise AssertionError(f"{module} belongs to no layer: give it one in tests/test_layers.py")


@pytest.mark.parametrize(("module", "path"), modules(), ids=lambda value: str(value).split("/")[-1])
def test_imports_point_down_only(module: str, path: Path) -> None:
    own = layer(module)
    for name in imports(path):
        other = layer(name)
        if own is not None and other is not None:
            assert other >= own, f"{module} imports {name}, which lies above it"


@pytest.mark.parametrize("library", sorted(DOORS))
def test_each_heavy_library_has_one_door(library: str) -> None:
    for _, path in modules():
        if any(name == library or name.startswith(library + ".") for name in imports(path)):
            relative = path.relative_to(ROOT).as_posix()
            assert any(relative.startswith(door) for door in DOORS[library]), f"{relative} imports {library}"


@pytest.mark.parametrize(
    "module", ["samdistill", "samdistill.predictor", "samdistill.inference", "samdistill.cli"]
)
def test_base_loads_neither_torch_nor_numba(module: str) -> None:
    code = (
        f"import sys, {module}; "
        "heavy = {'torch', 'numba', 'scipy', 'matplotlib', 'onnx'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
