"""The call of a live pipeline that takes prompts: its own text encoders, noise and autoencoder around compiled calls."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ...artefact.records import ALONE
from ...errors import UsageError
from ...ir.inputs import asked as needed
from ...runtime import request
from .live_artefact import LiveArtefact, device_of
from .pipeline import check_steps

# what every such call may be told; anything else must have its usual value
TAKEN = frozenset({
    "prompt", "prompt_2", "prompt_3", "negative_prompt", "negative_prompt_2", "negative_prompt_3", "prompt_embeds",
    "pooled_prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_pooled_prompt_embeds",
    "negative_prompt_attention_mask", "guidance_scale", "num_inference_steps", "num_images_per_prompt", "generator", "latents",
    "output_type", "return_dict", "height", "width", "max_sequence_length", "clean_caption", "clip_skip",
    "use_resolution_binning",
})  # fmt: skip
OF_FLUX = frozenset({"negative_prompt", "negative_prompt_2", "negative_prompt_embeds", "negative_pooled_prompt_embeds"})
BINS = {256: "ASPECT_RATIO_2048_BIN", 128: "ASPECT_RATIO_1024_BIN", 64: "ASPECT_RATIO_512_BIN", 32: "ASPECT_RATIO_256_BIN"}
Arguments = Mapping[str, Any]


class PromptedPipeline(NamedTuple):
    """A class of pipelines: what its `encode_prompt` returns, in order, and how it treats latents and outputs."""

    encoded: tuple[str, ...]
    output: str  # the class
    shifted: bool = True  # whether latents are shifted before they are decoded, too
    packed: bool = False  # whether its own latents are (B, T, 4 C)
    scaled: bool = False  # whether its noise has the scheduler's standard deviation
    clip: bool = False  # whether a prompt has CLIP's tokens before those of `max_sequence_length`
    refused: frozenset[str] = frozenset()  # of what others take


PIXART = PromptedPipeline(
    ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask"),
    "ImagePipelineOutput", shifted=False, scaled=True,
)  # fmt: skip
SD3 = PromptedPipeline(
    ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"),
    "StableDiffusion3PipelineOutput", clip=True,
)  # fmt: skip
FLUX = PromptedPipeline(("prompt_embeds", "pooled_prompt_embeds"), "FluxPipelineOutput", packed=True, refused=OF_FLUX)
PIPELINES = {
    "PixArtAlphaPipeline": PIXART, "PixArtSigmaPipeline": PIXART, "StableDiffusion3Pipeline": SD3, "FluxPipeline": FLUX,
}  # fmt: skip


def call(self: Any, *positional: Any, **named: Any) -> Any:
    """The arguments and the result are those of the pipeline's own call; steps, sizes and tokens those that were compiled."""
    live: LiveArtefact = self.l2c
    kind, manifest, torch = PIPELINES[live.home.__name__], live.compiled.manifest, sys.modules["torch"]
    told = _told(self, live, kind, positional, named)
    live.check_output(self, told["output_type"])
    live.check_transformer(self.transformer)
    live.check_scheduler(self.scheduler)
    steps, scale = check_steps(told["num_inference_steps"], manifest), request.number(told["guidance_scale"])
    with torch.no_grad():
        _named(self.check_inputs, told)
        how = {"do_classifier_free_guidance": scale > 1, "device": device_of(self)}
        encodings = dict(zip(kind.encoded, _named(self.encode_prompt, {**told, **how}), strict=False))
        embeddings, dtype = (
            {n: values for n, values in encodings.items() if values is not None},
            encodings["prompt_embeds"].dtype,
        )
        noise = _noise(self, kind, told, manifest.program().latent[0], dtype)
        strength = scale if manifest.guidance.mode in ALONE else max(scale, 1.0)  # diffusers guides only above 1
        output = live.compiled(**embeddings, guidance_scale=strength, latents=noise, output_type="latent", steps=steps)
        latents = torch.from_numpy(output.latents).to(device_of(self), dtype)
        images = _images(self, kind, told, latents)
    self.maybe_free_model_hooks()
    return live.returned(kind.output, images, told["return_dict"])


def _told(
    pipe: Any, live: LiveArtefact, kind: PromptedPipeline, positional: tuple[Any, ...], named: Arguments
) -> dict[str, Any]:
    """The arguments of a call by name, with what was compiled where nothing is said.  Raises UsageError for all else."""
    own, name = inspect.signature(vars(live.home)["__call__"]), live.home.__name__
    try:
        bound = own.bind(pipe, *positional, **named)
    except TypeError as error:
        raise UsageError(f"{name}: {error}: use the arguments of its own call") from None
    passed = {**bound.arguments, **bound.arguments.get("kwargs", {})}
    for argument in passed.keys() - TAKEN - {"self", "kwargs"} | (passed.keys() & kind.refused):
        usual = own.parameters[argument].default if argument in own.parameters else None
        if passed[argument] is not usual and not (isinstance(usual, (bool, int, float, str)) and passed[argument] == usual):
            raise UsageError(
                f"{argument}=..: compiled calls of a {name} have no place for it: leave it out, or disable_l2c() first"
            )
    bound.apply_defaults()
    told = {**bound.arguments, "num_inference_steps": passed.get("num_inference_steps")}
    tokens = next(field.shape[0] for field in needed(live.compiled.manifest.inputs) if field.name == "prompt_embeds")
    tokens -= pipe.tokenizer_max_length if kind.clip else 0
    if passed.get("max_sequence_length", tokens) != tokens:
        raise UsageError(
            f"max_sequence_length={passed['max_sequence_length']}: this artefact was compiled for {tokens}: use that, or "
            "compile another one with tokens=.."
        )
    return told | _sizes(pipe, live, told) | {"max_sequence_length": tokens}


def _sizes(pipe: Any, live: LiveArtefact, told: Arguments) -> dict[str, Any]:
    """Height and width in pixels, of what is made and of what is asked for: PixArt makes the next of a list and crops it."""
    manifest = live.compiled.manifest
    pixels, first = request.pixels_of(manifest), manifest.program().latent[1:]
    asked = (told["height"] or pixels * first[0], told["width"] or pixels * first[1])
    sides = asked
    if told.get("use_resolution_binning") and (told["height"] or told["width"]):
        size = pipe.transformer.config.sample_size
        bins = getattr(sys.modules[live.home.__module__], BINS.get(size, ""), None)
        if bins is None:
            raise UsageError(f"use_resolution_binning=True: there is no list of sizes for sample_size {size}: use False")
        sides = pipe.image_processor.classify_height_width_bin(*asked, ratios=bins)
    request.axes(manifest, *sides)  # one that was compiled
    return {"height": sides[0], "width": sides[1], "picture": asked}


def _named(function: Callable[..., Any], told: Arguments) -> Any:
    """What a method of the pipeline returns, given what of a call it takes."""
    return function(**{name: told[name] for name in inspect.signature(function).parameters if name in told})


def _noise(pipe: Any, kind: PromptedPipeline, told: Arguments, channels: int, dtype: Any) -> Any:
    """What the pipeline itself would draw, or is given: (B, C, H, W) of standard deviation 1."""
    prompt, size = told["prompt"], (told["height"], told["width"])
    texts = len(told["prompt_embeds"]) if prompt is None else 1 if isinstance(prompt, str) else len(prompt)
    count = texts * told["num_images_per_prompt"]
    if kind.packed and told["latents"] is not None:
        scale = 2 * pipe.vae_scale_factor
        shape = (count, size[0] // scale * (size[1] // scale), 4 * channels)
        if tuple(told["latents"].shape) != shape:
            raise UsageError(
                f"latents of shape {tuple(told['latents'].shape)}: this call needs {shape}, packed as the pipeline's"
            )
    how = (count, channels, *size, dtype, device_of(pipe), told["generator"], told["latents"])
    noise = pipe.prepare_latents(*how)
    if kind.packed:
        return pipe._unpack_latents(noise[0], *size, pipe.vae_scale_factor)
    return noise / pipe.scheduler.init_noise_sigma if kind.scaled else noise


def _images(pipe: Any, kind: PromptedPipeline, told: Arguments, latents: Any) -> Any:
    """What the pipeline itself makes of its last latents."""
    if told["output_type"] == "latent":
        return pipe._pack_latents(latents, *latents.shape) if kind.packed else latents
    config = pipe.vae.config
    z = latents.to(pipe.vae.dtype) / config.scaling_factor + (config.shift_factor if kind.shifted else 0)
    image = pipe.vae.decode(z, return_dict=False)[0]
    if told["picture"] != (told["height"], told["width"]):
        image = pipe.image_processor.resize_and_crop_tensor(image, told["picture"][1], told["picture"][0])
    return pipe.image_processor.postprocess(image, output_type=told["output_type"])
