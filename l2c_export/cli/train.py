"""The command that learns a schedule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from .console import FOLDER, command, progress, say


@click.command(context_settings={"show_default": True})
@click.option("--weights", help="The model's checkpoint (.safetensors, .pt), or random[:SEED] to time it.")
@click.option("--steps", type=int, required=True, help="Sampling steps (DiT) or network evaluations (U-ViT) of the schedule.")
@click.option(
    "--data",
    required=True,
    help="An .npz with `latents` or `images`, and `labels`; a folder of fast-DiT's; or self: its own trajectories.",
)
@click.option("--out", type=FOLDER, default=Path("routers"), help="Where the router goes.")
@click.option("--model", help="A name (DiT-XL/2, U-ViT-H/2, demo) or a JSON file with family and arch. [default: what fits]")
@click.option("--lambda", "lambda_", type=float, help="The price of computing a sublayer. [default: 5e-6, or for the target]")
@click.option("--threshold", type=float, help="A sublayer runs if its score is above this. [default: 0.1 DiT 256 px, else 0.9]")
@click.option("--target-reduction", type=float, help="Remove this share of the cached calls' sublayers, such as 0.4.")
@click.option("--error", default="latents", help="What is kept small, of the final latents; or of the output, as in the paper.")
@click.option("--iterations", type=int, default=500, help="Each trains every cached call on one batch.")
@click.option("--batch", type=int, default=8, help="Images of a batch; with several GPUs, of all together.")
@click.option("--lr", type=float, default=0.01, help="AdamW's learning rate.")
@click.option("--seed", type=int, default=0, help="Of the first logits, and of all noise.")
@click.option("--guidance", help="As it will be sampled: first3, all or none. [default: the family's]")
@click.option("--guidance-scale", type=float, help="As it will be sampled. [default: 4 for DiT, 1.4 for U-ViT]")
@click.option("--precision", default="fp32", help="fp32, bf16 or fp16: of the frozen model; scores are float32.")
@click.option("--device", help="cpu or cuda. [default: cuda where there is one]")
@click.option(
    "--checkpoint-every", type=int, default=50, help="Iterations between checkpoints, where a killed training goes on."
)
@click.option("--json", "as_json", is_flag=True, help="Print a summary as JSON.")
@command
def train(as_json: bool, **options: Any) -> None:
    """Learn which sublayers may be reused, for a frozen model; writes a router and its schedule.

    Several GPUs: torchrun --standalone --nproc-per-node 2 -m l2c_export train ..
    """
    from ..support.extras import needs

    for package in ("torch", "accelerate", "matplotlib"):
        needs(package, "train")
    from ..training.options import TrainingOptions
    from ..training.result import finish
    from ..training.train import Training

    training = Training(TrainingOptions(**options), say)
    with progress("training", training.left) as step:
        training.run(step)
    found = finish(training)
    if not training.workers.leads:
        return
    if found.steps_per_second:
        memory = f", {found.peak_gpu_bytes / 2**30:.1f} GiB" if found.peak_gpu_bytes else ""
        say(f"{found.seconds:.0f} s, {found.steps_per_second:.3g} steps per second on {found.device}{memory}")
    say(
        f"{found.out}: threshold {found.threshold:.9g} removes {found.removed:.1%} of the cached calls' sublayers "
        f"({found.removed_of_all:.1%} of all); error of the latents {found.error:.2%}"
    )
    say(f"compile it with l2c-export --schedule {found.out}/schedule.json, or router.pt --threshold {found.threshold:.9g}")
    if as_json:
        click.echo(msgspec.json.encode(found))
