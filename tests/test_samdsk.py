"""SamDSK, UPS and BCP end to end on phantoms: what they read, what they keep, how they resume."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from watching import Interrupted, Watcher

from samdistill.cli import app
from samdistill.errors import InputRejected, UsageError
from samdistill.phantoms import folder as phantoms
from samdistill.teacher import load_teacher
from samdistill.train.admission import read_records
from samdistill.train.config import TrainConfig, load_config
from samdistill.train.launch import train
from samdistill.train.run import Run
from samdistill.train.store import PseudoStore

STEPS = 12
LIMIT = 0.136  # parts the images of these tests after the first training
VARIANTS: dict[str, dict[str, Any]] = {
    "samdsk": {"strategy": "samdsk"},
    "samdsk, continued": {"strategy": "samdsk", "samdsk.retrain": False},
    "samdsk, all again": {"strategy": "samdsk", "samdsk.rescore": "all", "samdsk.last_share": 0.5},
    "samdsk, components": {
        "strategy": "samdsk",
        "samdsk.beta": 0.0,
        "samdsk.counted": "components",
        "samdsk.max_proposals": 2,
        "pseudo.labelled_share": 0.5,
    },
    "ups": {
        "strategy": "ups",
        "ups.min_positive": 0.4,
        "ups.max_positive_spread": 0.5,
        "ups.max_negative": 0.3,
    },
    "bcp": {"strategy": "bcp"},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms") / "data"
    phantoms.write(folder, kind="endoscopy", count=22, seed=4, size=(64, 64))
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("embeddings")


Finished = Callable[[str], tuple[Run, Watcher]]


@pytest.fixture(scope="module")
def finished(data: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Trains each variant once."""
    made = dict[str, tuple[Run, Watcher]]()

    def get(name: str) -> tuple[Run, Watcher]:
        if name not in made:
            watcher = Watcher()
            made[name] = (
                run(data, tmp_path_factory.mktemp("runs") / "run", cache, watcher, **VARIANTS[name]),
                watcher,
            )
        return made[name]

    return get


def configuration(**changes: Any) -> TrainConfig:
    base = {
        "precision": "fp32", "min_epoch_steps": 2, "max_steps": STEPS, "batch": 4, "labels": 10,
        "keep": "last",
        "student.encoder": "tu-mobilenetv3_small_050", "student.decoder_channels": [16, 16, 8, 8, 8],
        "student.size": 64, "optimiser.learning_rate": 0.01, "samdsk.rounds": 2, "samdsk.beta": LIMIT,
        "samdsk.proposals.points_per_side": 3,
        "samdsk.proposals.predicted_iou": 0.0, "samdsk.proposals.stability": 0.0,
    }  # fmt: skip
    return load_config(preset="light", overrides={**base, **changes})


def run(data: Path, out: Path, cache: Path, watcher: Watcher | None = None, **changes: Any) -> Run:
    options = {"audit": changes.pop("audit", False), "resume": changes.pop("resume", False)}
    return train(
        data, out, configuration(**changes), watcher or Watcher(), device="cpu", cache=cache, **options
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_all_trainings_together_take_exactly_the_steps(finished: Finished, name: str) -> None:
    trained, watcher = finished(name)
    assert trained.record.result["steps"] == STEPS
    phases = list(dict.fromkeys(one["phase"] for one in watcher.records))
    strategy = VARIANTS[name]["strategy"]
    rounds = ["bcp, labelled", "bcp"] if strategy == "bcp" else [f"{strategy} round {n}" for n in (1, 2)]
    assert phases[-2:] == rounds
    trained.load_student()


@pytest.mark.parametrize("name", ["samdsk", "ups", "bcp"])
def test_labels_of_the_unlabelled_part_change_nothing_audited_or_not(
    data: Path, cache: Path, tmp_path: Path, finished: Finished, name: str
) -> None:
    clean, _ = finished(name)
    corrupt = shutil.copytree(data, tmp_path / "corrupt")
    for case_id in clean.record.split["train_unlabelled"]:
        (corrupt / "masks" / f"{case_id}.png").write_bytes(b"not a mask")
    again = run(corrupt, tmp_path / "again", cache, **VARIANTS[name])
    watcher = Watcher()
    audited = run(data, tmp_path / "audited", cache, watcher, audit=True, **VARIANTS[name])
    expected = (clean.path / "student.safetensors").read_bytes()
    assert (again.path / "student.safetensors").read_bytes() == expected
    assert (audited.path / "student.safetensors").read_bytes() == expected
    if name == "samdsk":
        assert (audited.path / "pseudo/1.jsonl").read_bytes() == (clean.path / "pseudo/1.jsonl").read_bytes()
        told = [text for text in watcher.messages if "audit: mean Dice of the annotations 0." in text]
        assert told and told[0].endswith(" (Dice from 0.8)")
        lines = (audited.path / "pseudo" / "1.audit.jsonl").read_text().splitlines()
        assert {json.loads(line)["case_id"] for line in lines} == set(clean.record.split["train_unlabelled"])
        assert 0 <= watcher.records[-1]["pseudo_dice"] <= 1


@pytest.mark.parametrize(
    ("name", "stop"),
    [
        ("samdsk", ("matching proposals", 4)),
        ("samdsk", ("samdsk round 1", 2)),
        ("samdsk, all again", ("matching proposals", 15)),
        ("samdsk, continued", ("samdsk round 2", 3)),
        ("ups", ("ups round 1", 2)),
        ("bcp", ("bcp", 5)),
    ],
)
def test_interrupted_in_the_middle_of_a_round_and_resumed_is_the_uninterrupted_run(
    data: Path, cache: Path, tmp_path: Path, finished: Finished, name: str, stop: tuple[str, int]
) -> None:
    whole, _ = finished(name)
    with pytest.raises(Interrupted):
        run(data, tmp_path / "cut", cache, Watcher(stop), **VARIANTS[name])
    for folder in (tmp_path / "cut", *(tmp_path / "cut" / "pseudo").glob("*.parts")):
        (folder / ".last.safetensors.0123abcd.tmp").write_bytes(b"of a killed process")
    cut = run(data, tmp_path / "cut", cache, resume=True, **VARIANTS[name])
    files = {path.relative_to(whole.path) for path in whole.path.rglob("*") if path.is_file()}
    assert files == {path.relative_to(cut.path) for path in cut.path.rglob("*") if path.is_file()}
    for file in sorted(files):
        if file.name == "last.safetensors":  # its header tells seconds
            one, other = (each.load_tensors("last")[0] for each in (whole, cut))
            assert all(torch.equal(one[key], other[key]) for key in one)
        elif file.suffix == ".safetensors" or file.parts[0] == "pseudo":
            assert (whole.path / file).read_bytes() == (cut.path / file).read_bytes(), file


def test_each_round_leaves_a_record_and_an_annotation_of_every_image_it_matched(finished: Finished) -> None:
    trained, watcher = finished("samdsk")
    first, second = (read_records(trained.path / "pseudo" / f"{number}.jsonl") for number in (1, 2))
    unlabelled = trained.record.split["train_unlabelled"]
    admitted = {one.case_id for one in first if one.admitted}
    assert [one.case_id for one in first] == unlabelled
    assert 0 < len(admitted) < len(unlabelled), "beta parts the images of this test"
    assert {one.case_id for one in second} == set(unlabelled) - admitted, (
        "admitted images are not asked again"
    )
    store = PseudoStore(trained.path / "pseudo" / "1")
    for one in first:
        entry = store.read(one.case_id)
        assert entry.round == 1
        assert entry.refinement.masks.any() == any(one.chosen)
        assert one.admitted == (one.beta is not None and one.beta > LIMIT)
    assert {one.bounds for one in first} == {((1, 1),)}
    assert {one.bounds for one in second} == {((1, 2),)}
    assert any(
        text.startswith(f"round 1: {len(admitted)} of {len(first)} images") for text in watcher.messages
    )


def test_a_round_that_admits_none_ends_the_rounds_and_says_why(
    data: Path, cache: Path, tmp_path: Path
) -> None:
    watcher = Watcher()
    trained = run(data, tmp_path / "run", cache, watcher, **{"strategy": "samdsk", "samdsk.beta": 0.99})
    assert trained.record.result["steps"] == STEPS, "the last training takes what is left"
    assert [one["step"] for one in watcher.records if one["phase"] == "samdsk round 1"][-1] == STEPS
    assert not (trained.path / "pseudo" / "2.jsonl").exists()
    assert any(
        "round 1 labelled no image; the last training takes 8 steps" in text for text in watcher.messages
    )
    assert any(text.startswith("warning: in ") and "--iou hard" in text for text in watcher.messages)
    early = run(
        data, tmp_path / "early", cache, strategy="samdsk", max_steps=None, max_epochs=1,
        **{"samdsk.beta": 0.99},
    )  # fmt: skip
    assert early.record.result["best"]["phase"] == "supervised", "without steps to spend it is over"


def test_the_teacher_is_asked_for_everything_once(
    data: Path, cache: Path, tmp_path: Path, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished("samdsk")
    monkeypatch.setattr("samdistill.teacher.proposal_cache.propose", None)
    run(data, tmp_path / "two", cache, strategy="samdsk", max_steps=3)


def test_counts_of_images_go_with_the_run(
    data: Path, cache: Path, tmp_path: Path, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlabelled = finished("samdsk")[0].record.split["train_unlabelled"]
    table = tmp_path / "counts.csv"
    table.write_text(f"image,count\n{unlabelled[0]},0\n{unlabelled[1]}.png,1-2\n")
    monkeypatch.chdir(tmp_path)
    changes = {"strategy": "samdsk", "samdsk.counts": table.name}
    trained = run(data, tmp_path / "run", cache, **changes)
    first = {one.case_id: one for one in read_records(trained.path / "pseudo" / "1.jsonl")}
    assert first[unlabelled[0]].reason == "known to hold nothing"
    assert first[unlabelled[0]].admitted
    assert first[unlabelled[1]].bounds == ((1, 2),)
    with pytest.raises(Interrupted):
        run(data, tmp_path / "cut", cache, Watcher(("samdsk round 1", 2)), **changes)
    table.write_text("image,count\n")
    monkeypatch.chdir("/")  # a path given from another folder is the same file's
    changes = {"strategy": "samdsk", "samdsk.counts": str(table)}
    with pytest.raises(InputRejected, match="has changed since the run began"):
        run(data, tmp_path / "cut", cache, resume=True, **changes)
    table.unlink()
    cut = run(data, tmp_path / "cut", cache, resume=True, **changes)
    expected = (trained.path / "student.safetensors").read_bytes()
    assert (cut.path / "student.safetensors").read_bytes() == expected, "the run's own copy is enough"


@pytest.mark.parametrize("stop", [("matching proposals", 4), ("samdsk round 1", 2)])
def test_a_run_is_not_resumed_with_another_teacher(
    data: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: tuple[str, int]
) -> None:
    """Half of a round's annotations by one and half by the other, and nothing would tell."""
    with pytest.raises(Interrupted):
        run(data, tmp_path / "run", cache, Watcher(stop), **VARIANTS["samdsk"])
    other = load_teacher("tiny")
    other.weights_sha256 = "0" * 64
    monkeypatch.setattr("samdistill.train.training.load_teacher", lambda *words: other)
    with pytest.raises(InputRejected, match="which are 000000000000 now"):
        run(data, tmp_path / "run", cache, resume=True, **VARIANTS["samdsk"])


def test_a_teacher_that_takes_no_points_is_refused_before_anything_is_trained(
    data: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    medsam = load_teacher("tiny")
    medsam.preprocessing = "medsam"
    monkeypatch.setattr("samdistill.train.training.load_teacher", lambda *words: medsam)
    watcher = Watcher()
    with pytest.raises(UsageError, match="teacher must take points to make proposals, which medsam does not"):
        run(data, tmp_path / "run", cache, watcher, strategy="samdsk", teacher="medsam")
    assert watcher.records == []


def test_when_all_are_admitted_the_rounds_end_and_say_so(data: Path, cache: Path, tmp_path: Path) -> None:
    watcher = Watcher()
    run(data, tmp_path / "run", cache, watcher, audit=True, **{"strategy": "samdsk", "samdsk.beta": 0.0})
    assert "round 2: all images are admitted already" in watcher.messages
    assert not any(text.startswith("round 2, audit") for text in watcher.messages)


def test_a_corrected_file_of_counts_is_read_until_a_run_has_begun(
    data: Path, cache: Path, tmp_path: Path
) -> None:
    table = tmp_path / "counts.csv"
    changes = {"strategy": "samdsk", "samdsk.counts": str(table)}
    table.write_text("image,count\n9999,1\n")
    with pytest.raises(InputRejected, match="line 2: image must be one of the data folder"):
        run(data, tmp_path / "run", cache, **changes)
    for count in (1, 2):  # stopped before the first checkpoint, a run is started anew
        table.write_text(f"image,count\n0001,{count}\n")
        with pytest.raises(Interrupted):
            run(data, tmp_path / "run", cache, Watcher(("supervised", 1)), **changes)
        assert (tmp_path / "run" / "pseudo" / "counts.csv").read_bytes() == table.read_bytes()


def test_what_is_known_has_to_be_of_the_data(data: Path, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="classes must be named as in the data, lesion, not 'polyp'"):
        run(data, tmp_path / "a", cache, strategy="samdsk", classes={"polyp": {"count": [1, 1]}})
    with pytest.raises(UsageError, match="counts must be a CSV file"):
        run(
            data, tmp_path / "b", cache, **{"strategy": "samdsk", "samdsk.counts": str(tmp_path / "none.csv")}
        )
    watcher = Watcher()
    with pytest.raises(UsageError, match="teacher must be tiny"):
        run(data, tmp_path / "d", cache, watcher, strategy="samdsk", teacher="sam_vit_x")
    assert watcher.records == [], "told before anything is trained"
    with pytest.raises(InputRejected, match=r"needed and there are"):
        run(
            data, tmp_path / "c", cache, strategy="samdsk", classes={"lesion": {"count": [90, 90]}},
            **{"samdsk.on_infeasible": "raise"},
        )  # fmt: skip


def test_the_command_trains_in_rounds_and_its_report_shows_admissions(
    data: Path,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def call(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["samdistill", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            app.main()
        return int(ended.value.code or 0), capsys.readouterr().err

    settings, out = tmp_path / "c.toml", tmp_path / "run"
    settings.write_text(
        'preset = "light"\nprecision = "fp32"\nmin_epoch_steps = 3\nbatch = 4\nlabels = 10\n'
        '[student]\nencoder = "tu-mobilenetv3_small_050"\ndecoder_channels = [16, 16, 8, 8, 8]\nsize = 64\n'
        "[samdsk.proposals]\npoints_per_side = 3\npredicted_iou = 0.0\nstability = 0.0\n"
        "[classes.lesion]\ncount = [[1, 1], [1, 3]]\n"
    )
    train = ["train", data, "--out", out, "--config", settings, "--strategy", "samdsk", "--max-steps", STEPS]
    train += ["--cache", cache, "--device", "cpu", "--audit-labels"]
    for bad, message in (
        (["--lower", "2", "--upper", "1"], "lower must be at most upper"),
        (["--upper", "many"], "--upper must be a number, or one a round"),
        (["--iou", "firm"], "iou must be"),
        (["--counts", tmp_path / "none.csv"], "counts must be a CSV file"),
    ):
        code, error = call(*train, *bad)
        assert (code, message in error) == (2, True), error
        shutil.rmtree(out, ignore_errors=True)
    good = ["--rounds=2", "--lower=0", "--upper=1,2", "--beta=0.1", "--iou=soft", "--min-proposals=2"]
    assert call(*train, *good)[0] == 0
    config = Run.load(out).config.samdsk
    assert (config.rounds, config.lower, config.upper) == (2, (0,), (1, 2))
    assert (config.beta, config.iou, config.min_proposals) == (0.1, "soft", 2)
    assert call("report", out) == (0, "")
    page = (out / "report.html").read_text()
    for text in (
        "Admissions",
        "median ceiling",
        "precision",
        "Beta and truth",
        "Admitted, lowest beta first",
    ):
        assert text in page
    records = page[page.index("<h2>Records</h2>") :]
    for one in [*read_records(out / "pseudo" / "1.jsonl"), *read_records(out / "pseudo" / "2.jsonl")]:
        if one.round == 2 or one.admitted:
            chosen = ", ".join(map(str, one.chosen[0])) or "none"
            cells = [one.round, "yes" if one.admitted else "no", one.reason]
            cells += [f"{value:.3f}" for value in (one.beta, one.ceiling)]
            row = f'<th scope="row">{one.case_id}</th>' + "".join(f"<td>{cell}</td>" for cell in cells)
            rest = records[records.index(row) + len(row) :].partition("</tr>")[0]
            assert rest.endswith(f"<td>{one.proposals}</td><td>{chosen}</td>")
    assert str(data) not in page
