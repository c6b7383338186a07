"""The call of a live DiTPipeline: labels in, images out, with its own noise and autoencoder."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...errors import UsageError
from ...runtime.inputs import images_of
from ...support.words import counted
from .live_artefact import LiveArtefact, device_of
from .pipeline import check_steps, guidance, is_torch


def call(
    self: Any,
    class_labels: Sequence[int],
    guidance_scale: float = 4.0,
    generator: Any = None,
    num_inference_steps: int | None = None,
    output_type: str = "pil",
    return_dict: bool = True,
) -> Any:
    """DiTPipeline's call; the noise is drawn and the latents are decoded as it does."""
    live = self.l2c
    live.check_output(self, output_type)
    live.check_transformer(self.transformer)
    live.check_scheduler(self.scheduler)
    chosen = check_steps(num_inference_steps, live.compiled.manifest)
    inputs, strength = live.compiled.inputs(class_labels), guidance(guidance_scale)
    noise = _noise(self, live, images_of(live.compiled.manifest, inputs, 0, None), generator)
    latents = live.compiled(**inputs, guidance_scale=strength, latents=noise, output_type="latent", steps=chosen).latents
    return live.returned("ImagePipelineOutput", _images(self, latents, output_type), return_dict)


def _images(pipe: Any, latents: np.ndarray, output_type: str) -> Any:
    torch = sys.modules["torch"]
    if output_type == "latent":
        return torch.from_numpy(latents)
    with torch.no_grad():
        z = torch.from_numpy(latents).to(device_of(pipe), pipe.vae.dtype) / pipe.vae.config.scaling_factor
        pixels = (pipe.vae.decode(z).sample / 2 + 0.5).clamp(0, 1)
    pipe.maybe_free_model_hooks()
    if output_type == "pt":
        return pixels
    array = pixels.cpu().permute(0, 2, 3, 1).float().numpy()
    return pipe.numpy_to_pil(array) if output_type == "pil" else array


def _noise(pipe: Any, live: LiveArtefact, count: int, generator: Any) -> np.ndarray:
    """What the pipeline itself would draw."""
    torch, device, dtype = sys.modules["torch"], device_of(pipe), pipe.transformer.dtype
    shape = live.compiled.manifest.program().latent
    several = isinstance(generator, list)
    if several and len(generator) != count:
        raise UsageError(f"generator: a list of {len(generator)} for {counted(count, 'image')}: give one, or one per image")
    if not all(one is None or is_torch(one) for one in (generator if several else [generator])):
        raise UsageError(f"generator {generator!r}: a live pipeline draws with PyTorch's: use torch.manual_seed(..)")
    drawn = [
        torch.randn((1 if several else count, *shape), generator=one, device=one.device if one else device, dtype=dtype)
        for one in (generator if several else [generator])
    ]
    noise: np.ndarray = torch.cat(drawn).float().cpu().numpy()
    return noise
