"""The schedule: for every call of the sampler, which sublayers are computed and which are reused.

This is what was learned (or chosen), free of any framework; `to_json` is its portable form:

    {"format": "l2c-schedule", "version": 1, "family": "dit", "sampler": "ddim", "steps": 4, "columns": 6,
     "calls": [{"timestep": 999.0, "computed": [0, 1, 2, 3, 4, 5], "reused": []},
               {"timestep": 666.0, "computed": [0, 3], "reused": [1, 2, 4, 5]}, ..],
     "threshold": 0.1, "source": {"file": "router.pt", "sha256": ".."}}

`calls` are network evaluations in sampling order.  Column 2b is the attention of block b, column 2b + 1 its MLP
(U-ViT: in blocks, the middle, out blocks).  A reused value is the one of the most recent call that computed it.
With a scheduler of diffusers, `sampler` is its class and `scheduler` what its configuration says.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Literal

import msgspec

from ..errors import ScheduleError, UsageError
from ..samplers.reference import OF_FAMILY
from ..samplers.scheduler_config import Scheduler
from ..samplers.table import table
from ..samplers.update import Table
from ..support import file_kind
from ..support.words import counted
from .rules import full_calls

REMEDY = "give the schedule.json of an artefact"


class Call(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One network evaluation: its timestep (0..1000), the computed and the reused columns, ascending."""

    timestep: float
    computed: tuple[int, ...]
    reused: tuple[int, ...]


class ScheduleSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a schedule came from: the file's name and hash, or the rule, such as "every:2"."""

    file: str | None = None
    sha256: str | None = None
    rule: str | None = None


class Schedule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What runs in every call.  Raises ScheduleError when it contradicts itself."""

    format: Literal["l2c-schedule"] = "l2c-schedule"
    version: Literal[1] = 1
    family: str
    sampler: str
    steps: int
    columns: int
    calls: tuple[Call, ...]
    threshold: float | None = None
    source: ScheduleSource = ScheduleSource()
    scheduler: Scheduler | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
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
            listed = call.computed + call.reused
            if len(listed) != self.columns or sorted(listed) != list(range(self.columns)):
                raise ScheduleError(
                    f"schedule: call {n} must list each of the columns 0..{self.columns - 1} once, as computed or reused"
                )
            if abs(call.timestep - update.timestep) > 1e-2:
                raise ScheduleError(f"schedule: call {n} has timestep {call.timestep}, {self.sampler} has {update.timestep}")
        if self.calls[0].reused:
            raise ScheduleError("schedule: call 0 reuses columns, but nothing is cached before it")

    def table(self) -> Table:
        """What the sampler does in every call."""
        return table(self.sampler, self.steps, self.scheduler or None)

    def to_json(self) -> bytes:
        """The portable form, one line per call."""
        text = msgspec.json.format(msgspec.json.encode(self), indent=0).decode()
        head, calls = text.split('"calls":', 1)
        return (head + '"calls":' + calls).encode()

    @staticmethod
    def from_json(data: bytes, name: str = "schedule") -> Schedule:
        try:
            return msgspec.json.decode(data, type=Schedule)
        except (msgspec.MsgspecError, RecursionError, ValueError) as error:
            other = _other_kind(data)
            reason = other.instead(REMEDY) if other else f"{error}; give one like the schedule.json of an artefact"
            raise ScheduleError(f"{name} is not a schedule: {reason}") from None

    @staticmethod
    def read(path: str | os.PathLike[str]) -> Schedule:
        """The schedule in a JSON file, such as the schedule.json of an artefact.  Raises ScheduleError."""
        return Schedule.from_json(content(Path(path)), str(path))

    @staticmethod
    def make(
        family: str,
        sampler: str,
        steps: int,
        columns: int,
        computed: Iterable[Iterable[int]],
        threshold: float | None = None,
        source: ScheduleSource = ScheduleSource(),  # noqa: B008  (frozen)
        scheduler: Scheduler | None = None,
    ) -> Schedule:
        """A schedule from the computed columns of every call, in sampling order.  Raises ScheduleError or UsageError."""
        chosen = [set(run) for run in computed]
        updates = table(sampler, steps, scheduler).updates
        if len(chosen) != len(updates):
            raise ScheduleError(f"schedule: {len(chosen)} calls, but {sampler} with {steps} steps makes {len(updates)}")
        calls = tuple(call_of(update.timestep, run, columns) for update, run in zip(updates, chosen, strict=True))
        return Schedule(
            family=family, sampler=sampler, steps=steps, columns=columns, calls=calls, threshold=threshold, source=source,
            scheduler=scheduler or msgspec.UNSET,
        )  # fmt: skip

    @staticmethod
    def every(k: int, *, family: str, steps: int, columns: int, sampler: str | None = None) -> Schedule:
        """Everything is computed in calls 0, k, 2k, .. and nothing between: `from_rule` with "every:K"."""
        return Schedule.from_rule(f"every:{k}", family=family, steps=steps, columns=columns, sampler=sampler)

    @staticmethod
    def from_rule(
        rule: str, *, family: str, steps: int, columns: int, sampler: str | None = None, scheduler: Scheduler | None = None
    ) -> Schedule:
        """A schedule without a router: "every:3", "full:0,1,5" or "mask:1,0,0,1" (see `rules.full_calls`).

        `family` is "dit" or "uvit", `steps` are sampling steps (DiT) or network evaluations (U-ViT), `columns` the model's
        sublayers, two per block; `sampler` is the family's, "ddim" or "dpm-solver++", where none is given.  Raises UsageError.
        """
        if family not in OF_FAMILY:
            raise UsageError(f"family={family!r}: use one of {', '.join(OF_FAMILY)}")
        chosen = sampler or OF_FAMILY[family]
        count = len(table(chosen, steps, scheduler).updates)
        full = full_calls(rule, count)
        computed = [range(columns) if n in full else () for n in range(count)]
        return Schedule.make(family, chosen, steps, columns, computed, source=ScheduleSource(rule=rule), scheduler=scheduler)

    def with_computed(self, call: int, columns: Iterable[int]) -> Schedule:
        """A copy in which call number `call` computes these columns and reuses the others.

        What it came from no longer says what it is, so the copy has neither source nor threshold.  Raises UsageError for a
        call or a column that the schedule does not have, ScheduleError if call 0 would reuse any.
        """
        computed = set(columns)
        if not 0 <= call < len(self.calls):
            raise UsageError(f"call={call}: the schedule has calls 0 to {len(self.calls) - 1}")
        if not computed <= set(range(self.columns)):
            raise UsageError(f"columns={sorted(computed)}: the schedule has columns 0 to {self.columns - 1}")
        changed = call_of(self.calls[call].timestep, computed, self.columns)
        calls = (*self.calls[:call], changed, *self.calls[call + 1 :])
        return msgspec.structs.replace(self, calls=calls, threshold=None, source=ScheduleSource())

    @property
    def sublayers(self) -> list[str]:
        """A name for every column: "0.attn", "0.mlp", "1.attn", .."""
        return [f"{j // 2}.{'mlp' if j % 2 else 'attn'}" for j in range(self.columns)]

    @property
    def computed_share(self) -> float:
        """Of all sublayers of all calls, 0..1."""
        return sum(len(call.computed) for call in self.calls) / (self.columns * len(self.calls))

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw sublayers x calls as .png, .svg or .pdf: dark is computed, light is reused.  Raises UsageError or RunError."""
        from .picture import draw

        draw(Path(path), self.sublayers, [c.timestep for c in self.calls], [c.computed for c in self.calls])

    def __repr__(self) -> str:
        threshold = "" if self.threshold is None else f", threshold {self.threshold:.9g}"
        return (
            f"<Schedule {self.family}, {self.sampler}, {counted(self.steps, 'step')}, {counted(len(self.calls), 'call')} of "
            f"{counted(self.columns, 'sublayer')}, {self.computed_share:.1%} computed{threshold}>"
        )

    def uncached(self) -> Schedule:
        """The twin that computes everything in every call."""
        full = [range(self.columns)] * len(self.calls)
        source = ScheduleSource(rule="no-cache")
        return Schedule.make(
            self.family, self.sampler, self.steps, self.columns, full, source=source, scheduler=self.scheduler or None
        )


def content(path: Path) -> bytes:
    """The JSON in a schedule's file, UTF-8.  Raises ScheduleError for what is no such file, or far too large."""
    try:
        return file_kind.json_text(path, REMEDY)
    except file_kind.NotJson as error:
        raise ScheduleError(f"{path} is not a schedule: {error}") from None
    except OSError as error:
        raise ScheduleError(f"{path}: cannot be read: {error.strerror}: {REMEDY}") from None


def _other_kind(data: bytes) -> file_kind.Kind | None:
    """What JSON is that is meant for another option."""
    try:
        kind = file_kind.of_json(msgspec.json.decode(data))
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return None
    return None if kind == file_kind.SCHEDULE else kind


def call_of(timestep: float, computed: Collection[int], columns: int) -> Call:
    """A call that computes these columns and reuses the others."""
    return Call(timestep, tuple(sorted(computed)), tuple(j for j in range(columns) if j not in computed))


def file_source(path: Path, data: bytes) -> ScheduleSource:
    return ScheduleSource(file=path.name, sha256=hashlib.sha256(data).hexdigest())
