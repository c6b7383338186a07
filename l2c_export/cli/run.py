"""`l2c run`: latents or images from an artefact."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from ..errors import UsageError
from ..support.words import counted
from .console import FILE, FOLDER, command, progress, say


@click.command()
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
    from ..runtime import pipeline
    from ..runtime.images import check_target, is_picture, save

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
    from ..artefact import store
    from ..runtime import request
    from ..runtime.images import is_picture

    manifest = store.read(engines, verify=False)
    numbers = request.labels(manifest, labels)
    request.scale(manifest.guidance, guidance_scale)
    request.seeds(len(numbers), seed)
    if is_picture(out) and not request.makes_pixels(manifest):
        raise UsageError(
            f"--out {out}: this model makes latents, not pixels, and the artefact has no decoder: use a .npy, or compile it "
            "with --with-vae"
        )
    for label, number in zip(labels, numbers, strict=True):
        if label.isdecimal() and int(label) != number:
            say(f"--class-label {label}: the class of this name, which is number {number}")
