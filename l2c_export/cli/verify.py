"""`l2c verify`: is it right?"""

from __future__ import annotations

import sys
from pathlib import Path

import click

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
)
@group("What is allowed", options.atol, options.rtol)
@group("Where it runs", options.backend, options.device, options.threads)
def verify(engines: Path, labels: tuple[str, ...], guidance_scale: float | None, seed: int, steps: int | None,
           weights: Path | None, golden: Path | None, atol: float | None, rtol: float | None, backend: str | None,
           device: str | None, threads: int | None, as_json: bool) -> None:  # fmt: skip
    """Compare every call of every program with the cached PyTorch model in float64; exit code 1 if one leaves the tolerance."""
    needs("torch", "export")
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
