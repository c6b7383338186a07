"""`l2c sample`: many images, in shards, by one process or by Ray Data."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from ..support.words import counted
from . import options
from .console import Command, print_json, say
from .options import FILE, FOLDER, Choice, group, option, split_labels
from .progress import bars


@click.command(
    cls=Command, example="l2c sample engines --count 50000 --out samples\nl2c sample engines --count 50000 --out samples --ray"
)
@click.argument("engines", type=FOLDER)
@group(
    "What is made",
    option("--count", type=int, help="Images. [default: one of each class, or of each prompt]"),
    options.class_labels(help="Images of these classes, in turn. [default: all that the model has]"),
    option("--prompts", type=FILE, help="Images of these prompts, in turn: a text file with one a line."),
    options.negative_prompt,
    options.guidance_scale,
    option("--seed", type=int, default=0, help="Image n has the noise of seed + n."),
    options.steps,
    options.size,
)
@group(
    "Where the results go",
    option("--out", type=FOLDER, required=True, help="A folder; what is in it already is not made again."),
    option("--format", type=Choice(("npz", "png")), default="npz", help="Of a shard: one .npz, or a folder of pictures."),
    option("--shard-size", type=int, default=256, help="Images of a shard, which is written whole or not at all."),
)
@group(
    "Where it runs",
    option("--ray", is_flag=True, help="Several processes, here or on the cluster of RAY_ADDRESS, with Ray Data."),
    option("--workers", type=int, help="So many processes. [default: what there are processors or GPUs for]"),
    options.backend,
    options.device,
    option("--threads", type=int, default=1, help="Of one process; their number may decide the last bits."),
    options.link,
    option("--trust", is_flag=True, help="Do not hash the weights: for an artefact of one's own on one's own disk."),
)  # fmt: skip
def sample(engines: Path, labels: tuple[str, ...], trust: bool, as_json: bool, **choices: Any) -> None:
    """Make many images, in shards; after an interruption the same command goes on."""
    from ..sampling.sample import sample as make

    started = time.perf_counter()
    with bars() as shown:
        result = make(engines, class_labels=named(engines, labels), verify=not trust, **choices, report=say,
                      progress=shown.progress)  # fmt: skip
    seconds = time.perf_counter() - started
    rest = "" if result.new == result.images else f", {result.images - result.new:,} were there"
    say(f"{choices['out']}: {counted(result.new, 'image')} in {seconds:.2f} s{rest}")
    if as_json:
        print_json({"out": str(choices["out"]), "images": result.images, "made": result.new, "shards": result.shards,
                    "seconds": seconds})  # fmt: skip


def named(engines: Path, labels: tuple[str, ...]) -> list[str] | None:
    """The labels of "1,2,3", by the names that the artefact has."""
    if not labels:
        return None
    from ..artefact import store
    from ..ir.inputs import names_of

    return split_labels(labels, names_of(store.read(engines, verify=False).inputs))
