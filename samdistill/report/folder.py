"""The report of a folder that `samdistill infer` wrote: what was found in each picture, and what failed.

Works from results.jsonl, the masks and, where they are given, the pictures; opens no bundle.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from samdistill.errors import InputRejected
from samdistill.inference.sources import root_of
from samdistill.report.case_pictures import picture_of
from samdistill.report.charts import histogram
from samdistill.report.document import Section, facts, number, table
from samdistill.report.gallery import Case, Picture, gallery
from samdistill.report.results import Record, read_records

SHOWN = 60  # cases, so that a report of thousands stays a few megabytes
PEAK, SCORE = "peak probability", "score"  # what pictures are ranked by: the bundle's score where it has one
ROWS = 1000  # of the table


def folder_sections(out: Path, images: Path | None = None, *, shown: int = SHOWN) -> list[Section]:
    """Read what `samdistill infer` wrote and make sections of it.

    Parameters
    ----------
    out
        The folder with results.jsonl.
    images
        The folder the inputs were taken from; None shows the overlays, where `infer --overlay` drew them.
    shown
        At most so many cases get a picture: those with the lowest score, the estimated Dice where the
        bundle makes one, else the lowest peak probability.

    Raises
    ------
    InputRejected
        When results.jsonl, a mask or a picture is missing or not what it should be.
    """
    if images is not None and not images.is_dir():
        raise InputRejected(f"{images} must be the folder that was segmented, and is no folder.")
    records = read_records(out)
    done = [record for record in records if record["status"] == "ok"]
    failed = [record for record in records if record["status"] != "ok"]
    sections = [Section("Summary", _summary(records, done))]
    if failed:
        rows = [[str(record["input"]), str(record.get("error", ""))] for record in failed]
        sections.append(Section("Failed", table(["picture", "reason"], rows)))
    if done:
        by = _ranked_by(done)
        ranked = sorted(done, key=lambda record: (_score(record, by), record["input"]))
        names = list(ranked[0]["classes"])
        below = None if images is None else root_of(images)
        pictures = [(record, picture_of(record, out, below)) for record in ranked[:shown]]
        cases = [_case(record, *found, by) for record, found in pictures if found is not None]
        if not cases:
            raise InputRejected(
                f"{out} has no overlays to show. Give the pictures with --images, or run infer with "
                "--overlay."
            )
        which = f"The {len(cases)} of {len(done)} files with the lowest {by} that have a picture."
        note = f"All {len(done)} files." if len(cases) == len(done) else which
        sections.append(gallery("Cases", cases, class_names=names, note=note, score_name=by))
        sections.append(Section("Table", _table(ranked, names, by)))
    return sections


def _summary(records: Sequence[Record], done: Sequence[Record]) -> str:
    values: dict[str, object] = {
        "pictures": len(records),
        "segmented": len(done),
        "failed": len(records) - len(done),
        "mode": records[0].get("mode"),
        "bundle sha256": records[0].get("bundle_sha256"),
    }
    if not done:
        return facts(values)
    values["latency_ms, median"] = number(statistics.median(record["latency_ms"] for record in done), 1)
    for name in done[0]["classes"]:
        found = sum(record["classes"][name]["area_px"] > 0 for record in done)
        values[f"pictures with {name}"] = found
    for flag, count in Counter((one.get("quality") or {}).get("flag") for one in done).items():
        values[f"pictures to {flag}" if flag else "pictures without a flag"] = count
    routed = [one["routed"] for one in done if one.get("routed")]
    if routed:
        values["images refined"] = sum(one["refined"] for one in routed)
        values["why"] = dict(sum((Counter(one["why"]) for one in routed), Counter()))
    by = _ranked_by(done)
    title = "Peak probability of the pictures" if by == PEAK else "Score of the pictures: estimated Dice"
    chart = histogram(title, [_score(one, by) for one in done], x_label=by)
    return f'{facts(values)}<div class="charts">{chart}</div>'


def _peak(record: Record) -> float:
    """The highest probability of any pixel of any class: low where the student found next to nothing."""
    return max(float(one["max_probability"]) for one in record["classes"].values())


def _ranked_by(done: Sequence[Record]) -> str:
    """What all of them have to be ranked by."""
    scored = all((one.get("quality") or {}).get("score") is not None for one in done)
    return SCORE if scored else PEAK


def _score(record: Record, by: str) -> float:
    return float(record["quality"]["score"]) if by == SCORE else _peak(record)


def _case(record: Record, picture: Picture, shown: int | None, by: str) -> Case:
    notes = [f"{name} {one['area_px']} px" for name, one in record["classes"].items()]
    several = (record.get("images") or 1) > 1
    if several:
        notes.append(f"{record['images']} images")
        notes.append("shown: where most was found" if shown is None else f"shown: image {shown}")
    quality = record.get("quality") or {}
    if quality.get("flag"):
        reasons = ", ".join(quality.get("reasons") or ())
        told = f"{quality['flag']}: {reasons}" if reasons else str(quality["flag"])
        # Score and flag are the worst image's, which need not be the one that is shown.
        notes.append(f"worst: image {quality['image']}, {told}" if quality.get("image") is not None else told)
        if several and quality.get("flags"):
            notes.append(", ".join(f"{count} {flag}" for flag, count in quality["flags"].items()))
    if record.get("routed"):
        notes.append("refined" if record["routed"]["refined"] else "not refined")
    return Case(str(record["input"]), picture, _score(record, by), notes)


def _table(ranked: Sequence[Record], names: Sequence[str], by: str) -> str:
    """Every file with its numbers, the lowest first."""
    flagged = any((record.get("quality") or {}).get("flag") for record in ranked)
    headers = ["file", "images", by, *(["flag"] if flagged else []), *(f"{name}, px" for name in names)]
    rows = []
    for record in ranked[:ROWS]:
        row = [str(record["input"]), str(record.get("images") or 1), number(_score(record, by))]
        if flagged:
            row.append(str((record.get("quality") or {}).get("flag") or "–"))
        rows.append(row + [str(record["classes"].get(name, {}).get("area_px", "–")) for name in names])
    left = len(ranked) - len(rows)
    return table(headers, rows, caption=f"{left} more with a higher {by} are left out." if left else "")
