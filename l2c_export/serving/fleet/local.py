"""A fleet on this machine alone: the server's own process is its front, and the samplers are in a Ray that ends with it."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import TYPE_CHECKING, Any

import ray
from ray import serve

from ...errors import RunError
from ...support.own_ray import ALONE
from ..http.logs import json_lines
from ..http.settings import ServerSettings
from .options import BUILD, FleetOptions

if TYPE_CHECKING:
    from .remote import FleetShelf

LIBRARIES = ("ray", "ray.serve")  # that log in this process
LOOK = 0.2  # seconds between two looks at whether the samplers have started


@contextlib.contextmanager
def fleet(options: FleetOptions, settings: ServerSettings) -> Iterator[FleetShelf]:
    """Models whose samplers start when they are loaded, and end here; what Ray logs and replicas print is log, too.

    One thread starts and ends Ray, so that nothing asks for Ray when it has ended, which would start another one; and the
    kernel ends Ray's processes with the thread that started them.
    """
    ended = threading.Event()
    with (
        json_lines(LIBRARIES), contextlib.redirect_stdout(sys.stderr), ThreadPoolExecutor(1, "l2c-ray") as starter,
    ):  # fmt: skip
        try:
            yield _application().shelf_of(options, settings, lambda: starter.submit(start, options, ended).result())
        finally:
            if hasattr(signal, "alarm"):
                signal.alarm(0)  # a SIGTERM that Ray's own handler got, while Ray started, would abort us 3 s later
            ended.set()
            starter.submit(ray.shutdown).result()


def start(options: FleetOptions, ended: threading.Event) -> dict[str, Any]:
    """Ray, and in it the samplers: their handles.  Raises what `deploy` does."""
    replicas = options.replicas * len(options.models)
    twice = 2 * options.cores_each * replicas  # room for those that take the place of others, deployed again; Ray only counts
    if not ended.is_set():
        level = logging.ERROR  # it warns that it leaves SIGTERM alone, which is the server's
        ray.init("local", num_cpus=twice, num_gpus=options.gpus * replicas or None, logging_level=level, **ALONE)
        logging.getLogger("ray").setLevel(logging.WARNING)
        serve.start(proxy_location="Disabled")
    return deploy(options, ended)


def deploy(options: FleetOptions, ended: threading.Event) -> dict[str, Any]:
    """The samplers as they are described now, in the place of what runs: their handles, by model, when all of them draw.

    Raises RunError where they do not start, or it has ended before, and what reading the manifests does.
    """
    samplers = _application().samplers_of(options)
    if not ended.is_set():
        targets = [serve.RunTarget(application, name, None) for name, application in samplers.items()]
        handles = dict(zip(samplers, serve.run_many(targets, wait_for_applications_running=False), strict=True))
    while not ended.wait(LOOK):
        states = [serve.status().applications[name] for name in samplers]
        for state in states:
            if state.status == "DEPLOY_FAILED":
                said = state.message.partition("\n")[0].rstrip(".")
                raise RunError(f"the fleet could not be deployed: {said}: its log says why")
        if all(state.status == "RUNNING" for state in states):
            return handles
    raise RunError("the fleet was ended before it was deployed")


def _application() -> Any:
    """What a fleet is made of, by the name that Ray imports."""
    return import_module(BUILD.partition(":")[0])
