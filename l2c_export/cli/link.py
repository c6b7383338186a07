"""`l2c link`: weights are bound to an artefact, or swapped."""

from __future__ import annotations

from pathlib import Path

import click

from .console import FOLDER, command, say


@click.command()
@click.argument("engines", type=FOLDER)
@click.option(
    "--weights", required=True, help="A checkpoint (.safetensors, .index.json, .pt), a folder of diffusers, or random[:SEED]."
)
@command
def link(engines: Path, weights: str) -> None:
    """Bind weights to an artefact, or swap them; nothing is exported or built again."""
    from ..compiler.link import bind

    result = bind(engines, weights, say)
    if result.weights and result.weights.random is not None:
        say(f"RANDOM weights, seed {result.weights.random}: good for latency, the images mean nothing")
    say(f"{engines}: linked with {weights}")
