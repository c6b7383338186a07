"""`l2c serve --replicas`: the same server as several processes, or the configuration of one on many machines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import UsageError
from ..support.extras import needs
from .console import print_json

if TYPE_CHECKING:
    from ..serving.http.settings import ServerSettings
    from ..serving.http.shelf import ServedPlace


def serve(
    places: Sequence[ServedPlace], settings: ServerSettings, replicas: int, gpus: int, api_key_file: Path | None,
    config: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Serve until it is stopped, or print a configuration.  Raises UsageError for what a fleet does not do."""
    from ..artefact import store
    from ..serving.fleet.config import described
    from ..serving.fleet.options import fleet_of
    from ..support.own_ray import prepare

    if config and settings.trust_engines:
        raise UsageError("trust_engines=True: a fleet of many machines is loaded again by deploying it again: leave it out")
    for place in places:
        store.check_linked(place.folder, store.read(place.folder, verify=False))
    options = fleet_of(places, settings, replicas, gpus, api_key_file)
    if config:
        text = described(options, settings.host, settings.port, config)
        print_json({"config": text}) if as_json else click.echo(text, nl=False)
        return
    prepare()
    needs("ray.serve", "ray")
    from ..serving.fleet.local import run

    counts = run(options, settings)
    if as_json:
        print_json({"images": counts})
