"""What a fleet of replicas is told: by the command line, or by the `args` of a configuration of Ray Serve."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ...errors import UsageError
from ...support.machine import cores as cores_here
from ..http.settings import ServerSettings, read_keys

if TYPE_CHECKING:
    from ..http.shelf import ServedPlace


BUILD = "l2c_export.serving.fleet.app:build"  # what makes the application of these, by the name that Ray imports


class FleetOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything but where it listens, which is Ray's.  Folders and files are read on the machines that run the replicas."""

    models: dict[str, str]  # name -> the artefact's folder
    replicas: int = 1  # of each
    cores: int | None = None  # of a replica; None: what there is, shared out
    gpus: int = 0  # of a replica
    backend: str | None = None
    device: str | None = None
    verify: bool = True
    max_batch: int | None = None
    max_wait_ms: float = 5.0
    max_queue: int = 64  # images of a model that are asked for and not answered yet, besides those that are drawn
    drain_seconds: float = 30.0
    hosts: tuple[str, ...] = ()
    api_key_file: str | None = None

    @property
    def cores_each(self) -> int:
        """Of those here; with GPUs half of them, for decoders and text encoders: fronts have the rest."""
        return self.cores or max(1, cores_here() // (self.replicas * len(self.models) * (2 if self.gpus else 1)))

    def most(self, batch: int) -> int:
        """Images of a model that are accepted and not answered, of an artefact that makes so many at once."""
        return self.max_queue + self.replicas * min(self.max_batch or batch, batch)

    @property
    def settings(self) -> ServerSettings:
        keys = read_keys(Path(self.api_key_file)) if self.api_key_file else ()
        return ServerSettings(hosts=self.hosts, max_queue=self.max_queue, max_wait=self.max_wait_ms / 1e3,
                        max_batch=self.max_batch, drain_seconds=self.drain_seconds, keys=keys)  # fmt: skip


def told(args: dict[str, Any]) -> FleetOptions:
    """The options of a configuration.  Raises UsageError for what is none."""
    try:
        return msgspec.convert(args, FleetOptions)
    except msgspec.ValidationError as error:
        raise UsageError(f"args: {error}: see l2c serve --print-config") from None


def fleet_of(
    places: Sequence[ServedPlace], settings: ServerSettings, replicas: int, gpus: int, api_key_file: Path | None
) -> FleetOptions:
    """Of what a server of one process is told; every place is loaded alike."""
    how = places[0].choices
    return FleetOptions(
        models={place.name: str(place.folder.absolute()) for place in places},
        replicas=replicas,
        cores=how["threads"],
        gpus=gpus,
        backend=how["backend"],
        device=how["device"],
        verify=how["verify"],
        max_batch=settings.max_batch,
        max_wait_ms=1e3 * settings.max_wait,
        max_queue=settings.max_queue,
        drain_seconds=settings.drain_seconds,
        hosts=settings.hosts,
        api_key_file=str(api_key_file.absolute()) if api_key_file else None,
    )
