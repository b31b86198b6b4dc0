"""The command line as a user calls it: help, version, one line and the right exit code for wrong turns."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer.main

from samdistill import _core
from samdistill._version import __version__
from samdistill.cli import app
from samdistill.phantoms.folder import write

COMMANDS = (
    [], ["train"], ["export"], ["infer"], ["evaluate"], ["verify"], ["report"], ["phantoms"], ["demo"],
    ["data", "check"], ["teacher", "list"], ["teacher", "fetch"], ["teacher", "check"], ["teacher", "embed"],
)  # fmt: skip


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """Run the command line in this process: exit code, standard output, standard error."""

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["samdistill", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            app.main()
        out, err = capsys.readouterr()
        code = ended.value.code
        return code if isinstance(code, int) else int(code is not None), out, err

    return call


def test_python_core_and_command_line_tell_one_version(run) -> None:  # type: ignore[no-untyped-def]
    assert _core.version() == __version__
    assert run("--version") == (0, f"samdistill {__version__}\n", "")


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_explains_itself(run, words: list[str]) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = run(*words, "--help")
    assert code == 0
    assert "Usage" in out


def every_command(command: Any, *words: str) -> list[tuple[Any, tuple[str, ...]]]:
    found = [(command, words)]
    for name, one in getattr(command, "commands", {}).items():
        found += every_command(one, *words, name)
    return found


def test_no_help_text_loses_what_stands_in_brackets(run, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """Rich takes [words] for markup unless they are escaped."""
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 1000)
    looked_at = 0
    for command, words in every_command(typer.main.get_command(app.app)):
        _, out, _ = run(*words, "--help")
        for text in (command.help, *(getattr(one, "help", None) for one in command.params)):
            for told in re.findall(r"\[[^\]]+\]", text or ""):
                looked_at += 1
                assert told in out, (words, told)
    assert looked_at > 0


def test_help_loads_nothing_heavy() -> None:
    import subprocess

    code = (
        "import sys; sys.argv = ['samdistill', 'train', '--help']\n"
        "from samdistill.cli.app import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'PIL', 'torch', 'onnxruntime', 'rich.progress'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "words", [["train"], ["train", "data"], ["trian"], ["train", "--labls", "3"], ["demo"]]
)
def test_wrong_words_end_with_2(run, words: list[str]) -> None:  # type: ignore[no-untyped-def]
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert err


def one_line(err: str) -> str:
    assert err.startswith("samdistill: ")
    assert err.count("\n") == 1
    return err


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "data"
    write(folder, "ultrasound", 12, seed=1, size=(48, 48))
    return folder


@pytest.mark.parametrize("word", ["--teacher=tiny", "--prompts=box"])
def test_what_an_export_without_teacher_would_pass_over_ends_with_2(run, tmp_path: Path, word: str) -> None:  # type: ignore[no-untyped-def]
    code, _, err = run("export", tmp_path / "run", "--out", tmp_path / "b", "--no-teacher", word)
    assert code == 2
    assert "no-teacher must not be given with teacher or prompts" in one_line(err)
    assert not any(tmp_path.iterdir())


def test_an_unknown_configuration_key_is_named_and_ends_with_2(run, data: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "run.toml").write_text("[student]\nsise = 96\n")
    code, _, err = run("train", data, "--out", tmp_path / "run", "--config", tmp_path / "run.toml")
    assert code == 2
    assert "unknown key 'sise'" in one_line(err)


@pytest.mark.parametrize("labels", ["many", "0", "1.5", "-3"])
def test_a_label_budget_that_is_none_ends_with_2(run, data: Path, tmp_path: Path, labels: str) -> None:  # type: ignore[no-untyped-def]
    code, _, err = run("train", data, "--out", tmp_path / "run", f"--labels={labels}")
    assert code == 2
    assert "labels" in one_line(err)


def test_a_folder_without_images_ends_with_4_and_leaves_no_run(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "data" / "images").mkdir(parents=True)
    code, _, err = run("train", tmp_path / "data", "--out", tmp_path / "run", "--device", "cpu")
    assert code == 4
    one_line(err)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_not_there_ends_with_4(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, _, err = run("train", tmp_path / "nowhere", "--out", tmp_path / "run")
    assert code == 4
    assert "nowhere" in one_line(err)


def test_a_mask_of_another_size_and_a_class_out_of_range_end_with_4(run, data: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    import shutil

    import numpy as np
    from PIL import Image

    for number, wrong in enumerate([np.zeros((20, 20), np.uint8), np.full((48, 48), 9, np.uint8)]):
        copy = tmp_path / f"data{number}"
        shutil.copytree(data, copy)
        for mask in (copy / "masks").iterdir():
            Image.fromarray(wrong).save(mask)
        code, _, err = run(
            "train", copy, "--out", tmp_path / f"run{number}", "--preset", "light", "--size", "32"
        )
        assert code == 4
        assert ("20 x 20" if number == 0 else "not 9") in err.splitlines()[-1]


def test_a_gpu_that_is_not_there_ends_with_6(run, data: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU, so asking for it is no error")
    code, _, err = run("train", data, "--out", tmp_path / "run", "--device", "cuda")
    assert code == 6
    assert "--device cpu" in one_line(err)


def test_an_internal_error_is_one_line_and_ends_with_1(run, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    def broken() -> None:
        raise ZeroDivisionError("nothing to divide")

    monkeypatch.setattr(app, "app", broken)
    code, _, err = run()
    assert code == 1
    assert "internal error: ZeroDivisionError: nothing to divide" in one_line(err)
    monkeypatch.setenv("SAMDISTILL_DEBUG", "1")
    monkeypatch.setattr(sys, "argv", ["samdistill"])
    with pytest.raises(ZeroDivisionError):
        app.main()


@pytest.mark.parametrize(("library", "extra"), [("torch", "train"), ("onnxruntime", "cpu")])
def test_a_missing_extra_is_named(run, library: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    def without() -> None:
        raise ModuleNotFoundError(f"No module named {library!r}", name=library)

    monkeypatch.setattr(app, "app", without)
    code, _, err = run()
    assert code == 6
    assert f"samdistill[{extra}]" in one_line(err)


def test_a_missing_library_of_no_extra_is_named(run, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    def without() -> None:
        raise ModuleNotFoundError("No module named 'onnx_ir.passes'", name="onnx_ir.passes")

    monkeypatch.setattr(app, "app", without)
    code, _, err = run()
    assert code == 6
    assert "pip install onnx_ir." in one_line(err)


@pytest.mark.parametrize("words", [("doctor",), ("demo", "d")])
def test_an_interruption_is_told_once_and_ends_with_130(
    run,  # type: ignore[no-untyped-def]
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("samdistill.doctor.examine", interrupted)
    monkeypatch.setattr("samdistill.phantoms.folder.write", interrupted)  # the demo's first command
    code, _, err = run(*words)
    assert code == 130
    assert [line for line in err.splitlines() if line] == ["samdistill: interrupted."]


@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_last_line_of_a_training_says_which_student_was_kept(
    run,  # type: ignore[no-untyped-def]
    monkeypatch: pytest.MonkeyPatch,
    keep: str,
) -> None:
    result = {"steps": 40, "seconds": 2.0, "best": {"epoch": 4, "val_dice": 0.25}}
    done = SimpleNamespace(config=SimpleNamespace(keep=keep), record=SimpleNamespace(result=result))
    monkeypatch.setattr("samdistill.train.launch.train", lambda *_, **__: done)
    _, out, _ = run("train", "data", "--out", "run", "--keep", keep)
    assert out == f"run: 40 steps in 2 s, kept: epoch 4 ({keep}), validation Dice 0.250\n"


def test_masks_do_not_go_into_the_bundle(run, tiny_bundle: Path) -> None:  # type: ignore[no-untyped-def]
    code, _, err = run("infer", tiny_bundle, "images", "--out", tiny_bundle / "masks")
    assert code == 2
    assert "--out must lie outside the bundle" in one_line(err)


def test_a_file_where_phantoms_need_a_folder_is_named(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "file").touch()
    code, _, err = run("phantoms", tmp_path / "file" / "data", "--count", 1)
    assert code == 2
    assert f"{tmp_path / 'file'} must be a folder to make" in err and "Errno" not in err


def test_a_demo_that_is_interrupted_runs_no_further_command(
    run,  # type: ignore[no-untyped-def]
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, calls = app.app, []

    def interrupted(*words: object, **options: object) -> object:
        if not words:
            return real()
        calls.append(words)
        return 130  # as typer does, which has told of the interruption

    monkeypatch.setattr(app, "app", interrupted)
    assert run("demo", tmp_path / "d")[0] == 130
    assert len(calls) == 1


@pytest.mark.parametrize("words", [("--kind", "bogus"), ("--labels", 500)])
def test_a_wrong_option_leaves_the_old_demo(run, tmp_path: Path, words: tuple[object, ...]) -> None:  # type: ignore[no-untyped-def]
    for name in (".samdistill-demo", "report.html"):
        (tmp_path / name).touch()
    assert run("demo", tmp_path, *words)[0] == 2
    assert (tmp_path / "report.html").is_file()


def test_a_demo_never_writes_into_a_folder_of_somebody_elses(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "thesis.txt").write_text("mine")
    code, _, err = run("demo", tmp_path)
    assert code == 2
    one_line(err)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_an_epoch_of_a_later_phase_is_told_in_that_phase_s_steps(capsys: pytest.CaptureFixture[str]) -> None:
    from samdistill.cli.progress import TrainingProgress

    with TrainingProgress() as progress:
        progress.on_start("second", 0, 20)
        progress.on_step(5, 0.5)
        # The log counts the steps of all phases.
        progress.on_epoch({"epoch": 3, "step": 105, "train_loss": 0.5, "val_dice": 0.7})
    assert "epoch 3  step 5/20  loss 0.500  validation Dice 0.700" in capsys.readouterr().err
