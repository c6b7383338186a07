"""Schedules without a router: rules, and steps masks of other tools."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from ..errors import ScheduleError, UsageError
from .forecast import REUSE, fault, order_of
from .values import OUTPUT, STACK

MASKS = ("steps_computation_mask", "mask")  # another tool's choice of steps to compute
NESTED = "cache_config"  # where that tool's configuration may hold it


SUBLAYER = "sublayer"
LEVELS = (SUBLAYER, STACK, OUTPUT)


@dataclass(frozen=True)
class Caching:
    """How calls follow that are not full: by which rule, at which level, and which are full besides.  Raises UsageError."""

    rule: str = REUSE
    level: str = SUBLAYER
    full_first: int | None = None  # of every:K, by default as many as the rule reads
    full_last: int = 0

    def __post_init__(self) -> None:
        if wrong := fault(self.rule):
            raise UsageError(f"rule={self.rule!r}: {wrong.partition(': ')[2].removesuffix(', or [[age, coefficient], ..]')}")
        if self.level not in LEVELS:
            raise UsageError(f"level={self.level!r}: use one of {', '.join(LEVELS)}")
        if self.full_first is not None and self.full_first < 1:
            raise UsageError(f"full_first={self.full_first}: must be at least 1, for nothing is cached before the first call")
        if self.full_last < 0:
            raise UsageError(f"full_last={self.full_last}: must be at least 0")

    @property
    def rules(self) -> dict[str, str]:
        """Of a call that is not full."""
        return {"*" if self.level == SUBLAYER else self.level: self.rule}

    def full(self, rule: str, count: int) -> set[int]:
        """Which of `count` calls are full, where a rule such as "every:5" says most of it."""
        usual = order_of(self.rule) + 1 if rule.startswith("every") else 1
        first = usual if self.full_first is None else self.full_first
        return full_calls(rule, count) | set(range(min(first, count))) | set(range(max(count - self.full_last, 0), count))


def full_calls(rule: str, count: int) -> set[int]:
    """Which of `count` calls compute everything, where the others reuse everything: of "every:3" calls 0, 3, 6, ..;
    of "full:0,1,5" those, of "mask:1,0,0,1" (or 1001) those with a 1.  Raises UsageError."""
    kind, _, rest = rule.partition(":")
    try:
        numbers = [int(n) for n in (rest.replace(",", "") if kind == "mask" else rest.split(","))]
    except ValueError:
        numbers = []
    if kind == "every" and len(numbers) == 1 and numbers[0] >= 1:
        return set(range(0, count, numbers[0]))
    if kind == "full" and numbers and numbers[0] == 0 and all(0 <= n < count for n in numbers):
        return set(numbers)
    if kind == "mask" and len(numbers) == count and numbers[0] == 1 and set(numbers) <= {0, 1}:
        return {n for n, computed in enumerate(numbers) if computed}
    raise UsageError(
        f"schedule={rule!r}: use every:K with K >= 1, full:0,A,B,.. with calls from 0 to {count - 1}, 0 first, or "
        f"mask:1,.. with a 0 or 1 for each of the {count} calls, 1 first"
    )


def is_rule(text: str) -> bool:
    return text.partition(":")[0] in ("every", "full", "mask") and not Path(text).exists()


def mask_length(rule: str) -> int | None:
    """The calls of a mask, which are its steps; None for another rule."""
    kind, _, rest = rule.partition(":")
    return len(rest.replace(",", "")) or None if kind == "mask" else None


def mask_rule(data: bytes) -> str | None:
    """The rule of a steps mask in JSON: a list of 0 and 1, or one under the key `steps_computation_mask` (as in cache-dit)."""
    try:
        content = msgspec.json.decode(data)
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return None
    mask = _mask(content)
    if not isinstance(mask, list):
        return None
    if not mask:
        raise ScheduleError("an empty steps mask: give a 0 or 1 for each call")
    for entry in mask:
        if entry not in (0, 1):
            raise ScheduleError(f"a steps mask with {entry!r}: use 1 for a full call and 0 for one that reuses everything")
    return "mask:" + ",".join(str(int(entry)) for entry in mask)


def _mask(content: object) -> object:
    """What stands where a mask may stand."""
    if not isinstance(content, dict):
        return list(map(int, content)) if isinstance(content, str) and content and set(content) <= {"0", "1"} else content
    inner = content.get(NESTED)
    place = inner if isinstance(inner, dict) else content
    return next((place[key] for key in MASKS if key in place), None)
