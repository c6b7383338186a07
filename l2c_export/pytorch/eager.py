"""The same call executed by PyTorch, operation by operation: the baseline for latency and the reference for parity."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..models.family import Family
from ..models.updates import Sampler

Made = Any  # what an operation makes: a tensor, or a tuple of several
Cache = Mapping[str, Made]
Tensors = Mapping[str, Tensor]  # what a request says, by the name of the input


@dataclass
class Eager:
    """A Runner that computes at once.  Sublayers in `reused` come from `cache`; `fresh` takes the others' values.

    Every value has the type of the weights, as after `model.to(torch.bfloat16)`.
    """

    family: Family
    weights: Mapping[str, Tensor] | Weights
    reused: frozenset[str]
    cache: Cache
    fresh: dict[str, Made]

    def __call__(self, op: str, *inputs: Any, at: str = "", name: str = "") -> Any:
        segment = self.family.segments[op]
        weights = [self.weights[f"{at}.{w}" if at else w] for w in segment.weights]
        value = segment.function(*inputs, *weights)
        return each(lambda v: v.to(weights[0].dtype), value) if weights else value

    def sublayer(self, op: str, *inputs: Any, at: str, name: str = "") -> Any:
        called = name or f"{at}.{op}"
        self.fresh[called] = self.cache[called] if called in self.reused else self(op, *inputs, at=at, name=name)
        return self.fresh[called]

    def weight(self, tensor: str) -> Any:
        return self.weights[tensor]

    def chunks(self, op: str, value: Any, at: str, names: Sequence[str]) -> tuple[Any, ...]:
        return tuple(self(op, value, at=at).chunk(len(names), dim=-1))

    def residual(self, stream: Any, value: Any, at: str, gate: Any = None) -> Any:
        return stream + value if gate is None else stream + gate * value


def each(function: Callable[..., Tensor], *made: Made) -> Made:
    """A function of every tensor that operations make."""
    return tuple(map(function, *made)) if isinstance(made[0], tuple) else function(*made)


class CallLike(Protocol):
    """What the loop needs of a call; a manifest's calls have it."""

    @property
    def timestep(self) -> float: ...
    @property
    def reused(self) -> tuple[int, ...]: ...
    @property
    def coefficients(self) -> tuple[float, ...]: ...
    @property
    def ends_step(self) -> bool: ...


class Parameters(torch.nn.Module):
    """Weights by their checkpoint names, as parameters: what torch.compile's freezing treats as constants."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_parameter(name.replace(".", "/"), torch.nn.Parameter(tensor, requires_grad=False))

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = getattr(self, name.replace(".", "/"))
        return tensor


@dataclass(frozen=True)
class Converted:
    """Weights in another type, each converted when an operation asks for it: no copy of a whole model is ever held."""

    tensors: Mapping[str, Tensor]
    dtype: torch.dtype

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name].to(self.dtype)


Weights = Parameters | Converted


class EagerCall(torch.nn.Module):
    """One network evaluation that reuses some sublayers, as a module."""

    def __init__(self, family: Family, weights: Weights, reused: frozenset[str], keep: bool) -> None:
        super().__init__()
        self.family, self.weights, self.reused, self.keep = family, weights, reused, keep

    def forward(self, x: Tensor, row: Tensor, t: Tensor, request: Tensors, cache: Cache) -> tuple[Tensor, dict[str, Made]]:
        run = Eager(self.family, self.weights, self.reused, cache, {})
        noise = self.family.call(run, x, row, t, request)
        return noise, run.fresh if self.keep else {}


class Denoiser:
    """The loop in PyTorch, with the reference's caching; `compiled` puts every distinct call through torch.compile, in a
    mode of its own ("reduce-overhead": CUDA graphs).

    It computes in the type of the weights; the latents and the sampler stay float32.
    """

    def __init__(self, family: Family, weights: Mapping[str, Tensor] | Weights, compiled: bool = False,
                 mode: str | None = None) -> None:  # fmt: skip
        self.family, self.compiled, self.mode = family, compiled, mode
        self.weights = weights if isinstance(weights, Weights) else Parameters(weights)
        self._keep = True  # without a cache there is nothing to keep, and torch.compile may fuse more
        self._calls: dict[tuple[frozenset[str], bool], Callable[..., tuple[Tensor, dict[str, Made]]]] = {}

    def __call__(self, calls: Sequence[CallLike], x: Tensor, request: Tensors, guidance: Tensor) -> Tensor:
        """x (B, C, ..) noise; request (R, ..) by name, the unconditional half last; guidance as in `updates.update`."""
        *_, final = self.steps(calls, x, request, guidance)
        return final

    @torch.no_grad()
    def steps(self, calls: Sequence[CallLike], x: Tensor, request: Tensors, guidance: Tensor) -> Iterator[Tensor]:
        """The latents (B, C, ..) after every call, in the type of `x`; they may be changed in place before the next."""
        images = x.shape[0]
        rows = max((given.shape[0] for given in request.values()), default=images)
        index = torch.arange(images, dtype=torch.int32, device=x.device)
        row, unconditional = index.repeat(rows // images), index + (rows - images)
        sampler = Sampler(x, index, unconditional, guidance)
        cache: dict[str, Made] = {}
        self._keep = any(call.reused for call in calls)
        for n, call in enumerate(calls):
            reused = frozenset(self.family.sublayers[j] for j in call.reused)
            t = torch.full((rows,), call.timestep, device=x.device)
            cached = {name: cache[name] for name in sorted(reused)}
            noise, cache = self._evaluate(n, reused, sampler.x, row, t, request, cached)
            coefficients = torch.tensor(call.coefficients, device=x.device, dtype=x.dtype)
            yield sampler.take(noise, coefficients, call.ends_step)

    def _evaluate(self, n: int, reused: frozenset[str], *inputs: Any) -> tuple[Tensor, dict[str, Made]]:
        """Call `n`: the predicted noise, and every sublayer's value."""
        return self._call(reused)(*inputs)

    def _call(self, reused: frozenset[str]) -> Callable[..., tuple[Tensor, dict[str, Made]]]:
        key = reused, self._keep
        if key not in self._calls:
            call = EagerCall(self.family, self.weights, reused, self._keep).eval()
            if self.compiled:
                torch._dynamo.config.cache_size_limit = 256  # one compilation per distinct call
            self._calls[key] = torch.compile(call, dynamic=False, mode=self.mode) if self.compiled else call
        return self._calls[key]


@dataclass
class Tracing(Eager):
    """An Eager that keeps every value, under the name that it has in the compiled graphs."""

    seen: dict[str, Tensor]

    def __call__(self, op: str, *inputs: Any, at: str = "", name: str = "") -> Any:
        return self._saw(name or (f"{at}.{op}" if at else op), super().__call__(op, *inputs, at=at))

    def chunks(self, op: str, value: Any, at: str, names: Sequence[str]) -> tuple[Any, ...]:
        return tuple(map(self._saw, names, super().chunks(op, value, at, names)))

    def residual(self, stream: Any, value: Any, at: str, gate: Any = None) -> Any:
        value = value if gate is None else self._saw(f"{at}.gated", gate * value)
        return self._saw(f"{at}.residual", stream + value)

    def _saw(self, name: str, value: Made) -> Made:
        values = value if isinstance(value, tuple) else (value,)
        self.seen.update((f"{name}.{n}" if n else name, v) for n, v in enumerate(values))
        return value


class TracingDenoiser(Denoiser):
    """A Denoiser that keeps all values of the calls in `keep`: what verification compares with."""

    def __init__(self, family: Family, weights: Mapping[str, Tensor] | Weights) -> None:
        super().__init__(family, weights)
        self.keep: frozenset[int] = frozenset()
        self.traces: dict[int, dict[str, Tensor]] = {}

    def _evaluate(self, n: int, reused: frozenset[str], *inputs: Any) -> tuple[Tensor, dict[str, Made]]:
        if n not in self.keep:
            return super()._evaluate(n, reused, *inputs)
        x, row, t, request, cache = inputs
        run = Tracing(self.family, self.weights, reused, cache, {}, {})
        noise = self.family.call(run, x, row, t, request)
        self.traces[n] = run.seen
        return noise, run.fresh
