"""What a router is trained on: the inputs of its cached calls, what is in the cache there, and the uncached output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ..models.family import Family
from ..pytorch.eager import Cache, Denoiser
from .data import Samples
from .mixing import AsCompiled
from .pairs import FullCall, Pair

DROPPED = 0.1  # so many labels become the null label, as when the models were trained


class Lesson(NamedTuple):
    """A cached call: which pair it is, the model's inputs x, rows, t, y, the filled cache, and the uncached output."""

    pair: int
    inputs: tuple[Tensor, Tensor, Tensor, Tensor]
    cache: Cache
    target: Tensor


class Draw(NamedTuple):
    """Where the chance of an iteration comes from.  Every image has its own, so that it is the same on one GPU and on many."""

    key: tuple[int, ...]
    images: range  # those of this process

    def generators(self, *more: int) -> list[np.random.Generator]:
        return [np.random.default_rng([*self.key, *more, image]) for image in self.images]


class LessonRequest(NamedTuple):
    """Noise (B, C, H, W), labels (R,) int32 with the unconditional half last, and guidance (1, C, 1, 1) of `updates.update`."""

    noise: Tensor
    labels: Tensor
    guidance: Tensor


def draw_request(family: Family, guidance: Tensor | None, draw: Draw, device: torch.device) -> LessonRequest:
    """A random request; without guidance, some of its labels are dropped."""
    chances = draw.generators(0)
    labels = [int(chance.integers(family.labels)) for chance in chances]
    noise = torch.from_numpy(np.stack([chance.standard_normal(family.latent, np.float32) for chance in chances]))
    if guidance is None:
        labels, guidance = drop_labels(family, labels, chances), torch.zeros(1, family.latent[0], 1, 1)
    else:
        labels += [family.null_label or 0] * len(chances)
    return LessonRequest(noise.to(device), torch.tensor(labels, dtype=torch.int32, device=device), guidance.to(device))


class Observer(Denoiser):
    """The uncached sampler, which notes what its last call was given and made."""

    def __init__(self, family: Family, weights: Mapping[str, Tensor]) -> None:
        super().__init__(family, weights)
        self.inputs: Any = None
        self.output: Any = None
        self.fresh: Cache = {}

    def _evaluate(self, n: int, reused: frozenset[str], *inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        run = AsCompiled(self.family, self.weights, reused, inputs[-1], {})
        self.inputs, self.output, self.fresh = inputs[:-1], self.family.call(run, *inputs[:-1]), run.fresh
        return self.output, run.fresh

    def lessons(self, calls: Sequence[FullCall], pairs: Mapping[int, Pair], first: int, last: int, x: Tensor,
                labels: Tensor, guidance: Tensor) -> Iterator[Lesson]:  # fmt: skip
        """Sample from `x`, the latents of call `first`, to call `last`; a lesson for each of the pairs on the way."""
        fills = {pair.fill for pair in pairs.values()}
        caches: dict[int, Cache] = {}
        ends = {pair.cached: index for index, pair in pairs.items()}
        for n, _ in enumerate(self.steps(calls[first : last + 1], x, labels, guidance), first):
            if n in ends:
                index = ends[n]
                yield Lesson(index, self.inputs, caches.pop(pairs[index].fill), self.output)
            if n in fills:
                caches[n] = self.fresh


class Curriculum(Protocol):
    """An endless supply of lessons."""

    def lessons(self, draw: Draw) -> Iterator[Lesson]:
        """One batch for every pair, without gradients."""


@dataclass(frozen=True)
class FromModel:
    """The model's own trajectories, with guidance: no data are needed, and inference sees the same distribution."""

    observer: Observer
    calls: tuple[FullCall, ...]
    pairs: tuple[Pair, ...]
    guidance: Tensor | None
    device: torch.device

    def lessons(self, draw: Draw) -> Iterator[Lesson]:
        request = draw_request(self.observer.family, self.guidance, draw, self.device)
        yield from self.observer.lessons(self.calls, dict(enumerate(self.pairs)), 0, self.pairs[-1].cached, *request)


@dataclass(frozen=True)
class FromData:
    """Noised data, as the reference trains: from the start of the filling call's solver step, without guidance."""

    observer: Observer
    calls: tuple[FullCall, ...]
    pairs: tuple[Pair, ...]
    samples: Samples
    device: torch.device

    def lessons(self, draw: Draw) -> Iterator[Lesson]:
        family = self.observer.family
        strength = torch.zeros(1, family.latent[0], 1, 1, device=self.device)
        for index, pair in enumerate(self.pairs):
            chances, start = draw.generators(index), self.calls[pair.start]
            picks = [int(chance.integers(len(self.samples.labels))) for chance in chances]
            noise = np.stack([chance.standard_normal(family.latent, np.float32) for chance in chances])
            labels = drop_labels(family, self.samples.labels[picks].tolist(), chances)
            x = np.float32(start.signal) * self.samples.values[picks] + np.float32(start.noise) * noise
            y = torch.tensor(labels, dtype=torch.int32, device=self.device)
            latents = torch.from_numpy(x).to(self.device)
            yield from self.observer.lessons(self.calls, {index: pair}, pair.start, pair.cached, latents, y, strength)


def drop_labels(family: Family, labels: Sequence[int], chances: Sequence[np.random.Generator]) -> list[int]:
    """Some labels replaced by the null label, where the model has one."""
    null = family.null_label
    if null is None:
        return list(labels)
    return [null if chance.random() < DROPPED else label for label, chance in zip(labels, chances, strict=True)]
