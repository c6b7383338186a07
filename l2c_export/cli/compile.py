"""`l2c-export`: a schedule and a model become an artefact."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import click

from ..errors import UsageError
from . import build
from .console import FOLDER, OneLine, command, print_table, say


@click.command(cls=OneLine, context_settings={"show_default": True})
@click.option(
    "--schedule",
    help="A trained router (.pt), a schedule or a steps mask (.json), every:K, full:0,A,B,.. or mask:1,0,..; "
    "--model demo has its own: demo and demo:aggressive.",
)
@click.option("--out", type=FOLDER, default=Path("engines"), help="Where the artefact goes.")
@click.option(
    "--model",
    help="DiT-XL/2, U-ViT-H/2, DiT-S/4@512, demo, .., a pipeline folder or hub id of diffusers, a .json. [default: what fits]",
)
@click.option(
    "--weights",
    help="A checkpoint (.safetensors, .index.json, .pt), a folder of diffusers, or random[:SEED]. [default: the model's own]",
)
@click.option("--steps", type=int, help="Sampling steps (DiT) or network evaluations (U-ViT). [default: the schedule's]")
@click.option("--threshold", type=float, help="A sublayer runs if its score is above this. [default: 0.1 DiT 256 px, else 0.9]")
@click.option(
    "--sampler",
    help="ddim, dpm-solver++, or a scheduler of diffusers by class or file. [default: the folder's or the family's]",
)
@click.option("--guidance", help="first3, all or none: which latent channels are guided. [default: the family's]")
@click.option("--batch", type=int, default=1, help="The most images of one call.")
@click.option("--precision", default="fp32", help="fp32; bf16 and fp16 where the backend and the device have it.")
@click.option("--fp32", multiple=True, metavar="SUBLAYER", help="Keep this one in float32 (blocks.3.mlp); repeat for more.")
@click.option("--backend", default="auto", help="tensorrt, tensorrt-rtx, openvino, onnxruntime or auto: what works there.")
@click.option("--link", default="shared", help="shared: an engine per segment. static: an engine per distinct call.")
@click.option("--cache/--no-cache", default=True, help="--no-cache compiles the uncached twin, for comparison.")
@click.option("--hoist/--no-hoist", default=True, help="Compute what does not depend on the latents before the loop.")
@click.option("--fold/--no-fold", default=True, help="Add a run of skipped sublayers as one tensor.")
@click.option("--max-graphs", type=int, help="Merge calls into at most so many graphs; they compute more, never less.")
@click.option("--with-vae", is_flag=True, help="Add the decoder of the pipeline folder: images come out instead of latents.")
@click.option("--vae", type=FOLDER, help="The same with another folder of an AutoencoderKL of diffusers.")
@click.option("--dump", type=FOLDER, help="Write every stage of the compiler here, as text.")
@click.option("--dry-run", is_flag=True, help="Only say what it would cost, beside the uncached model.")
@click.option("--device", help="For --dry-run: cpu, h100, rtx4090 or orin. [default: cpu]")
@click.option("--calibrate", is_flag=True, help="For --dry-run: time the segments on this machine instead.")
@click.option("--json", "as_json", is_flag=True, help="Print a summary as JSON.")
@command
def export(dry_run: bool, device: str | None, calibrate: bool, as_json: bool, **options: Any) -> None:
    """Compile a learned schedule and its diffusion transformer into engines."""
    from ..backends.contract import BUILT
    from ..support.extras import needs

    for package in ("torch", "onnx"):
        needs(package, "export")
    from ..compiler.compile import compile_artefact
    from ..compiler.request import Options

    chosen = Options(**options)
    if device and calibrate:
        raise UsageError(f"--device {device}: --calibrate is for this machine: use one of the two")
    if dry_run:
        print_prediction(chosen, device or "cpu", calibrate, as_json)
        return
    if device or calibrate:
        raise UsageError(
            f"{f'--device {device}' if device else '--calibrate'}: only for --dry-run; use l2c run --device to run"
        )
    if chosen.backend in BUILT:
        from ..backends.tensorrt.backend import library

        library(chosen.backend)  # say now if it is missing
    started = time.perf_counter()
    result = compile_artefact(chosen, say)
    seconds, size = time.perf_counter() - started, sum(f.bytes for f in result.files.values())
    say(f"{chosen.out}: {size / 2**20:.1f} MB in {seconds:.1f} s")
    if chosen.backend in BUILT:
        build.build_engines(chosen.out, chosen.backend)
    if as_json:
        summary = {"out": str(options["out"]), "bytes": size, "seconds": seconds, "calls": len(result.calls),
                   "graphs": len(result.step_graphs), "segments": len(result.segments),
                   "random_weights": bool(result.weights and result.weights.random is not None)}  # fmt: skip
        click.echo(json.dumps(summary))


def print_prediction(options: Any, device: str, calibrate: bool, as_json: bool) -> None:
    from ..inspection.dry_run import dry_run
    from ..inspection.predict import comparison

    cached, uncached = dry_run(options, device, calibrate, say)
    if as_json:
        found = {name: {**dataclasses.asdict(p), "total": dataclasses.asdict(p.total)}
                 for name, p in (("schedule", cached), ("uncached", uncached))}  # fmt: skip
        click.echo(json.dumps(found))
    else:
        print_table("prediction", comparison(cached, uncached))
