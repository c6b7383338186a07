"""Which calls are trained: those that inference runs from the cache, each with the call that fills it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from msgspec import UNSET, UnsetType

from ..compiler.plan import make_plan
from ..errors import UsageError
from ..models import families
from ..models.family import Family
from ..samplers.reference import updates
from ..schedules.forecast import Terms
from ..schedules.forms import ScheduleSource
from ..schedules.routers import from_scores, router_rows


class Pair(NamedTuple):
    """A cached call, the router row that it follows, the call that fills the cache, and where that one's solver step starts."""

    row: int
    start: int
    fill: int
    cached: int


class FullCall(NamedTuple):
    """A call of the uncached sampler, as `eager.Denoiser` wants it."""

    timestep: float
    coefficients: tuple[float, ...]
    ends_step: bool
    signal: float
    noise: float
    computed: tuple[int, ...] = ()
    reused: tuple[int, ...] = ()
    derived: Mapping[str, Terms] | UnsetType = UNSET


def full_calls(family: Family, steps: int) -> tuple[FullCall, ...]:
    """The sampler that a router of this family is made for, without a cache."""
    return tuple(FullCall(*update) for update in updates(families.of(family.name).sampler, steps))


def make_pairs(family: Family, steps: int) -> tuple[Pair, ...]:
    """The cached calls in sampling order.  Raises UsageError when there is none."""
    calls = full_calls(family, steps)
    sampler = families.of(family.name).sampler
    nothing = from_scores(family.name, sampler, steps, [()] * steps, family.sublayers, 0.0, ScheduleSource())
    ages = [ages[0] if ages else 0 for ages in make_plan(nothing).earlier]
    pairs = []
    for n, row in enumerate(router_rows(sampler, steps)):
        if row is not None:
            fill = n - ages[n]
            start = next(k for k in range(fill, -1, -1) if k == 0 or calls[k - 1].ends_step)
            pairs.append(Pair(row, start, fill, n))
    if not pairs:
        raise UsageError(f"steps={steps}: no call of {family.name} would run from the cache: use 4 steps or more")
    return tuple(pairs)
