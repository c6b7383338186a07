"""The log of the package, with the standard library's `logging`: nobody hears it who does not ask for "l2c_export"."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

LOG = logging.getLogger("l2c_export")


def logged(line: str) -> None:
    """What is reported where nobody else is told: a line of the log."""
    LOG.info("%s", line)


@contextlib.contextmanager
def quiet(library: str) -> Iterator[None]:
    """For work whose warnings, and what the library logs below an error, concern no user."""
    logger = logging.getLogger(library)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
