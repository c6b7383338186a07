"""The log of the package, with the standard library's `logging`: nobody hears it who does not ask for "l2c_export"."""

from __future__ import annotations

import logging

LOG = logging.getLogger("l2c_export")


def logged(line: str) -> None:
    """What is reported where nobody else is told: a line of the log."""
    LOG.info("%s", line)
