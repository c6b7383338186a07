"""What a router is trained on: the inputs of its cached calls, what is in the cache there, and the uncached output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ..artefact.guidance import halves
from ..ir.inputs import Inputs, RequestInput, guided
from ..models.family import Family
from ..pytorch.eager import Cache, Denoiser, Tensors, follow
from .data import Samples
from .mixing import AsCompiled
from .pairs import FullCall, Pair

TRAIN, CALIBRATE, EVALUATE, INFLUENCE, ROWS = range(5)  # what chance is drawn for
DROPPED = 0.1  # so many images are told nothing, as when the models were trained


class Lesson(NamedTuple):
    """A cached call: which pair it is, the model's inputs x, rows, t, request, the filled cache, and the uncached output."""

    pair: int
    inputs: tuple[Tensor, Tensor, Tensor, Tensors]
    cache: Cache
    target: Tensor


class Draw(NamedTuple):
    """Where the chance of an iteration comes from.  Every image has its own, so that it is the same on one GPU and on many."""

    key: tuple[int, ...]
    images: range  # those of this process

    def generators(self, *more: int) -> list[np.random.Generator]:
        return [np.random.default_rng([*self.key, *more, image]) for image in self.images]


class LessonRequest(NamedTuple):
    """Noise (B, C, ..), inputs (R, ..) with the unconditional half last, and guidance (1, C, 1, ..) of `updates.update`."""

    noise: Tensor
    inputs: Tensors
    guidance: Tensor


class Subjects(NamedTuple):
    """What images are of: any of the choices, or where there are others than choices, one of those that are given."""

    declared: tuple[RequestInput, ...]
    requests: Inputs | None = None  # (N, ..) by the name of the array
    scale: float = 1.0  # of guidance, for a model that is told

    def draw(self, chances: Sequence[np.random.Generator]) -> Inputs:
        """(B, ..) of every input."""
        if knows_all(self.declared):
            drawn = [{d.name: chance.integers(d.choices or 1, size=d.shape) for d in self.declared} for chance in chances]
            return {d.name: np.array([one[d.name] for one in drawn], d.dtype) for d in self.declared}
        assert self.requests
        count = len(next(iter(self.requests.values())))
        picks = [int(chance.integers(count)) for chance in chances]
        told = {d.name: np.full(len(picks), self.scale, d.dtype) for d in self.declared if d.known == "guidance"}
        return told | {name: values[picks] for name, values in self.requests.items()}


def knows_all(declared: Sequence[RequestInput]) -> bool:
    """Whether any request can be made up: the others' values only data have."""
    return all(one.choices for one in declared)


def draw_request(
    subjects: Subjects, latent: tuple[int, ...], guidance: Tensor | None, draw: Draw, device: torch.device
) -> LessonRequest:
    """A random request; without guidance, some images of it are told nothing."""
    chances = draw.generators(0)
    inputs = subjects.draw(chances)
    noise = torch.from_numpy(np.stack([chance.standard_normal(latent, np.float32) for chance in chances]))
    if guidance is None:
        inputs, guidance = dropped(subjects.declared, inputs, chances), unguided(latent)
    else:
        inputs = halves(subjects.declared, inputs)
    return LessonRequest(noise.to(device), tensors(inputs, device), guidance.to(device))


def unguided(latent: Sequence[int]) -> Tensor:
    """The guidance of `updates.update` that leaves the conditional prediction what it is."""
    return torch.zeros(1, *latent[:1], *(1 for _ in latent[1:]))


def tensors(inputs: Inputs, device: torch.device) -> Tensors:
    return {name: torch.from_numpy(values).to(device) for name, values in inputs.items()}


class Observer(Denoiser):
    """The uncached sampler, which notes what its last call was given and made."""

    def __init__(self, family: Family, weights: Mapping[str, Tensor]) -> None:
        super().__init__(family, weights)
        self.inputs: Any = None
        self.output: Any = None
        self.fresh: Cache = {}

    def _evaluate(self, n: int, reused: frozenset[str], *inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        run = AsCompiled(self.family, self.weights, reused, follow(inputs[-1]), {})
        self.inputs, self.output, self.fresh = inputs[:-1], self.family.call(run, *inputs[:-1]), run.fresh
        return self.output, run.fresh

    def lessons(self, calls: Sequence[FullCall], pairs: Mapping[int, Pair], first: int, last: int, x: Tensor,
                request: Tensors, guidance: Tensor) -> Iterator[Lesson]:  # fmt: skip
        """Sample from `x`, the latents of call `first`, to call `last`; a lesson for each of the pairs on the way."""
        fills = {pair.fill for pair in pairs.values()}
        caches: dict[int, Cache] = {}
        ends = {pair.cached: index for index, pair in pairs.items()}
        for n, _ in enumerate(self.steps(calls[first : last + 1], x, request, guidance), first):
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
        family = self.observer.family
        request = draw_request(Subjects(family.inputs), family.latent, self.guidance, draw, self.device)
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
        strength = unguided(family.latent).to(self.device)
        for index, pair in enumerate(self.pairs):
            chances, start = draw.generators(index), self.calls[pair.start]
            picks = [int(chance.integers(len(self.samples.values))) for chance in chances]
            noise = np.stack([chance.standard_normal(family.latent, np.float32) for chance in chances])
            inputs = {name: values[picks] for name, values in self.samples.inputs.items()}
            request = tensors(dropped(family.inputs, inputs, chances), self.device)
            x = np.float32(start.signal) * self.samples.values[picks] + np.float32(start.noise) * noise
            latents = torch.from_numpy(x).to(self.device)
            yield from self.observer.lessons(self.calls, {index: pair}, pair.start, pair.cached, latents, request, strength)


def dropped(declared: Sequence[RequestInput], inputs: Inputs, chances: Sequence[np.random.Generator]) -> Inputs:
    """Inputs (B, ..), some of whose images are told nothing, where the model has values for that."""
    if not guided(declared):
        return inputs
    gone = np.array([chance.random() < DROPPED for chance in chances])
    values = dict(inputs)
    for one in declared:
        if one.guides:
            mask = gone.reshape(-1, *(1 for _ in one.shape))
            values[one.name] = np.where(mask, one.without(len(gone)), inputs[one.name])
    return values
