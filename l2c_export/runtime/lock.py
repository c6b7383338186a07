"""Who may use a pipeline's buffers: one generation at a time, in the process that loaded it, until that ends."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Iterator

from ..errors import RunError
from ..support import ending

_turns: weakref.WeakSet[Turn] = weakref.WeakSet()


class Turn:
    """Others wait for theirs.  A thread that would wait for its own generation is told so instead.

    A generation that is taken step by step belongs to the thread that took the last step.
    """

    def __init__(self, forks: bool) -> None:
        self._lock, self._holder = threading.Lock(), 0
        self._process = None if forks else os.getpid()
        self._rests = False
        _turns.add(self)

    @property
    def mine(self) -> bool:
        """Whether this thread is in the middle of a generation."""
        return self._holder == threading.get_ident()

    @contextlib.contextmanager
    def rest(self) -> Iterator[None]:
        """Between two steps nothing computes.  It is the thread that ends it that goes on with the generation."""
        self._rests = True
        try:
            with ending.resting():
                yield
        finally:
            self._rests = False
            self._holder = threading.get_ident()

    def check_process(self) -> None:
        """Raise RunError in a fork of the loading process: it would wait for threads that only the other one has."""
        if self._process not in (None, os.getpid()):
            raise RunError("this pipeline was loaded before its process was forked: load it in the process that uses it")

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Raises RunError in the middle of a generation of the same thread, or of one that the process's end has stopped."""
        if self.mine:
            raise RunError("this pipeline is in the middle of a generation: end it first, or load a second pipeline")
        if not self._lock.acquire(blocking=not ending.ends()):
            raise RunError("the process ends in the middle of a generation: use the pipeline before that")
        try:
            self._holder = threading.get_ident()
            with ending.computing():
                yield
        finally:
            self._holder = 0
            self._lock.release()

    def after_fork(self) -> None:
        """In the child, which has this thread only: what another one was computing stays half done, with its locks."""
        if self._lock.locked() and not self.mine:
            if not self._rests:
                self._process = os.getppid()
            self._lock, self._holder, self._rests = threading.Lock(), 0, False


def _after_fork() -> None:
    for turn in list(_turns):
        turn.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
