"""`samdistill doctor`."""

from __future__ import annotations

from typing import Annotated

import typer

SIGNS = {"ok": "ok   ", "note": "note ", "wrong": "WRONG"}


def doctor(
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Say what is installed, missing or at odds, and the cure; exit code 6 where something is wrong."""
    from dataclasses import asdict

    from samdistill.doctor import examine
    from samdistill.errors import DeviceUnavailable

    found = examine()
    if json:
        import json as json_

        print(json_.dumps({"findings": [asdict(one) for one in found]}))
    else:
        for one in found:
            print(f"{SIGNS[one.status]}  {one.what}: {one.detail}")
            if one.cure:
                print(f"       cure: {one.cure}")
    if any(one.status == "wrong" for one in found):
        raise typer.Exit(DeviceUnavailable.exit_code)
