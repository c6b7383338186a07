"""The commands `l2c-export` and `l2c`; some are in `cli_build.py`, `cli_measure.py`, .."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import click

from . import __version__, cli_build, cli_cache, cli_measure, cli_train
from .console import FILE, FOLDER, Commands, OneLine, command, print_table, progress, say
from .errors import UsageError
from .words import counted


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
    from .backends import BUILT
    from .extras import needs

    for package in ("torch", "onnx"):
        needs(package, "export")
    from .compile import compile_artefact
    from .options import Options

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
        from .backends.tensorrt_backend import library

        library(chosen.backend)  # say now if it is missing
    started = time.perf_counter()
    result = compile_artefact(chosen, say)
    seconds, size = time.perf_counter() - started, sum(f.bytes for f in result.files.values())
    say(f"{chosen.out}: {size / 2**20:.1f} MB in {seconds:.1f} s")
    if chosen.backend in BUILT:
        cli_build.build_engines(chosen.out, chosen.backend)
    if as_json:
        summary = {"out": str(options["out"]), "bytes": size, "seconds": seconds, "calls": len(result.calls),
                   "graphs": len(result.step_graphs), "segments": len(result.segments),
                   "random_weights": bool(result.weights and result.weights.random is not None)}  # fmt: skip
        click.echo(json.dumps(summary))


def print_prediction(options: Any, device: str, calibrate: bool, as_json: bool) -> None:
    from .compile import dry_run
    from .predict import comparison

    cached, uncached = dry_run(options, device, calibrate, say)
    if as_json:
        found = {name: {**dataclasses.asdict(p), "total": dataclasses.asdict(p.total)}
                 for name, p in (("schedule", cached), ("uncached", uncached))}  # fmt: skip
        click.echo(json.dumps(found))
    else:
        print_table("prediction", comparison(cached, uncached))


@click.group(cls=Commands, context_settings={"show_default": True})
@click.version_option(__version__, prog_name="l2c-export")
def l2c() -> None:
    """Run, link and inspect what l2c-export compiled."""


l2c.add_command(export)
l2c.add_command(cli_build.build)
l2c.add_command(cli_build.remove)
l2c.add_command(cli_cache.cache)
l2c.add_command(cli_measure.verify)
l2c.add_command(cli_measure.bench)
l2c.add_command(cli_measure.profile)
l2c.add_command(cli_train.train)


@l2c.command()
@click.argument("engines", type=FOLDER)
@click.option(
    "--weights", required=True, help="A checkpoint (.safetensors, .index.json, .pt), a folder of diffusers, or random[:SEED]."
)
@command
def link(engines: Path, weights: str) -> None:
    """Bind weights to an artefact, or swap them; nothing is exported or built again."""
    from .linking import bind

    result = bind(engines, weights, say)
    if result.weights and result.weights.random is not None:
        say(f"RANDOM weights, seed {result.weights.random}: good for latency, the images mean nothing")
    say(f"{engines}: linked with {weights}")


@l2c.command()
@click.argument("engines", type=FOLDER)
@click.option(
    "--class-label", "labels", multiple=True, required=True, help="One image of this class (number or name); repeat for more."
)
@click.option("--guidance-scale", type=float, help="1 turns guidance off. [default: the artefact's]")
@click.option("--seed", type=int, default=0, help="Noise of the first image; the next ones use seed+1, ..")
@click.option("--out", type=FILE, default=Path("latents.npy"), help="A .npy of the latents, or a .png of pixels.")
@click.option("--backend", help="[default: what the artefact was compiled for]")
@click.option("--device", help="[default: cpu]")
@click.option("--threads", type=int, help="[default: all cores]")
@click.option("--link", help="shared or static. [default: what the artefact was compiled for]")
@click.option("--tile", type=int, help="Decode large images in tiles of so many pixels. [default: whole]")
@click.option("--trust", is_flag=True, help="Do not hash the weights: for an artefact of one's own on one's own disk.")
@click.option("--check-finite", is_flag=True, help="Stop at the first call that makes NaN or infinite latents.")
@click.option("--json", "as_json", is_flag=True, help="Print times as JSON.")
@command
def run(engines: Path, labels: tuple[str, ...], guidance_scale: float | None, seed: int, out: Path, backend: str | None,
        device: str | None, threads: int | None, link: str | None, tile: int | None, trust: bool,
        check_finite: bool, as_json: bool) -> None:  # fmt: skip
    """Generate latents, or images where the artefact has a decoder (or the model works on pixels)."""
    from . import pipeline
    from .output import check_target, is_picture, save

    check_target(out)
    check_request(engines, labels, guidance_scale, seed, out)
    started = time.perf_counter()
    pipe = pipeline.load(engines, backend, device, threads, verify=not trust, link=link, tile=tile)
    if pipe.manifest.weights and pipe.manifest.weights.random is not None:
        say("the weights are RANDOM: good for latency, the images mean nothing")
    loaded = time.perf_counter()
    say(f"backend: {pipe.backend}")
    image = is_picture(out)
    with progress("denoising", pipe.manifest.steps_of_solver) as step:
        done = pipe(labels, guidance_scale, seed, output_type="np" if image else "latent",
                    callback_on_step_end=step, check_finite=check_finite)  # fmt: skip
    finished = time.perf_counter()
    save(out, done.images if image else done.latents)
    say(f"{out}: {counted(len(labels), 'image')} in {finished - loaded:.2f} s")
    if as_json:
        times = {"load_seconds": loaded - started, "run_seconds": finished - loaded, "images": len(labels)}
        click.echo(json.dumps({"out": str(out), **times}))


def check_request(engines: Path, labels: tuple[str, ...], guidance_scale: float | None, seed: int, out: Path) -> None:
    """Refuse what an artefact cannot do before its engines are loaded, and say which digits are a name."""
    from . import artefact, asked
    from .output import is_picture

    manifest = artefact.read(engines, verify=False)
    numbers = asked.labels(manifest, labels)
    asked.scale(manifest.guidance, guidance_scale)
    asked.seeds(len(numbers), seed)
    if is_picture(out) and not asked.makes_pixels(manifest):
        raise UsageError(
            f"--out {out}: this model makes latents, not pixels, and the artefact has no decoder: use a .npy, or compile it "
            "with --with-vae"
        )
    for label, number in zip(labels, numbers, strict=True):
        if label.isdecimal() and int(label) != number:
            say(f"--class-label {label}: the class of this name, which is number {number}")


@l2c.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--threshold", type=float, help="For a router. [default: the released ones]")
@click.option("--device", help="Predict the time of every call on cpu, h100, rtx4090 or orin.")
@click.option("--measure", is_flag=True, help="Run the artefact and show the time of every call.")
@click.option("--plot", type=FILE, help="Draw sublayers x calls into this picture.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@command
def inspect(path: Path, threshold: float | None, device: str | None, measure: bool, plot: Path | None, as_json: bool) -> None:
    """Show an artefact, a schedule or a router, call by call."""
    from .inspecting import inspect as look

    if measure and device:
        raise UsageError(f"--device {device}: is for predicted times, --measure for those of this machine: use one of the two")
    if plot:
        from .plot import check_picture, schedule_heatmap

        check_picture(plot)
    found = look(path, threshold)
    if (device or measure) and found.artefact is None:
        raise UsageError(f"{path}: only an artefact has times: give the folder that l2c-export wrote")
    if measure:
        found = found.timed(measured_calls(path), "measured")
    elif device:
        from . import artefact
        from .predict import predict

        costs = predict(artefact.read(path, verify=False), device).calls
        found = found.timed([cost.seconds for cost in costs], f"predicted for {device}")
    if plot:
        schedule_heatmap(found, plot)
        say(f"{plot}: drawn")
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(found)))
    else:
        print_table(found.title, found.table())
        for line in found.notes():
            click.echo(line)


def measured_calls(folder: Path) -> list[float]:
    """Seconds of every call of one image, after a warm-up."""
    from . import pipeline

    pipe = pipeline.load(folder)
    pipe([0])
    seconds, before = [], time.perf_counter()
    for _ in pipe.steps([0], None, pipe.noise(1, 0)):
        seconds.append(time.perf_counter() - before)
        before = time.perf_counter()
    return seconds


@l2c.command()
@click.option("--json", "as_json", is_flag=True)
@command
def doctor(as_json: bool) -> None:
    """Which backends work on this machine, which do not, and why."""
    from .doctoring import examine

    found = examine()
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(f) for f in found]))
    else:
        rows = [
            ("backend", "works", "version", "what to know"),
            *((f.name, "yes" if f.works else "no", f.version or "-", f.note) for f in found),
        ]
        print_table("backends", rows)
    if not any(f.works for f in found):
        raise UsageError("no backend works: pip install 'l2c-export[onnxruntime]'")


def main() -> None:
    l2c(prog_name="l2c")


def main_export() -> None:
    export(prog_name="l2c-export")
