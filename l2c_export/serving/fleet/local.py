"""A fleet on this machine alone: the server's own process is its front, and the samplers are in a Ray that ends with it."""

from __future__ import annotations

import contextlib
import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray import serve

from ...errors import RunError
from ...support.own_ray import ALONE
from ...support.words import first_line
from ..http import server
from ..http.logs import json_lines
from ..http.settings import ServerSettings
from .app import places_of, samplers_of
from .options import FleetOptions
from .remote import FleetShelf

# The kernel ends Ray's processes with the thread that started them, and this one lives as long as the process
STARTER = ThreadPoolExecutor(1, "l2c-ray")

LIBRARIES = ("ray", "ray.serve")  # that log in this process


def run(options: FleetOptions, settings: ServerSettings) -> dict[str, dict[str, int]]:
    """Serve as one process does, until SIGTERM or SIGINT: what became of the images that were asked for, by model.

    Raises RunError where the replicas do not start, UsageError where it cannot listen, and what reading the manifests does.
    """
    shelf = shelf_of(options, settings)
    with json_lines(LIBRARIES), contextlib.redirect_stdout(sys.stderr):  # what replicas print is log, too
        try:
            server.serve(shelf, settings)
        finally:
            stop()
    return {name: dict(model.engine.counts) for name, model in shelf.models.items()}


def shelf_of(options: FleetOptions, settings: ServerSettings) -> FleetShelf:
    """Models whose samplers are started when it loads."""
    return FleetShelf(places_of(options), settings, lambda: start(options), options.most)


def start(options: FleetOptions) -> dict[str, Any]:
    """Ray, and in it the samplers: their handles.  Raises what `deploy` does."""
    STARTER.submit(_start, options).result()
    return deploy(options)


def deploy(options: FleetOptions) -> dict[str, Any]:
    """The samplers as they are described now, in the place of what runs: their handles, by model.

    Raises RunError where they do not start, and what reading the manifests does.
    """
    samplers = samplers_of(options)
    try:
        handles = serve.run_many([serve.RunTarget(application, name, None) for name, application in samplers.items()])
    except RuntimeError as error:
        raise RunError(f"the fleet could not be deployed: {first_line(error)}: its log says why") from None
    return dict(zip(samplers, handles, strict=True))


def stop() -> None:
    """Ray and all that is in it, whatever it does."""
    STARTER.submit(ray.shutdown).result()


def _start(options: FleetOptions) -> None:
    replicas = options.replicas * len(options.models)
    twice = 2 * options.cores_each * replicas  # room for a second fleet while the first is exchanged; Ray only counts them
    ray.init(
        "local",
        num_cpus=twice,
        num_gpus=options.gpus * replicas or None,
        logging_level=logging.ERROR,  # it warns that it leaves SIGTERM alone, which is the server's
        **ALONE,
    )
    serve.start(proxy_location="Disabled")
