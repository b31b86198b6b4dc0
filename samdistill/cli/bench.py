"""`samdistill bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def bench(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads within one call.")] = None,
    runs: Annotated[int, typer.Option(min=1, help="Timed calls an engine.")] = 20,
    expect_sha256: Annotated[
        str | None, typer.Option(help="Refuse any bundle but the one with this hash.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Time every engine of a bundle on this machine: latency, throughput, memory, agreement of masks.

    Ends with 5 where an engine is damaged or gives other masks than were published, with 6 where nothing runs
    one of the networks, with 3 where an engine failed otherwise. One that cannot be had here is only told.
    """
    from dataclasses import asdict

    from samdistill.bench import bench as bench_bundle
    from samdistill.bench import raise_for_failures

    found = bench_bundle(bundle, device=device, threads=threads, runs=runs, expect_sha256=expect_sha256)
    if json:
        import json as json_

        print(json_.dumps({"device": device, "threads": threads, "engines": [asdict(one) for one in found]}))
        raise_for_failures(found)
        return
    heads = f"{'median':>10} {'p95':>10} {'a second':>9} {'memory':>8} {'Dice':>7}"
    print(f"{'network':8} {'engine':19} {heads}")
    for one in found:
        name = f"{one.model:8} {one.runtime + ' ' + one.precision:19}"
        if one.error is not None:
            print(f"{name} {one.error}")
            continue
        print(
            f"{name} {one.latency_ms:7.1f} ms {one.p95_ms:7.1f} ms {one.per_second:9.1f} "
            f"{one.memory_mb:5.0f} MB {one.dice:7.4f}"
            + ("" if one.verified else "  numbers alone were compared")
        )
    raise_for_failures(found)
