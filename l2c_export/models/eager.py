"""The same call executed by PyTorch, operation by operation: the baseline for latency and the reference for parity."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .base import Family, update

Cache = Mapping[str, Tensor]


@dataclass
class Eager:
    """A Runner that computes at once.  Sublayers in `reused` come from `cache`; `fresh` takes the others' values."""

    family: Family
    weights: Mapping[str, Tensor]
    reused: frozenset[str]
    cache: Cache
    fresh: dict[str, Tensor]

    def __call__(self, op: str, *inputs: Any, at: str = "") -> Any:
        segment = self.family.segments[op]
        weights = [self.weights[f"{at}.{w}" if at else w] for w in segment.weights]
        return segment.function(*inputs, *weights)

    def sublayer(self, op: str, *inputs: Any, at: str) -> Any:
        name = f"{at}.{op}"
        self.fresh[name] = self.cache[name] if name in self.reused else self(op, *inputs, at=at)
        return self.fresh[name]

    def chunks(self, op: str, value: Any, at: str, names: Sequence[str]) -> tuple[Any, ...]:
        return tuple(self(op, value, at=at).chunk(len(names), dim=-1))

    def residual(self, stream: Any, value: Any, at: str, gate: Any = None) -> Any:
        return stream + value if gate is None else stream + gate * value


class CallLike(Protocol):
    """What the loop needs of a call; a manifest's calls have it."""

    timestep: float
    reused: tuple[int, ...]
    coefficients: tuple[float, float, float]
    ends_step: bool


class Denoiser:
    """The loop in PyTorch, with the reference's caching; `compiled` puts every distinct call through torch.compile."""

    def __init__(self, family: Family, weights: Mapping[str, Tensor], compiled: bool = False) -> None:
        self.family, self.weights, self.compiled = family, weights, compiled
        self._calls: dict[frozenset[str], Callable[..., tuple[Tensor, dict[str, Tensor]]]] = {}

    @torch.no_grad()
    def __call__(self, calls: Sequence[CallLike], x: Tensor, labels: Tensor, guidance: Tensor) -> Tensor:
        """x (B, C, H, W) noise; labels (R,) int32, the unconditional half last; guidance as in `base.update`."""
        return self.trajectory(calls, x, labels, guidance)[-1]

    @torch.no_grad()
    def trajectory(self, calls: Sequence[CallLike], x: Tensor, labels: Tensor, guidance: Tensor) -> list[Tensor]:
        """The latents after every call."""
        images, rows = x.shape[0], labels.shape[0]
        index = torch.arange(images, dtype=torch.int32, device=x.device)
        row, unconditional = index.repeat(rows // images), index + (rows - images)
        base, seen = x, []
        cache: dict[str, Tensor] = {}
        for call in calls:
            reused = frozenset(self.family.sublayers[j] for j in call.reused)
            t = torch.full((rows,), call.timestep, device=x.device)
            noise, cache = self._call(reused)(x, row, t, labels, {name: cache[name] for name in sorted(reused)})
            coefficients = torch.tensor(call.coefficients, device=x.device)
            x = update(noise, x, base, index, unconditional, guidance, coefficients)
            base = x if call.ends_step else base
            seen.append(x)
        return seen

    def _call(self, reused: frozenset[str]) -> Callable[..., tuple[Tensor, dict[str, Tensor]]]:
        if reused not in self._calls:

            def predict(x: Tensor, row: Tensor, t: Tensor, y: Tensor, cache: Cache) -> tuple[Tensor, dict[str, Tensor]]:
                run = Eager(self.family, self.weights, reused, cache, {})
                return self.family.call(run, x, row, t, y), run.fresh

            if self.compiled:
                torch._dynamo.config.cache_size_limit = 256  # one compilation per distinct call
                self._calls[reused] = torch.compile(predict, dynamic=False)
            else:
                self._calls[reused] = predict
        return self._calls[reused]
