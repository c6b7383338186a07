"""`l2c link`: weights are bound to an artefact, or swapped."""

from __future__ import annotations

from pathlib import Path

import click

from .console import Command, print_json, say
from .options import ENGINES, lora, option
from .progress import bars


@click.command(
    cls=Command, example="l2c link engines --weights DiT-XL-2-256x256.pt\nl2c link engines --lora style.safetensors:0.8"
)
@click.argument("engines", type=ENGINES)
@option(
    "--weights",
    help="A checkpoint (.safetensors, .index.json, .pt), a folder of diffusers, or random[:SEED]. [default: with "
    "--lora those that are bound]",
)
@lora
def link(engines: Path, weights: str | None, lora: tuple[str, ...], as_json: bool) -> None:
    """Bind weights to an artefact, or swap them, or merge LoRAs into them; nothing is exported or built again."""
    from ..compiler.artefact import link as bind

    with bars() as shown:
        artefact = bind(engines, weights, lora=lora, report=say, progress=shown.progress)
    bound, random = artefact.manifest.denoiser.weights, artefact.random_weights
    if bound and random:
        say(f"RANDOM weights, seed {bound.random}: good for latency, the images mean nothing")
    if as_json:
        told = {"out": str(engines), "weights": weights, "lora": list(lora)}
        print_json({**told, "bytes": artefact.bytes, "random_weights": random})
