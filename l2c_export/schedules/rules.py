"""Schedules without a router: rules, and steps masks of other tools."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ..errors import ScheduleError, UsageError

MASKS = ("steps_computation_mask", "mask")  # another tool's choice of steps to compute
NESTED = "cache_config"  # where that tool's configuration may hold it


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
        found = msgspec.json.decode(data)
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return None
    mask = _mask(found)
    if not isinstance(mask, list):
        return None
    if not mask:
        raise ScheduleError("an empty steps mask: give a 0 or 1 for each call")
    for entry in mask:
        if entry not in (0, 1):
            raise ScheduleError(f"a steps mask with {entry!r}: use 1 for a full call and 0 for one that reuses everything")
    return "mask:" + ",".join(str(int(entry)) for entry in mask)


def _mask(found: object) -> object:
    """What stands where a mask may stand."""
    if not isinstance(found, dict):
        return list(map(int, found)) if isinstance(found, str) and found and set(found) <= {"0", "1"} else found
    inner = found.get(NESTED)
    held = inner if isinstance(inner, dict) else found
    return next((held[key] for key in MASKS if key in held), None)
