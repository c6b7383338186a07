"""`l2c serve --replicas`: the same server as several processes, or the configuration of one on many machines."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import UsageError
from ..support.extras import needs
from .console import print_json

if TYPE_CHECKING:
    from ..serving.fleet.options import FleetOptions
    from ..serving.http.settings import ServerSettings
    from ..serving.http.shelf import ServedPlace, Shelf


def options_of(
    places: Sequence[ServedPlace], settings: ServerSettings, replicas: int, gpus: int, api_key_file: Path | None
) -> FleetOptions:
    """What a fleet is told.  Raises ArtefactError for an artefact that is not linked."""
    from ..artefact import store
    from ..serving.fleet.options import fleet_of

    for place in places:
        store.check_linked(place.folder, store.read(place.folder, verify=False))
    return fleet_of(places, settings, replicas, gpus, api_key_file)


def describe(options: FleetOptions, settings: ServerSettings, kind: str, as_json: bool) -> None:
    """Print the configuration of a kind.  Raises UsageError for what it cannot say."""
    from ..serving.fleet.config import described

    if settings.trust_engines:
        raise UsageError("trust_engines=True: a fleet of many machines is loaded again by deploying it again: leave it out")
    text = described(options, settings.host, settings.port, kind)
    print_json({"config": text}) if as_json else click.echo(text, nl=False)


def models_of(options: FleetOptions, settings: ServerSettings) -> AbstractContextManager[Shelf]:
    """The models of a fleet on this machine, which ends with them."""
    from ..support.own_ray import prepare

    prepare()
    needs("ray.serve", "ray")
    from ..serving.fleet.local import fleet

    return fleet(options, settings)
