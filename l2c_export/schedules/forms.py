"""The JSON forms of a schedule: version 2, which is written, and version 1, which had numbers instead of names."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec

from ..errors import ScheduleError
from ..samplers.scheduler_config import Scheduler
from .calls import Call, call_of
from .forecast import Rule
from .values import sublayers_of, values_of

if TYPE_CHECKING:
    from .schedule import Schedule


class ScheduleSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a schedule came from: the file's name and hash, or the rule, such as "every:2"."""

    file: str | None = None
    sha256: str | None = None
    rule: str | None = None


def file_source(path: Path, data: bytes) -> ScheduleSource:
    return ScheduleSource(file=path.name, sha256=hashlib.sha256(data).hexdigest())


class NamedCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A call of version 2."""

    timestep: float
    computed: Literal["all"] | tuple[str, ...]
    rules: dict[str, Rule] = {}


class NumberedCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A call of version 1."""

    timestep: float
    computed: tuple[int, ...]
    reused: tuple[int, ...]


class NamedSchedule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Version 2."""

    format: Literal["l2c-schedule"] = "l2c-schedule"
    version: Literal[2] = 2
    family: str
    sampler: str
    steps: int
    cacheable: tuple[str, ...]
    calls: tuple[NamedCall, ...]
    threshold: float | None = None
    source: ScheduleSource = ScheduleSource()
    scheduler: Scheduler | msgspec.UnsetType = msgspec.UNSET


class NumberedSchedule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Version 1."""

    format: Literal["l2c-schedule"] = "l2c-schedule"
    version: Literal[1] = 1
    family: str
    sampler: str
    steps: int
    columns: int
    calls: tuple[NumberedCall, ...]
    threshold: float | None = None
    source: ScheduleSource = ScheduleSource()
    scheduler: Scheduler | msgspec.UnsetType = msgspec.UNSET


class Fields(NamedTuple):
    """Those of a `Schedule`."""

    family: str
    sampler: str
    steps: int
    cacheable: tuple[str, ...]
    calls: tuple[Call, ...]
    threshold: float | None
    source: ScheduleSource
    scheduler: Scheduler | msgspec.UnsetType


class Head(msgspec.Struct):
    """What says which version it is."""

    version: Any = 1


def read(data: bytes) -> Fields:
    """The schedule in this JSON.  Raises ScheduleError, or what msgspec does for JSON that is none."""
    version = msgspec.json.decode(data, type=Head).version
    if type(version) is int and version not in (1, 2):
        raise ScheduleError(f"schedule: version {version}, where 1 and 2 are known: a newer release of l2c-export reads it")
    document: NamedSchedule | NumberedSchedule
    if version == 2:
        document = msgspec.json.decode(data, type=NamedSchedule)
        cacheable, calls = _named(document)
    else:
        document = msgspec.json.decode(data, type=NumberedSchedule)
        cacheable, calls = _numbered(document)
    return Fields(
        document.family, document.sampler, document.steps, cacheable, calls, document.threshold, document.source,
        document.scheduler,
    )  # fmt: skip


def _named(document: NamedSchedule) -> tuple[tuple[str, ...], tuple[Call, ...]]:
    values = values_of(document.cacheable)
    numbers = {name: j for j, name in enumerate(values.sublayers)}
    calls = []
    for n, call in enumerate(document.calls):
        if call.computed == "all" and call.rules:
            raise ScheduleError(f'schedule: call {n} computes "all", so it has no rules: list what it computes')
        names = values.sublayers if call.computed == "all" else call.computed
        for name in names:
            if name not in numbers:
                raise ScheduleError(f"schedule: call {n} computes {name!r}, which is no cacheable sublayer")
        if len(set(names)) != len(names):
            raise ScheduleError(f"schedule: call {n} lists a computed sublayer twice: name each once")
        calls.append(call_of(call.timestep, [numbers[name] for name in names], values, call.rules, n))
    return document.cacheable, tuple(calls)


def _numbered(document: NumberedSchedule) -> tuple[tuple[str, ...], tuple[Call, ...]]:
    cacheable = sublayers_of(document.family, document.columns)
    for n, call in enumerate(document.calls):
        listed = call.computed + call.reused
        if sorted(listed) != list(range(len(cacheable))):
            raise ScheduleError(
                f"schedule: call {n} must list each of the columns 0..{len(cacheable) - 1} once, as computed or reused"
            )
    values = values_of(cacheable)
    return cacheable, tuple(call_of(call.timestep, call.computed, values) for call in document.calls)


def written(schedule: Schedule) -> bytes:
    """Version 2, a line for every call."""
    calls = [_text(_call(schedule.sublayers, call)) for call in schedule.calls]
    fields = {name: getattr(schedule, name) for name in schedule.__struct_fields__}
    text = _text(NamedSchedule(**{**fields, "calls": ()}))
    return text.replace(' "calls": []', '\n "calls": [' + ",\n           ".join(calls) + "]", 1).encode()


def _call(sublayers: tuple[str, ...], call: Call) -> NamedCall:
    if len(call.computed) == len(sublayers) and not call.rules:
        return NamedCall(call.timestep, "all")
    return NamedCall(call.timestep, tuple(sublayers[j] for j in call.computed), call.rules)


def _text(value: msgspec.Struct) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=0).decode()
