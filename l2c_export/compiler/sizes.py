"""Several sizes of pictures in one artefact: each has its own graphs and programs; weights and equal segments are one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from ..artefact.manifest import Manifest
from ..models import families
from .request import Options

if TYPE_CHECKING:
    from ..weights.checkpoint import Checkpoint
    from .source import Source


def separate(options: Options) -> list[Options]:
    """The options of every size by itself."""
    return [replace(options, size=size, more_sizes=()) for size in (options.size, *options.more_sizes)]


def name_of(source: Source) -> str:
    """What a size is called: "64x96", the latents' axes."""
    return "x".join(map(str, source.family.latent[1:]))


def manifest_of(manifests: Sequence[Manifest]) -> Manifest:
    """One manifest of those of every size."""
    first = manifests[0]
    denoisers = [manifest.denoiser for manifest in manifests]
    denoiser = msgspec.structs.replace(
        first.denoiser,
        tensors={name: tensor for one in denoisers for name, tensor in one.tensors.items()},
        segments={name: segment for one in denoisers for name, segment in one.segments.items()},
        sizes={name: size for one in denoisers for name, size in one.sizes.items()},
    )
    programs = {name: program for manifest in manifests for name, program in manifest.programs.items()}
    return msgspec.structs.replace(first, denoiser=denoiser, programs=programs)


def checkpoint_of(sources: Sequence[Source]) -> Checkpoint | None:
    """The weights of the model for all sizes: what follows from the configuration is another for each."""
    checkpoint = sources[0].checkpoint
    for source in sources[1:]:
        if checkpoint and families.is_captured(source.family):
            checkpoint = source.family.checkpoint(checkpoint)
    return checkpoint
