"""`l2c triton`: a model repository for NVIDIA's Triton Inference Server."""

from __future__ import annotations

from pathlib import Path

import click

from . import options
from .console import Command, print_json, say
from .options import group, option


@click.command(cls=Command, example="l2c triton engines/digits engines/dogs --out models")
@click.argument("engines", type=options.FOLDER, nargs=-1, metavar="ENGINES [..]")
@group(
    "What is written",
    options.shipped,
    option("--out", type=options.FOLDER, required=True, help="The repository; models of other artefacts there stay."),
    option("--previews/--no-previews", default=True, help="A second model of each artefact, which streams previews."),
)
@group(
    "How the server runs it",
    options.backend,
    options.device,
    options.threads,
    option("--trust", is_flag=True, help="Do not hash the weights when they are loaded."),
    option("--max-queue", type=int, default=32, help="More requests that wait are refused."),
    option("--max-wait-ms", type=float, default=5, help="So long a batch waits to be filled."),
)
def triton(engines: tuple[Path, ...], model: str | None, out: Path, previews: bool, backend: str | None, device: str | None,
           threads: int | None, trust: bool, max_queue: int, max_wait_ms: float, as_json: bool) -> None:  # fmt: skip
    """Write a repository that a stock Triton server loads: a model of each artefact, and one that streams previews."""
    from ..compiler.artefact import compile
    from ..serving.shipped import artefact_of
    from ..serving.triton import TritonOptions, write_repository

    named = {model: artefact_of(model, compile, say)} if model else {}
    if not engines and not named:
        raise click.UsageError("Missing argument 'ENGINES', or '--model demo'.")
    chosen = TritonOptions(backend, device, threads, not trust, max_queue, max_wait_ms, previews)
    models = write_repository(engines, out, chosen, say, named)
    say(f"{out}: {', '.join(models)}")
    if as_json:
        print_json({"out": str(out), "models": models})
