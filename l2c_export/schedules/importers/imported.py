"""What an importer makes of a file, and what the compiler tells it: a schedule follows from both."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from ...errors import ScheduleError, UsageError
from ...samplers.scheduler_config import Scheduler
from ...samplers.table import table
from ..calls import call_of
from ..forecast import REUSE, Rule
from ..forms import ScheduleSource
from ..rules import SUBLAYER, full_calls
from ..schedule import Schedule
from ..values import columns_of, values_of


@dataclass(frozen=True)
class Selection:
    """What a user says where a file leaves it open."""

    router_kind: str = "l2c"
    threshold: float | None = None  # of a router of HarmoniCa
    level: str | None = None  # of a steps mask: "sublayer" or "stack"
    budget: int | None = None  # of several lists, the one with so many computed steps
    full_calls: str | None = None  # a rule, such as "full:0,1,5", for a predictor that does not say when it predicts


@dataclass(frozen=True)
class Known:
    """The model and the sampler that a schedule is for."""

    family: str
    sublayers: tuple[str, ...]
    sampler: str
    scheduler: Scheduler | None = None
    sampler_is_said: bool = True  # by the user, or by the model's folder
    steps: int | None = None  # that are asked for

    def count(self, steps: int) -> int:
        """The calls of so many steps.  Raises UsageError for a number that the sampler does not take."""
        return len(table(self.sampler, steps, self.scheduler).updates)


@dataclass(frozen=True)
class Imported:
    """A file that was read.  `schedule` raises ScheduleError or UsageError for a model that it is not for."""

    form: str  # what the file was taken for
    steps: int | None  # None where it does not say them
    schedule: Callable[[Known, int], Schedule]
    assumed: tuple[str, ...] = ()
    needs_sampler: bool = False

    def schedule_for(self, known: Known, source: ScheduleSource) -> Schedule:
        """The schedule of version 2.  Raises ScheduleError or UsageError."""
        steps = self.steps if known.steps is None else known.steps
        if steps is None:
            raise UsageError(f"{self.form} does not say how many steps there are: give steps=..")
        if self.steps not in (None, steps):
            raise ScheduleError(f"{self.form} of {self.steps} steps, but steps={steps}: use no steps=..")
        if self.needs_sampler and not known.sampler_is_said:
            raise UsageError(f"{self.form} does not say its sampler: give sampler=.., as {known.sampler!r}")
        return msgspec.structs.replace(self.schedule(known, steps), source=source)

    def described(self, known: Known, schedule: Schedule) -> str:
        """In one line: form, level, steps, and what was assumed."""
        level = " and ".join(schedule.values.levels) or SUBLAYER
        sampler = () if known.sampler_is_said else (f"the sampler is {schedule.sampler}",)
        assumed = "; ".join((*self.assumed, *sampler))
        return f"{self.form}, level {level}, {schedule.steps} steps" + (f"; assumed: {assumed}" if assumed else "")


def of_sublayers(known: Known, steps: int, computed: Sequence[Collection[str]]) -> Schedule:
    """In every call these sublayers are computed, and the others reused."""
    values = values_of(known.sublayers)
    columns = [columns_of(values, names) for names in computed]
    return Schedule.make(known.family, known.sampler, steps, known.sublayers, columns, scheduler=known.scheduler)


def of_level(
    known: Known, steps: int, full: Collection[int], levels: Sequence[str], rule: Callable[[int], Rule] = lambda call: REUSE
) -> Schedule:
    """Some calls compute everything; in the others the levels follow by a rule, and what they do not span is computed."""
    updates = table(known.sampler, steps, known.scheduler).updates
    used = tuple(levels) if len(full) < len(updates) else ()
    values = values_of((*known.sublayers, *used))
    spanned = {j for level in used for j in values.spanned(level)}
    live, everything = set(range(len(known.sublayers))) - spanned, range(len(known.sublayers))
    calls = tuple(
        call_of(update.timestep, everything, values) if n in full
        else call_of(update.timestep, live, values, dict.fromkeys(used, rule(n)), n)
        for n, update in enumerate(updates)
    )  # fmt: skip
    return Schedule(
        family=known.family, sampler=known.sampler, steps=steps, cacheable=(*known.sublayers, *used), calls=calls,
        scheduler=known.scheduler or msgspec.UNSET,
    )  # fmt: skip


def full_of(rule: str, count: int) -> set[int]:
    """The calls that compute everything, by a rule of ours.  Raises UsageError that names the option."""
    try:
        return full_calls(rule, count)
    except UsageError as error:
        raise UsageError(f"full_calls={str(error).removeprefix('schedule=')}") from None


def whole(value: object, name: str, least: int = 0, most: int = 100_000) -> int:
    """A whole number of a file.  Raises ScheduleError that names it."""
    if type(value) is not int or not least <= value <= most:
        raise ScheduleError(f"{name} is {value!r}: give a whole number from {least} to {most}")
    return value


def number(value: object, name: str) -> float:
    """A finite number of a file.  Raises ScheduleError that names it."""
    if type(value) not in (int, float) or not abs(value) < 1e30:  # type: ignore[arg-type]
        raise ScheduleError(f"{name} is {value!r}: give a finite number")
    return float(value)  # type: ignore[arg-type]


def check_keys(content: Mapping[object, object], known: Collection[str], form: str) -> None:
    """Refuse the first key that is not known: what it asks for would not be done."""
    for key in content:
        if key not in known:
            raise ScheduleError(f"{form} with {key!r}, which is not known: leave it out (known are {', '.join(known)})")
