"""`l2c train`: learns a schedule."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from ..support.extras import needs
from .choices import DEVICES, ERRORS, GUIDANCE, LEVELS, TRAINED
from .console import Command, print_json, say
from .options import FOLDER, Choice, group, option, samplers
from .progress import bars
from .tables import print_table


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
    option("--error", type=Choice(ERRORS),
           help="What is kept small: the error of the final latents, or of the output as in the paper. [default: latents]"),
)  # fmt: skip
@group(
    "Under a rule, in place of a router",
    option("--rule", help="How what is not computed follows: reuse, or taylor:M, a forecast of order M."),
    option("--every", type=int, metavar="K", help="One call of so many is full; what the others compute is learned."),
    option("--full-calls", metavar="RULE", help="In place of --every: full:0,A,B,.., as a search found them."),
    option("--full-first", type=int, help="So many calls at the start are full. [default: the rule's order + 1]"),
    option("--full-last", type=int, help="And so many at the end. [default: 0]"),
    option("--level", type=Choice(LEVELS), help="What follows: every sublayer, what all blocks add together, or the model's "
           "output. [default: sublayer]"),
    option("--learn-coefficients", is_flag=True, help="Of what follows, beginning with the rule's own."),
    option("--search", is_flag=True, help="Try full calls, orders and levels instead; writes a frontier of schedules."),
    option("--times-on", type=Choice(DEVICES), help="With --search: where times are predicted for. [default: cpu]"),
)  # fmt: skip
@group(
    "As it will be sampled",
    option("--sampler", shell_complete=samplers, help="With --rule or --search: as for l2c-export. [default: the family's]"),
    option("--guidance", type=Choice(GUIDANCE), help="Which latent channels are guided. [default: the family's]"),
    option("--guidance-scale", type=float, help="[default: 4 for DiT, 1.4 for U-ViT]"),
)
@group(
    "How it is trained",
    option("--iterations", type=int, help="Each trains every cached call on one batch; of a search, schedules that are tried. "
           "[default: 500, 100 under a rule, 200 of a search]"),
    option("--batch", type=int, default=8, help="Images of a batch; with several GPUs, of all together."),
    option("--lr", type=float, help="AdamW's learning rate. [default: 0.01, 0.02 under a rule]"),
    option("--seed", type=int, default=0, help="Of the first logits, and of all noise."),
    option("--precision", type=Choice(TRAINED), default="fp32", help="Of the frozen model; scores are float32."),
    option("--device", type=Choice(("cpu", "cuda")), help="[default: cuda where there is one]"),
    option("--checkpoint-every", type=int, help="Iterations between checkpoints, where a killed training goes on, but not "
           "under a rule. [default: 50]"),
)  # fmt: skip
@group("Where the results go", option("--out", type=FOLDER, default="routers", help="The folder of the router."))
def train(as_json: bool, **options: Any) -> None:
    """Learn which sublayers may be reused or forecast, for a frozen model; writes a router or a schedule.

    Several GPUs: torchrun --standalone --nproc-per-node 2 -m l2c_export train, and the options.
    """
    for package in ("torch", "accelerate", "matplotlib"):
        needs(package, "train")
    from ..training.train import train as learn

    with bars() as shown:
        result = learn(**options, report=say, progress=shown.progress)
    if os.environ.get("RANK", "0") != "0":  # of the processes of torchrun the first speaks
        sys.stderr.flush()
        os._exit(0)  # at once: a thread of Gloo's that still ends makes an abort of a Python that does, too
    if as_json:
        print_json(result)
    elif options["search"]:
        print_table(f"{result.out}: the frontier", result.table())  # type: ignore[union-attr]  # what a search returns
