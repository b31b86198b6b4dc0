"""What a user can set or read is told in the docs, and what they name in code exists."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import itertools
import json
import re
import tomllib
import typing
from pathlib import Path
from typing import Any

import pytest
import typer.main

from samdistill import manifest_quality, manifest_records
from samdistill.cli.app import app
from samdistill.evaluation import Evaluation
from samdistill.export.parity import ParityReport
from samdistill.inference.records import Record
from samdistill.io.files import sha256_file
from samdistill.manifest import Manifest
from samdistill.predictor import Predictor, Segmentation
from samdistill.statistics import Estimate
from samdistill.teacher.tiny import WEIGHTS
from samdistill.teacher.tiny.evaluate import UNSEEN_SETS
from samdistill.teacher.tiny.model import build
from samdistill.teacher_frame import most_sets
from samdistill.train.config import PRESETS, TrainConfig
from samdistill.train.run import RunRecord

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "\n".join(page.read_text() for page in PAGES)
CODE = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", TEXT, re.DOTALL))
OPTIONS_ANYWHERE = {"--help", "--version"}


def commands(command: Any, name: str = "") -> dict[str, set[str]]:
    """Full name of each command -> its long options."""
    found = getattr(command, "commands", None)
    if found is None:
        options = [one for one in command.params if one.param_type_name == "option"]
        return {name: {text for one in options for text in (*one.opts, *one.secondary_opts)}}
    return {
        key: value
        for word, one in found.items()
        for key, value in commands(one, f"{name} {word}".strip()).items()
    }


COMMANDS = commands(typer.main.get_command(app))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_told(name: str) -> None:
    untold = {option for option in COMMANDS[name] if not re.search(rf"{option}(?![\w-])", TEXT)}
    assert untold - OPTIONS_ANYWHERE == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_as_told(page: Path) -> None:
    for line in re.findall(r"^samdistill (.+)$", page.read_text(), re.MULTILINE):
        words = line.split("#")[0].split()
        name = next((one for one in (" ".join(words[:2]), words[0]) if one in COMMANDS), None)
        assert name is not None, line
        assert set(re.findall(r"(--[a-z][\w-]*)", " ".join(words))) <= COMMANDS[name], line


def test_the_commands_of_the_first_page_work_one_after_the_other() -> None:
    """No two write into one folder, and what is reported has been drawn."""
    text = (ROOT / "README.md").read_text()
    lines = re.findall(r"^samdistill (.+)$", text.split("## Use it")[1].split("## ")[0], re.MULTILINE)
    written: dict[str, list[str]] = {}
    for words in (line.split("#")[0].split() for line in lines):
        if words[0] == "report":
            assert "--overlay" in written[words[1]]
        out = words[1] if words[0] == "phantoms" else dict(itertools.pairwise(words)).get("--out")
        if out is not None:
            assert out not in written or "--resume" in words, words
            assert words[0] != "phantoms" or all(out not in one for one in written.values())
            written[out] = words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_names_of_code_exist(page: Path) -> None:
    text = page.read_text()
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("http") or (page.parent / link).exists(), link
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                module = importlib.import_module(node.module)
                assert all(hasattr(module, one.name) for one in node.names), ast.unparse(node)


def test_a_source_distribution_holds_what_docs_benchmarks_and_makefile_need() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["scikit-build"]
    assert not {"docs/images", "benchmarks/results"} & set(settings["sdist"]["exclude"])
    makefile = (ROOT / "Makefile").read_text()
    assert "$(shell" not in makefile and "git " not in makefile, "it is used where there is no repository"
    (patterns,) = re.findall(r"^CPP := \$\(wildcard (.+)\)$", makefile, re.MULTILINE)
    found = {path for pattern in patterns.split() for path in ROOT.glob(pattern)}
    assert found == {path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".cpp", ".h")}


def fields(kind: Any) -> set[str]:
    """Names of a dataclass's fields and of those of the dataclasses in them."""
    names = set()
    for one, annotation in typing.get_type_hints(kind).items():
        names.add(one)
        for inner in (annotation, *typing.get_args(annotation)):
            if dataclasses.is_dataclass(inner):
                names |= fields(inner)
    return names


@pytest.mark.parametrize("kind", [TrainConfig, RunRecord, Record, Estimate, ParityReport])
def test_every_field_is_told(kind: Any) -> None:
    assert {name for name in fields(kind) if not re.search(rf"\b{name}\b", CODE)} == set()


def test_every_key_of_a_manifest_is_told() -> None:
    kinds = [Manifest, *vars(manifest_records).values(), *vars(manifest_quality).values()]
    own = [one for one in kinds if dataclasses.is_dataclass(one)]
    names = {field.name for one in own for field in dataclasses.fields(one)}
    assert {name for name in names if not re.search(rf"\b{name}\b", CODE)} == set()


def test_the_defaults_told_are_the_presets() -> None:
    text = (ROOT / "docs" / "training.md").read_text()
    told = re.findall(r"^\| (?:`\[(\w+)\]` )?((?:`\w+`(?:, )?)+) \| (.+?) \| (.+?) \|", text, re.MULTILINE)
    table, seen = None, 0
    for section, keys, paper, light in told:
        table = section or table
        names = re.findall(r"`(\w+)`", keys)
        for preset, cell in (("paper", paper), ("light", paper if light == "same" else light)):
            config = PRESETS[preset]
            holder = config if hasattr(config, names[0]) else getattr(config, table or "")
            for name, value in zip(names, expanded(cell, len(names)), strict=True):
                assert getattr(holder, name) == value, (preset, name)
                seen += 1
    assert seen > 50


def expanded(cell: str, count: int) -> list[Any]:
    """The values of a cell: `0.5 each` for several, none and all for None."""
    if cell.endswith(" each"):
        return [ast.literal_eval(cell.removesuffix(" each"))] * count
    plain = re.sub(r"\b(none|all)\b(?!\")", "None", cell)
    return [tuple(one) if isinstance(one, list) else one for one in ast.literal_eval(f"[{plain}]")]


def test_the_figures_told_of_the_embedded_teacher_are_the_measured() -> None:
    measured = json.loads((ROOT / "benchmarks" / "results" / "teacher_tiny.json").read_text())
    assert measured["weights_sha256"] == sha256_file(WEIGHTS)
    text = " ".join((ROOT / "docs" / "teacher.md").read_text().split())
    card = WEIGHTS.with_name("MODEL_CARD.md").read_text()
    for name, one in measured["sets"].items():
        box, ellipse = (f"{one[key]:.3f}" for key in ("box", "ellipse"))
        assert re.search(rf"^\| {name} \|[^|]+\| {ellipse} \| {box} \|", card, re.MULTILINE), name
        if name in UNSEEN_SETS:
            assert f"{box} / {ellipse} on {name}" in text


def test_the_prompt_sets_told_of_a_call_are_those_that_it_takes() -> None:
    encoder = build().prompt_encoder
    tiny = most_sets((encoder.embed_dim, *encoder.image_embedding_size))
    told = {number for page in PAGES for number in re.findall(r"(\d+) of `tiny`'s", page.read_text())}
    assert told == {str(tiny)}


@pytest.mark.parametrize("kind", [Predictor, Segmentation, Evaluation], ids=lambda kind: kind.__name__)
def test_what_python_offers_is_documented_in_its_docstrings(kind: Any) -> None:
    for name, value in vars(kind).items():
        plain = getattr(value, "__func__", getattr(value, "fget", value))
        if not name.startswith("_") and callable(plain):
            assert plain.__doc__, name
