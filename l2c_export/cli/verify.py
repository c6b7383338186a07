"""`l2c verify`: is it right?"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ..errors import UsageError
from ..support.extras import needs
from . import options
from .console import Command, print_json, say
from .options import ENGINES, FOLDER, group, option, split_labels
from .tables import print_table


@click.command(cls=Command, example="l2c verify engines --class-label 207,360")
@click.argument("engines", type=ENGINES)
@group(
    "What is compared",
    options.class_labels(help="Numbers or names. [default: as many as the batch]"),
    options.guidance_scale,
    option("--seed", type=int, default=0, help="Of the noise."),
    option("--steps", type=int, help="The programs with so many steps, of all sizes. [default: all]"),
    option("--weights", type=click.Path(path_type=Path), help="Compare with this checkpoint. [default: the artefact's own]"),
    option("--golden", type=FOLDER, help="A recorded run: config.json and golden.npz."),
    option("--find-bf16", is_flag=True, help="Of fp8: find the sublayers whose products lose most, instead."),
)
@group("What is allowed", options.atol, options.rtol)
@group("Where it runs", options.backend, options.device, options.threads)
def verify(engines: Path, labels: tuple[str, ...], guidance_scale: float | None, seed: int, steps: int | None,
           weights: Path | None, golden: Path | None, find_bf16: bool, atol: float | None, rtol: float | None,
           backend: str | None, device: str | None, threads: int | None, as_json: bool) -> None:  # fmt: skip
    """Compare every call of every program with the cached PyTorch model in float64; exit code 1 if one leaves the tolerance."""
    needs("torch", "export")
    if find_bf16:
        others = {"--class-label": labels, "--guidance-scale": guidance_scale, "--seed": seed, "--weights": weights,
                  "--golden": golden, "--atol": atol, "--rtol": rtol, "--backend": backend, "--device": device,
                  "--threads": threads}  # fmt: skip
        if asked := next((name for name, value in others.items() if value), None):
            raise UsageError(f"--find-bf16: follows a usual request in PyTorch: leave out {asked}")
        print_lossy(engines, steps, as_json)
        return
    from ..ir.inputs import names_of
    from ..runtime.pipeline import load
    from ..verification import compare
    from ..verification.error import check_tolerances

    check_tolerances(atol=atol, rtol=rtol)
    pipe = load(engines, backend, device, threads)
    chosen = split_labels(labels, names_of(pipe.manifest.inputs)) or None
    verdict = compare.verify(pipe, class_labels=chosen, guidance_scale=guidance_scale, seed=seed, weights=weights,
                             golden=golden, atol=atol, rtol=rtol, steps=steps)  # fmt: skip
    for line in compare.basis(pipe.manifest):
        say(line)
    if as_json:
        print_json(verdict)
    else:
        for entry in (verdict, *verdict.others):
            program = f", program {entry.program}" if verdict.others else ""
            print_table(f"{engines}{program} against cached PyTorch in float64, {pipe.backend}", compare.table(entry))
    say(compare.summary(verdict))
    if not verdict.passed:
        sys.exit(1)


def print_lossy(engines: Path, steps: int | None, as_json: bool) -> None:
    """Print what every sublayer's products in e4m3 change, and which to keep in bf16."""
    from ..verification.products import lossy

    losses = lossy(engines, steps)
    if as_json:
        print_json(losses._asdict())
    else:
        rows = [(name, f"{share:.1%}", "yes" if name in losses.bf16 else "") for name, share in losses.shares.items()]
        print_table(f"{engines}: what products in e4m3 change", [("sublayer", "of the change", "bf16"), *rows])
    say(losses.summary)
