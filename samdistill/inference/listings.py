"""One table and one annotation file for a whole run, made line by line of its results at the end."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from samdistill.inference.outputs import Options
from samdistill.inference.records import RESULTS, records_in, unfinished_of
from samdistill.inference.sources import Shard, Source
from samdistill.io.contours import coco_annotation
from samdistill.io.files import atomic_write, hidden_beside, remove_leftovers
from samdistill.io.measurements import Measurement
from samdistill.report.document import is_report

MEASUREMENTS, COCO, REPORT = "measurements.csv", "coco.json", "report.html"
Naming = Callable[[str], str]


def remove_listings(out: Path, name: Naming, *, report: bool) -> None:
    """Remove what an earlier run left, which speaks of other outputs, and what a killed one left half.

    Parameters
    ----------
    out
        The output folder.
    name
        What files of this run are called.
    report
        Whether a report may be of outputs that change now.
    """
    for file in (MEASUREMENTS, COCO):
        (out / name(file)).unlink(missing_ok=True)
    page = out / REPORT
    # There are reports of runs and evaluations, too.
    if report and page.is_file() and is_report(page, "Segmentation of "):
        page.unlink()
    remove_leftovers(out, {name(file) for file in (RESULTS, MEASUREMENTS, COCO)})


def set_aside_others(out: Path, name: Naming, shard: Shard, sources: Sequence[Source]) -> None:
    """Take back the lists of earlier runs over all inputs, or in other shards, that a shard redoes a part of.

    Its own, too, where it tells of inputs that are another shard's now. `--resume` still finds the records,
    as if those runs had been killed.

    Parameters
    ----------
    out
        The output folder.
    name
        What files of this run are called.
    shard, sources
        The shard that begins, and its part.
    """
    own = out / name(RESULTS)
    names = {str(source.relative) for source in sources}
    for path in (own, unfinished_of(own)):
        if path.is_file() and any(record.input not in names for record in records_in(path)):
            path.replace(hidden_beside(own, "partial"))
    for file in (RESULTS, MEASUREMENTS, COCO):
        for path in (out / file, *out.glob(_of_shards(file))):
            if not path.match(f"*-of-{shard.count}.*"):
                with contextlib.suppress(FileNotFoundError):  # another shard may come first
                    if file == RESULTS:
                        path.replace(unfinished_of(path))
                    else:
                        path.unlink()


def remove_lists_of_shards(out: Path) -> None:
    """Remove what earlier shards listed, whether they ended or not; their records have been read."""
    unfinished = f".{_of_shards(RESULTS)}*.partial"
    for pattern in (unfinished, *map(_of_shards, (RESULTS, MEASUREMENTS, COCO))):
        for path in out.glob(pattern):
            path.unlink(missing_ok=True)


def _of_shards(file: str) -> str:
    """The pattern of a list's names in shards."""
    return file.replace(".", "-*-of-*.", 1)


def write_listings(out: Path, name: Naming, class_names: Sequence[str], options: Options) -> None:
    """Write measurements.csv and coco.json, as far as they are wanted.

    Parameters
    ----------
    out
        The output folder, with a finished results.jsonl.
    name
        What files of this run are called; shards have names of their own.
    class_names
        In channel order.
    options
        What is wanted.
    """
    results = out / name(RESULTS)
    if options.measurements:
        with atomic_write(out / name(MEASUREMENTS)) as temporary:
            _write_csv(temporary, _done(results))
    if options.contours:
        with atomic_write(out / name(COCO)) as temporary:
            _write_coco(temporary, _done(results), out, class_names)


def _done(results: Path) -> Iterator[dict[str, Any]]:
    with results.open(encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            if record["status"] == "ok":
                yield record


def _write_csv(path: Path, records: Iterator[dict[str, Any]]) -> None:
    columns = ["input", "image", "class", *(one.name for one in fields(Measurement))]
    # File names need not be text; results.jsonl writes them as escapes, too.
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        table = csv.DictWriter(file, columns)
        table.writeheader()
        for record in records:
            table.writerows({"input": record["input"], **row} for row in record["measurements"])


def _write_coco(path: Path, records: Iterator[dict[str, Any]], out: Path, class_names: Sequence[str]) -> None:
    """Images go into the file as they come, annotations into one beside it that is copied in at the end."""
    beside = path.with_name(f"{path.name}.annotations")
    categories = [{"id": class_id, "name": one} for class_id, one in enumerate(class_names, 1)]
    images = annotations = 0
    try:
        with path.open("w", encoding="utf-8") as file, beside.open("w+", encoding="utf-8") as rest:
            file.write('{"categories": ' + json.dumps(categories) + ', "images": [')
            for record in records:
                found = json.loads((out / record["contours"]).read_text(encoding="utf-8"))
                height, width = found["image_size"]["height"], found["image_size"]["width"]
                first = images + 1
                for index in range(found["images"]):
                    entry = {
                        "id": first + index,
                        "file_name": record["input"],
                        "height": height,
                        "width": width,
                    }
                    if found["images"] > 1:
                        entry["index"] = index
                    file.write(("," if images else "") + "\n" + json.dumps(entry))
                    images += 1
                for one in found["features"]:
                    image_id = first + one["properties"].get("image", 0)
                    annotation = coco_annotation(
                        one, (height, width), annotation_id=annotations + 1, image_id=image_id
                    )
                    rest.write(("," if annotations else "") + "\n" + json.dumps(annotation))
                    annotations += 1
            file.write('],\n"annotations": [')
            rest.seek(0)
            for line in rest:
                file.write(line)
            file.write("]}\n")
    finally:
        beside.unlink(missing_ok=True)
