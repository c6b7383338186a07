"""The schedule: for every call of the sampler, which values are computed and how the others follow from earlier calls.

This is what was learned (or chosen), free of any framework; `to_json` is its portable form, version 2:

    {"format": "l2c-schedule", "version": 2, "family": "dit", "sampler": "ddim", "steps": 4,
     "cacheable": ["blocks.0.attn", "blocks.0.mlp", "stack", "output"],
     "calls": [{"timestep": 999.0, "computed": "all", "rules": {}},
               {"timestep": 666.0, "computed": "all", "rules": {}},
               {"timestep": 333.0, "computed": ["blocks.0.mlp"], "rules": {"blocks.0.attn": [[1, 1.5], [2, -0.5]]}},
               {"timestep": 0.0, "computed": [], "rules": {"output": "taylor:1"}}],
     "threshold": 0.1, "source": {"file": "router.pt", "sha256": ".."}}

README.md says what every key means.  `calls` are network evaluations in sampling order.  In Python a sublayer is its column:
its index among the sublayers of `cacheable`.  With a scheduler of diffusers, `sampler` is its class and `scheduler` what its
configuration says.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ..errors import ScheduleError, UsageError
from ..models.families import FAMILIES
from ..samplers.scheduler_config import Scheduler
from ..samplers.table import table
from ..samplers.update import Table
from ..support.words import counted
from . import file, forms
from .calls import Call, applied, call_of, check, remaining
from .forecast import Rule, is_reuse
from .forms import ScheduleSource
from .resolve import resolve
from .rules import Caching
from .values import OUTPUT, STACK, Cacheable, columns_of, is_level, sublayers_of, values_of


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """What runs in every call.  Raises ScheduleError when it contradicts itself."""

    family: str
    sampler: str
    steps: int
    cacheable: tuple[str, ...]
    calls: tuple[Call, ...]
    threshold: float | None = None
    source: ScheduleSource = ScheduleSource()
    scheduler: Scheduler | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        self._check_sampler()
        ruled = {key for call in self.calls for key in call.rules}
        for level in self.values.levels:
            if level not in (OUTPUT, STACK, *ruled):
                raise ScheduleError(f"schedule: cacheable lists {level!r}, for which no call has a rule: leave it out")
        for n, call in enumerate(self.calls):
            check(self.values, n, call)
        resolve(self.cacheable, self.calls)

    def _check_sampler(self) -> None:
        try:
            updates = self.table().updates
        except UsageError as error:
            why = str(error).partition(": ")[2]
            raise ScheduleError(f"schedule: {counted(self.steps, 'step')}: {why}") from None
        if self.scheduler and self.sampler != self.scheduler.kind:
            raise ScheduleError(f"schedule: the sampler is {self.sampler}, but the scheduler a {self.scheduler.kind}")
        if len(self.calls) != len(updates):
            raise ScheduleError(
                f"schedule: {counted(len(self.calls), 'call')}, but {self.sampler} with "
                f"{counted(self.steps, 'step')} makes {len(updates)}"
            )
        for n, (call, update) in enumerate(zip(self.calls, updates, strict=True)):
            if not abs(call.timestep - update.timestep) <= 1e-2:
                raise ScheduleError(f"schedule: call {n} has timestep {call.timestep}, {self.sampler} has {update.timestep}")

    @property
    def values(self) -> Cacheable:
        """What `cacheable` names."""
        return values_of(self.cacheable)

    @property
    def sublayers(self) -> tuple[str, ...]:
        """The name of every column."""
        return self.values.sublayers

    @property
    def columns(self) -> int:
        """How many sublayers there are."""
        return len(self.sublayers)

    @property
    def computed_share(self) -> float:
        """Of all sublayers of all calls, 0..1."""
        return sum(len(call.computed) for call in self.calls) / (self.columns * len(self.calls))

    def table(self) -> Table:
        """What the sampler does in every call."""
        return table(self.sampler, self.steps, self.scheduler or None)

    def derived(self, call: int) -> dict[str, Rule]:
        """The rule of every value that a call derives from earlier ones: sublayers, and levels."""
        return applied(self.values, self.calls[call].computed, self.calls[call].rules, call)

    def to_json(self) -> bytes:
        """The portable form, version 2, one line per call."""
        return forms.written(self)

    @staticmethod
    def from_json(data: bytes, name: str = "schedule") -> Schedule:
        """The schedule in JSON of version 1 or 2; `name` is what an error calls it.  Raises ScheduleError."""
        try:
            return Schedule(**forms.read(data)._asdict())
        except ScheduleError as error:
            raise ScheduleError(f"{name}: {str(error).removeprefix('schedule: ')}") from None
        except (msgspec.MsgspecError, RecursionError, ValueError) as error:
            other = file.other_kind(data)
            reason = other.instead(file.REMEDY) if other else f"{error}; give one like the schedule.json of an artefact"
            raise ScheduleError(f"{name} is not a schedule: {reason}") from None

    @staticmethod
    def read(path: str | os.PathLike[str]) -> Schedule:
        """The schedule in a JSON file, such as the schedule.json of an artefact.  Raises ScheduleError."""
        return Schedule.from_json(file.content(Path(path)), str(path))

    @staticmethod
    def make(
        family: str,
        sampler: str,
        steps: int,
        columns: int | Sequence[str],
        computed: Iterable[Iterable[int]],
        threshold: float | None = None,
        source: ScheduleSource = ScheduleSource(),  # noqa: B008  (frozen)
        scheduler: Scheduler | None = None,
    ) -> Schedule:
        """A schedule from the computed columns of every call, in sampling order; the others are reused.

        `columns` are the names of the model's sublayers, or their number, where `family` is "dit" or "uvit" (or another
        whose descriptor names them).  Raises ScheduleError or UsageError.
        """
        chosen = [set(run) for run in computed]
        updates = table(sampler, steps, scheduler).updates
        if len(chosen) != len(updates):
            raise ScheduleError(f"schedule: {len(chosen)} calls, but {sampler} with {steps} steps makes {len(updates)}")
        names = sublayers_of(family, columns)
        calls = tuple(call_of(update.timestep, run, values_of(names)) for update, run in zip(updates, chosen, strict=True))
        return Schedule(
            family=family, sampler=sampler, steps=steps, cacheable=names, calls=calls, threshold=threshold, source=source,
            scheduler=scheduler or msgspec.UNSET,
        )  # fmt: skip

    @staticmethod
    def every(k: int, *, family: str, steps: int, columns: int | Sequence[str], sampler: str | None = None) -> Schedule:
        """Everything is computed in calls 0, k, 2k, .. and nothing between: `from_rule` with "every:K"."""
        return Schedule.from_rule(f"every:{k}", family=family, steps=steps, columns=columns, sampler=sampler)

    @staticmethod
    def from_rule(
        rule: str, *, family: str, steps: int, columns: int | Sequence[str], sampler: str | None = None,
        scheduler: Scheduler | None = None, caching: Caching = Caching(),  # noqa: B008  (frozen)
    ) -> Schedule:  # fmt: skip
        """A schedule without a router: "every:3", "full:0,1,5" or "mask:1,0,0,1" (see `rules.full_calls`).

        The other calls follow by `caching`: its rule is "reuse" or "taylor:M", its level "sublayer", "stack" or "output".

        `family` is "dit" or "uvit", `steps` are sampling steps (DiT) or network evaluations (U-ViT), `columns` the model's
        sublayers (two per block) or their number; `sampler` is the family's, "ddim" or "dpm-solver++", where none is given.
        Raises UsageError.
        """
        if family not in FAMILIES:
            raise UsageError(f"family={family!r}: use one of {', '.join(FAMILIES)}")
        chosen = sampler or FAMILIES[family].sampler
        count = len(table(chosen, steps, scheduler).updates)
        full, names = caching.full(rule, count), sublayers_of(family, columns)
        computed = [range(len(names)) if n in full else () for n in range(count)]
        schedule = Schedule.make(family, chosen, steps, names, computed, source=ScheduleSource(rule=rule), scheduler=scheduler)
        return schedule.following({n: caching.rules for n in range(count) if n not in full})

    def with_computed(self, call: int, columns: Iterable[int | str]) -> Schedule:
        """A copy in which call number `call` computes these columns, given by number or name, and reuses the others.

        What it came from no longer says what it is, so the copy has neither source nor threshold.  Raises UsageError for a
        call or a column that the schedule does not have, ScheduleError if call 0 would reuse any.
        """
        chosen = set(columns)
        if not chosen <= {*range(self.columns), *self.sublayers}:
            of = f"columns 0 to {self.columns - 1}, {self.sublayers[0]} to {self.sublayers[-1]}"
            raise UsageError(f"columns={sorted(chosen, key=str)}: the schedule has {of}")
        timestep = self.calls[self._number(call)].timestep
        return self._with_call(call, call_of(timestep, columns_of(self.values, chosen), self.values))

    def with_rules(self, call: int, rules: Mapping[str, Rule]) -> Schedule:
        """A copy in which what call number `call` does not compute follows these rules, and is reused where none applies.

        Keys are values or patterns, rules "reuse", "taylor:M" or ((age, coefficient), ..).  Levels that they name become
        cacheable.  The copy has neither source nor threshold.  Raises UsageError or ScheduleError.
        """
        try:
            rule_of = msgspec.convert(rules, dict[str, Rule])
        except msgspec.ValidationError as error:
            raise UsageError(f"rules={rules!r}: {error}: use reuse, taylor:M, or [[age, coefficient], ..]") from None
        levels = tuple(key for key in rule_of if is_level(key) and key not in self.cacheable)
        cacheable, n = self.cacheable + levels, self._number(call)
        changed = call_of(self.calls[n].timestep, self.calls[n].computed, values_of(cacheable), rule_of, n)
        return self._with_call(n, changed, cacheable)

    def following(self, rules: Mapping[int, Mapping[str, Rule]]) -> Schedule:
        """A copy in which the calls of these numbers follow these rules.  Levels that they name become cacheable."""
        ruled = dict.fromkeys(key for of_call in rules.values() for key in of_call if is_level(key))
        cacheable = (*self.cacheable, *(level for level in ruled if level not in self.cacheable))
        values = values_of(cacheable)
        calls = tuple(
            call_of(call.timestep, call.computed, values, rules[n], n) if n in rules else call
            for n, call in enumerate(self.calls)
        )
        return msgspec.structs.replace(self, cacheable=cacheable, calls=calls)

    def _number(self, call: int) -> int:
        if not 0 <= call < len(self.calls):
            raise UsageError(f"call={call}: the schedule has calls 0 to {len(self.calls) - 1}")
        return call

    def _with_call(self, number: int, call: Call, cacheable: tuple[str, ...] = ()) -> Schedule:
        calls = (*self.calls[:number], call, *self.calls[number + 1 :])
        return self._replaced(cacheable or self.cacheable, calls, threshold=None, source=ScheduleSource())

    def _replaced(self, cacheable: tuple[str, ...], calls: tuple[Call, ...], **rest: Any) -> Schedule:
        """With other calls; a range of the stack is listed while a call has a rule for it."""
        ruled = {key for call in calls for key in call.rules}
        kept = tuple(name for name in cacheable if not is_level(name) or name in (OUTPUT, STACK) or name in ruled)
        return msgspec.structs.replace(self, cacheable=kept, calls=calls, **rest)

    def computing(self, computed: Sequence[Collection[int]]) -> Schedule:
        """A copy whose calls compute these columns; a rule goes with the value that it was for."""
        calls = tuple(
            call_of(call.timestep, run, self.values, remaining(self.values, run, call.rules))
            for call, run in zip(self.calls, computed, strict=True)
        )
        return self._replaced(self.cacheable, calls)

    def explicit(self) -> Schedule:
        """The same with forecasts as terms over the calls that they read now, whatever else will be computed."""
        calls = []
        for n, (call, values) in enumerate(zip(self.calls, resolve(self.cacheable, self.calls), strict=True)):
            rules = {name: rule if is_reuse(rule) else values[name] for name, rule in self.derived(n).items()}
            forecast = any(not is_reuse(rule) for rule in rules.values())
            calls.append(call_of(call.timestep, call.computed, self.values, rules, n) if forecast else call)
        return msgspec.structs.replace(self, calls=tuple(calls))

    def uncached(self) -> Schedule:
        """The twin that computes everything in every call."""
        twin = self.computing([range(self.columns)] * len(self.calls))
        return msgspec.structs.replace(twin, threshold=None, source=ScheduleSource(rule="no-cache"))

    def of_sublayers(self, names: tuple[str, ...]) -> Schedule:
        """The same with columns in the order of a model's sublayers.  Raises ValueError where they are not those."""
        if self.sublayers == names:
            return self
        if other := sorted({*self.sublayers} ^ {*names}):
            raise ValueError(other[0])
        cacheable = (*names, *self.values.levels)
        values = values_of(cacheable)
        calls = (columns_of(values, [self.sublayers[j] for j in call.computed]) for call in self.calls)
        changed = (
            call_of(c.timestep, run, values, c.rules, n) for n, (c, run) in enumerate(zip(self.calls, calls, strict=True))
        )
        return msgspec.structs.replace(self, cacheable=cacheable, calls=tuple(changed))

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw values x calls as .png, .svg or .pdf: dark is computed, light is reused.  Raises UsageError or RunError."""
        from .picture import DrawnCall, draw, picture_of

        calls = [DrawnCall(c.timestep, c.computed, c.reused, self.derived(n)) for n, c in enumerate(self.calls)]
        draw(Path(path), picture_of(self.values, calls))

    def __repr__(self) -> str:
        threshold = "" if self.threshold is None else f", threshold {self.threshold:.9g}"
        return (
            f"<Schedule {self.family}, {self.sampler}, {counted(self.steps, 'step')}, {counted(len(self.calls), 'call')} of "
            f"{counted(self.columns, 'sublayer')}, {self.computed_share:.1%} computed{threshold}>"
        )
