"""Backends whose arrays are numpy's and whose runs have ended when they return."""

from __future__ import annotations

import functools
import itertools
import math
import os
import time
from collections.abc import Collection, Sequence

import numpy as np

from ..errors import RunError
from ..support.ending import stop
from .contract import Array, Clock, Memory, Run, WeightView


@functools.cache
def host_bytes() -> int:
    """The machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class HostMemory:
    """Plain numpy: nothing is copied without being asked for, and a run that returns has ended."""

    on_host = True
    device = "cpu"

    def enter(self) -> None:
        pass

    def empty(self, shape: tuple[int, ...], dtype: str) -> Array:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size > host_bytes():  # the system lends more than there is, and ends the process when it is used
            raise RunError(
                f"{size / 2**20:,.0f} MB are needed at once, the machine has {host_bytes() / 2**20:,.0f}: use fewer images"
            )
        return np.empty(shape, dtype)

    def put(self, array: Array, values: np.ndarray) -> None:
        if array is not values:
            array[...] = values

    def get(self, array: Array) -> np.ndarray:
        values: np.ndarray = array
        return values

    def copy(self, array: Array) -> Array:
        return array.copy()

    def reserve(self, size: int, what: str) -> None:
        pass  # the system's to know: it lends more than it has

    def finish(self) -> None:
        pass

    def clock(self) -> Clock:
        return HostClock()

    def weights(self, view: WeightView, names: Collection[str]) -> WeightView:
        return view


class HostClock:
    """The host's clock, for runs that end before they return."""

    def __init__(self) -> None:
        self._marks: list[float] = []

    def mark(self) -> None:
        self._marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        return [b - a for a, b in itertools.pairwise(self._marks)]


def in_order(runs: Sequence[Run]) -> Run:
    """One run that does all of these."""

    def all_of_them() -> None:
        for run in runs:
            stop()
            run()

    return all_of_them


class OnHost:
    """What backends have in common whose engines work on numpy's arrays and return when they are done."""

    memory: Memory = HostMemory()
    forks = False
    spins = False

    def sequence(self, runs: Sequence[Run]) -> Run:
        return in_order(runs)
