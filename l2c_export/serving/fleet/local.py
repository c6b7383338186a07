"""A fleet on this machine alone: the server's own process is its front, and the samplers are in a Ray that ends with it."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import TYPE_CHECKING, Any

import ray
from ray import serve

from ...errors import RunError
from ...support.own_ray import ALONE
from ...support.words import first_line
from ..http.logs import json_lines
from ..http.settings import ServerSettings
from .options import BUILD, FleetOptions

if TYPE_CHECKING:
    from .remote import FleetShelf

# The kernel ends Ray's processes with the thread that started them, and this one lives as long as the process
STARTER = ThreadPoolExecutor(1, "l2c-ray")

LIBRARIES = ("ray", "ray.serve")  # that log in this process


@contextlib.contextmanager
def fleet(options: FleetOptions, settings: ServerSettings) -> Iterator[FleetShelf]:
    """Models whose samplers start when they are loaded, and end here; what Ray logs and replicas print is log, too."""
    with json_lines(LIBRARIES), contextlib.redirect_stdout(sys.stderr):
        try:
            yield _application().shelf_of(options, settings, lambda: start(options))
        finally:
            stop()


def start(options: FleetOptions) -> dict[str, Any]:
    """Ray, and in it the samplers: their handles.  Raises what `deploy` does."""
    STARTER.submit(_start, options).result()
    return deploy(options)


def deploy(options: FleetOptions) -> dict[str, Any]:
    """The samplers as they are described now, in the place of what runs: their handles, by model.

    Raises RunError where they do not start, and what reading the manifests does.
    """
    samplers = _application().samplers_of(options)
    try:
        handles = serve.run_many([serve.RunTarget(application, name, None) for name, application in samplers.items()])
    except RuntimeError as error:
        raise RunError(f"the fleet could not be deployed: {first_line(error)}: its log says why") from None
    return dict(zip(samplers, handles, strict=True))


def stop() -> None:
    """Ray and all that is in it, whatever it does."""
    STARTER.submit(ray.shutdown).result()


def _application() -> Any:
    """What a fleet is made of, by the name that Ray imports."""
    return import_module(BUILD.partition(":")[0])


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
