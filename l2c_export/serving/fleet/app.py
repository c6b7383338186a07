"""A fleet as Ray Serve has it: samplers, each of them a process with an engine, and in a cluster a front, which speaks HTTP.

`build` is what a configuration names: `import_path: l2c_export.serving.fleet.app:build`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from ray import serve

from ...artefact import store
from ..http.access import Access
from ..http.app import ServerLife, application
from ..http.guard import Guard
from ..http.logs import json_lines
from ..http.metrics import Metrics
from ..http.settings import ServerSettings
from ..http.shelf import ServedPlace
from .options import FleetOptions, told
from .remote import FleetShelf
from .sampler import SamplerReplica

FRONT = "front"
HEAD = {"node:__internal_head__": 0.001}
QUIET = {"enable_access_log": False}  # the fronts' own log has a line for every request
LOOK = 0.2  # seconds between two looks at whether a replica that is to end has finished


class Door:
    """What Ray's proxy asks in a front's process.  Ray wants to have it before the front knows what is behind it."""

    app: ClassVar[Any] = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await type(self).app(scope, receive, send)


class Front:
    """The web application of `l2c serve`, guard and all, with engines that are elsewhere."""

    def __init__(self, args: dict[str, Any], handles: dict[str, Any]) -> None:
        options = told(args)
        settings = options.settings
        self._log = json_lines()
        self._log.__enter__()
        shelf = shelf_of(options, settings, lambda: handles)
        shelf.load()
        metrics = Metrics(shelf)
        app = application(shelf, settings, ServerLife(), metrics)
        Door.app = Guard(app, Access(settings.hosts, settings.keys), metrics, shelf.connections)


def build(args: dict[str, Any]) -> serve.Application:
    """The application that these options describe.  Raises UsageError for wrong ones, and what reading the manifests does."""
    options = told(args)
    deployed: Any = serve.deployment(serve.ingress(Door())(Front))
    front = deployed.options(
        name=FRONT,
        max_ongoing_requests=10_000,  # the guard has bounds of its own, and says so
        ray_actor_options={"num_cpus": 0, "resources": HEAD},  # so that no worker's end is a front's
        graceful_shutdown_timeout_s=options.drain_seconds,
        graceful_shutdown_wait_loop_s=LOOK,
        logging_config=QUIET,
    )
    return front.bind(args, samplers_of(options))  # type: ignore[no-any-return]


def shelf_of(options: FleetOptions, settings: ServerSettings, deployed: Callable[[], Mapping[str, Any]]) -> FleetShelf:
    """The models of a front.  Raises what reading the manifests does."""
    return FleetShelf(places_of(options), settings, deployed, options.most)


def places_of(options: FleetOptions) -> list[ServedPlace]:
    """The models, as a replica loads them."""
    device = options.device or ("cuda:0" if options.gpus else None)  # Ray shows a replica its own GPU only
    choices = {"backend": options.backend, "device": device, "threads": options.cores_each, "verify": options.verify}
    return [ServedPlace(name, Path(folder), choices) for name, folder in options.models.items()]


def samplers_of(options: FleetOptions) -> dict[str, serve.Application]:
    """The samplers of every model, by its name.  Raises what reading the manifests does."""
    return {place.name: _samplers(options, place) for place in places_of(options)}


def _samplers(options: FleetOptions, place: ServedPlace) -> serve.Application:
    # whatever the front has accepted: jobs wait in a replica, as Ray's router sleeps between two tries of one that is full
    room = options.most(store.read(place.folder, verify=False).batch)
    deployed: Any = serve.deployment(SamplerReplica)
    samplers = deployed.options(
        name=f"sampler-{place.name}",
        num_replicas=options.replicas,
        max_ongoing_requests=room,
        ray_actor_options={"num_cpus": options.cores_each, "num_gpus": options.gpus},
        graceful_shutdown_timeout_s=options.drain_seconds,
        graceful_shutdown_wait_loop_s=LOOK,
        logging_config=QUIET,
        health_check_period_s=2,
    )
    return samplers.bind(  # type: ignore[no-any-return]
        str(place.folder), dict(place.choices), options.max_batch, options.max_wait_ms / 1e3, 2 * room
    )
