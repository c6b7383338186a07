"""The compiled side of a live pipeline, and whether the pipeline still is what was compiled."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

from ...artefact.manifest import Manifest
from ...errors import UsageError
from ...ir.dtypes import DERIVED
from ...models import families
from ...models.diffusers.tensor_names import TransformerConfig, renamed, shape_of
from ...runtime import pipeline
from ...samplers.scheduler_config import Scheduler
from ...schedules.schedule import Schedule
from ...weights.checkpoint import Checkpoint
from ...weights.layout import WEIGHTS, mapped, unscaled
from ...weights.recipe import Recipe
from . import live_weights
from .live_weights import NAME
from .same_weights import same

ATTRIBUTE = "l2c"
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
FAMILIES = {"DiTPipeline": "dit", "PixArtAlphaPipeline": "pixart", "PixArtSigmaPipeline": "pixart",
            "StableDiffusion3Pipeline": "sd3", "FluxPipeline": "flux"}  # fmt: skip


class LiveArtefact:
    """An artefact in a live pipeline, and in its copies."""

    def __init__(self, compiled: pipeline.Pipeline, scheduler: Scheduler, folder: Path, kind: Any, home: Any) -> None:
        self.compiled, self.scheduler, self.folder = compiled, scheduler, folder
        self.kind, self.home = kind, home  # the pipeline's own class, and the one that has its call
        self._mark: object = None  # of the transformer that was compared with the artefact
        if (family := compiled.manifest.denoiser.family) != FAMILIES[home.__name__]:
            raise UsageError(f"{folder} was compiled from a {family}, which no {home.__name__} has: compile it from its folder")

    def __deepcopy__(self, _: object) -> LiveArtefact:
        return copy.copy(self)  # engines are not copied: a pipeline and its copies take turns

    def check_transformer(self, transformer: Any) -> None:
        """Whether it still is what was compiled: pipelines let one exchange it, load a LoRA into it, train it."""
        plain = live_weights.unwrap(transformer, self.compiled.manifest.denoiser.arch.get("model"))
        mark = live_weights.mark(plain)
        if mark == self._mark or (self._mark and live_weights.is_let_go(plain)):  # compiled calls do without it
            return
        _check_weights(plain, self.compiled.manifest, self.folder)
        self._mark = mark

    def check_scheduler(self, scheduler: Any) -> None:
        """Whether it still is the scheduler that was compiled: pipelines let one exchange it."""
        flow = families.of(self.compiled.manifest.denoiser.family).flow
        now = Scheduler.from_config(dict(getattr(scheduler, "config", {})), "pipe.scheduler", type(scheduler).__name__, flow)
        if names := self.scheduler.differences(now):
            change = ", ".join(f"{n} {getattr(now, n)} instead of {getattr(self.scheduler, n)}" for n in names)
            raise UsageError(f"pipe.scheduler is not what was compiled ({change}): compile again with l2c-export")

    def check_output(self, pipe: Any, output_type: Any) -> None:
        if output_type not in OUTPUT_TYPES:
            raise UsageError(f"output_type {output_type!r}: use {', '.join(OUTPUT_TYPES[:-1])} or {OUTPUT_TYPES[-1]}")
        if pipe.vae is None and output_type != "latent":
            raise UsageError(f'output_type {output_type!r}: the pipeline has no vae: use output_type="latent"')

    def returned(self, name: str, images: Any, return_dict: bool) -> Any:
        """The images as the pipeline returns them, in its output class `name`."""
        return getattr(sys.modules[self.home.__module__], name)(images=images) if return_dict else (images,)


def device_of(pipe: Any) -> Any:
    """Where the pipeline computes; a transformer that was let go does not say it."""
    device = pipe._execution_device
    return pipe.vae.device if device.type == "meta" and pipe.vae is not None else device


def compiled_scheduler(folder: Path, manifest: Manifest, kind: str) -> Scheduler:
    """The scheduler that an artefact's loop follows.  Raises UsageError for a loop that no pipeline `kind` has."""
    scheduler = Schedule.read(folder / manifest.program().program.schedule).scheduler
    if not scheduler or manifest.guidance.mode == "first3":
        option = f"guidance={manifest.guidance.mode!r}" if scheduler else f"sampler={manifest.program().sampler!r}"
        raise UsageError(f"{folder} was compiled with {option}, which no {kind} has: compile its folder with model=..")
    return scheduler


def _check_weights(transformer: Any, manifest: Manifest, folder: Path) -> None:
    """Compare the architecture, and all the weights: a fine-tune may be of a few layers."""
    denoiser = manifest.denoiser
    if denoiser.family == "dit":
        block_embeddings = bool(denoiser.arch.get("block_embeddings", False))
        shape = _shape(transformer, manifest, folder, block_embeddings)
        stored, rounding = live_weights.checkpoint(transformer, folder)
        weights = renamed(stored, shape, block_embeddings)
    else:
        live_weights.check_config(transformer, str(denoiser.arch["config"]), folder)
        stored, rounding = live_weights.checkpoint(transformer, folder)
        weights = _by_recipes(stored, manifest)
    view = mapped(folder / WEIGHTS, denoiser.tensors)
    fused = denoiser.weights is not None and bool(denoiser.weights.loras)
    for name in weights.shapes:
        record = denoiser.tensors[name]
        array, kept = unscaled(name, view, record), record.stored or record.dtype
        if not same(array, weights.read(name), kept, rounding, fused, (denoiser.corrected or {}).get(name, 0.0)):
            raise UsageError(
                f"{NAME} has other weights than {folder} ({name}): run l2c_export.link({str(folder)!r}, weights='..')"
            )


def _by_recipes(stored: Checkpoint, manifest: Manifest) -> Checkpoint:
    """A captured transformer's weights as they are stored; without what follows from its configuration."""
    recipes = {name: tensor.recipe or Recipe.of(name) for name, tensor in manifest.denoiser.checkpointed.items()}
    return stored.by_recipe({name: recipe for name, recipe in recipes.items() if not name.startswith(DERIVED)})


def _shape(transformer: Any, manifest: Manifest, folder: Path, block_embeddings: bool) -> TransformerConfig:
    """What a DiT's configuration says, which must be what was compiled."""
    shape = shape_of(dict(transformer.config), NAME)
    for name, value in shape.arch(block_embeddings).items():
        if manifest.denoiser.arch[name] != value:
            raise UsageError(
                f"{NAME} has {name} {value}, {folder} was compiled for {manifest.denoiser.arch[name]}: compile it again"
            )
    return shape
