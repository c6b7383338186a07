"""Measure an artefact's segments on this machine, with or without its weights."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..artefact.compiled import Compiled
from ..artefact.guidance import strength
from ..artefact.manifest import Manifest
from ..backends.contract import Backend, Run, WeightView
from ..ir.inputs import usual
from ..runtime.loaded import Bound, load_engines
from ..runtime.loops import Loops
from ..support.clock import seconds_of
from ..weights.layout import rounded

SAMPLES = 7  # timings of a segment, at different places of the model


def segment_times(folder: Path, manifest: Manifest, backend: Backend, images: int) -> dict[str, float]:
    """Median seconds of one run of every segment, for a batch of `images`."""
    compiled = manifest.program()
    loaded = load_engines(folder, manifest, backend, "shared", random_weights(compiled))
    loop = Loops(loaded).loop(compiled, images, guided=True)
    places: dict[str, list[Run]] = defaultdict(list)
    distinct = {call.graph: n for n, call in reversed(list(enumerate(compiled.calls)))}  # graph -> its first call

    def collect(index: int, bound: Bound) -> None:
        if index in distinct.values():
            places[bound.engine].append(bound.run)

    scales = np.full(images, compiled.guidance.scale)
    guidance = strength(compiled.guidance, compiled.latent, scales)
    for _ in loop.denoise(
        np.zeros((images, *compiled.latent), np.float32), usual(compiled.inputs, loop.rows), guidance, collect
    ):
        pass
    return {name: statistics.median(seconds(runs)) for name, runs in places.items()}


def seconds(runs: Sequence[Run]) -> list[float]:
    """Time a few runs, at different places if there are any; the first run warms up."""
    sample = itertools.islice(itertools.cycle(runs[:: max(1, len(runs) // SAMPLES)]), SAMPLES + 1)
    return [seconds_of(run) for run in sample][1:]


def random_weights(compiled: Compiled) -> WeightView:
    """Weights for timing only: slices of one pool, a new place each time, since in the loop no weight is in the cache."""
    tensors = compiled.denoiser.tensors
    sizes = [math.prod(tensor.shape) for tensor in tensors.values()]
    numbers = np.random.default_rng(0).standard_normal(max(2 * max(sizes), 2**24), np.float32) * np.float32(0.02)
    pools = {dtype: rounded("random", numbers, dtype) for dtype in {tensor.dtype for tensor in tensors.values()}}
    cursor = 0

    def view(name: str) -> np.ndarray:
        nonlocal cursor
        shape = compiled.weight_shape(name)
        size = int(np.prod(shape))
        start = cursor if cursor + size <= numbers.size else 0
        cursor = start + size
        return np.reshape(pools[tensors[compiled.size.origins[name].of].dtype][start:cursor], shape)

    return view
