"""Connections break: what is done about it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from ..errors import RunError
from ..support.log import LOG

T = TypeVar("T")
PAUSES = (0.5, 2.0, 5.0, 15.0)  # seconds before each further try
LONGEST = 60.0  # that a registry may ask us to wait


class Dropped(Exception):
    """A connection that broke, or a registry that is too busy: worth another try, after so many seconds if it says so."""

    def __init__(self, words: str, pause: float | None = None) -> None:
        super().__init__(words)
        self.pause = pause


def patiently(what: str, action: Callable[[], T], done: Callable[[], int] = int) -> T:
    """What `action` returns, after as many tries as are reasonable; `done` counts what stays of a try that failed.

    Raises RunError when several tries in a row have added nothing.
    """
    tries, before = 0, done()
    while True:
        try:
            return action()
        except Dropped as error:
            if done() > before:
                tries, before = 0, done()
            if tries == len(PAUSES):
                again = "check the network, and give the same command again"
                raise RunError(f"{what}: {error} ({tries + 1} times): {again}") from None
            LOG.info("%s: %s: trying again", what, error)
            time.sleep(min(PAUSES[tries] if error.pause is None else error.pause, LONGEST))
            tries += 1
