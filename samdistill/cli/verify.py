"""`samdistill verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def verify(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    runtime: Annotated[str, typer.Option(help="auto (all that are here) or one of them.")] = "auto",
    precision: Annotated[
        str | None, typer.Option(help="fp32, fp16, ..., of docs/engines.md; default: all that are here.")
    ] = None,
    expect_sha256: Annotated[
        str | None, typer.Option(help="Refuse any bundle but the one with this hash.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Check every file's hash and compute the golden cases again."""
    from dataclasses import asdict

    from samdistill.verify import verify as verify_bundle

    found = verify_bundle(
        bundle, device=device, runtime=runtime, precision=precision, expect_sha256=expect_sha256
    )
    if json:
        import json as json_

        print(json_.dumps(asdict(found)))
        return
    print(f"{bundle}: sha256 {found.bundle_sha256}")
    print(f"{found.files} files have the hashes of the manifest")
    for case in found.golden:
        print(
            f"golden case {case.name}: as published on {case.engine} "
            f"(probabilities differ by at most {case.max_probability_difference:.2g})"
        )
    for engine in found.unavailable:
        print(f"not run here: {engine}")
