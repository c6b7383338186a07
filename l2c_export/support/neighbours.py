"""What other programs take of the processors while we compute: it is what makes times wrong.

Of all processor time that Linux has counted, what this process and its descendants did not take is that of others, and so is
what a hypervisor gave to another machine (proc_stat(5), proc_pid_stat(5)).
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

PROC = Path("/proc")
COUNTED = (0, 1, 2, 5, 6, 7)  # user, nice, system, irq, softirq, steal; the others are idle, or counted already
SHORTEST = 0.1  # seconds: the system counts in hundredths
BUSY = 0.4  # the share of the processors that others may want before it matters: a neighbour on one of two is more


class Moment(msgspec.Struct, frozen=True):
    """Seconds: by the clock, and of all processors together since each of them, or each process, began."""

    clock: float
    everybody: float | None  # on the processors that this process may use; None where nobody counts them
    ours: float


def now() -> Moment:
    return Moment(time.perf_counter(), everybody(), ours())


class Watch:
    """What others take from now on, while this process alone computes: cheaper than `now`, which looks for descendants."""

    def __init__(self) -> None:
        self._began = self._now()

    def share(self) -> float | None:
        return share(self._began, self._now())

    @staticmethod
    def _now() -> Moment:
        return Moment(time.perf_counter(), everybody(), time.process_time())


def processors() -> frozenset[int]:
    """Those that this process may use."""
    return frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset(range(os.cpu_count() or 1))


def pause(seconds: float) -> float | None:
    """Sleep, and return the share of our processors that others wanted in the meantime: while we compute they get less."""
    before = now()
    time.sleep(seconds)
    return share(before, now())


def share(before: Moment, after: Moment) -> float | None:
    """The share of our processors that others used between two moments, 0 to 1; None where that is unknown."""
    seconds = after.clock - before.clock
    if before.everybody is None or after.everybody is None or seconds < SHORTEST:
        return None
    everybody, own = after.everybody - before.everybody, after.ours - before.ours
    return min(1.0, max(0.0, everybody - own) / seconds / len(processors()))


def mean(shares: Sequence[float | None]) -> float | None:
    """Of shares in equal times; None if one is unknown."""
    measured = [share for share in shares if share is not None]
    return sum(measured) / len(measured) if measured and len(measured) == len(shares) else None


def everybody() -> float | None:
    own_rows = {f"cpu{n}" for n in processors()}
    try:
        rows = [line.split() for line in (PROC / "stat").read_text().splitlines()]
        counted = [[int(row[1 + n]) for n in COUNTED] for row in rows if row and row[0] in own_rows]
    except (OSError, ValueError, IndexError):
        return None
    total = sum(map(sum, counted))
    return total / ticks() if total else None  # some containers show zeros


def ours() -> float:
    """What this process, its descendants, and those of them that have ended have used."""
    used, parents = {}, {}
    for pid in filter(str.isdigit, os.listdir(PROC) if PROC.is_dir() else ()):
        try:  # the name in parentheses may hold anything
            row = (PROC / pid / "stat").read_bytes().rpartition(b")")[2].split()
        except OSError:  # it has just ended
            continue
        parents[int(pid)], used[int(pid)] = int(row[1]), sum(map(int, row[11:15]))
    family, size = {os.getpid()}, 0
    while len(family) > size:
        size = len(family)
        family |= {pid for pid, parent in parents.items() if parent in family}
    return sum(used.get(pid, 0) for pid in family) / ticks() if used else 0.0


def ticks() -> int:
    return os.sysconf("SC_CLK_TCK")
