"""`l2c train`: learns a schedule."""

from __future__ import annotations

import os
from typing import Any

import click

from ..support.extras import needs
from .choices import ERRORS, GUIDANCE, PRECISIONS
from .console import Command, print_json, say
from .options import FOLDER, Choice, group, option
from .progress import bars


@click.command(cls=Command, example="l2c train --model demo --steps 20 --data self")
@group(
    "The model and its data",
    option("--model", help="A name (DiT-XL/2, U-ViT-H/2, demo) or a JSON file with family and arch. [default: what fits]"),
    option("--weights", help="The model's checkpoint (.safetensors, .pt), or random[:SEED] to time it."),
    option("--steps", type=int, required=True, help="Sampling steps (DiT) or network evaluations (U-ViT) of the schedule."),
    option("--data", required=True, metavar="DATA",
           help="An .npz with `latents` or `images`, and `labels`; a folder of fast-DiT's; or self: its own trajectories."),
)  # fmt: skip
@group(
    "What is removed",
    option("--target-reduction", type=float, help="Remove this share of the cached calls' sublayers, such as 0.4."),
    option("--threshold", type=float, help="A sublayer runs if its score is above this. [default: 0.1 DiT 256 px, else 0.9]"),
    option("--lambda", "lambda_", type=float, help="The price of computing a sublayer. [default: 5e-6, or for the target]"),
    option("--error", type=Choice(ERRORS), default="latents",
           help="What is kept small: the error of the final latents, or of the output as in the paper."),
)  # fmt: skip
@group(
    "As it will be sampled",
    option("--guidance", type=Choice(GUIDANCE), help="Which latent channels are guided. [default: the family's]"),
    option("--guidance-scale", type=float, help="[default: 4 for DiT, 1.4 for U-ViT]"),
)
@group(
    "How it is trained",
    option("--iterations", type=int, default=500, help="Each trains every cached call on one batch."),
    option("--batch", type=int, default=8, help="Images of a batch; with several GPUs, of all together."),
    option("--lr", type=float, default=0.01, help="AdamW's learning rate."),
    option("--seed", type=int, default=0, help="Of the first logits, and of all noise."),
    option("--precision", type=Choice(PRECISIONS), default="fp32", help="Of the frozen model; scores are float32."),
    option("--device", type=Choice(("cpu", "cuda")), help="[default: cuda where there is one]"),
    option("--checkpoint-every", type=int, default=50, help="Iterations between checkpoints, where a killed training goes on."),
)
@group("Where the results go", option("--out", type=FOLDER, default="routers", help="The folder of the router."))
def train(as_json: bool, **options: Any) -> None:
    """Learn which sublayers may be reused, for a frozen model; writes a router and its schedule.

    Several GPUs: torchrun --standalone --nproc-per-node 2 -m l2c_export train, and the options.
    """
    for package in ("torch", "accelerate", "matplotlib"):
        needs(package, "train")
    from ..training.train import train as learn

    with bars() as shown:
        found = learn(**options, report=say, progress=shown.progress)
    if as_json and os.environ.get("RANK", "0") == "0":  # the first of the processes of torchrun
        print_json(found)
