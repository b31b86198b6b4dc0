"""Teachers' graphs, exported once a process, and the committed bundle with a teacher.

An export proper would measure; `give_teacher` only puts the files in their places.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from bundles import rewrite

from samdistill.config import to_dict
from samdistill.export.golden import make_teacher_golden
from samdistill.export.pieces import GOLDEN_CHANGED, GOLDEN_DIFFERENCE, teacher_record
from samdistill.export.teacher_onnx import OPSET, Graph, export_decoder, export_encoder
from samdistill.manifest import GoldenRecord, Part
from samdistill.refine import RefineConfig
from samdistill.teacher import Teacher

Graphs = dict[Part, Graph]
_EXPORTED: dict[tuple[str, str], Graphs] = {}


def graphs_of(teacher: Teacher) -> Graphs:
    """The encoder and the decoder; they take half a minute, and several files of tests want the same ones."""
    key = (teacher.weights_sha256, teacher.preprocessing)
    if key not in _EXPORTED:
        _EXPORTED[key] = {"encoder": export_encoder(teacher), "decoder": export_decoder(teacher)}
    return _EXPORTED[key]


def give_teacher(bundle: Path, teacher: Teacher, config: RefineConfig) -> Path:
    """Put a teacher's networks into a bundle that has none, with how to prompt it."""
    graphs = graphs_of(teacher)
    file = bundle / "manifest.json"
    values = json.loads(file.read_text())
    student = next(one for one in values["engines"] if one["precision"] == "fp32")
    for part, graph in graphs.items():
        path = f"{part}.onnx"
        (bundle / path).write_bytes(graph.content)
        values["files"].append({"path": path, "sha256": "0" * 64, "bytes": 0})
        values["models"][part] = {
            **values["models"]["student"],
            "file": path,
            "opset": OPSET,
            "parameters": graph.parameters,
            "inputs": graph.inputs,
            "outputs": graph.outputs,
        }
        parity = {**student["parity"], "model": part}
        values["engines"].append({**student, "model": part, "file": path, "parity": parity})
    origin, case = make_teacher_golden(teacher, config)
    golden = GoldenRecord(
        "teacher", "golden/teacher.npz", origin, GOLDEN_DIFFERENCE, GOLDEN_CHANGED, part="teacher"
    )
    (bundle / golden.file).write_bytes(case.to_npz())
    values["files"].append({"path": golden.file, "sha256": "0" * 64, "bytes": 0})
    values["golden"].append(asdict(golden))
    values["teacher"] = asdict(teacher_record(teacher, "none"))
    values["prompts"] = to_dict(config)
    file.write_text(json.dumps(values))
    rewrite(bundle)
    return bundle
