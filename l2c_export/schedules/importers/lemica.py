"""LeMiCa (github.com/UnicomAI/LeMiCa), and plain lists of computed steps: the steps that run all blocks, by how many there are.

    {"10": [0, 1, 3, 7, 14, 21, 28, 35, 42, 49]}    or    [0, 1, 3, 7, 14, 21, 28, 35, 42, 49]

The others add what all blocks added when they ran last: `reuse` of the level `stack`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from typing import Any

from ...errors import ScheduleError, UsageError
from ..schedule import Schedule
from ..values import STACK
from .imported import Imported, Known, Selection, of_level, whole

FORM = "a list of computed steps (LeMiCa)"
TAKES: tuple[str, ...] = ("budget",)
TABLE = "calc_dict"  # where their code holds the lists


def claims(content: Any) -> bool:
    """Lists by numbers, or one list of ascending numbers from 0."""
    if isinstance(content, list):
        return bool(content) and all(type(n) is int for n in content) and content[0] == 0 and _ascends(content)
    if not isinstance(content, Mapping) or not content:
        return False
    lists = content[TABLE] if set(content) == {TABLE} else content
    return isinstance(lists, Mapping) and all(_budget(k) is not None and isinstance(v, list) for k, v in lists.items())


def _ascends(steps: list[int]) -> bool:
    return all(before < after for before, after in itertools.pairwise(steps))


def _budget(key: object) -> int | None:
    """How many steps a key says; None for another key."""
    if type(key) is int:
        return key
    return int(key) if isinstance(key, str) and key.isdecimal() and len(key) < 6 else None


def read(content: Any, chosen: Selection) -> Imported:
    """Raises ScheduleError, or UsageError for a budget that there is not."""
    if isinstance(content, list):
        content = {len(content): content}
    table = content.get(TABLE, content)
    lists = {_budget(key): steps for key, steps in table.items()}
    if len(lists) != len(table):
        raise ScheduleError(f"two of the {len(table)} lists are of one number of computed steps: leave one")
    budgets = ", ".join(map(str, sorted(lists, key=str)))
    if chosen.budget is not None and chosen.budget not in lists:
        raise UsageError(f"budget={chosen.budget}: the file has lists of {budgets} computed steps: use one of them")
    if chosen.budget is None and len(lists) != 1:
        raise ScheduleError(f"it has lists of {budgets or 'no'} computed steps: choose one with budget=..")
    budget = chosen.budget if chosen.budget is not None else next(iter(lists))
    steps = [whole(step, f"a computed step of {budget}") for step in lists[budget]]
    if not steps or steps[0] != 0 or not _ascends(steps):
        raise ScheduleError(f"the computed steps {steps[:6]} of {budget}: give them ascending, and 0 first")
    if len(steps) != budget:
        raise ScheduleError(f"the list of {budget} computed steps has {len(steps)}: give as many as its key says")
    return Imported(FORM, None, functools.partial(schedule, steps))


def schedule(computed: list[int], known: Known, steps: int) -> Schedule:
    """Raises ScheduleError for a step that there is not."""
    if computed[-1] >= (count := known.count(steps)):
        raise ScheduleError(f"step {computed[-1]} is computed, but there are {count} calls: give the steps=.. that it is for")
    return of_level(known, steps, set(computed), (STACK,))
