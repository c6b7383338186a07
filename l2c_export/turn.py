"""Who may use a pipeline's buffers: one generation at a time, in the process that loaded it."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

from .errors import RunError


class Turn:
    """Others wait for theirs.  A thread that would wait for its own generation is told so instead.

    A generation that is taken step by step belongs to the thread that took the last step.
    """

    def __init__(self, forks: bool) -> None:
        self._lock, self._holder = threading.Lock(), 0
        self._process = None if forks else os.getpid()

    @property
    def mine(self) -> bool:
        """Whether this thread is in the middle of a generation."""
        return self._holder == threading.get_ident()

    def take(self) -> None:
        """Note that it is this thread that goes on with the generation."""
        self._holder = threading.get_ident()

    def check_process(self) -> None:
        """Raise RunError in a fork of the loading process: it would wait for threads that only the other one has."""
        if self._process not in (None, os.getpid()):
            raise RunError("this pipeline was loaded before its process was forked: load it in the process that uses it")

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Raises RunError in the middle of a generation of the same thread."""
        if self.mine:
            raise RunError("this pipeline is in the middle of a generation: end it first, or load a second pipeline")
        with self._lock:
            self.take()
            try:
                yield
            finally:
                self._holder = 0
