"""How long work takes on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable


def seconds_of(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def seconds_between(items: Iterable[object]) -> list[float]:
    """What every item took, counted from the one before: of a loop whose calls return when they have ended."""
    seconds, before = [], time.perf_counter()
    for _ in items:
        now = time.perf_counter()
        seconds.append(now - before)
        before = now
    return seconds
