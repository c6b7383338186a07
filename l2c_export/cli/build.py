"""`l2c build` and `l2c remove`: the engines for GPUs that an artefact holds."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .choices import BUILT, PREPARED, TARGETS
from .console import Command, print_json, say
from .options import ENGINES, FILE, Choice, group, option
from .progress import bars

if TYPE_CHECKING:
    from ..artefact.manifest import Manifest


@click.command(cls=Command, example="l2c build engines --backend tensorrt-rtx --target sm86,sm120")
@click.argument("engines", type=ENGINES)
@group(
    "What is built",
    option("--backend", type=Choice(BUILT), required=True, help=f"{', '.join(TARGETS)} needs no GPU to build; "
           f"{', '.join(PREPARED)} adds nothing to the artefact: kernels are in the user's cache."),
    option("--target", "targets", metavar="GPU,..", help=f"{', '.join((*TARGETS, *PREPARED))}: for these GPUs. "
           f"[default: {'; '.join(map(','.join, TARGETS.values()))}; {', '.join(PREPARED)}: the one here]"),
    option("--batch", metavar="MIN:OPT:MAX", help="Images. [default: 1:N:N, N being what the artefact was compiled for]"),
)  # fmt: skip
@group(
    "How it is built",
    option("--optimization-level", "level", type=click.IntRange(0, 5), help="More builds slower. [default: the library's]"),
    option("--timing-cache", type=FILE, help="Measured kernels are kept here. [default: one per GPU, in the user's cache]"),
    option("--version-compatible", is_flag=True, help="Runs with later releases of the same major version, too."),
    option("--hardware-compatible", is_flag=True, help="Runs on every GPU from Ampere on, more slowly."),
)
def build(engines: Path, backend: str, targets: str | None, as_json: bool, **choices: Any) -> None:
    """Add engines for a GPU to an artefact; torch and onnx are not needed."""
    from ..compiler.artefact import build as add

    started = time.perf_counter()
    chosen = targets.split(",") if targets else ()
    with bars() as shown:
        artefact = add(engines, backend, targets=chosen, **choices, report=say, progress=shown.progress, watch=shown.watch)
    if as_json:
        seconds = time.perf_counter() - started
        print_json({"out": str(engines), "seconds": seconds, "builds": builds_of(artefact.manifest)})


def builds_of(manifest: Manifest) -> dict[str, dict[str, int]]:
    return {name: {"engines": len(b.engines), "bytes": sum(manifest.files[f].bytes for f in b.engines.values())}
            for name, b in manifest.builds.items()}  # fmt: skip


@click.command(cls=Command, example="l2c remove engines tensorrt-10.13.3-sm90")
@click.argument("engines", type=ENGINES)
@click.argument("builds", nargs=-1, required=True, metavar="BUILD...")
def remove(engines: Path, builds: tuple[str, ...], as_json: bool) -> None:
    """Take builds out of an artefact, by the names that l2c inspect gives them."""
    from ..backends.builds import remove as take

    result = take(engines, builds, say)
    if as_json:
        print_json({"out": str(engines), "removed": builds, "builds": builds_of(result)})
