"""Tickets that wait for their batch: a bounded queue, taken from its front."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..errors import Draining, Full
from ..support.words import counted

if TYPE_CHECKING:
    from .ticket import Ticket


class Waiting:
    """At most `most` tickets.  The first of them decides what kind the next batch is of, so that none waits for ever."""

    def __init__(self, most: int, max_wait: float) -> None:
        self.most, self._max_wait = most, max_wait
        self._tickets: deque[Ticket] = deque()
        self._taken: tuple[Ticket, ...] = ()  # of the batches that are made
        self._changed = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        return len(self._tickets)

    @property
    def running(self) -> int:
        return len(self._taken)

    def put(self, tickets: Sequence[Ticket], still: Callable[[], bool]) -> bool:
        """Accept all of them or none: False unless it is `still` so that they may be.  Raises Full and Draining."""
        with self._changed:
            if self._closed:
                raise Draining("the engine is being closed, and accepts nothing more: ask another one")
            if not still():
                return False
            if len(self._tickets) + len(tickets) > self.most:
                raise Full(f"{counted(len(self._tickets), 'image')} wait, and at most {self.most} may: ask again later")
            self._tickets.extend(tickets)
            self._changed.notify_all()
            return True

    def leave(self, ticket: Ticket) -> None:
        """Forget one that needs no image any more."""
        with self._changed:
            if ticket in self._tickets:
                self._tickets.remove(ticket)
                self._changed.notify_all()

    def take(self, largest: Callable[[Ticket], int]) -> tuple[Ticket, ...]:
        """The next batch, which is running from now on until it is `finished`; nothing once it is closed and empty.

        The first waits at most `max_wait` seconds, from when it was queued, for others of its kind.
        """
        with self._changed:
            while True:
                if self._tickets:
                    first = self._tickets[0]
                    most = largest(first)
                    batch = tuple(itertools.islice((ticket for ticket in self._tickets if ticket.kind == first.kind), most))
                    left = first.queued + self._max_wait - time.monotonic()
                    if len(batch) == most or left <= 0 or self._closed:
                        for ticket in batch:
                            self._tickets.remove(ticket)
                        self._taken += batch
                        return batch
                    self._changed.wait(left)
                elif self._closed:
                    return ()
                else:
                    self._changed.wait()

    def finished(self, batch: Sequence[Ticket]) -> None:
        """Forget a batch that was taken."""
        with self._changed:
            self._taken = tuple(ticket for ticket in self._taken if ticket not in batch)
            self._changed.notify_all()

    def wait_until_gone(self, other_than: Callable[[Ticket], bool]) -> None:
        """Until only such tickets wait or run."""
        with self._changed:
            self._changed.wait_for(lambda: all(map(other_than, self.all())))

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def all(self) -> tuple[Ticket, ...]:
        """Those that wait and those that run."""
        with self._changed:
            return (*self._tickets, *self._taken)
