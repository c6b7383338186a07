"""What a captured model has of its own in a request for an artefact: sizes, weights, guidance, and what its pipeline does."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from ..errors import UsageError
from ..models import families
from ..models.diffusers.model_index import PipelineIndex, config
from ..samplers.scheduler_config import FLOW, Scheduler
from .recipes import BERT
from .request import Options
from .tokenizer import UNLIMITED

if TYPE_CHECKING:
    from ..models.diffusers.pipeline_folder import Folder
    from ..models.family import Family
    from ..weights.checkpoint import Checkpoint

ALPHA_TOKENS, PIXART_TOKENS = 120, 300  # of PixArt-alpha's pipeline, and PixArt-Sigma's
SCHNELL_TOKENS = 256  # where FLUX.1 dev has 512


def sized(options: Options, folder: Folder | None) -> Folder | None:
    """The same folder, for pictures and prompts of the sizes that are asked for.  Raises UsageError where it has no choice."""
    asked = {name: getattr(options, name) for name in ("size", "tokens", "cut") if getattr(options, name) is not None}
    if folder and (usual := tokens(folder)):
        asked.setdefault("tokens", usual)
    if not asked:
        return folder
    if folder is None or not families.of(folder.family).captured:
        name, value = next(iter(asked.items()))
        raise UsageError(
            f"{name}={value!r}: only a captured transformer of diffusers has a choice: give its folder as model=.."
        )
    height, width = asked.get("size", (0, 0))
    pixels = families.of(folder.family).pixels
    if height % pixels or width % pixels:
        raise UsageError(f"size={(height, width)}: height and width are pixels, and for this model multiples of {pixels}")
    sizes = {
        "height": height // pixels,
        "width": width // pixels,
        "tokens": asked.get("tokens", 0),
        "cut": asked.get("cut", ""),
    }
    return replace(folder, arch={**folder.arch, **sizes})


def assumed(folder: Folder) -> tuple[str, ...]:
    """What nothing says of a class that has no adapter."""
    if folder.family not in (families.BY_SIGNATURE.name, families.FLOW_BY_SIGNATURE.name):
        return ()
    return (f"inputs, timesteps and guidance as the arguments of {folder.arch['model']} are called: it has no adapter",)


def tokens(folder: Folder) -> int:
    """Those that a folder's pipeline gives a prompt, where they are not its family's; else 0."""
    is_alpha = folder.index is not None and folder.index.pipeline == "PixArtAlphaPipeline"
    if families.of(folder.family) is families.PIXART and folder.index and folder.index.kind("text_encoder") == BERT:
        return min(ALPHA_TOKENS if is_alpha else PIXART_TOKENS, longest(folder.index))
    if is_alpha:
        return ALPHA_TOKENS
    is_flux = families.of(folder.family) is families.FLUX
    return SCHNELL_TOKENS if is_flux and not json.loads(folder.arch["config"]).get("guidance_embeds") else 0


def longest(index: PipelineIndex) -> int:
    """The longest text of a pipeline's first tokenizer, as its configuration says; pipelines made for T5 have a length of
    their own instead."""
    path = index.path.parent / "tokenizer" / "tokenizer_config.json"
    said = config(path).get("model_max_length") if path.is_file() else None
    return int(said) if isinstance(said, (int, float)) and 1 <= said < UNLIMITED else UNLIMITED


def weights(family: Family, checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint of diffusers as the model reads it."""
    return family.checkpoint(checkpoint) if families.is_captured(family) else checkpoint


def guidance(family: Family, folder: Folder | None) -> tuple[str, float]:
    """Mode and scale of the guidance, where nothing else is said: a pipeline of diffusers guides all channels."""
    if families.is_captured(family):
        return family.guidance
    mode, scale = families.of(family.name).guidance
    return ("all" if folder else mode), scale


def as_in_pipeline(scheduler: Scheduler | None, family: Family) -> Scheduler | None:
    """A scheduler of flows with what the model's pipeline tells it; a SiT's own loop has even steps, from noise alone."""
    if scheduler is None or scheduler.kind != FLOW:
        return scheduler
    if not families.is_captured(family):
        return msgspec.structs.replace(scheduler, from_one=True)
    tokens = family.picture_tokens if scheduler.use_dynamic_shifting else 0
    return msgspec.structs.replace(scheduler, image_seq_len=tokens, from_one=family.from_one)
