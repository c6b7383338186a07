"""Methods that decide while a model runs, made static: what they would decide on trajectories of this model.

The trajectories are uncached ones, a batch of them, and a decision is the batch's: what the methods compare are means.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..compiler.compile import lower
from ..errors import ModelError, UsageError
from ..pytorch.eager import Denoiser
from ..schedules.importers import magcache as magcache_ratios
from ..schedules.importers.imported import Known, of_level
from ..schedules.schedule import Schedule
from ..schedules.values import STACK
from ..support.files import Report
from .lessons import CALIBRATE
from .mixing import AsCompiled
from .options import TrainingOptions
from .subject import Subject, subject_of

FIRST = "stack[0:1]"  # what the first block adds
IDENTITY = (1.0, 0.0)


@dataclass(frozen=True)
class OnlineMethod:
    """A method and its parameters.  Raises UsageError."""

    name: str
    threshold: float
    polynomial: tuple[float, ...] = IDENTITY  # of TeaCache, the highest power first
    max_skips: int = 5  # of MagCache, in a row
    retention: float = 0.1  # of MagCache, the share of the calls that are computed at first

    def __post_init__(self) -> None:
        if self.name not in METHODS:
            raise UsageError(f"method={self.name!r}: use one of {', '.join(METHODS)}")
        if not 0 <= self.threshold < float("inf"):
            raise UsageError(f"threshold={self.threshold}: must be a finite number, at least 0")
        if not self.polynomial or not all(abs(coefficient) < float("inf") for coefficient in self.polynomial):
            raise UsageError(f"polynomial={self.polynomial}: give finite numbers, the coefficient of the highest power first")
        if self.max_skips < 1:
            raise UsageError(f"max_skips={self.max_skips}: must be at least 1")
        if not 0 < self.retention <= 1:
            raise UsageError(f"retention={self.retention}: must be more than 0, and at most 1")
        own = {"teacache": {"polynomial"}, "magcache": {"max_skips", "retention"}}.get(self.name, set())
        for field in dataclasses.fields(self)[2:]:
            if field.name not in own and (value := getattr(self, field.name)) != field.default:
                raise UsageError(f"{field.name}={value}: {self.name} has no use for it: leave it out")


class Observed(NamedTuple):
    """Of a call: what the first product reads, what the first block adds to the stream, and what all blocks add."""

    modulated: Tensor
    stack: Tensor
    first: Tensor | None  # where the method asks for it


def teacache(seen: Iterator[Observed], count: int, method: OnlineMethod) -> set[int]:
    """TeaCache (arXiv 2411.19108, github.com/ali-vilab/TeaCache): the change of the modulated input of the first block, mean
    |now - before| / mean |before|, is rescaled by a polynomial and added up since the last computed call; below the threshold
    the call is skipped.  The first call and the last are computed."""
    computed, total, before = set(), 0.0, None
    for n, observation in enumerate(seen):
        if before is not None:
            total += evaluated(method.polynomial, change(observation.modulated, before))
        if before is None or n == count - 1 or not total < method.threshold:
            computed.add(n)
            total = 0.0
        before = observation.modulated
    return computed


def fbcache(seen: Iterator[Observed], count: int, method: OnlineMethod) -> set[int]:
    """First Block Cache (github.com/chengzeyi/ParaAttention): the first block runs in every call; the others are skipped where
    what it adds differs from that of the last computed call by less than the threshold, mean |now - then| / mean |then|."""
    computed, then = set(), None
    for n, observation in enumerate(seen):
        assert observation.first is not None
        if then is None or not change(observation.first, then) < method.threshold:
            computed.add(n)
            then = observation.first
    return computed


def magcache(seen: Iterator[Observed], count: int, method: OnlineMethod) -> set[int]:
    """MagCache (arXiv 2506.09045): the mean over tokens of |now| / |before|, of what the blocks add, is a call's ratio; from
    the ratios follows the rest, as in `importers/magcache.py`."""
    ratios, before = [], None
    for observation in seen:
        sizes = observation.stack.float().norm(dim=-1)
        ratios.append(1.0 if before is None else float((sizes / before).mean()))
        before = sizes
    limits = magcache_ratios.Limits(method.threshold, method.max_skips, method.retention, keeps=False)
    if int(method.retention * count + 0.5) < 1:
        raise UsageError(f"retention={method.retention}: of {count} calls that is less than one: raise it")
    return magcache_ratios.computed_steps(ratios, limits)


METHODS = {"teacache": teacache, "fbcache": fbcache, "magcache": magcache}


def change(now: Tensor, before: Tensor) -> float:
    return float((now - before).abs().mean() / before.abs().mean())


def evaluated(polynomial: Sequence[float], x: float) -> float:
    total = 0.0
    for coefficient in polynomial:
        total = total * x + coefficient
    return total


def calibrate(method: OnlineMethod, options: TrainingOptions, sampler: str | None, report: Report) -> Schedule:
    """The schedule of a method for `options.batch` trajectories: where it skips, what the blocks add is reused.

    Raises L2CError where the options do not fit, or the model has no such level.
    """
    subject = subject_of(options, sampler)
    uncached, blocks = subject.source.schedule, max(subject.source.schedule.values.blocks) + 1
    is_first = method.name == "fbcache"
    level, watched = (f"stack[1:{blocks}]", (STACK, FIRST)) if is_first else (STACK, (STACK,))
    count = len(uncached.calls)
    computed = METHODS[method.name](observed(subject, watched), count, method)
    known = Known(uncached.family, uncached.sublayers, uncached.sampler, uncached.scheduler or None)
    schedule = of_level(known, uncached.steps, computed, (level,))
    lower(subject.options, dataclasses.replace(subject.source, schedules=(schedule,)))  # refuses what cannot be compiled
    request = subject.request(CALIBRATE, 0)
    error = subject.error(schedule, request, subject.latents(uncached, request))
    report(
        f"{method.name}, threshold {method.threshold:g}: {len(computed)} of {count} calls are computed, the others reuse "
        f"{level}; error of the latents {error:.2%}"
    )
    return schedule


def observed(subject: Subject, watched: tuple[str, ...]) -> Iterator[Observed]:
    """Every call of a batch of uncached trajectories, as they run."""
    observer = CallObserver(subject.family, subject.weights, spans=subject.spans(watched))
    for _ in observer.steps(subject.calls(subject.source.schedule), *subject.request(CALIBRATE, 0)):
        yield observer.seen


class CallObserver(Denoiser):
    """The loop, which keeps what the methods look at of its last call."""

    seen: Observed

    def _evaluate(self, n: int, reused: frozenset[str], *inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        run = FirstProduct(self.family, self.weights, reused, {}, {}, spans=self.spans)
        output = run.predict(*inputs[:-1])
        if run.read is None:
            raise ModelError(f"{self.family.sublayers[0]} has no product: TeaCache looks at what its first one reads")
        self.seen = Observed(run.read, run.fresh[STACK], run.fresh.get(FIRST))
        return output, {}


@dataclass
class FirstProduct(AsCompiled):
    """A Runner that keeps what the first product of the first sublayer reads: the input as it is normalised and modulated."""

    read: Tensor | None = None

    def sublayer(self, op: str, *inputs: Any, at: str, name: str = "") -> Any:
        if (name or f"{at}.{op}") != self.family.sublayers[0]:
            return super().sublayer(op, *inputs, at=at, name=name)
        with FirstRead() as product:
            value = super().sublayer(op, *inputs, at=at, name=name)
        self.read = product.read
        return value


class FirstRead(TorchFunctionMode):
    """Keeps what the first call of `linear` reads."""

    read: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and self.read is None:
            self.read = args[0]
        return func(*args, **(kwargs or {}))
