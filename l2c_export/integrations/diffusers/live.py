"""Compiled calls in a live DiTPipeline of diffusers: its call, its autoencoder and its outputs, without its loop.

What a compiled call does ends with guidance and the scheduler's step, so it cannot stand in for the transformer alone; the
pipeline's `__call__` is replaced.  torch and diffusers are those that the pipeline already uses.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...artefact.manifest import Manifest
from ...errors import UsageError
from ...models.diffusers.tensor_names import TransformerConfig, renamed, shape_of
from ...runtime import pipeline, request
from ...runtime.inputs import images_of
from ...samplers.scheduler_config import Scheduler
from ...schedules.schedule import Schedule
from ...support.words import counted
from ...weights.layout import WEIGHTS, mapped
from . import live_weights
from .live_weights import NAME, ROUNDING
from .pipeline import check_steps, guidance, is_torch

ATTRIBUTE = "l2c"


def enable_l2c(pipe: Any, engines: str | Path, **options: Any) -> Any:
    """Let a DiTPipeline run the artefact in `engines`; `options` are those of `l2c_export.load`.

    Returns the same pipeline; `pipe.disable_l2c()` undoes it.  Raises UsageError where the pipeline's transformer, weights
    or scheduler are not those that were compiled.
    """
    kind = type(pipe)
    if not any(c.__name__ == "DiTPipeline" for c in kind.__mro__):
        raise UsageError(f"enable_l2c: a {kind.__name__} is not supported: give a DiTPipeline of diffusers")
    base = getattr(pipe, ATTRIBUTE).kind if hasattr(pipe, ATTRIBUTE) else kind
    if (home := next(c for c in base.__mro__ if "__call__" in vars(c))).__name__ != "DiTPipeline":
        raise UsageError(
            f"enable_l2c: {home.__name__} has a call of its own, which a compiled one would replace: give a DiTPipeline"
        )
    folder = request.folder(engines)
    compiled = pipeline.load(folder, **options)
    live = Live(compiled, _compiled_scheduler(folder, compiled.manifest), folder.absolute(), base)
    live.check_transformer(pipe.transformer)
    live.check_scheduler(pipe.scheduler)
    # under the same name, so that the pipeline still saves itself as what it is
    compiled_kind = type(base.__name__, (base,), {"__call__": _call, "disable_l2c": _disable, "__module__": base.__module__})
    object.__setattr__(pipe, "__class__", compiled_kind)
    object.__setattr__(pipe, ATTRIBUTE, live)
    return pipe


def _disable(self: Any) -> Any:
    """The pipeline as it was."""
    object.__setattr__(self, "__class__", self.l2c.kind)
    object.__delattr__(self, ATTRIBUTE)
    return self


def _call(
    self: Any,
    class_labels: Sequence[int],
    guidance_scale: float = 4.0,
    generator: Any = None,
    num_inference_steps: int | None = None,
    output_type: str = "pil",
    return_dict: bool = True,
) -> Any:
    """DiTPipeline's call; the noise is drawn and the latents are decoded as it does."""
    images = self.l2c.images(self, class_labels, guidance_scale, generator, num_inference_steps, output_type)
    return sys.modules["diffusers"].ImagePipelineOutput(images=images) if return_dict else (images,)


class Live:
    """The compiled side of a live pipeline, and of its copies."""

    def __init__(self, compiled: pipeline.Pipeline, scheduler: Scheduler, folder: Path, kind: Any) -> None:
        self.compiled, self.scheduler, self.folder = compiled, scheduler, folder
        self.kind = kind  # the pipeline's own class
        self._mark: object = None  # of the transformer that was compared with the artefact

    def __deepcopy__(self, _: object) -> Live:
        return copy.copy(self)  # engines are not copied: a pipeline and its copies take turns

    def check_transformer(self, transformer: Any) -> None:
        """Whether it still is what was compiled: pipelines let one exchange it, load a LoRA into it, train it."""
        plain = live_weights.unwrap(transformer)
        mark = live_weights.mark(plain)
        if mark == self._mark or (self._mark and live_weights.is_let_go(plain)):  # compiled calls do without it
            return
        _check_transformer(plain, self.compiled.manifest, self.folder)
        self._mark = mark

    def check_scheduler(self, scheduler: Any) -> None:
        """Whether it still is the scheduler that was compiled: pipelines let one exchange it."""
        now = Scheduler.from_config(dict(getattr(scheduler, "config", {})), "pipe.scheduler", type(scheduler).__name__)
        if names := self.scheduler.differences(now):
            change = ", ".join(f"{n} {getattr(now, n)} instead of {getattr(self.scheduler, n)}" for n in names)
            raise UsageError(f"pipe.scheduler is not what was compiled ({change}): compile again with l2c-export")

    def images(self, pipe: Any, labels: Any, scale: float, generator: Any, steps: int | None, output_type: str) -> Any:
        if output_type not in ("pil", "np", "pt", "latent"):
            raise UsageError(f"output_type {output_type!r}: use pil, np, pt or latent")
        self.check_transformer(pipe.transformer)
        self.check_scheduler(pipe.scheduler)
        chosen = check_steps(steps, self.compiled.manifest)
        inputs, strength = self.compiled.inputs(labels), guidance(scale)
        if pipe.vae is None and output_type != "latent":
            raise UsageError(f'output_type {output_type!r}: the pipeline has no vae: use output_type="latent"')
        noise = self._noise(pipe, images_of(self.compiled.manifest, inputs, 0, None), generator)
        latents = self.compiled(**inputs, guidance_scale=strength, latents=noise, output_type="latent", steps=chosen).latents
        if output_type == "latent":
            return sys.modules["torch"].from_numpy(latents)
        pixels = self._decode(pipe, latents)
        if output_type == "pt":
            return pixels
        array = pixels.cpu().permute(0, 2, 3, 1).float().numpy()
        return pipe.numpy_to_pil(array) if output_type == "pil" else array

    def _noise(self, pipe: Any, count: int, generator: Any) -> np.ndarray:
        """What the pipeline itself would draw."""
        torch, device, dtype = sys.modules["torch"], _device(pipe), pipe.transformer.dtype
        shape = self.compiled.manifest.program().latent
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

    def _decode(self, pipe: Any, latents: np.ndarray) -> Any:
        torch = sys.modules["torch"]
        with torch.no_grad():
            z = torch.from_numpy(latents).to(_device(pipe), pipe.vae.dtype) / pipe.vae.config.scaling_factor
            pixels = (pipe.vae.decode(z).sample / 2 + 0.5).clamp(0, 1)
        pipe.maybe_free_model_hooks()
        return pixels


def _device(pipe: Any) -> Any:
    """Where the pipeline computes; a transformer that was let go does not say it."""
    device = pipe._execution_device
    return pipe.vae.device if device.type == "meta" and pipe.vae is not None else device


def _compiled_scheduler(folder: Path, manifest: Manifest) -> Scheduler:
    scheduler = Schedule.read(folder / manifest.program().program.schedule).scheduler
    if not scheduler or manifest.guidance.mode == "first3":
        option = f"guidance={manifest.guidance.mode!r}" if scheduler else f"sampler={manifest.program().sampler!r}"
        raise UsageError(f"{folder} was compiled with {option}, which no DiTPipeline has: compile its folder with model=..")
    return scheduler


def _check_transformer(transformer: Any, manifest: Manifest, folder: Path) -> None:
    """Compare the architecture, and all the weights: a fine-tune may be of a few layers."""
    if manifest.denoiser.family != "dit":
        raise UsageError(
            f"{folder} was compiled from a {manifest.denoiser.family}, which no DiTPipeline has: compile it from its folder"
        )
    block_embeddings = bool(manifest.denoiser.arch.get("block_embeddings", False))
    shape = _shape(transformer, manifest, folder, block_embeddings)
    stored, rounding = live_weights.checkpoint(transformer, folder)
    weights = renamed(stored, shape, block_embeddings)
    view = mapped(folder / WEIGHTS, manifest.denoiser.tensors)
    for name in manifest.denoiser.tensors:
        array = view(name)
        tolerance = max(ROUNDING[str(array.dtype)], rounding)
        other = weights.read(name)
        if array.shape != other.shape or not np.allclose(array.astype(np.float32), other, rtol=tolerance, atol=1e-6):
            raise UsageError(
                f"{NAME} has other weights than {folder} ({name}): run l2c_export.link({str(folder)!r}, weights='..')"
            )


def _shape(transformer: Any, manifest: Manifest, folder: Path, block_embeddings: bool) -> TransformerConfig:
    """What its configuration says, which must be what was compiled."""
    shape = shape_of(dict(transformer.config), NAME)
    for name, value in shape.arch(block_embeddings).items():
        if manifest.denoiser.arch[name] != value:
            raise UsageError(
                f"{NAME} has {name} {value}, {folder} was compiled for {manifest.denoiser.arch[name]}: compile it again"
            )
    return shape
