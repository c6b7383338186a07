"""`l2c run`: latents or images from an artefact."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError
from ..support.progress import Step
from ..support.words import counted
from . import options, prompts
from .console import Command, print_json, say
from .options import group, option, split_labels
from .progress import bars

if TYPE_CHECKING:
    from ..runtime.images import Output
    from ..runtime.pipeline import Pipeline


@click.command(cls=Command, example="l2c run engines --class-label 207,360 --out dogs.png")
@click.argument("engines", type=options.ENGINES)
@group(
    "What is made",
    options.class_labels(help="An image of each of these classes, numbers or names; may be repeated."),
    options.prompt,
    options.negative_prompt,
    option(
        "--prompt-embeds",
        type=options.FILE,
        metavar="FILE.npz",
        help="Arrays for a model of prompts, called as its inputs (prompt_embeds, ..), an image of each entry.",
    ),
    options.guidance_scale,
    option("--seed", type=int, default=0, help="Noise of the first image; the next one has seed + 1, and so on."),
    options.steps,
    options.size,
    option(
        "--out",
        type=click.Path(path_type=Path),
        default="latents.npy",
        help="A .npy of the latents, a .png of pixels, or a folder for a file per image.",
    ),
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
def run(engines: Path, labels: tuple[str, ...], prompt: tuple[str, ...], negative_prompt: str | None,
        prompt_embeds: Path | None, guidance_scale: float | None, seed: int, steps: int | None,
        size: tuple[int, int] | None, out: Path, backend: str | None, device: str | None, threads: int | None,
        link: str | None, tile: int | None, trust: bool,
        check_finite: bool, as_json: bool) -> None:  # fmt: skip
    """Generate latents, or images where the artefact has a decoder (or the model works on pixels)."""
    from ..runtime.images import check_target
    from ..runtime.pipeline import load

    check_target(out)
    said = {"--class-label": labels, "--prompt": prompt, "--prompt-embeds": prompt_embeds}
    if not any(said.values()):
        raise click.UsageError("Missing option '--class-label', or '--prompt' or '--prompt-embeds' for a model of prompts.")
    prompts.check_one(said, negative_prompt)
    texts = prompts.TextPrompts(prompt, negative_prompt)
    chunks, pixels = check_request(engines, labels, texts, prompt_embeds, guidance_scale, seed, steps, size, out)
    started = time.perf_counter()
    pipe = load(engines, backend, device, threads, verify=not trust, link=link, tile=tile)
    if pipe.manifest.denoiser.weights and pipe.manifest.denoiser.weights.random is not None:
        say("the weights are RANDOM: good for latency, the images mean nothing")
    loaded = time.perf_counter()
    say(f"backend: {pipe.backend}")
    with bars() as shown:
        step = shown.progress("denoising", len(chunks) * pipe.manifest.program(steps).steps_of_solver)
        output = generate(pipe, chunks, guidance_scale, seed, steps, size, "np" if pixels else "latent", check_finite, step)
    finished = time.perf_counter()
    output.save(out)
    count = counted(len(output.latents), "image")
    say(f"{out}: {count} in {finished - loaded:.2f} s")
    if as_json:
        times = {"load_seconds": loaded - started, "run_seconds": finished - loaded, "images": len(output.latents)}
        print_json({"out": str(out), **times})


def generate(pipe: Pipeline, chunks: Sequence[Mapping[str, Any]], scale: float | None, seed: int, steps: int | None,
             size: tuple[int, int] | None, output_type: str, check_finite: bool, step: Step) -> Output:  # fmt: skip
    """All images, a batch at a time: image i has the noise of seed + i, whatever the batch."""
    import numpy as np

    from ..runtime.images import Output

    def advance(*_: object) -> None:
        step()

    outputs = list[Output]()
    height, width = size or (None, None)
    for n, chunk in enumerate(chunks):
        first = seed + n * pipe.manifest.batch
        outputs.append(pipe(**chunk, guidance_scale=scale, seed=first, output_type=output_type, check_finite=check_finite,
                            callback_on_step_end=advance, steps=steps, height=height, width=width))  # fmt: skip
    images = np.concatenate([output.images for output in outputs]) if output_type == "np" else None
    return Output(np.concatenate([output.latents for output in outputs]), images, sum(output.seconds for output in outputs))


def check_request(engines: Path, labels: tuple[str, ...], texts: prompts.TextPrompts, prompt_embeds: Path | None,
                  guidance_scale: float | None, seed: int, steps: int | None, size: tuple[int, int] | None,
                  out: Path) -> tuple[list[Mapping[str, Any]], bool]:  # fmt: skip
    """Refuse what an artefact cannot do before its engines are loaded, and say which digits are a name.

    Returned is what the model is told, in batches, and whether pixels are wanted.
    """
    from ..artefact import store
    from ..ir.inputs import CLASS_LABELS, names_of
    from ..runtime import inputs, request
    from ..runtime.images import check_target, is_folder, is_picture

    manifest = store.read(engines, verify=False)
    manifest.program(steps, request.axes(manifest, *(size or (None, None))))
    names = split_labels(labels, names_of(manifest.inputs))
    chunks: list[Mapping[str, Any]] = [
        {CLASS_LABELS: names[n : n + manifest.batch]} for n in range(0, len(names), manifest.batch)
    ]
    chunks += [] if prompt_embeds is None else prompts.batches(prompt_embeds, manifest)
    said = texts.batches(manifest)
    request.scales(manifest.program(), guidance_scale, 1)
    request.seeds(1, seed)
    if is_picture(out) and not request.makes_pixels(manifest):
        raise UsageError(
            f"--out {out}: this model makes latents, not pixels, and the artefact has no decoder: use a .npy, or compile it "
            "with --with-vae"
        )
    told = [inputs.checked(manifest, chunk) for chunk in chunks]
    for label, number in zip(names, (n for values in told for n in values.get(CLASS_LABELS, ())), strict=bool(names)):
        if label.isdecimal() and int(label) != number:
            say(f"--class-label {label}: the class of this name, which is number {number}")
    chunks += said
    pixels = is_picture(out) or (is_folder(out) and request.makes_pixels(manifest))
    check_target(out, pixels)
    return chunks, pixels
