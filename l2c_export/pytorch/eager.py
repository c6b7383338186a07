"""The same call executed by PyTorch, operation by operation: the baseline for latency and the reference for parity."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from msgspec import UNSET, UnsetType
from torch import Tensor

from ..errors import ArtefactError
from ..models import layers
from ..models.family import Family
from ..models.updates import Sampler
from ..schedules.forecast import Terms
from ..schedules.values import OUTPUT

Result = Any  # what an operation makes: a tensor, or a tuple of several
Cache = Mapping[str, Result]
Spans = Mapping[str, tuple[str, str]]  # level of the stack -> the stream before and behind it, by their names in a graph
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
    fresh: dict[str, Result]
    spans: Spans = field(default_factory=dict, kw_only=True)
    before: dict[str, Tensor] = field(default_factory=dict, kw_only=True)  # the stream before every level

    def __call__(self, op: str, *inputs: Any, at: str = "", name: str = "") -> Any:
        return self._result(name or (f"{at}.{op}" if at else op), self._computed(op, inputs, at))

    def _computed(self, op: str, inputs: Sequence[Any], at: str) -> Any:
        segment = self.family.segments[op]
        weights = [self.weights[f"{at}.{w}" if at else w] for w in segment.weights]
        value = segment.function(*inputs, *weights)
        return tensorwise(lambda v: v.to(weights[0].dtype), value) if weights else value

    def sublayer(self, op: str, *inputs: Any, at: str, name: str = "") -> Any:
        called = name or f"{at}.{op}"
        if called in self.reused:
            return self.cache[called]
        self.fresh[called] = self(op, *inputs, at=at, name=name)
        return self.fresh[called]

    def weight(self, tensor: str) -> Any:
        return self.weights[tensor]

    def chunks(self, op: str, value: Any, at: str, names: Sequence[str]) -> tuple[Any, ...]:
        return tuple(self(op, value, at=at).chunk(len(names), dim=-1))

    def residual(self, stream: Any, value: Any, at: str, gate: Any = None) -> Any:
        return self._result(f"{at}.residual", stream + (value if gate is None else gate * value))

    def _result(self, name: str, value: Result) -> Result:
        """A value of the call, which may begin or end a level."""
        if not self.spans:
            return value
        values = value if isinstance(value, tuple) else (value,)
        passed = tuple(self._passed(f"{name}.{n}" if n else name, v) for n, v in enumerate(values))
        return passed if isinstance(value, tuple) else passed[0]

    def _passed(self, name: str, value: Tensor) -> Tensor:
        for level, (before, behind) in self.spans.items():
            if name != behind:
                continue
            if level not in self.before:
                raise ArtefactError(f"levels[{level!r}]: {before!r} is not made before {behind!r}: compile the artefact again")
            if level in self.reused:
                value = self.before[level] + self.cache[level]
            else:
                self.fresh[level] = value - self.before[level]
        self.before.update((level, value) for level, (before, _) in self.spans.items() if name == before)
        return value

    def predict(self, *inputs: Any) -> Tensor:
        """What the model predicts of latents, rows, timesteps and what is asked for, unless that is cached."""
        if OUTPUT not in self.reused:
            self.fresh[OUTPUT] = self.family.call(self, *inputs)
        prediction: Tensor = self.cache[OUTPUT] if OUTPUT in self.reused else self.fresh[OUTPUT]
        return prediction


def tensorwise(function: Callable[..., Tensor], *values: Result) -> Result:
    """A function of every tensor that operations make."""
    return tuple(map(function, *values)) if isinstance(values[0], tuple) else function(*values)


class CallLike(Protocol):
    """What the loop needs of a call; a manifest's calls have it."""

    @property
    def timestep(self) -> float: ...
    @property
    def computed(self) -> tuple[int, ...]: ...  # where it derives a level; otherwise all that it does not derive
    @property
    def reused(self) -> tuple[int, ...]: ...
    @property
    def derived(self) -> Mapping[str, Terms] | UnsetType: ...
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


class Earlier(NamedTuple):
    """What a value follows from: what earlier calls made, and a coefficient (1,) for each, or one value as it was."""

    values: tuple[Result, ...]
    numbers: Tensor | None

    def follow(self) -> Result:
        """The value; the sum is computed in float32 at least."""
        if self.numbers is None:
            return self.values[0]
        numbers = self.numbers.unbind()

        def weighted(*values: Tensor) -> Tensor:
            total = sum(number * layers.wide(value) for number, value in zip(numbers, values, strict=True))
            assert isinstance(total, Tensor)
            return total.to(values[0].dtype)

        return tensorwise(weighted, *self.values)


class EagerCall(torch.nn.Module):
    """One network evaluation that takes some values from earlier ones, as a module."""

    def __init__(self, family: Family, weights: Weights, reused: frozenset[str], keep: bool, spans: Spans) -> None:
        super().__init__()
        self.family, self.weights, self.reused, self.keep, self.spans = family, weights, reused, keep, spans

    def forward(
        self, x: Tensor, row: Tensor, t: Tensor, request: Tensors, cache: Mapping[str, Earlier]
    ) -> tuple[Tensor, dict[str, Result]]:
        run = Eager(self.family, self.weights, self.reused, follow(cache), {}, spans=self.spans)
        noise = run.predict(x, row, t, request)
        return noise, run.fresh if self.keep else {}


def follow(cache: Mapping[str, Earlier]) -> dict[str, Result]:
    return {name: earlier.follow() for name, earlier in cache.items()}


def reads(calls: Sequence[CallLike], sublayers: Sequence[str]) -> list[dict[str, Terms]]:
    """What every call takes from which earlier calls: (their index, coefficient) of every value that it does not compute."""
    last: dict[int, int] = {}  # the call that computed a column last
    taken = []
    for n, call in enumerate(calls):
        derived = {name: tuple((n - age, c) for age, c in terms) for name, terms in (call.derived or {}).items()}
        taken.append({**{sublayers[j]: ((last[j], 1.0),) for j in call.reused}, **derived})
        jumps = any(name not in sublayers for name in derived)
        last.update((j, n) for j, name in enumerate(sublayers) if name not in taken[n] and (not jumps or j in call.computed))
    return taken


class Denoiser:
    """The loop in PyTorch, with the reference's caching; `compiled` puts every distinct call through torch.compile, in a
    mode of its own ("reduce-overhead": CUDA graphs).

    It computes in the type of the weights; the latents and the sampler stay float32.
    """

    def __init__(self, family: Family, weights: Mapping[str, Tensor] | Weights, compiled: bool = False,
                 mode: str | None = None, spans: Spans | UnsetType = UNSET) -> None:  # fmt: skip
        self.family, self.compiled, self.mode, self.spans = family, compiled, mode, spans or {}
        self.weights = weights if isinstance(weights, Weights) else Parameters(weights)
        self._keep = True  # without a cache there is nothing to keep, and torch.compile may fuse more
        self._calls: dict[tuple[frozenset[str], bool], Callable[..., tuple[Tensor, dict[str, Result]]]] = {}

    def __call__(self, calls: Sequence[CallLike], x: Tensor, request: Tensors, guidance: Tensor) -> Tensor:
        """x (B, C, ..) noise; request (R, ..) by name, the unconditional half last; guidance as in `updates.update`."""
        *_, final = self.steps(calls, x, request, guidance)
        return final

    @torch.no_grad()
    def steps(self, calls: Sequence[CallLike], x: Tensor, request: Tensors, guidance: Tensor) -> Iterator[Tensor]:
        """The latents (B, C, ..) after every call, in the type of `x`; they may be changed in place before the next."""
        images = x.shape[0]
        rows = max((tensor.shape[0] for tensor in request.values()), default=images)
        index = torch.arange(images, dtype=torch.int32, device=x.device)
        row, unconditional = index.repeat(rows // images), index + (rows - images)
        sampler = Sampler(x, index, unconditional, guidance)
        taken = reads(calls, self.family.sublayers)
        last = {(name, filling): n for n, terms in enumerate(taken) for name, filled in terms.items() for filling, _ in filled}
        history: dict[tuple[str, int], Result] = {}
        self._keep = bool(last)
        for n, call in enumerate(calls):
            t = torch.full((rows,), call.timestep, device=x.device)
            cached = {name: earlier(name, taken[n][name], history, x) for name in sorted(taken[n])}
            noise, fresh = self._evaluate(n, frozenset(cached), sampler.x, row, t, request, cached)
            history.update({(name, n): value for name, value in fresh.items() if (name, n) in last})
            history = {key: value for key, value in history.items() if last[key] > n}
            coefficients = torch.tensor(call.coefficients, device=x.device, dtype=x.dtype)
            yield sampler.take(noise, coefficients, call.ends_step)

    def _evaluate(self, n: int, reused: frozenset[str], *inputs: Any) -> tuple[Tensor, dict[str, Result]]:
        """Call `n`: the predicted noise, and every value that it computed."""
        return self._call(reused)(*inputs)

    def _call(self, reused: frozenset[str]) -> Callable[..., tuple[Tensor, dict[str, Result]]]:
        key = reused, self._keep
        if key not in self._calls:
            call = EagerCall(self.family, self.weights, reused, self._keep, self.spans).eval()
            if self.compiled:
                torch._dynamo.config.cache_size_limit = 256  # one compilation per distinct call
            self._calls[key] = torch.compile(call, dynamic=False, mode=self.mode) if self.compiled else call
        return self._calls[key]


def earlier(name: str, terms: Terms, history: Mapping[tuple[str, int], Result], like: Tensor) -> Earlier:
    """What earlier calls made of a value, and the coefficients.  Raises ArtefactError for what they did not make."""
    if any((name, filling) not in history for filling, _ in terms):
        raise ArtefactError(f"{name!r} follows from earlier calls, and no call makes it: compile the artefact again")
    values, numbers = tuple(history[name, filling] for filling, _ in terms), [c for _, c in terms]
    return Earlier(values, None if numbers == [1.0] else torch.tensor(numbers, dtype=like.dtype, device=like.device))


@dataclass
class Tracing(Eager):
    """An Eager that keeps every value, under the name that it has in the compiled graphs."""

    seen: dict[str, Tensor]

    def chunks(self, op: str, value: Any, at: str, names: Sequence[str]) -> tuple[Any, ...]:
        return tuple(map(self._saw, names, super().chunks(op, value, at, names)))

    def residual(self, stream: Any, value: Any, at: str, gate: Any = None) -> Any:
        value = value if gate is None else self._saw(f"{at}.gated", self._saw(f"{at}.gate", gate) * value)
        return self._result(f"{at}.residual", stream + value)

    def _result(self, name: str, value: Result) -> Result:
        return self._saw(name, super()._result(name, value))

    def _saw(self, name: str, value: Result) -> Result:
        values = value if isinstance(value, tuple) else (value,)
        self.seen.update((f"{name}.{n}" if n else name, v) for n, v in enumerate(values))
        return value


class TracingDenoiser(Denoiser):
    """A Denoiser that keeps all values of the calls in `keep`: what verification compares with."""

    def __init__(self, family: Family, weights: Mapping[str, Tensor] | Weights, spans: Spans | UnsetType = UNSET) -> None:
        super().__init__(family, weights, spans=spans)
        self.keep: frozenset[int] = frozenset()
        self.traces: dict[int, dict[str, Tensor]] = {}

    def _evaluate(self, n: int, reused: frozenset[str], *inputs: Any) -> tuple[Tensor, dict[str, Result]]:
        if n not in self.keep:
            return super()._evaluate(n, reused, *inputs)
        x, row, t, request, cache = inputs
        run = Tracing(self.family, self.weights, reused, follow(cache), {}, {}, spans=self.spans)
        noise = run.predict(x, row, t, request)
        # what makes several values was seen one by one
        whole = {name: value for name, value in run.fresh.items() if not isinstance(value, tuple)}
        self.traces[n] = {**whole, **run.seen}
        return noise, run.fresh
