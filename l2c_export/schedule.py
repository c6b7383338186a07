"""The schedule: for every call of the sampler, which sublayers are computed and which are reused.

This is what was learned (or chosen), free of any framework; `to_json` is its portable form:

    {"format": "l2c-schedule", "version": 1, "family": "dit", "sampler": "ddim", "steps": 4, "columns": 6,
     "calls": [{"timestep": 999.0, "computed": [0, 1, 2, 3, 4, 5], "reused": []},
               {"timestep": 666.0, "computed": [0, 3], "reused": [1, 2, 4, 5]}, ..],
     "threshold": 0.1, "source": {"file": "router.pt", "sha256": ".."}}

`calls` are network evaluations in sampling order.  Column 2b is the attention of block b, column 2b + 1 its MLP
(U-ViT: in blocks, the middle, out blocks).  A reused value is the one of the most recent call that computed it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from .errors import ScheduleError, UsageError
from .files import small
from .samplers import updates


class Call(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One network evaluation: its timestep (0..1000), the computed and the reused columns, ascending."""

    timestep: float
    computed: tuple[int, ...]
    reused: tuple[int, ...]


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
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
    source: Source = Source()

    def __post_init__(self) -> None:
        try:
            table = updates(self.sampler, self.steps)
        except UsageError as error:
            raise ScheduleError(f"schedule: {error}") from None
        if len(self.calls) != len(table):
            raise ScheduleError(
                f"schedule: {len(self.calls)} calls, but {self.sampler} with {self.steps} steps makes {len(table)}"
            )
        for n, (call, update) in enumerate(zip(self.calls, table, strict=True)):
            listed = call.computed + call.reused
            if len(listed) != self.columns or sorted(listed) != list(range(self.columns)):
                raise ScheduleError(
                    f"schedule: call {n} must list each of the columns 0..{self.columns - 1} once, as computed or reused"
                )
            if abs(call.timestep - update.timestep) > 1e-2:
                raise ScheduleError(f"schedule: call {n} has timestep {call.timestep}, {self.sampler} has {update.timestep}")
        if self.calls[0].reused:
            raise ScheduleError("schedule: call 0 reuses columns, but nothing is cached before it")

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
            raise ScheduleError(f"{name} is not a schedule: {error}; give one like the schedule.json of an artefact") from None

    def uncached(self) -> Schedule:
        """The twin that computes everything in every call."""
        full = [range(self.columns)] * len(self.calls)
        return make(self.family, self.sampler, self.steps, self.columns, full, source=Source(rule="no-cache"))


def read(path: Path) -> Schedule:
    """The schedule in a JSON file.  Raises ScheduleError."""
    try:
        return Schedule.from_json(small(path), str(path))
    except OSError as error:
        raise ScheduleError(f"{path}: cannot be read: {error.strerror}: give the schedule.json of an artefact") from None


def make(
    family: str,
    sampler: str,
    steps: int,
    columns: int,
    computed: Iterable[Iterable[int]],
    threshold: float | None = None,
    source: Source = Source(),  # noqa: B008  (frozen)
) -> Schedule:
    """A schedule from the computed columns of every call."""
    calls = []
    for update, run in zip(updates(sampler, steps), computed, strict=True):
        chosen = sorted(set(run))
        reused = tuple(j for j in range(columns) if j not in set(chosen))
        calls.append(Call(update.timestep, tuple(chosen), reused))
    return Schedule(
        family=family, sampler=sampler, steps=steps, columns=columns, calls=tuple(calls), threshold=threshold, source=source
    )


def from_rule(rule: str, family: str, sampler: str, steps: int, columns: int) -> Schedule:
    """A schedule without a router: "every:3" computes everything in calls 0, 3, 6, .. and nothing between;
    "full:0,1,5" computes everything in those calls only."""
    count = len(updates(sampler, steps))
    kind, _, rest = rule.partition(":")
    try:
        numbers = [int(n) for n in rest.split(",")]
    except ValueError:
        numbers = []
    if kind == "every" and len(numbers) == 1 and numbers[0] >= 1:
        full = set(range(0, count, numbers[0]))
    elif kind == "full" and numbers and numbers[0] == 0 and all(0 <= n < count for n in numbers):
        full = set(numbers)
    else:
        raise UsageError(
            f"--schedule {rule}: use every:K with K >= 1, or full:0,A,B,.. with calls from 0 to {count - 1}, 0 first"
        )
    computed = [range(columns) if n in full else () for n in range(count)]
    return make(family, sampler, steps, columns, computed, source=Source(rule=rule))


def is_rule(text: str) -> bool:
    return text.partition(":")[0] in ("every", "full") and not Path(text).exists()


def from_scores(
    family: str, steps: int, computed_of_row: Sequence[Sequence[int]], columns: int, threshold: float, source: Source
) -> Schedule:
    """A Learning-to-Cache router's rows placed at their calls (SEMANTICS of the reference):

    DiT with DDIM: call n uses row i = steps - 1 - n; it is a cached call if i is even, except the first.
    U-ViT with DPM-Solver++: the first evaluation of solver step j >= 1 uses row j; the midpoints are full.
    """
    if family == "uvit":
        rows = [j // 2 if j % 2 == 0 and j else None for j in range(steps // 2 * 2)]
        sampler = "dpm-solver++"
    else:
        rows = [i if i % 2 == 0 and i != steps - 1 else None for i in reversed(range(steps))]
        sampler = "ddim"
    computed = [range(columns) if row is None else computed_of_row[row] for row in rows]
    return make(family, sampler, steps, columns, computed, threshold, source)


def file_source(path: Path, data: bytes) -> Source:
    return Source(file=path.name, sha256=hashlib.sha256(data).hexdigest())
