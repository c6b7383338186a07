"""`l2c schedule calibrate`: what a method would decide while it runs, as a schedule."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from ..support.extras import needs
from .choices import GUIDANCE, METHODS, TRAINED
from .console import Command, print_json, say
from .options import FILE, Choice, group, option, samplers


class Numbers(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.2 on
    """Numbers with commas between: "1.5,0"."""

    name = "A,B,.."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        if not re.fullmatch(r"[-+0-9.eE]+(,[-+0-9.eE]+)*", value):
            raise click.UsageError(f"{param.opts[0] if param else ''} {value}: use numbers with commas between, as 1.5,0", ctx)
        try:
            return tuple(map(float, value.split(",")))
        except ValueError:
            raise click.UsageError(f"{param.opts[0] if param else ''} {value}: use numbers, as 1.5,0", ctx) from None


@click.command(
    cls=Command,
    example="l2c schedule calibrate --method teacache --threshold 0.1 --model demo --steps 50 --out schedule.json",
)
@group(
    "The method",
    option("--method", type=Choice(METHODS), required=True, help=f"One of {', '.join(METHODS)}."),
    option("--threshold", type=float, required=True, help="The change, or error, below which a call is skipped."),
    option("--polynomial", type=Numbers(), help="Of teacache: what rescales a change, the highest power first. [default: 1,0]"),
    option("--max-skips", type=int, help="Of magcache: calls that are skipped in a row. [default: 5]"),
    option("--retention", type=float, help="Of magcache: the share of the calls that is computed at first. [default: 0.1]"),
)
@group(
    "The model and its trajectories",
    option("--model", help="As for l2c train."),
    option("--weights", help="As for l2c train."),
    option("--steps", type=int, required=True, help="Sampling steps (DiT) or network evaluations (U-ViT)."),
    option("--sampler", shell_complete=samplers, help="As for l2c-export. [default: the family's]"),
    option("--data", default="self", metavar="DATA", help="What is asked of a model that takes more than labels: an .npz."),
    option("--batch", type=int, default=8, help="Trajectories."),
    option("--seed", type=int, default=0, help="Of their noise."),
    option("--guidance", type=Choice(GUIDANCE), help="Which latent channels are guided. [default: the family's]"),
    option("--guidance-scale", type=float, help="[default: the model's]"),
    option("--precision", type=Choice(TRAINED), default="fp32"),
    option("--device", type=Choice(("cpu", "cuda")), help="[default: cuda where there is one]"),
)  # fmt: skip
@option("--out", type=FILE, required=True, help="The schedule.json that is written.")
def calibrate(method: str, threshold: float, polynomial: tuple[float, ...] | None, max_skips: int | None,
              retention: float | None, sampler: str | None, out: Path, as_json: bool, **options: Any) -> None:  # fmt: skip
    """Make a method static that decides while it runs, by trajectories of the model."""
    for package, extra in (("torch", "train"), ("accelerate", "train"), ("onnx", "export")):
        needs(package, extra)
    from ..support.files import check_place, write
    from ..training import online
    from ..training.options import TrainingOptions

    check_place(out, "out")
    settings = {"polynomial": polynomial, "max_skips": max_skips, "retention": retention}
    chosen = online.OnlineMethod(method, threshold, **{name: value for name, value in settings.items() if value is not None})  # type: ignore[arg-type]
    schedule = online.calibrate(chosen, TrainingOptions(out=out, **options), sampler, say)
    write(out, schedule.to_json(), "out")
    say(f"{out}: written")
    if as_json:
        print_json({"out": str(out), "schedule": schedule})
