"""`l2c link`: weights are bound to an artefact, or swapped."""

from __future__ import annotations

from pathlib import Path

import click

from .console import Command, print_json, say
from .options import FOLDER, option


@click.command(cls=Command, example="l2c link engines --weights DiT-XL-2-256x256.pt")
@click.argument("engines", type=FOLDER)
@option(
    "--weights", required=True, help="A checkpoint (.safetensors, .index.json, .pt), a folder of diffusers, or random[:SEED]."
)
def link(engines: Path, weights: str, as_json: bool) -> None:
    """Bind weights to an artefact, or swap them; nothing is exported or built again."""
    from ..compiler.link import bind

    result = bind(engines, weights, say)
    random = result.weights is not None and result.weights.random is not None
    if random and result.weights:
        say(f"RANDOM weights, seed {result.weights.random}: good for latency, the images mean nothing")
    say(f"{engines}: linked with {weights}")
    if as_json:
        print_json({"out": str(engines), "weights": weights, "random_weights": random})
