"""The folder of a run: what is overwritten, resumed, killed, damaged, moved or shared, and what is not."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_train import Silent, environment
from test_train import data as data
from test_train import tiny as tiny
from test_train import trained as trained

from samdistill.errors import InputRejected, UsageError
from samdistill.phantoms import folder as phantoms
from samdistill.train.config import load_config
from samdistill.train.launch import train
from samdistill.train.run import Run


def command(*words: str, **extra: str) -> list[str]:
    return [sys.executable, "-m", "samdistill", "train", *words]


def test_killed_at_any_moment_and_resumed_is_the_uninterrupted_run(
    data: Path, tiny: Path, tmp_path: Path
) -> None:
    words = [str(data), "--config", str(tiny), "--max-steps", "24"]
    subprocess.run(command(*words, "--out", str(tmp_path / "whole")), check=True, env=environment())
    for number in range(1, 4):
        process = subprocess.Popen(
            [*command(*words, "--out", str(tmp_path / "killed")), "--resume"],
            env=environment(),
            stderr=subprocess.DEVNULL,
        )
        log = tmp_path / "killed" / "log.jsonl"
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if log.is_file() and len(log.read_text().splitlines()) >= 2 * number:
                break
            time.sleep(0.003)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(
        [*command(*words, "--out", str(tmp_path / "killed")), "--resume"], check=True, env=environment()
    )
    whole, killed = Run.load(tmp_path / "whole"), Run.load(tmp_path / "killed")
    for name in ("student", "last"):
        tensors, state = whole.load_tensors(name)
        other_tensors, other_state = killed.load_tensors(name)
        assert tensors.keys() == other_tensors.keys()
        assert all(torch.equal(tensors[key], other_tensors[key]) for key in tensors)
        for record in [*state.get("history", []), *other_state.get("history", [])]:
            del record["seconds"]
        assert state == other_state
    assert not list((tmp_path / "killed").glob(".*.tmp"))


def test_a_finished_run_resumes_to_itself(trained: Run, data: Path, tiny: Path) -> None:
    watcher = Silent()
    train(data, trained.path, load_config(tiny), watcher, device="cpu", resume=True)
    assert "finished" in watcher.messages[0]


def test_a_run_is_not_overwritten_and_not_resumed_differently(trained: Run, data: Path, tiny: Path) -> None:
    with pytest.raises(UsageError, match="holds a run already"):
        train(data, trained.path, load_config(tiny), Silent(), device="cpu")
    for overrides, named in (({"seed": 1}, "seed was 0"), ({"student.size": 64}, r"student\.size was 32")):
        config = load_config(tiny, overrides=overrides)
        with pytest.raises(UsageError, match=named):
            train(data, trained.path, config, Silent(), device="cpu", resume=True)


def test_resuming_without_options_takes_those_of_the_start(trained: Run, data: Path) -> None:
    watcher = Silent()
    run = train(data, trained.path, None, watcher, device="cpu", resume=True)
    assert run.config == trained.config
    assert "finished" in watcher.messages[0]


def test_a_run_is_not_resumed_in_another_precision(
    trained: Run, data: Path, tiny: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(trained.path, copy)
    record = json.loads((copy / "run.json").read_text())
    record.update(devices={"kind": "cuda", "precision": "bf16"}, result={})
    (copy / "run.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match="was started on"):
        train(data, copy, load_config(tiny), Silent(), device="cpu", resume=True)


def test_a_start_that_failed_does_not_block_its_folder(data: Path, tiny: Path, tmp_path: Path) -> None:
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    kept = {mask: mask.read_bytes() for mask in (copy / "masks").iterdir()}
    for mask in kept:
        mask.write_bytes(b"broken")
    with pytest.raises(InputRejected):
        train(copy, tmp_path / "run", load_config(tiny), Silent(), device="cpu")
    for mask, content in kept.items():
        mask.write_bytes(content)
    config = load_config(tiny, overrides={"max_steps": 2})
    assert train(copy, tmp_path / "run", config, Silent(), device="cpu").record.result["steps"] == 2


def test_a_run_killed_before_its_first_checkpoint_keeps_its_options(
    data: Path, tiny: Path, trained: Run, tmp_path: Path
) -> None:
    record = json.loads((trained.path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**record, "result": {}}))
    (tmp_path / "log.jsonl").touch()
    (tmp_path / "student.safetensors").write_bytes(b"killed between student and checkpoint")
    run = train(data, tmp_path, None, Silent(), device="cpu", resume=True)
    assert run.config == load_config(tiny)
    assert (tmp_path / "student.safetensors").read_bytes() == (
        trained.path / "student.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("part", ["last.safetensors", "phase-0.safetensors", "pseudo/1"])
@pytest.mark.parametrize("resume", [False, True])
def test_what_is_left_of_another_run_is_not_gone_on_from(
    data: Path, tiny: Path, trained: Run, tmp_path: Path, part: str, resume: bool
) -> None:
    """Its student would come out under a record of other settings, without a step."""
    (tmp_path / part).parent.mkdir(exist_ok=True)
    (tmp_path / part).write_bytes((trained.path / "last.safetensors").read_bytes())
    config = load_config(tiny, overrides={"seed": 1, "max_steps": 1})
    with pytest.raises(UsageError, match=f"not {Path(part).name} of one"):
        train(data, tmp_path, config, Silent(), device="cpu", resume=resume)


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("finished", [False, True])
def test_a_run_whose_checkpoint_was_deleted_is_not_written_over(
    data: Path, tiny: Path, trained: Run, tmp_path: Path, finished: bool, resume: bool
) -> None:
    run = shutil.copytree(trained.path, tmp_path / "run")
    (run / "last.safetensors").unlink()
    if not finished:
        record = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps({**record, "result": {}}))
        (run / "curves.png").unlink()
    before = {path: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(UsageError, match="must hold a whole run or none"):
        train(data, run, load_config(tiny), Silent(), device="cpu", resume=resume)
    assert {path: path.read_bytes() for path in run.iterdir()} == before


@pytest.mark.parametrize(("name", "error"), [("run.json", InputRejected), ("log.csv", UsageError)])
def test_files_of_others_are_not_written_over(
    data: Path, tiny: Path, tmp_path: Path, name: str, error: type[Exception]
) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(error, match=name):
        train(data, tmp_path, load_config(tiny), Silent(), device="cpu")
    assert (tmp_path / name).read_text() == "{}"


def test_resuming_where_no_run_is_trains_nothing_by_default(data: Path, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no run to resume"):
        train(data, tmp_path / "run", None, Silent(), device="cpu", resume=True)
    assert not (tmp_path / "run").exists()
    watcher = Silent()
    config = load_config(tiny, overrides={"max_steps": 1})
    train(data, tmp_path / "run", config, watcher, device="cpu", resume=True)
    assert "holds no checkpoint to resume from: the run begins" in watcher.messages[0]


def test_a_run_goes_on_where_its_data_are_now(data: Path, trained: Run, tmp_path: Path) -> None:
    moved, run = shutil.copytree(data, tmp_path / "moved"), shutil.copytree(trained.path, tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "result": {}}))
    (run / ".last.safetensors.0123abcd.tmp").write_bytes(b"half written by a killed process")
    again = train(moved, run, None, Silent(), device="cpu", resume=True)
    assert again.record.data == {**trained.record.data, "path": str(moved)}
    assert again.cases()["validation"][0].image_path.is_relative_to(moved)
    assert {path.name for path in run.iterdir()} == {path.name for path in trained.path.iterdir()}


def test_two_processes_do_not_train_in_one_folder(data: Path, tiny: Path, tmp_path: Path) -> None:
    other = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="by another process"):
            train(data, tmp_path, load_config(tiny), Silent(), device="cpu")
        assert not list(tmp_path.iterdir())
    finally:
        os.close(other)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 99}', '{"schema": 1}'])
def test_a_damaged_run_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(InputRejected, match=r"run\.json"):
        Run.load(tmp_path)


def test_a_folder_without_a_run_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(InputRejected, match="samdistill train"):
        Run.load(tmp_path)


def test_a_damaged_checkpoint_is_named(trained: Run, tmp_path: Path) -> None:
    for name in ("run.json", "student.safetensors"):
        (tmp_path / name).write_bytes((trained.path / name).read_bytes()[: 10**6])
    file = tmp_path / "student.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputRejected, match="damaged"):
        Run.load(tmp_path).load_student()


def test_moved_or_changed_data_are_refused(trained: Run, tmp_path: Path) -> None:
    with pytest.raises(InputRejected, match="--data"):
        trained.cases(tmp_path / "nowhere")
    phantoms.write(tmp_path / "other", kind="ultrasound", count=3, seed=9, size=(48, 64))
    with pytest.raises(InputRejected, match="data of this run"):
        trained.cases(tmp_path / "other")
