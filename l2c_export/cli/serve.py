"""`l2c serve`: images over HTTP, by OpenAI's images API, and a page that draws."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError
from . import fleet, options
from .console import Command, print_json, say
from .options import FILE, Choice, group, option

if TYPE_CHECKING:
    from ..serving.http.shelf import ServedPlace

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@click.command(cls=Command, example="l2c serve --model demo\nl2c serve cats=engines/cats engines/dogs --port 8080")
@click.argument("engines", nargs=-1, metavar="[NAME=]ENGINES [..]")
@group(
    "What is served",
    options.shipped,
    option("--max-batch", type=click.IntRange(1, 4096), metavar="IMAGES", help="In a batch at most. [default: the artefact's]"),
    option("--max-wait-ms", type=click.FloatRange(0, 60_000), default=5.0, help="How long a first request waits for others."),
    option("--max-queue", type=click.IntRange(1, 100_000), default=64, help="Images that may wait, per model."),
)
@group(
    "Where it listens",
    option("--host", default="127.0.0.1", help="An address; 0.0.0.0 is all of them."),
    option("--port", type=click.IntRange(0, 65535), default=8000),
    option("--allow-host", multiple=True, metavar="NAME", help="A name by which clients call it, besides localhost."),
    option("--api-key-file", type=FILE, metavar="FILE", help="Keys, one a line, of which clients show one."),
)
@group(
    "How it runs",
    options.backend,
    options.device,
    option("--cores", "threads", type=int, help="Processor cores that it computes with. [default: all]"),
    option("--drain-seconds", type=click.FloatRange(0, 3600), default=30.0, help="To finish what was accepted, at the end."),
    option("--trust-engines", is_flag=True, help="A reload may bring other engines for GPUs, which are programs."),
    option("--trust", is_flag=True, help="Do not hash the weights: for an artefact of one's own on one's own disk."),
)
@group(
    "Several processes",
    option("--replicas", type=click.IntRange(1, 1000), help="Processes that draw each model, by Ray Serve."),
    option("--gpus", type=click.IntRange(0, 1), default=0, help="GPUs of each of these processes."),
    option("--print-config", "config", type=Choice(("serve", "kuberay")), is_flag=False, flag_value="serve", metavar="[KIND]",
           help="Print the YAML that serve deploy takes, or KubeRay's (kuberay), and end."),
)  # fmt: skip
def serve(engines: Sequence[str], model: str | None, max_batch: int | None, max_wait_ms: float, max_queue: int, host: str,
          port: int, allow_host: tuple[str, ...], api_key_file: Path | None, backend: str | None, device: str | None,
          threads: int | None, drain_seconds: float, trust_engines: bool, trust: bool, replicas: int | None, gpus: int,
          config: str | None, as_json: bool) -> None:  # fmt: skip
    """Serve images over HTTP: OpenAI's images API, health, metrics, and a page that draws.

    SIGTERM finishes what was accepted and ends; SIGHUP loads the models again.  The log is JSON, a line each, on stderr.
    """
    from ..support.extras import needs

    for package in ("fastapi", "uvicorn", "prometheus_client", "PIL.Image"):
        needs(package, "serve")
    from ..compiler.artefact import compile
    from ..serving import shipped
    from ..serving.http.server import serve as run
    from ..serving.http.settings import ServerSettings, read_keys
    from ..serving.http.shelf import Shelf

    choices: dict[str, Any] = {"backend": backend, "device": device, "threads": threads, "verify": not trust}
    named = ([(model, shipped.artefact_of(model, compile, say))] if model else []) + [split(words) for words in engines]
    if not named:
        raise click.UsageError("Missing argument '[NAME=]ENGINES', or '--model demo'.")
    settings = ServerSettings(host, port, allow_host, max_queue, max_wait_ms / 1e3, max_batch, drain_seconds,
                        read_keys(api_key_file) if api_key_file else (), trust_engines)  # fmt: skip
    models: AbstractContextManager[Shelf] = nullcontext(one := Shelf(places(named, choices), settings))
    if replicas or gpus or config:
        told = fleet.options_of(one.places, settings, replicas or 1, gpus, api_key_file)
        if config:
            fleet.describe(told, settings, config, as_json)
            return
        models = fleet.models_of(told, settings)
    with models as shelf:
        run(shelf, settings)
    if as_json:
        print_json({"images": {name: served.engine.counts for name, served in shelf.models.items()}})


def split(words: str) -> tuple[str, Path]:
    """The name and the folder of NAME=FOLDER, or of a folder that is called as its model."""
    name, equals, folder = words.partition("=")
    if equals and NAME.fullmatch(name):
        return name, Path(folder)
    return Path(words).resolve().name, Path(words)


def places(named: Sequence[tuple[str, Path]], choices: dict[str, Any]) -> list[ServedPlace]:
    from ..serving.http.shelf import ServedPlace

    names = [name for name, _ in named]
    for name, folder in named:
        if not NAME.fullmatch(name) or names.count(name) > 1:
            raise UsageError(f"{folder}: cannot be served as {name!r}: give it another name, NAME={folder}")
    return [ServedPlace(name, folder, choices) for name, folder in named]
