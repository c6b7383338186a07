"""`l2c run`: latents or images from an artefact."""

from __future__ import annotations

import time
from pathlib import Path

import click

from ..errors import UsageError
from ..support.words import counted
from . import options
from .console import Command, print_json, say
from .options import group, option
from .progress import progress


@click.command(cls=Command, example="l2c run engines --class-label 207,360 --out dogs.png")
@click.argument("engines", type=options.FOLDER)
@group(
    "What is made",
    options.class_labels(required=True, help="An image of each of these classes, numbers or names; may be repeated."),
    options.guidance_scale,
    option("--seed", type=int, default=0, help="Noise of the first image; the next ones use seed+1, .."),
    option("--out", type=click.Path(path_type=Path), default="latents.npy", help="A .npy of the latents, or a .png of pixels."),
)
@group(
    "Where it runs",
    options.backend,
    options.device,
    options.threads,
    options.link,
    option("--tile", type=int, help="Decode large images in tiles of so many pixels. [default: whole]"),
)
@group(
    "What is checked",
    option("--trust", is_flag=True, help="Do not hash the weights: for an artefact of one's own on one's own disk."),
    option("--check-finite", is_flag=True, help="Stop at the first call that makes NaN or infinite latents."),
)
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
        print_json({"out": str(out), **times})


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
