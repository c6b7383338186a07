"""What a Triton model takes and makes, by the artefact's manifest: its tensors, one row per image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ..artefact.manifest import Manifest
from ..ir.inputs import NEGATIVE_PROMPT, PROMPT, arrays, asked
from ..runtime.prompts import negatives
from ..runtime.request import makes_pixels

TYPES = {"int32": "TYPE_INT32", "float32": "TYPE_FP32"}
SEED, SCALE, STEPS, HEIGHT, WIDTH, PREVIEWS = "seed", "guidance_scale", "steps", "height", "width", "previews"
LATENTS, IMAGES, STEP = "latents", "images", "step"


class TritonTensor(NamedTuple):
    """An input or output of every image; a single number has the shape (1,), as Triton knows no other."""

    name: str
    type: str
    dims: tuple[int, ...] = (1,)  # -1: it depends on the request
    optional: bool = False

    @property
    def text(self) -> str:
        """As an entry of a configuration."""
        optional = ", optional: true" if self.optional else ""
        return f'  {{ name: "{self.name}", data_type: {self.type}, dims: {list(self.dims)}{optional} }}'


def taken(manifest: Manifest, previews: bool) -> list[TritonTensor]:
    """The inputs: what is asked for, and how.  There is one for steps and size only where there is a choice."""
    inputs = list(said(manifest))
    inputs.append(TritonTensor(SEED, "TYPE_INT64", optional=any(not tensor.optional for tensor in inputs)))
    if manifest.guidance.any_scale:
        inputs.append(TritonTensor(SCALE, "TYPE_FP64", optional=True))
    if len({program.steps for program in manifest.programs.values()}) > 1:
        inputs.append(TritonTensor(STEPS, "TYPE_INT32", optional=True))
    if len(manifest.denoiser.sizes) > 1:
        inputs += [TritonTensor(name, "TYPE_INT32", optional=True) for name in (HEIGHT, WIDTH)]
    return [*inputs, TritonTensor(PREVIEWS, "TYPE_INT32", optional=True)] if previews else inputs


def said(manifest: Manifest) -> Iterator[TritonTensor]:
    """What the model is told: texts where the artefact has encoders, else the arrays that it declares."""
    if manifest.text:
        yield TritonTensor(PROMPT, "TYPE_STRING")
        if negatives(manifest):
            yield TritonTensor(NEGATIVE_PROMPT, "TYPE_STRING", optional=True)
        return
    needed = [field.name for field in asked(manifest.inputs)]
    for field in arrays(manifest.inputs):
        yield TritonTensor(field.name, TYPES[field.dtype], field.shape or (1,), field.name not in needed)


def outputs_of(manifest: Manifest, previews: bool) -> list[TritonTensor]:
    """The outputs: latents, pixels where the artefact makes some, and of previews how many steps they have."""
    latent = manifest.program().latent
    one_size = len(manifest.denoiser.sizes) == 1
    axes = latent[1:] if one_size else tuple(-1 for _ in latent[1:])
    outputs = [TritonTensor(LATENTS, "TYPE_FP32", (latent[0], *axes))]
    if makes_pixels(manifest):
        scale, channels = (manifest.decoder.scale, manifest.decoder.channels) if manifest.decoder else (1, latent[0])
        pixels = tuple(scale * side if one_size else -1 for side in latent[1:])
        outputs.append(TritonTensor(IMAGES, "TYPE_UINT8", (*pixels, channels)))
    return [*outputs, TritonTensor(STEP, "TYPE_INT32")] if previews else outputs
