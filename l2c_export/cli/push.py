"""`l2c push` and `l2c pull`: artefacts to and from registries."""

from __future__ import annotations

from pathlib import Path

import click

from .console import Command, print_json, say
from .options import FOLDER, option
from .progress import bars

plain_http = option("--plain-http", is_flag=True, help="Without TLS, to a registry of containers in one's own network.")


@click.command(cls=Command, example="l2c push engines oci://ghcr.io/me/dit:v1\nl2c push engines hf://me/dit")
@click.argument("engines", type=FOLDER)
@click.argument("address", metavar="ADDRESS")
@plain_http
def push(engines: Path, address: str, plain_http: bool, as_json: bool) -> None:
    """Send an artefact to a registry of containers, the Hugging Face hub or a bucket; what is there is not sent again.

    The address is oci://HOST/REPOSITORY:TAG, hf://OWNER/NAME or s3://BUCKET/FOLDER.
    """
    from ..distribution.transfer import push as send

    with bars() as shown:
        pushed = send(engines, address, plain_http=plain_http, report=say, progress=shown.progress)
    if as_json:
        print_json(pushed)
    else:
        click.echo(pushed.address)


@click.command(cls=Command, example="l2c pull engines oci://ghcr.io/me/dit:v1\nl2c pull engines hf://me/dit")
@click.argument("engines", type=FOLDER)
@click.argument("address", metavar="ADDRESS")
@option("--trust-engines", is_flag=True, help="Also one with engines for GPUs, which are programs.")
@plain_http
def pull(engines: Path, address: str, trust_engines: bool, plain_http: bool, as_json: bool) -> None:
    """Bring an artefact from there into a folder, each of its files checked on arrival.

    The address is that of l2c push, or one with a digest or a commit, which it has printed.
    """
    from ..distribution.transfer import pull as bring

    with bars() as shown:
        pulled = bring(engines, address, trust_engines=trust_engines, plain_http=plain_http, report=say,
                         progress=shown.progress)  # fmt: skip
    if as_json:
        print_json(pulled)
