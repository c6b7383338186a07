"""What a model can be told by a prompt, and what it makes: as clients see it."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from ...artefact.manifest import Manifest
from ...errors import UsageError
from ...ir.inputs import RequestInput, asked, names_of
from ...runtime import request

Kind = Literal["text", "class", "nothing"]


class Said(NamedTuple):
    """What a prompt is to a model: a text, one of its classes, or nothing at all."""

    kind: Kind
    label: RequestInput | None  # whose choices the classes are
    negative: bool  # whether there may be a negative prompt


def what_prompts_say(path: object, manifest: Manifest) -> Said:
    """Raises UsageError for an artefact whose images no prompt can ask for, or whose images are no pictures."""
    if not request.makes_pixels(manifest):
        raise UsageError(f"{path}: makes latents, no pictures, and has no decoder: compile it again with with_vae=True")
    needed = asked(manifest.inputs)
    if manifest.text:
        halves = manifest.guidance.halves == 2
        return Said("text", None, halves and any(field.negated for field in needed))
    if not needed:
        return Said("nothing", None, False)
    if len(needed) == 1 and needed[0].choices and not needed[0].shape:
        return Said("class", needed[0], False)
    raise UsageError(f"{path}: has no text encoders for its prompts: compile it again with with_text=True")


def sizes_of(manifest: Manifest) -> dict[str, tuple[int, int]]:
    """Height and width in pixels of the pictures that it makes, by their names: "WIDTHxHEIGHT", the usual one first."""
    pixels = request.pixels_of(manifest)
    latents = dict.fromkeys(program.latent[1:] for program in manifest.all_programs())
    return {f"{pixels * w}x{pixels * h}": (pixels * h, pixels * w) for h, w in latents}


def steps_of(manifest: Manifest) -> list[int]:
    """The numbers of steps that it was compiled for, the usual one first."""
    return list(dict.fromkeys(program.steps for program in manifest.programs.values()))


def about(manifest: Manifest, said: Said, backend: str) -> dict[str, Any]:
    """What a client may want to know of a model."""
    guidance = manifest.guidance
    return {
        "architecture": manifest.denoiser.name or manifest.denoiser.family,
        "prompt": said.kind,
        "classes": said.label.choices if said.label else None,
        "class_names": names_of(manifest.inputs) if said.label else None,
        "negative_prompt": said.negative,
        "sizes": list(sizes_of(manifest)),
        "num_inference_steps": steps_of(manifest),
        "guidance_scale": guidance.scale if guidance.any_scale else None,
        "images_at_once": manifest.batch,
        "precision": manifest.precision,
        "backend": backend,
        "decoder": bool(manifest.decoder),
        "random_weights": bool(manifest.denoiser.weights and manifest.denoiser.weights.random is not None),
    }
