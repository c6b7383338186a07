"""Every error a user can cause.

    L2CError
    ├── UsageError        a value given by the caller is wrong (exit code 2)
    ├── ScheduleError     a router or schedule file cannot be used
    ├── ModelError        an unknown or inconsistent model description
    ├── WeightsError      weights that do not fit the model
    ├── ArtefactError     an output folder or artefact that cannot be used
    ├── BackendError      a backend that is missing or cannot run here
    │   └── MissingExtra  a package that an optional extra installs
    ├── RunError          the generation itself failed (NaN, out of memory)
    ├── Full              a serving engine has as many requests waiting as it may
    ├── Draining          a serving engine is being closed
    └── Cancelled         the caller has stopped it

A message is one line: what was wrong with which value, and what to do about it.  It speaks Python: `threads=0: must be at
least 1`, `give them as weights=..`, `run l2c_export.link('engines', weights='PATH')`.  The command line says it in its own
words (cli/spoken.py), as `--threads 0: ..` and `run l2c link engines --weights PATH`.
"""

from __future__ import annotations


class L2CError(Exception):
    """The base of all errors of this package; the command line prints it as one line.

    Names from files are part of messages: what would break the line, or speak to the terminal, is written as an escape.
    """

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message))


class UsageError(L2CError, ValueError):
    """A value given by the caller is wrong."""

    exit_code = 2


class ScheduleError(L2CError):
    """A router or a schedule file cannot be used."""


class ModelError(L2CError):
    """A model description is unknown or contradicts itself."""


class WeightsError(L2CError):
    """Weights are missing, damaged, or do not fit the model."""


class ArtefactError(L2CError):
    """An artefact is incomplete, damaged, of another version, or its folder is not ours to write."""


class BackendError(L2CError):
    """A backend is unknown, or cannot run on this machine."""


class MissingExtra(BackendError):
    """A package is missing that one of our extras installs."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed: pip install 'l2c-export[{extra}]'")


class RunError(L2CError):
    """A generation failed: a NaN, a callback's bad latents, no memory."""


class Full(L2CError):
    """As many requests wait as may: one more was not accepted."""


class Draining(L2CError):
    """A serving engine is being closed: a request was not accepted, or what was accepted could not be finished in time."""


class Cancelled(L2CError):
    """A generation was stopped by whoever asked for it."""


def printable(text: str) -> str:
    """Text on one line, in which what would speak to the terminal is written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
