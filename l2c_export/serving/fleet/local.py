"""A fleet on this machine alone: a Ray of its own, which ends with it."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
from importlib import import_module
from typing import Any

import msgspec

from ...errors import L2CError, RunError
from ...support.log import LOG
from ...support.own_ray import ALONE
from ...support.words import first_line
from ..http.logs import json_lines
from .options import BUILD, FleetOptions

APP = "l2c"
LATE = 10  # seconds in which a front answers that answers at all


def run(options: FleetOptions, host: str, port: int) -> dict[str, dict[str, int]]:
    """Serve until SIGTERM or SIGINT, and finish what was accepted; SIGHUP deploys again, one replica after another.

    Returned is what became of the images that were asked for, by model.  Raises RunError where the replicas do not
    start, and what reading the manifests does.
    """
    with json_lines(), contextlib.redirect_stdout(sys.stderr):  # what replicas print is log, too
        ended, again = threading.Event(), threading.Event()
        start(options, host, port)
        try:
            for number, event in ((signal.SIGTERM, ended), (signal.SIGINT, ended), (signal.SIGHUP, again)):
                signal.signal(number, lambda *_, event=event: event.set())
            LOG.info("ready", extra={"facts": {"url": f"http://{host}:{port}", "models": list(options.models)}})
            while not ended.wait(0.2):
                if again.is_set():
                    again.clear()
                    deploy_again(options)
            return drain(options.drain_seconds)
        finally:
            stop()


def start(options: FleetOptions, host: str, port: int) -> None:
    """Ray and the fleet, when it can be asked."""
    import ray

    needed = options.cores_each * options.replicas * len(options.models) + 1
    gpus = options.gpus * options.replicas * len(options.models)
    ray.init(
        "local",
        num_cpus=2 * needed,  # room for a second fleet while the first is exchanged; Ray only counts them
        num_gpus=gpus or None,
        logging_level=logging.WARNING,
        **ALONE,
    )
    listen(host, port)
    deploy(options)


def listen(host: str, port: int) -> None:
    from ray import serve

    serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port})


def deploy(options: FleetOptions) -> None:
    """The fleet as it is described now, in the place of what runs.  Raises RunError where its replicas do not start."""
    from ray import serve

    module, _, build = BUILD.partition(":")
    args: dict[str, Any] = msgspec.to_builtins(options)
    try:
        application = getattr(import_module(module), build)(args)
        serve.run(application, name=APP, route_prefix="/")
    except RuntimeError as error:
        raise RunError(f"the fleet could not be deployed: {first_line(error)}: its log says why") from None


def deploy_again(options: FleetOptions) -> None:
    """A fleet that cannot be exchanged is no reason to end: its log says what is wrong."""
    try:
        deploy(options)
    except L2CError as error:
        LOG.error("deploying again failed: %s", error)


def drain(seconds: float) -> dict[str, dict[str, int]]:
    """Let the front finish what was accepted: its counts."""
    from ray import serve

    LOG.info("draining", extra={"facts": {"drain_seconds": seconds}})
    finished = serve.get_app_handle(APP).drain.remote(seconds).result(timeout_s=seconds + LATE)
    counted = counts()
    LOG.info("drained" if finished else "stopped in the middle of a batch", extra={"facts": {"images": counted}})
    return counted


def counts() -> dict[str, dict[str, int]]:
    """What became of the images that the front was asked for, by model."""
    from ray import serve

    counted: dict[str, dict[str, int]] = serve.get_app_handle(APP).counts.remote().result(timeout_s=LATE)
    return counted


def stop() -> None:
    import ray
    from ray import serve

    serve.shutdown()  # type: ignore[no-untyped-call]
    ray.shutdown()
