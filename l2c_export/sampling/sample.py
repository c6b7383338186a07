"""Sampling offline: so many images of an artefact, in shards.  Whoever is interrupted gives the same command again."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..artefact import store
from ..artefact.manifest import Manifest
from ..errors import RunError, UsageError
from ..runtime import request
from ..runtime.inputs import Labels
from ..runtime.pipeline import Pipeline, load
from ..support.extras import needs
from ..support.files import Report, locked
from ..support.log import logged
from ..support.progress import Progress, unseen
from ..support.words import counted
from . import fleet, maker, plan, shards
from .asked import asked_of
from .plan import FORMATS, SamplePlan

SHARD = 256  # images of a shard where nothing is said: 50 MB of pictures of 256 pixels
MOST = 2**62


@dataclass(frozen=True)
class SampleResult:
    """What `sample` has made: the folder, its images, and how many of them are new."""

    path: Path
    images: int
    new: int
    shards: tuple[str, ...]


def sample(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    count: int | None = None,
    *,
    class_labels: Labels | None = None,
    prompts: str | os.PathLike[str] | Sequence[str] | None = None,
    negative_prompt: str | None = None,
    seed: int = 0,
    guidance_scale: float | None = None,
    steps: int | None = None,
    size: tuple[int, int] | None = None,
    format: str = "npz",
    shard_size: int = SHARD,
    backend: str | None = None,
    device: str | None = None,
    threads: int = 1,
    link: str | None = None,
    verify: bool = True,
    ray: bool = False,
    workers: int | None = None,
    report: Report = logged,
    progress: Progress = unseen,
) -> SampleResult:
    """Make `count` images into the folder `out`, as shards of `shard_size` images; what is there already is not made again.

    Image n has the noise of seed + n and the n-th of `class_labels` (by default all of the model's classes) or of `prompts`
    (a list, or a text file with one a line), which begin again at their end: so classes are balanced, and by default `count`
    is one of each.  `format` is "npz" (`images` (N, H, W, C) uint8 or `latents` (N, C, H, W) float32, `seeds`, and
    `class_labels` or `prompt`) or "png", a folder of pictures per shard.  `guidance_scale`, `negative_prompt`, `steps` and
    `size` (height and width) are those of a request; `backend`, `device`, `link` and `verify` those of `load`.

    Batches are always as large as the artefact was compiled for, and `threads` is 1 by default: so images have the same bits
    with and without `ray`, which makes `workers` of them at once (by default as many as there are processors, or GPUs) with
    Ray Data, on this machine or on the cluster of RAY_ADDRESS.  A shard is written whole or not at all; after an
    interruption the same call goes on.
    Raises UsageError for a folder that was begun with other values, RunError where a disk is full or an image is not finite.
    """
    folder, target = request.folder(path).absolute(), Path(out).absolute()
    manifest = store.read(folder, verify=False)
    store.check_linked(folder, manifest)
    name, of_each = asked_of(manifest, class_labels, prompts, negative_prompt)
    wanted = SamplePlan(
        artefact=manifest.checksum, backend=backend or manifest.backend, threads=threads, link=link, asked=name,
        of_each=of_each, count=_count(count, len(of_each)), format=format, shard_size=shard_size, seed=seed,
        negative_prompt=negative_prompt, guidance_scale=guidance_scale, steps=steps, size=size,
    )  # fmt: skip
    check(manifest, wanted)
    _check_workers(ray, workers, device)
    opened = partial(load, folder, backend=backend, device=device, threads=threads, link=link, verify=verify)
    try:
        with locked(target, report):
            plan.settle(target, wanted)
            shards.sweep(target)
            return _sampled(opened, target, wanted, device, ray, workers, report, progress)
    except OSError as error:
        raise RunError(f"out={str(out)!r}: cannot be written: {error.strerror or error}: choose another folder") from None


def _sampled(
    opened: Callable[[], Pipeline], out: Path, wanted: SamplePlan, device: str | None, ray: bool, workers: int | None,
    report: Report, progress: Progress,
) -> SampleResult:  # fmt: skip
    """Make what is missing."""
    todo, all_shards = shards.missing(out, wanted), wanted.shards
    if len(todo) < len(all_shards):
        report(f"{out}: {len(all_shards) - len(todo)} of {counted(len(all_shards), 'shard')} are there")
    new = sum(shard.images for shard in todo)
    step = progress("sampling", new)
    if todo and ray:
        fleet.write(opened, out, wanted, todo, device, workers, report, step)
    elif todo:
        with opened() as pipe:
            for shard in todo:
                maker.write(pipe, out, wanted, shard, step)
    return SampleResult(out, wanted.count, new, tuple(shard.name for shard in all_shards))


def check(manifest: Manifest, wanted: SamplePlan) -> None:
    """Refuse what an artefact cannot make, before its engines are loaded.  Raises UsageError."""
    if wanted.format not in FORMATS:
        raise UsageError(f"format={wanted.format!r}: use one of {', '.join(FORMATS)}")
    if wanted.format == "png":
        if not request.makes_pixels(manifest):
            raise UsageError(
                "format='png': this model makes latents, not pixels, and the artefact has no decoder: use format='npz', or "
                "compile it with with_vae=True"
            )
        needs("PIL.Image", "images")
    if not (request.whole(wanted.shard_size) and wanted.shard_size > 0):
        raise UsageError(f"shard_size={wanted.shard_size}: must be at least 1")
    if not (request.whole(wanted.threads) and wanted.threads > 0):
        raise UsageError(f"threads={wanted.threads}: must be at least 1")
    request.seeds(1, wanted.seed)
    if wanted.seed + wanted.count > MOST:
        raise UsageError(f"seed={wanted.seed}: must be less than 2^62, with as many behind it as there are images")
    manifest.program(wanted.steps, request.axes(manifest, *(wanted.size or (None, None))))
    request.scales(manifest.program(), wanted.guidance_scale, 1)


def _count(count: int | None, default: int) -> int:
    if count is None and default:
        return default
    if count is None:
        raise UsageError("count=..: is missing: this model is told nothing, so say how many images")
    if not (request.whole(count) and 1 <= count < MOST):
        raise UsageError(f"count={count}: must be at least 1")
    return int(count)


def _check_workers(ray: bool, workers: int | None, device: str | None) -> None:
    if workers is not None and not ray:
        raise UsageError(f"workers={workers}: goes with ray=True: use that, or leave it out")
    if workers is not None and not (request.whole(workers) and workers > 0):
        raise UsageError(f"workers={workers}: must be at least 1")
    if ray and device is not None and ":" in device:
        raise UsageError(f"device={device!r}: with ray=True every process has a GPU of its own: use device='cuda'")
