"""The same call executed by PyTorch, step by step: the baseline for latency and the reference for parity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .base import Family, update


@dataclass
class Eager:
    """A Runner that computes at once.  `reused` sublayers are read from `cache`; the others fill it."""

    family: Family
    weights: Mapping[str, Tensor]
    reused: frozenset[str] = frozenset()
    cache: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, op: str, *inputs: Any, at: str = "") -> Any:
        segment = self.family.segments[op]
        weights = [self.weights[f"{at}.{w}" if at else w] for w in segment.weights]
        return segment.function(*inputs, *weights)

    def sublayer(self, op: str, *inputs: Any, at: str) -> Any:
        name = f"{at}.{op}"
        if name not in self.reused:
            self.cache[name] = self(op, *inputs, at=at)
        return self.cache[name]

    def chunks(self, op: str, value: Any, at: str, names: Sequence[str]) -> tuple[Any, ...]:
        return tuple(self(op, value, at=at).chunk(len(names), dim=-1))

    def residual(self, stream: Any, value: Any, at: str, gate: Any = None) -> Any:
        return stream + value if gate is None else stream + gate * value


@torch.no_grad()
def denoise(
    family: Family,
    weights: Mapping[str, Tensor],
    calls: Sequence[Any],
    x: Tensor,
    labels: Tensor,
    guidance: Tensor,
    compiled: bool = False,
) -> Tensor:
    """The whole loop in PyTorch with the reference's caching; `calls` are a manifest's.

    x (B, C, H, W); labels (R,) int32, the unconditional half last; guidance (1, C, 1, 1), see `base.update`.
    """
    images, rows = x.shape[0], labels.shape[0]
    index = torch.arange(images, dtype=torch.int32, device=x.device)
    row, unconditional = index.repeat(rows // images), index + (rows - images)
    run = Eager(family, weights)
    predict = torch.compile(family.call) if compiled else family.call
    base = x
    for call in calls:
        run.reused = frozenset(family.sublayers[j] for j in call.reused)
        t = torch.full((rows,), call.timestep, device=x.device)
        noise = predict(run, x, row, t, labels)
        coefficients = torch.tensor(call.coefficients, device=x.device)
        x = update(noise, x, base, index, unconditional, guidance, coefficients)
        base = x if call.ends_step else base
    return x
