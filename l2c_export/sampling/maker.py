"""The images of a shard, by a loaded artefact."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import RunError
from ..runtime import request
from ..runtime.images import as_bytes
from ..support.progress import Step, unsaid
from . import shards
from .plan import SamplePlan, Shard
from .shards import ShardImages

if TYPE_CHECKING:
    from ..runtime.pipeline import Pipeline


def make(pipe: Pipeline, plan: SamplePlan, shard: Shard, step: Step = unsaid) -> ShardImages:
    """Its images, in batches of the size that the artefact was compiled for, always: it may decide the last bits."""
    batches = [_batch(pipe, plan, numbers, step) for numbers in _batches(shard, pipe.manifest.batch)]
    latents = np.concatenate([batch.latents for batch in batches if batch.latents is not None])
    if batches[0].images is None:
        return ShardImages(None, latents)
    return ShardImages(np.concatenate([batch.images for batch in batches if batch.images is not None]), latents)


def _batches(shard: Shard, size: int) -> Iterator[list[int]]:
    numbers = list(range(shard.first, shard.first + shard.images))
    yield from (numbers[n : n + size] for n in range(0, len(numbers), size))


def _batch(pipe: Pipeline, plan: SamplePlan, numbers: list[int], step: Step) -> ShardImages:
    filled = numbers + [numbers[-1]] * (pipe.manifest.batch - len(numbers))
    pixels = request.makes_pixels(pipe.manifest)
    output = pipe(**plan.request(filled), output_type="np" if pixels else "latent")
    latents = output.latents[: len(numbers)]
    for number, values in zip(numbers, latents, strict=True):
        if not np.isfinite(values).all():
            raise RunError(
                f"image {number} (seed {plan.seed + number}) is NaN or infinite: check the weights; to see the call that "
                "makes it, generate it alone with check_finite=True"
            )
    step(len(numbers))
    return ShardImages(as_bytes(output.images[: len(numbers)]) if pixels else None, latents)


def write(pipe: Pipeline, out: Path, plan: SamplePlan, shard: Shard, step: Step = unsaid) -> None:
    """Make a shard and write it.  Raises RunError where that is not possible."""
    contents = make(pipe, plan, shard, step)
    try:
        shards.write(out, plan, shard, contents)
    except OSError as error:
        raise RunError(
            f"out={str(out)!r}: shard {shard.name} cannot be written: {error.strerror or error}: what was finished stays; "
            "make room, and give the same command again"
        ) from None
