"""The fleet as an application of Ray Serve: fronts that speak HTTP, and samplers, of which each is a process with an engine.

`build` is what a configuration names: `import_path: l2c_export.serving.fleet.app:build`.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, ClassVar

from ray import serve

from ...artefact import store
from ..http.access import Access
from ..http.app import ServerLife, application
from ..http.guard import Guard
from ..http.logs import json_lines
from ..http.metrics import Metrics
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
        self._shelf, self._life = FleetShelf(places_of(options), settings, handles, options.most), ServerLife()
        metrics = Metrics(self._shelf)
        app = application(self._shelf, settings, self._life, metrics)
        most = settings.connections + sum(engine.max_queue for engine in self._shelf.engines)
        Door.app = Guard(app, Access(settings.hosts, settings.keys), metrics, most)

    async def drain(self, seconds: float) -> bool:
        """Refuse what comes, and finish what was accepted: whether that could be done in so many seconds."""
        self._life.draining = True
        return all(await asyncio.gather(*(engine.drained(seconds) for engine in self._shelf.engines)))

    async def counts(self) -> dict[str, dict[str, int]]:
        """Of every model's images."""
        return {model.name: dict(model.engine.counts) for model in self._shelf.models.values()}


def build(args: dict[str, Any]) -> serve.Application:
    """The application that these options describe.  Raises UsageError for wrong ones, and what reading the manifests does."""
    options = told(args)
    handles = {place.name: _samplers(options, place) for place in places_of(options)}
    deployed: Any = serve.deployment(serve.ingress(Door())(Front))
    front = deployed.options(
        name=FRONT,
        max_ongoing_requests=10_000,  # the guard has bounds of its own, and says so
        ray_actor_options={"num_cpus": 0, "resources": HEAD},  # so that no worker's end is a front's
        graceful_shutdown_timeout_s=options.drain_seconds,
        graceful_shutdown_wait_loop_s=LOOK,
        logging_config=QUIET,
    )
    return front.bind(args, handles)  # type: ignore[no-any-return]


def places_of(options: FleetOptions) -> list[ServedPlace]:
    """The models, as a replica loads them."""
    device = options.device or ("cuda:0" if options.gpus else None)  # Ray shows a replica its own GPU only
    choices = {"backend": options.backend, "device": device, "threads": options.cores_each, "verify": options.verify}
    return [ServedPlace(name, Path(folder), choices) for name, folder in options.models.items()]


def _samplers(options: FleetOptions, place: Any) -> Any:
    # whatever the front has accepted: jobs wait in a replica, as Ray's router sleeps between two tries of one that is full
    room = options.most(store.read(place.folder, verify=False).batch)
    deployed: Any = serve.deployment(SamplerReplica)
    samplers = deployed.options(
        name=sampler_name(place.name),
        num_replicas=options.replicas,
        max_ongoing_requests=room,
        ray_actor_options={"num_cpus": options.cores_each, "num_gpus": options.gpus},
        graceful_shutdown_timeout_s=options.drain_seconds,
        graceful_shutdown_wait_loop_s=LOOK,
        logging_config=QUIET,
        health_check_period_s=2,
    )
    return samplers.bind(str(place.folder), dict(place.choices), options.max_batch, options.max_wait_ms / 1e3, 2 * room)


def sampler_name(model: str) -> str:
    return f"sampler-{model}"
