"""MagCache (github.com/Zehong-Ma/MagCache): how far what the blocks add changes from step to step says how long it is reused.

    {"mag_ratios": [1.0, 1.2, ..], "magcache_thresh": 0.24, "K": 5, "retention_ratio": 0.1, "num_steps": 28}

The ratios are products of no run: a step is skipped while the error that has accumulated since the last computed one, the sum
of |1 - product of the ratios|, is at most the threshold, and at most K steps in a row.  The first steps are computed: their
share is the retention ratio.  The names of diffusers' MagCacheConfig are known, too.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ...errors import ScheduleError
from ..schedule import Schedule
from ..values import STACK
from .imported import Imported, Known, Selection, check_keys, number, of_level, whole

FORM = "MagCache's ratios"
TAKES: tuple[str, ...] = ()
RATIOS = "mag_ratios"
THRESHOLD, MOST = ("magcache_thresh", "thresh", "threshold"), ("K", "magcache_K", "max_skip_steps")
RETENTION, STEPS = ("retention_ratio", "retention"), ("num_steps", "num_inference_steps")
OF_DIFFUSERS = "max_skip_steps"
# Of FLUX the released script, other than diffusers, always computes the step that is the 12th of 28.
FLUX, KEPT, OF = "flux", 11, 28


class Limits(NamedTuple):
    threshold: float
    most: int  # skipped steps in a row
    retention: float
    keeps: bool  # the step that the released script for FLUX always computes


def claims(content: Any) -> bool:
    return isinstance(content, Mapping) and RATIOS in content


def read(content: Any, chosen: Selection) -> Imported:
    """Raises ScheduleError."""
    check_keys(content, (RATIOS, *THRESHOLD, *MOST, *RETENTION, *STEPS), FORM)
    ratios = content[RATIOS]
    if not isinstance(ratios, list) or not ratios:
        raise ScheduleError(f"{RATIOS} is no list of numbers: give the ratio of every step, 1.0 first")
    ratios = [number(ratio, f"{RATIOS}[{n}]") for n, ratio in enumerate(ratios)]
    if ratios[0] != 1:
        raise ScheduleError(f"{RATIOS} begins with {ratios[0]}: the first step has none before it: put 1.0 first")
    steps = _one(content, STEPS, needed=False)
    steps = None if steps is None else whole(steps, "the number of steps", 1)
    if ratios[:2] == [1, 1] and steps and len(ratios) == 2 * steps:
        raise ScheduleError(f"{RATIOS} has two for each of the {steps} steps, with and without a prompt: give every second one")
    own = Limits(
        number(_one(content, THRESHOLD), "the threshold"),
        whole(_one(content, MOST), "K", 1),
        number(_one(content, RETENTION), "the retention ratio"),
        OF_DIFFUSERS not in content,
    )
    if own.threshold < 0 or not 0 < own.retention <= 1:
        raise ScheduleError(f"a threshold of {own.threshold} and a retention ratio of {own.retention}: use numbers from 0 to 1")
    assumed = (f"step {KEPT} of {OF} is computed if the model is FLUX, as in the released script",) if own.keeps else ()
    return Imported(FORM, steps, functools.partial(schedule, ratios, own), assumed)


def _one(content: Mapping[str, Any], names: Sequence[str], needed: bool = True) -> Any:
    """The value under one of several names."""
    own = [name for name in names if name in content]
    if len(own) > 1:
        raise ScheduleError(f"{own[0]} and {own[1]} say the same: give one of them")
    if needed and not own:
        raise ScheduleError(f"{FORM} without {' or '.join(names)}: the schedule depends on it: add it")
    return content[own[0]] if own else None


def schedule(ratios: list[float], own: Limits, known: Known, steps: int) -> Schedule:
    """Raises ScheduleError where no step would be computed first."""
    count = known.count(steps)
    if int(own.retention * count + 0.5) < 1:
        raise ScheduleError(f"the retention ratio {own.retention} of {count} calls is less than one: raise it")
    if known.family != FLUX:
        own = own._replace(keeps=False)
    return of_level(known, steps, computed_steps(stretched(ratios, count), own), (STACK,))


def stretched(ratios: list[float], count: int) -> list[float]:
    """As many ratios as there are steps: for each the nearest."""
    last = len(ratios) - 1
    return [ratios[round(n * (last / max(1, count - 1)))] for n in range(count)] if count > 1 else ratios[-1:]


def computed_steps(ratios: list[float], own: Limits) -> set[int]:
    count = len(ratios)
    first, computed = int(own.retention * count + 0.5), set()
    product, skipped, error = 1.0, 0, 0.0
    for n, ratio in enumerate(ratios):
        if n >= first:
            product *= ratio
            skipped += 1
            error += abs(1 - product)
            kept = own.keeps and round(n * ((OF - 1) / max(1, count - 1))) == KEPT
            if error <= own.threshold and skipped <= own.most and not kept:
                continue
            product, skipped, error = 1.0, 0, 0.0
        computed.add(n)
    return computed
