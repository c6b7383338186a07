"""SmoothCache (github.com/Roblox/SmoothCache): a name -> a list of 0 and 1 in sampling order, where 1 computes.

    {"attn-0": [1, 0, 1], "attn": [1, 1, 0], "mlp": [1, 0, 0]}

A key of one block, `attn-0`, wins over that of its component.  What has no key, or lies past the end of its list, is computed,
and so is what nothing was computed of.  The components are `attn` and `mlp` of the original DiT; with diffusers' DiT `attn1`,
where the MLP is never cached.  What is cached is a module's output before the gate: our `reuse`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

from ...errors import ScheduleError
from ...models.families import FAMILIES
from ..schedule import Schedule
from ..values import block_numbers
from .imported import Imported, Known, Selection, of_sublayers

FORM = "a schedule of SmoothCache"
TAKES: tuple[str, ...] = ()
KEY = re.compile(r"(attn|attn1|mlp)(?:-([0-9]{1,5}))?")
FAMILY = "dit"
Lists = Mapping[str, list[int]]


def claims(content: Any) -> bool:
    """Names of components, and lists."""
    if not isinstance(content, Mapping) or not content:
        return False
    return any(isinstance(key, str) and KEY.fullmatch(key) for key in content) and all(
        isinstance(entries, list) for entries in content.values()
    )


def read(content: Any, chosen: Selection) -> Imported:
    """Raises ScheduleError."""
    for key, entries in content.items():
        if not isinstance(key, str) or not KEY.fullmatch(key):
            raise ScheduleError(f"{key!r} is no component: use attn, mlp or attn1, or one of a block as attn-3")
        for step, entry in enumerate(entries):
            if type(entry) is not int or entry not in (0, 1):
                raise ScheduleError(f"{key} has {entry!r} for step {step}: use 1 to compute and 0 to reuse")
    components = {KEY.fullmatch(key)[1] for key in content}  # type: ignore[index]
    if "attn1" in components and len(components) > 1:
        other = min(components - {"attn1"})
        raise ScheduleError(f"attn1 is of diffusers, where {other} is not cached: leave {other} out, or call attn1 attn")
    steps = max(map(len, content.values()))
    if not steps:
        raise ScheduleError("every list is empty: give a 0 or 1 for each step")
    assumed = ("the MLP is always computed, as with diffusers' DiT",) if "attn1" in components else ()
    return Imported(FORM, steps, functools.partial(schedule, content), assumed, needs_sampler=True)


def schedule(lists: Lists, known: Known, steps: int) -> Schedule:
    """Raises ScheduleError for a model that is no DiT, or has fewer blocks."""
    if known.family != FAMILY:
        raise ScheduleError(f"it is for a {FAMILIES[FAMILY].title}, but the model is a {known.family}: check model=..")
    blocks = block_numbers(known.sublayers)
    for key in lists:
        block = KEY.fullmatch(key)[2]  # type: ignore[index]
        if block and int(block) > max(blocks):
            raise ScheduleError(f"{key} is of no block of the model, which has 0 to {max(blocks)}: check model=..")
    computed: list[list[str]] = [[] for _ in range(known.count(steps))]
    for name, block in zip(known.sublayers, blocks, strict=True):
        entries = _entries(lists, name.rpartition(".")[2], block)
        for n, run in enumerate(computed):
            if n == 0 or n >= len(entries) or entries[n]:
                run.append(name)
    return of_sublayers(known, steps, computed)


def _entries(lists: Lists, part: str, block: int) -> list[int]:
    """The list that a sublayer follows; an empty one where it has none."""
    names = ("attn", "attn1") if part == "attn" else (part,)
    keys = (f"{name}{suffix}" for suffix in (f"-{block}", "") for name in names)
    return next((lists[key] for key in keys if key in lists), [])
