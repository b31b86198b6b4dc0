"""Reads pseudo labels, of a run or of a folder that people correct, for their report."""

from __future__ import annotations

import json
from pathlib import Path

from samdistill.errors import InputRejected
from samdistill.intensity import IntensityRule
from samdistill.io.dataset import Case, open_dataset
from samdistill.report.admissions import Matched, admission_sections
from samdistill.report.document import Section, paragraph
from samdistill.report.pages import run_sections
from samdistill.report.pseudo import Labels, pseudo_sections
from samdistill.train.admission import read_records
from samdistill.train.launch import choose_intensity
from samdistill.train.pseudo_folder import STORE, read_reason
from samdistill.train.run import Run
from samdistill.train.store import PseudoStore


def run_report(path: Path, data: Path | None = None) -> list[Section]:
    """Sections of a run: the pseudo labels of its last round, its course and its settings.

    Parameters
    ----------
    path
        The run folder.
    data
        Its data folder, where that has moved.
    """
    run = Run.load(path)
    if run.config.strategy == "samdsk":
        return [*_admissions(run, data), *run_sections(path)]
    rounds = sorted((path / "pseudo").glob("[0-9]*"), key=lambda folder: int(folder.name))
    if not rounds:
        told = (
            "This run kept no pseudo labels: it has a strategy without, or makes them anew at each visit "
            "(--schedule once keeps them)."
        )
        return [Section("Pseudo labels", paragraph(told)), *run_sections(path)]
    store = PseudoStore(rounds[-1])
    cases = {case.id: case for case in run.cases(data)["train_unlabelled"] if case.id in store}
    return [*pseudo_sections(_labels(store, cases, run.intensity, run.class_names)), *run_sections(path)]


def _admissions(run: Run, data: Path | None) -> list[Section]:
    folder, rounds = run.path / "pseudo", dict[int, list[Matched]]()
    while (path := folder / f"{len(rounds) + 1}.jsonl").is_file():
        audit = path.with_suffix(".audit.jsonl")
        lines = audit.read_text(encoding="utf-8").splitlines() if audit.is_file() else []
        scores = {one["case_id"]: one for one in map(json.loads, lines)}
        rounds[len(rounds) + 1] = [
            Matched(
                *(one.case_id, one.round, one.admitted, one.reason, one.beta, one.ceiling, one.proposals),
                one.chosen,
                **{name: scores.get(one.case_id, {}).get(name) for name in ("dice", "student_dice")},
            )
            for one in read_records(path)
        ]
    if not rounds:
        return [Section("Admissions", paragraph("No round of this run is complete yet."))]
    cases = {case.id: case for case in run.cases(data)["train_unlabelled"]}
    return admission_sections(
        rounds,
        run.config.samdsk.beta,
        read=lambda case_id, number: PseudoStore(folder / str(number)).read(case_id).refinement,
        image=lambda case_id: run.intensity.apply(cases[case_id].read_image()),
        class_names=run.class_names,
    )


def folder_report(folder: Path) -> list[Section]:
    """Sections of a folder that `samdistill pseudo-label` wrote, as it was before anybody corrected it."""
    store = PseudoStore(folder / STORE)
    dataset = open_dataset(folder, infer_classes=False)
    cases = {case.id: case for case in dataset.cases if case.id in store}
    if not cases:
        raise InputRejected(f"{folder} must hold pseudo labels, and holds none yet.")
    found = {case_id: read_reason(folder, case_id) for case_id in cases}
    reasons = {case_id: reason for case_id, reason in found.items() if reason is not None}
    intensity = choose_intensity([case.image_path for case in cases.values()])
    return pseudo_sections(_labels(store, cases, intensity, dataset.class_names, reasons))


def _labels(
    store: PseudoStore,
    cases: dict[str, Case],
    intensity: IntensityRule,
    class_names: tuple[str, ...],
    reasons: dict[str, str] | None = None,
) -> Labels:
    return Labels(
        list(cases),
        lambda case_id: store.read(case_id).refinement,
        lambda case_id: intensity.apply(cases[case_id].read_image()),
        class_names,
        reasons or {},
    )
