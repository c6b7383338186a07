"""`l2c build` and `l2c remove`: the engines for GPUs that an artefact holds."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from .console import FILE, FOLDER, command, progress, say


@click.command()
@click.argument("engines", type=FOLDER)
@click.option("--backend", required=True, help="tensorrt, or tensorrt-rtx (which needs no GPU to build).")
@click.option("--target", "targets", help="tensorrt-rtx: for these GPUs. [default: sm86,sm89,sm120]")
@click.option("--batch", help="MIN:OPT:MAX images. [default: 1:N:N, N being what the artefact was compiled for]")
@click.option("--optimization-level", "level", type=click.IntRange(0, 5), help="More builds slower. [default: the library's]")
@click.option("--timing-cache", type=FILE, help="Measured kernels are kept here. [default: one per GPU, in the user's cache]")
@click.option("--version-compatible", is_flag=True, help="Runs with later releases of the same major version, too.")
@click.option("--hardware-compatible", is_flag=True, help="Runs on every GPU from Ampere on, more slowly.")
@click.option("--json", "as_json", is_flag=True, help="Print a summary as JSON.")
@command
def build(engines: Path, backend: str, targets: str | None, batch: str | None, timing_cache: Path | None, as_json: bool,
          **choices: Any) -> None:  # fmt: skip
    """Add engines for a GPU to an artefact; torch and onnx are not needed."""
    build_engines(engines, backend, tuple(targets.split(",")) if targets else (), batch, timing_cache, as_json, choices)


def build_engines(
    folder: Path, backend: str, targets: tuple[str, ...] = (), batch: str | None = None, timing_cache: Path | None = None,
    as_json: bool = False, choices: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    from ..artefact import store
    from ..backends import builds as backends_builds
    from ..backends import units
    from ..backends.tensorrt.builder import BuildSettings

    started = time.perf_counter()
    total = units.count(store.read(folder, verify=False))
    with progress("building engines", total) as step:
        settings = BuildSettings(targets=targets, **(choices or {}))
        result = backends_builds.build(folder, backend, settings, batch, timing_cache, say, step, step.within)
    if as_json:
        summary = {name: {"engines": len(b.engines), "bytes": sum(result.files[f].bytes for f in b.engines.values())}
                   for name, b in result.builds.items()}  # fmt: skip
        click.echo(json.dumps({"out": str(folder), "seconds": time.perf_counter() - started, "builds": summary}))


@click.command()
@click.argument("engines", type=FOLDER)
@click.argument("builds", nargs=-1, required=True, metavar="BUILD...")
@command
def remove(engines: Path, builds: tuple[str, ...]) -> None:
    """Take builds out of an artefact: tensorrt-8.6.0-sm90, as l2c inspect names them."""
    from ..backends import builds as backends_builds

    backends_builds.remove(engines, builds, say)
