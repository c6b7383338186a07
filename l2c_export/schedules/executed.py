"""What of a schedule this release executes: `reuse` of sublayers.  Everything else is refused before it is compiled."""

from __future__ import annotations

from ..errors import ScheduleError
from .forecast import is_reuse, shown
from .schedule import Schedule

REMEDY = "compute it, or reuse sublayers"


def check(schedule: Schedule, name: str) -> None:
    """Raises ScheduleError, which says of `name` what of it cannot be executed yet."""
    for n in range(len(schedule.calls)):
        for value, rule in schedule.derived(n).items():
            if value in schedule.values.levels:
                raise ScheduleError(f"{name}: call {n} has a rule for the level {value!r}, which is not executed yet: {REMEDY}")
            if not is_reuse(rule):
                of = f"{shown(rule)} for {value!r}"
                verb = "is" if isinstance(rule, str) else "are"
                raise ScheduleError(f"{name}: call {n} has {of}, which {verb} not executed yet: {REMEDY}")
