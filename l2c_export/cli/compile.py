"""`l2c-export`: a schedule and a model become an artefact."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import click

from ..errors import UsageError
from ..support.extras import needs_compiler
from . import importing
from .choices import BACKENDS, DEVICES, GUIDANCE, LEVELS, LINKS, PRECISIONS, TEXT_PRECISIONS
from .console import Command, print_json, say
from .options import FOLDER, Choice, Counts, Sizes, group, lora, option, samplers
from .progress import bars
from .tables import print_table


@click.command(
    cls=Command, example="l2c-export --model demo --out engines/demo\nl2c-export --schedule router.pt --weights DiT-XL-2.pt"
)
@group(
    "What is compiled",
    option("--schedule", multiple=True, help="A trained router (.pt), a schedule or a steps mask (.json), one of another tool, "
           "every:K, full:0,A,B,.. or mask:1,0,..; --model demo has its own: demo and demo:aggressive. Repeat it for programs "
           "of other numbers of steps."),
    option("--threshold", type=float, help="A sublayer runs if its score is above this. [default: 0.1 DiT 256 px, else 0.9]"),
    option("--rule", help="How the calls of every:K, full:.. and mask:.. follow that are not full: reuse, or taylor:M, a "
           "forecast of order M. [default: reuse]"),
    option("--level", type=Choice(LEVELS), help="What of them follows: every sublayer, what all blocks add together, or the "
           "model's output. [default: sublayer]"),
    option("--full-first", type=int, help="So many calls at the start are full. [default: the rule's order + 1]"),
    option("--full-last", type=int, help="And so many at the end. [default: 0]"),
    *importing.OPTIONS,
    option("--model", help="DiT-XL/2, U-ViT-H/2, DiT-S/4@512, demo, .., a pipeline folder or hub id of diffusers, a .json. "
           "[default: what fits]"),
    option("--weights", help="A checkpoint (.safetensors, .index.json, .pt), a folder of diffusers, random[:SEED], or none. "
           "[default: the model's own]"),
    lora,
    option("--with-vae", is_flag=True, help="Add the decoder of the pipeline folder: images come out instead of latents."),
    option("--vae", type=FOLDER, help="The same with another folder of an AutoencoderKL or AutoencoderTiny."),
    option("--with-text", is_flag=True, help="Add the text encoders of the pipeline folder: prompts may then be texts."),
    option("--out", type=FOLDER, default="engines", help="Where the artefact goes."),
)  # fmt: skip
@group(
    "How it will be sampled",
    option("--steps", type=Counts(), help="Sampling steps (DiT) or network evaluations (U-ViT); 20,50 for a program of each. "
           "[default: the schedule's]"),
    option("--sampler", shell_complete=samplers, help="ddim, dpm-solver++, or a scheduler of diffusers by "
           "class or file. [default: the folder's or the family's]"),
    option("--guidance", type=Choice(GUIDANCE), help="Which latent channels are guided. [default: the family's]"),
    option("--batch", type=int, default=1, help="The most images of one call."),
    option("--size", type=Sizes(), help="Height and width of the pictures in pixels, of a captured transformer of diffusers; "
           "512x512,768x512 for programs of each. [default: its own]"),
    option("--tokens", type=int, help="The tokens of a prompt, of such a transformer. [default: the family's]"),
)  # fmt: skip
@group(
    "How it is compiled",
    option("--backend", type=Choice(BACKENDS), metavar="NAME", default="auto",
           help=f"One of auto (what works where it runs), {', '.join(BACKENDS[1:])}."),
    option("--precision", type=Choice(PRECISIONS), default="fp32", help="16 bits where the backend has them; fp8 has cuda."),
    option("--text-precision", type=Choice(TEXT_PRECISIONS), default="fp32", help="Most of T5's weights, as they are stored."),
    option("--store", multiple=True, metavar="TYPE", help="Store matrices in fp16, bf16 or int8, and widen them "
           "when the artefact is loaded; text=int8 for one of denoiser, text and decoder; repeat it for more. "
           "[default: as they are computed]"),
    option("--fp32", multiple=True, metavar="SUBLAYER", help="Keep this one in float32 (blocks.3.mlp); repeat for more."),
    option("--bf16", multiple=True, metavar="SUBLAYER", help="Of fp8: keep this one in bf16; repeat for more."),
    option("--link", type=Choice(LINKS), default="shared", help="An engine per segment, or one per distinct call."),
    option("--cut", metavar="PATTERN", help="Of a captured transformer: modules of these names (.*\\.proj_mlp) are sublayers, "
           "too."),
    option("--max-graphs", type=int, help="Merge calls into at most so many graphs; they compute more, never less."),
)  # fmt: skip
@group(
    "What is left out, and what is shown",
    option("--cache/--no-cache", default=True, help="--no-cache compiles the uncached twin, for comparison."),
    option("--hoist/--no-hoist", default=True, help="Compute what does not depend on the latents before the loop."),
    option("--fold/--no-fold", default=True, help="Add a run of skipped sublayers as one tensor."),
    option("--dump", type=FOLDER, help="Write every stage of the compiler here, as text."),
)
@group(
    "Only a prediction",
    option("--dry-run", is_flag=True, help="Only say what it would cost, beside the uncached model."),
    option("--device", type=Choice(DEVICES), help="For --dry-run: where it would run. [default: cpu]"),
    option("--calibrate", is_flag=True, help="For --dry-run: time the segments on this machine instead."),
)
def export(
    dry_run: bool, device: str | None, calibrate: bool, as_json: bool, schedule: tuple[str, ...], **options: Any
) -> None:
    """Compile a learned schedule and its diffusion transformer into engines."""
    needs_compiler()
    if device and calibrate:
        raise UsageError(f"--device {device}: --calibrate is for this machine: use one of the two")
    if (device or calibrate) and not dry_run:
        raise UsageError(
            f"{f'--device {device}' if device else '--calibrate'}: only for --dry-run; use l2c run --device to run"
        )
    options["schedule"] = list(schedule) or None
    if dry_run:
        print_prediction(options, device or "cpu", calibrate, as_json)
        return
    from ..compiler.artefact import compile

    started = time.perf_counter()
    with bars() as shown:
        artefact = compile(**options, report=say, progress=shown.progress, watch=shown.watch)
    if as_json:
        manifest = artefact.manifest
        print_json({"out": str(artefact.path), "bytes": artefact.bytes, "seconds": time.perf_counter() - started,
                    "calls": sum(len(program.calls) for program in manifest.programs.values()),
                    "graphs": len({graph for program in manifest.all_programs() for graph in program.step_graphs}),
                    "segments": len(manifest.denoiser.segments),
                    "random_weights": artefact.random_weights})  # fmt: skip


def print_prediction(options: dict[str, Any], device: str, calibrate: bool, as_json: bool) -> None:
    from ..inspection.dry_run import dry_run
    from ..inspection.predict import comparison

    prediction = dry_run(**options, device=device, calibrate=calibrate, report=say)
    if as_json:
        print_json({name: {**dataclasses.asdict(cost), "total": cost.total} for name, cost in prediction._asdict().items()})
    else:
        print_table("prediction", comparison(prediction.schedule, prediction.uncached))
