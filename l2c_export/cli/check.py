"""`l2c check`: does it compute here what it computed when its weights were bound?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from . import options
from .console import Command, print_json, say
from .options import ENGINES, group, option


@click.command(cls=Command, example="l2c check engines --backend openvino")
@click.argument("engines", type=ENGINES)
@group(
    "What is compared",
    option("--record", is_flag=True, help="Record a new fingerprint first, with this backend."),
    option("--trust", is_flag=True, help="Do not hash the weights: for an artefact of one's own on one's own disk."),
)
@group("What is allowed", options.atol, options.rtol)
@group("Where it runs", options.backend, options.device, options.threads)
def check(engines: Path, trust: bool, as_json: bool, **choices: Any) -> None:
    """Repeat what was recorded when the weights were bound, without torch; exit code 1 if it leaves the tolerance."""
    from ..verification.check import check as repeat

    result = repeat(engines, verify=not trust, report=say, **choices)
    if as_json:
        print_json(result)
        say(result.summary)
    else:
        click.echo(result.summary)
    if not result.passed:
        sys.exit(1)
