"""`l2c doctor`: what works on this machine."""

from __future__ import annotations

import dataclasses
import json

import click

from ..errors import UsageError
from .console import command, print_table


@click.command()
@click.option("--json", "as_json", is_flag=True)
@command
def doctor(as_json: bool) -> None:
    """Which backends work on this machine, which do not, and why."""
    from ..backends.doctor import examine

    found = examine()
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(f) for f in found]))
    else:
        rows = [
            ("backend", "works", "version", "what to know"),
            *((f.name, "yes" if f.works else "no", f.version or "-", f.note) for f in found),
        ]
        print_table("backends", rows)
    if not any(f.works for f in found):
        raise UsageError("no backend works: pip install 'l2c-export[onnxruntime]'")
