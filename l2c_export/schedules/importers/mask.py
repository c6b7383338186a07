"""A steps mask, of whatever tool: a 0 or 1 for each step, or the name of one of cache-dit's.

    [1, 0, 0, 1]    or    {"steps_computation_mask": [1, 0, 0, 1]}

Every sublayer is reused where a step has a 0; with `level="stack"` what all blocks add, as the tools do it that masks are from.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from ...errors import ScheduleError, UsageError
from ..rules import MASKS, SUBLAYER
from ..schedule import Schedule
from ..values import STACK
from .imported import Imported, Known, Selection, of_level, of_sublayers, whole

FORM = "a steps mask"
TAKES: tuple[str, ...] = ("level",)
COUNT, POLICY, STATIC = "num_inference_steps", "steps_computation_policy", "static"
KEYS = {*MASKS, COUNT, POLICY}
NAMED_STEPS = 28
# cache-dit's masks of 28 steps: runs of computed steps, and of cached ones between them
NAMED = {
    "slow": ((8, 3, 3, 2, 1, 1), (1, 2, 2, 2, 3)),
    "medium": ((6, 2, 2, 2, 2, 1), (1, 3, 3, 3, 3)),
    "fast": ((6, 1, 1, 1, 1, 1), (1, 3, 4, 5, 4)),
    "ultra": ((4, 1, 1, 1, 1), (2, 5, 6, 7)),
}


def claims(content: Any) -> bool:
    """A list of 0 and 1, or nothing but a mask under one of its names."""
    if isinstance(content, Mapping):
        return bool(content) and set(content) <= KEYS and any(name in content for name in MASKS)
    if isinstance(content, str):
        return bool(content) and set(content) <= {"0", "1"}
    is_flat = isinstance(content, list) and not any(isinstance(entry, (list, Mapping)) for entry in content)
    return is_flat and not _ascends(content)


def _ascends(content: list[Any]) -> bool:
    """Whether a list has numbers that no mask has, and ascends: computed steps, then."""
    numbers = [entry for entry in content if type(entry) is int]
    return bool(numbers) and len(numbers) == len(content) and numbers == sorted(set(numbers)) and numbers[-1] > 1


def read(content: Any, chosen: Selection) -> Imported:
    """Raises ScheduleError, or UsageError for another level."""
    if chosen.level not in (None, SUBLAYER, STACK):
        raise UsageError(f"level={chosen.level!r}: use sublayer or stack for a steps mask")
    options = content if isinstance(content, Mapping) else {MASKS[0]: content}
    mask = entries(options)
    level = chosen.level or SUBLAYER
    return Imported(FORM, len(mask), functools.partial(schedule, mask, level))


def entries(options: Mapping[str, Any]) -> list[int]:
    """The 0 and 1 of the mask in a tool's options.  Raises ScheduleError."""
    if options.get(POLICY, STATIC) != STATIC:
        raise ScheduleError(f"{POLICY} is {options[POLICY]!r}, which is decided while it runs: make it {STATIC!r}")
    mask = next((options[name] for name in MASKS if name in options), None)
    count = options.get(COUNT)
    if isinstance(mask, str) and mask in NAMED:
        return named(mask, whole(count, COUNT, 1) if count is not None else None)
    if isinstance(mask, str) and mask and set(mask) <= {"0", "1"}:
        mask = [int(entry) for entry in mask]
    if not isinstance(mask, list) or not mask:
        raise ScheduleError(f"the steps mask is {mask!r}: give a 0 or 1 for each step, or one of {', '.join(NAMED)}")
    for step, entry in enumerate(mask):
        if entry not in (0, 1):
            raise ScheduleError(f"a steps mask with {entry!r} for step {step}: use 1 for a full call and 0 for one that reuses")
    if mask[0] == 0:
        raise ScheduleError("the steps mask begins with 0: nothing is cached before the first step: make it 1")
    if count is not None and count != len(mask):
        raise ScheduleError(f"the steps mask has {len(mask)} entries, but {COUNT} is {count!r}: they must be equal")
    return [int(entry) for entry in mask]


def named(name: str, count: int | None) -> list[int]:
    """One of cache-dit's masks."""
    if count != NAMED_STEPS:
        but = f"{COUNT} is {count}" if count else f"there is no {COUNT}"
        raise ScheduleError(f"the steps mask {name!r} is known for {NAMED_STEPS} steps, but {but}: list the mask's 0 and 1")
    computed, cached = NAMED[name]
    runs = [part for pair in zip(computed, cached, strict=False) for part in zip((1, 0), pair, strict=True)]
    return [bit for bit, length in [*runs, (1, computed[-1])] for _ in range(length)]


def schedule(mask: list[int], level: str, known: Known, steps: int) -> Schedule:
    """Raises ScheduleError where the sampler makes another number of calls."""
    if len(mask) != (count := known.count(steps)):
        raise ScheduleError(f"the steps mask has {len(mask)} entries, but {known.sampler} makes {count} calls: give as many")
    full = {n for n, entry in enumerate(mask) if entry}
    if level == STACK:
        return of_level(known, steps, full, (STACK,))
    return of_sublayers(known, steps, [known.sublayers if n in full else () for n in range(len(mask))])
