"""`samdistill teacher`: which teachers there are, fetching them, checking them, embedding a data set."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from samdistill.cli import assess

if TYPE_CHECKING:
    from samdistill.teacher import Teacher

app = typer.Typer(no_args_is_help=True)
PREPROCESSING = {
    "sam": "SAM's, the longest side resized, mean and deviation",
    "medsam": "MedSAM's, stretched to the square, the image's own minimum and maximum",
}
Name = Annotated[
    str, typer.Argument(help="tiny, sam_vit_b, sam_vit_l, sam_vit_h, medsam, NAME:PATH or PATH.")
]


@app.callback()
def _teacher() -> None:
    """The frozen SAM that teaches: list, fetch, check, embed."""


@app.command("list")
def list_teachers() -> None:
    """List the teachers and whether they are on this machine; reads no weights, touches no network."""
    from rich.console import Console
    from rich.table import Table

    from samdistill.teacher.checkpoints import KNOWN, cache_folder

    table = Table("name", "size", "licence", "here", title_justify="left")
    table.add_row("tiny", "9 MB", "Apache-2.0", "comes with the package")
    for name, checkpoint in KNOWN.items():
        path = cache_folder() / checkpoint.file
        away = f"samdistill teacher fetch {name}" if checkpoint.url else f"no: see teacher check {name}"
        table.add_row(
            name, f"{checkpoint.size_mb} MB", checkpoint.licence, str(path) if path.is_file() else away
        )
    Console(highlight=False).print(table)


@app.command("fetch")
def fetch(name: Annotated[str, typer.Argument(help="sam_vit_b, sam_vit_l or sam_vit_h.")]) -> None:
    """Download a teacher from its official address into the cache folder and check its hash."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    from samdistill.teacher import checkpoints

    if name == "tiny":
        print("tiny comes with the package: nothing to fetch")
        return
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=None)
        path = checkpoints.fetch(
            name, progress=lambda done, total: progress.update(task, completed=done, total=total or None)
        )
    print(f"{name}: {path}, as its authors published it")


@app.command("check")
def check(name: Name = "tiny") -> None:
    """Load a teacher and say what it is; where it is missing, say where its file belongs."""
    teacher = _load(name, "cpu")
    parameters = sum(p.numel() for p in teacher.model.parameters())
    channels, height, width = _embedding_shape(teacher)
    side = teacher.input_side
    print(f"{name}: sound; {parameters / 1e6:.1f} M parameters, input {side} x {side}")
    print(f"preprocessing: {PREPROCESSING[teacher.preprocessing]}")
    print(f"takes: {'boxes' if teacher.preprocessing == 'medsam' else 'points, boxes, masks'}")
    print(
        f"embedding: {channels} x {height} x {width}, {2 * channels * height * width / 1e6:.2f} MB an image"
    )
    print(f"weights: sha256 {teacher.weights_sha256}")


app.command("assess")(assess.assess)


@app.command("embed")
def embed(
    data: Annotated[Path, typer.Argument(help="Data folder (docs/data.md); labels are not read.")],
    cache: Annotated[Path, typer.Option(help="Folder of the embedding cache.")],
    teacher: Annotated[
        str | None, typer.Option(help="As for `teacher check`. Default: the file's, or tiny.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    config: Annotated[
        Path | None,
        typer.Option(help="TOML file of `train`: its teacher, and its \\[intensity] if it has one."),
    ] = None,
    max_gb: Annotated[
        float | None, typer.Option(help="Size of the cache; above it the entries longest unused go.")
    ] = None,
) -> None:
    """Embed every image of a data set into the cache; what is there is skipped, so a run can be resumed."""
    from rich.console import Console
    from rich.progress import Progress

    from samdistill.errors import UsageError
    from samdistill.io.dataset import open_dataset
    from samdistill.teacher.cache import EmbeddingCache
    from samdistill.train.config import load_config
    from samdistill.train.data import read_uint8
    from samdistill.train.launch import choose_intensity

    if max_gb is not None and not 1e-9 <= max_gb < math.inf:
        raise UsageError(f"--max-gb must be above 0, a size in gigabytes, not {max_gb:g}.")
    cases = open_dataset(data, infer_classes=False).cases
    settings = load_config(config)
    intensity = settings.intensity or choose_intensity([case.image_path for case in cases])
    store = EmbeddingCache(cache, max_bytes=None if max_gb is None else int(max_gb * 1e9))
    loaded = _load(teacher or settings.teacher, device)

    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("embedding", total=len(cases))
        new = store.fill(
            loaded,
            [lambda case=case: read_uint8(case, intensity) for case in cases],  # type: ignore[misc]
            progress=lambda done: progress.update(task, completed=done),
        )
    print(f"{cache}: {new} of {len(cases)} images embedded, {len(cases) - new} were there")
    print(f"teacher {loaded.name}, sha256 {loaded.weights_sha256}")
    limits = "" if intensity.kind == "identity" else f" {intensity.low:g} to {intensity.high:g}"
    print(f"intensity {intensity.kind}{limits}: a run with another rule embeds its images anew")
    if evicted := store.statistics.evicted:
        print(f"{evicted} embeddings, those longest unused, went again to stay below {max_gb:g} GB")


def _load(name: str, device: str) -> Teacher:
    from samdistill.teacher import load_teacher

    return load_teacher(name, device)


def _embedding_shape(teacher: Teacher) -> tuple[int, int, int]:
    encoder = teacher.model.prompt_encoder
    height, width = encoder.image_embedding_size
    return int(encoder.embed_dim), int(height), int(width)
