"""L2P (arXiv 2604.26365): the model's output is predicted from all earlier outputs, with coefficients that were learned.

    [[1.0], [-0.8, 1.8], [0.1, -0.9, 1.8], ..]    or the same as a square, with zeros in the upper right

Call n is predicted with row n - 1: its coefficients are those of the outputs of calls 0, 1, .. n - 1.  These may be predicted
themselves; multiplied out, every prediction is a sum over computed outputs.  Which calls are computed, the file does not say.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from typing import Any

from ...errors import ScheduleError, UsageError
from ..forecast import Terms
from ..schedule import Schedule
from ..values import OUTPUT
from .imported import Imported, Known, Selection, full_of, number, of_level

FORM = "the predictor of L2P"
TAKES: tuple[str, ...] = ("full_calls",)
MOST = 1000  # rows: samplers have no more calls
Rows = Sequence[Sequence[float]]


def claims(content: Any) -> bool:
    """Lists of a triangle or of a square."""
    if not isinstance(content, list) or not content or not all(isinstance(row, list) for row in content):
        return False
    return all(len(row) in (n, len(content)) for n, row in enumerate(content, 1))


def read(content: Any, chosen: Selection) -> Imported:
    """Raises ScheduleError, or UsageError where nobody says which calls are computed."""
    if len(content) > MOST:
        raise ScheduleError(f"it has {len(content)} rows: samplers have at most {MOST} calls")
    rows = [[number(entry, f"row {n}, entry {j}") for j, entry in enumerate(row)] for n, row in enumerate(content)]
    for n, row in enumerate(rows):
        if any(row[n + 1 :]):
            raise ScheduleError(f"row {n} has more than {n + 1} coefficients: it must be a lower triangle")
    if chosen.full_calls is None:
        raise UsageError(f"{FORM} does not say which calls are computed: give full_calls=.., as 'full:0,1,2,4,9'")
    return Imported(FORM, None, functools.partial(schedule, rows, chosen.full_calls))


def schedule(rows: Rows, rule: str, known: Known, steps: int) -> Schedule:
    """Raises ScheduleError where a call has no row."""
    count = known.count(steps)
    full = full_of(rule, count)
    last = max((n for n in range(count) if n not in full), default=0)
    if last > len(rows):
        raise ScheduleError(f"call {last} is predicted, but there are {len(rows)} rows: compute it, or use fewer steps=..")
    terms = multiplied(rows, full, count)
    return of_level(known, steps, full, (OUTPUT,), lambda call: terms[call])


def multiplied(rows: Rows, full: Collection[int], count: int) -> dict[int, Terms]:
    """Every predicted call as a sum over computed ones: ((age, coefficient), ..), ages ascending."""
    values: list[dict[int, float]] = []  # of every call, by the computed calls that it is a sum of
    for n in range(count):
        if n in full:
            values.append({n: 1.0})
            continue
        total: dict[int, float] = {}
        for coefficient, earlier in zip(rows[n - 1], values, strict=False):
            for call, share in earlier.items():
                total[call] = total.get(call, 0.0) + coefficient * share
        values.append(total)
    return {n: _terms(n, value) for n, value in enumerate(values) if n not in full}


def _terms(n: int, value: dict[int, float]) -> Terms:
    """Without what counts for nothing, as long as anything counts."""
    terms = tuple((n - call, share) for call, share in sorted(value.items(), reverse=True))
    return tuple(term for term in terms if term[1]) or terms[:1]
