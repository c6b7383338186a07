"""A thread that works off what it is handed, one thing after another."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

Work = Callable[[], None]


class Beside:
    """At most one piece of work waits for the one that is done: who hands over a second one waits with it.

    As a context manager it is done with everything at the end.  Work must not raise.
    """

    def __init__(self, name: str) -> None:
        self._work: queue.Queue[Work | None] = queue.Queue(1)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Beside:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._work.put(None)
        self._thread.join()

    def __call__(self, work: Work) -> None:
        self._work.put(work)

    def _run(self) -> None:
        while work := self._work.get():
            work()
