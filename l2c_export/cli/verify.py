"""`l2c verify`: is it right?"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path

import click

from ..errors import UsageError
from .console import FOLDER, command, print_table, say

TOLERANCE = click.FloatRange(min=0, max=1e9)


@click.command(context_settings={"show_default": True})
@click.argument("engines", type=FOLDER)
@click.option(
    "--class-label", "labels", multiple=True, help="A number or a name; repeat for more. [default: as many as the batch]"
)
@click.option("--guidance-scale", type=float, help="[default: the artefact's]")
@click.option("--seed", type=int, default=0)
@click.option(
    "--weights", type=click.Path(path_type=Path), help="Compare with this checkpoint. [default: the artefact's own weights]"
)
@click.option("--golden", type=FOLDER, help="A recorded run: config.json and golden.npz.")
@click.option("--atol", type=TOLERANCE, help="[default: 3e-5 fp32, 2e-2 fp16, 5e-2 bf16]")
@click.option("--rtol", type=TOLERANCE, help="The same, times the largest latent.")
@click.option("--backend", help="[default: what the artefact was compiled for]")
@click.option("--device", help="[default: cpu]")
@click.option("--threads", type=int, help="[default: all cores]")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@command
def verify(engines: Path, labels: tuple[str, ...], guidance_scale: float | None, seed: int, weights: Path | None,
           golden: Path | None, atol: float | None, rtol: float | None, backend: str | None, device: str | None,
           threads: int | None, as_json: bool) -> None:  # fmt: skip
    """Compare every call with the cached PyTorch model in float64; exit code 1 if one leaves the tolerance."""
    from ..runtime import pipeline
    from ..support.extras import needs

    needs("torch", "export")
    from ..pytorch import reference
    from ..verification import compare

    for name, value in (("atol", atol), ("rtol", rtol)):
        if value is not None and math.isnan(value):
            raise UsageError(f"--{name} {value}: must be a number of at least 0")
    pipe = pipeline.load(engines, backend, device, threads)
    model = pipe.manifest.model
    if golden:
        asked = reference.of_case(golden, engines, pipe.manifest, weights)
    else:
        chosen = pipe.labels(labels) if labels else [(207 + n) % model.labels for n in range(pipe.manifest.batch)]
        scale = pipe.manifest.guidance.scale if guidance_scale is None else guidance_scale
        asked = reference.Reference(engines, pipe.manifest, pipe.noise(len(chosen), seed), chosen, scale, weights)
    verdict = compare.verify(pipe, asked, atol, rtol)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(verdict)))
    else:
        print_table(f"{engines} against cached PyTorch in float64, {pipe.backend}", compare.table(verdict))
    for line in compare.basis(pipe.manifest):
        say(line)
    say(compare.summary(verdict))
    if not verdict.passed:
        sys.exit(1)
