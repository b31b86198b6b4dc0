"""The command line: parse, call, print, exit code. No algorithm lives here.

Each command sits in a module of its own whose top imports nothing heavy, so that `--help` is quick.
"""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from samdistill._version import __version__
from samdistill.cli import (
    bench,
    data,
    demo,
    doctor,
    evaluate,
    export,
    infer,
    phantoms,
    pseudo_label,
    report,
    teacher,
    train,
    tune,
    verify,
)
from samdistill.errors import DeviceUnavailable, SamdistillError, UsageError


class _Commands(TyperGroup):
    """Says that a command was interrupted, since Typer ends with 130 without a word."""

    def invoke(self, ctx: Any) -> Any:  # its class is no public name of Typer's
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print("samdistill: interrupted.", file=sys.stderr)
            raise


app = typer.Typer(
    name="samdistill",
    cls=_Commands,
    help="Few labels in, a small deployable segmenter out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"samdistill {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Few labels in, a small deployable segmenter out."""


app.command("phantoms")(phantoms.phantoms)
app.add_typer(data.app, name="data", help="Look at a data set before anything is trained.")
app.command("train")(train.train)
app.command("tune")(tune.tune)
app.command("pseudo-label")(pseudo_label.pseudo_label)
app.command("export")(export.export)
app.command("infer")(infer.infer)
app.command("evaluate")(evaluate.evaluate)
app.command("report")(report.report)
app.command("verify")(verify.verify)
app.command("bench")(bench.bench)
app.command("doctor")(doctor.doctor)
app.add_typer(teacher.app, name="teacher", help="The Segment Anything models that teach.")
app.command("demo")(demo.demo)

EXTRAS = {
    "torch": "train",  # and export, which brings train
    "torchvision": "train",
    "timm": "train",
    "segmentation_models_pytorch": "train",
    "lightning_fabric": "train",
    "safetensors": "train",
    "segment_anything": "train",
    "numba": "train",
    "optuna": "train",
    "skimage": "train",
    "matplotlib": "train",
    "onnxruntime": "cpu",  # which export quantises with too
    "onnx": "export",
    "onnxscript": "export",
    "onnxslim": "export",
    "scipy": "evaluate",
    "nibabel": "nifti",
    "pydicom": "dicom",
    "cv2": "video",
    "highdicom": "dicom",
}
"""The extra that brings a library which base does without."""


def main() -> None:
    """Run the command line; one line on standard error and the exit code of the error when it fails.

    SAMDISTILL_DEBUG=1 lets the traceback through.
    """
    debug = os.environ.get("SAMDISTILL_DEBUG") == "1"
    for stream in ("stdout", "stderr"):
        # Closed by the caller (2>&-): Python has None then, and would print messages among the results.
        if getattr(sys, stream) is None:
            setattr(sys, stream, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):  # names need not be text, nor fit the terminal's letters
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app()
    except SamdistillError as error:
        if debug:
            raise
        print(f"samdistill: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        if debug or error.name is None:
            raise
        library = error.name.split(".")[0]
        cure = (
            f"pip install 'samdistill[{EXTRAS[library]}]'" if library in EXTRAS else f"pip install {library}"
        )
        print(
            f"samdistill: this command needs {library}, which is not installed; run: {cure}.", file=sys.stderr
        )
        sys.exit(DeviceUnavailable.exit_code)
    except OSError as error:  # nothing there, no permission, a full disk
        if debug:
            raise
        named = f"{error.filename}: " if error.filename else ""
        print(f"samdistill: {named}{(error.strerror or str(error)).rstrip('.')}.", file=sys.stderr)
        sys.exit(UsageError.exit_code)
    except MemoryError:
        if debug:
            raise
        print("samdistill: out of memory; use smaller images, a smaller --size or --batch.", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("samdistill: interrupted.", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if debug:
            raise
        print(
            f"samdistill: internal error: {type(error).__name__}: {error} "
            "(set SAMDISTILL_DEBUG=1 for the traceback).",
            file=sys.stderr,
        )
        sys.exit(1)
