"""What computes when a process ends: a backend's C++ must not be cut off in the middle.

While the interpreter ends it stops a daemon thread as soon as that asks for the interpreter's lock, by unwinding its stack.
Where the thread comes back from a library written in C++, this meets a destructor that must not raise, and the process aborts
("terminate called").  So threads say when they compute; the end waits until none does, and from then on none begins or goes on.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
from collections.abc import Iterator

LAST_SECONDS = 30.0  # how long the end of a process waits: for one engine's run, or for an artefact to be loaded


class Gate:
    """Threads enter to compute.  Once it is closed they wait before it for ever, but for the thread that closed it."""

    def __init__(self) -> None:
        self.reset({})

    def reset(self, inside: dict[int, int]) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._inside = inside  # thread -> how often it has entered
        self._closed_by: int | None = None

    def enter(self) -> None:
        me = threading.get_ident()
        with self._changed:
            self._wait_while_closed(me)
            self._inside[me] = self._inside.get(me, 0) + 1

    def leave(self) -> None:
        me = threading.get_ident()
        with self._changed:
            self._inside[me] -= 1
            if not self._inside[me]:
                del self._inside[me]
                self._changed.notify_all()

    def stop(self) -> None:
        """Between two pieces of work: go on, unless the process ends."""
        if not self.ends():
            return
        me = threading.get_ident()
        with self._changed:
            entered = self._inside.pop(me, 0)
            self._changed.notify_all()
            self._wait_while_closed(me)
            if entered:
                self._inside[me] = entered

    def ends(self) -> bool:
        """Whether it is closed."""
        return self._closed_by is not None

    def close(self, seconds: float) -> None:
        """Let no other thread compute from now on, if all of them stop in time."""
        me, last = threading.get_ident(), time.monotonic() + seconds
        with self._changed:
            self._closed_by = me
            while set(self._inside) - {me} and (left := last - time.monotonic()) > 0:
                self._changed.wait(left)

    def after_fork(self) -> None:
        """In the child, which has this thread only."""
        me = threading.get_ident()
        self.reset({me: self._inside[me]} if me in self._inside else {})

    def _wait_while_closed(self, me: int) -> None:
        while self._closed_by not in (None, me):
            self._changed.wait()


_gate = Gate()
stop, ends = _gate.stop, _gate.ends


@contextlib.contextmanager
def computing() -> Iterator[None]:
    """The end of the process waits for what is done in here, up to the next `stop`."""
    _gate.enter()
    try:
        yield
    finally:
        _gate.leave()


@contextlib.contextmanager
def resting() -> Iterator[None]:
    """Inside of `computing`: nobody waits for what is done in here."""
    _gate.leave()
    try:
        yield
    finally:
        _gate.enter()


atexit.register(lambda: _gate.close(LAST_SECONDS))
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_gate.after_fork)
