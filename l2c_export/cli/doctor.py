"""`l2c doctor`: what works on this machine."""

from __future__ import annotations

import click

from ..errors import UsageError
from .console import Command, print_json
from .tables import print_table


@click.command(cls=Command, example="l2c doctor")
def doctor(as_json: bool) -> None:
    """Say what works on this machine, what does not, and why: backends, packages and the cache."""
    from ..backends.descriptors import BACKENDS
    from ..backends.doctor import any_backend
    from ..backends.doctor import doctor as examine

    findings = examine()
    if as_json:
        print_json(findings)
    else:
        rows = [(f.name, "yes" if f.works else "no", f.version or "-", f.note) for f in findings]
        print_table("on this machine", [("what", "works", "version", "what to know"), *rows])
    if not any_backend(findings):
        raise UsageError(f"no backend works: pip install 'l2c-export[{BACKENDS[-1].extra}]'")
