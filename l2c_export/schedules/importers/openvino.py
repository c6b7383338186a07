"""TaylorSeer Lite as OpenVINO GenAI has it: the model's output is computed every few steps and forecast between, of order 1.

    {"cache_interval": 3, "disable_cache_before_step": 6, "disable_cache_after_step": -2}

The first `disable_cache_before_step` steps are computed, two at least, and those from `disable_cache_after_step` on, which
counts from the end where it is negative.  Between them interval - 1 steps are forecast, then one is computed, and so on.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from ..schedule import Schedule
from ..values import OUTPUT
from .imported import Imported, Known, Selection, check_keys, of_level, whole

FORM = "the options of OpenVINO GenAI's TaylorSeer Lite"
TAKES: tuple[str, ...] = ()
INTERVAL, BEFORE, AFTER = KEYS = ("cache_interval", "disable_cache_before_step", "disable_cache_after_step")
DEFAULTS = {INTERVAL: 3, BEFORE: 6, AFTER: -2}
RULE, LEAST = "taylor:1", 2  # a forecast of order 1 takes two values


def claims(content: Any) -> bool:
    return isinstance(content, Mapping) and any(key in content for key in KEYS)


def read(content: Any, chosen: Selection) -> Imported:
    """Raises ScheduleError."""
    check_keys(content, KEYS, FORM)
    interval = whole(content.get(INTERVAL, DEFAULTS[INTERVAL]), INTERVAL, 2)
    before = whole(content.get(BEFORE, DEFAULTS[BEFORE]), BEFORE)
    after = whole(content.get(AFTER, DEFAULTS[AFTER]), AFTER, -100_000)
    assumed = tuple(f"{key} is {value}" for key, value in DEFAULTS.items() if key not in content)
    return Imported(FORM, None, functools.partial(schedule, interval, before, after), assumed)


def schedule(interval: int, before: int, after: int, known: Known, steps: int) -> Schedule:
    full = computed_steps(interval, before, after, known.count(steps))
    return of_level(known, steps, full, (OUTPUT,), lambda call: RULE)


def computed_steps(interval: int, before: int, after: int, count: int) -> set[int]:
    """Those that run the model; all of them where the options leave nothing to be forecast."""
    end = count + after if after < 0 else after
    start = max(before, LEAST)
    return {n for n in range(count) if n < start or n >= end or (n - start) % interval == interval - 1}
