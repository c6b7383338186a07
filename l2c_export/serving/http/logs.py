"""The log of a server: a JSON object a line, each with the id of the request that it is about."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import msgspec

from ...support.log import LOG

NOTES: ContextVar[dict[str, Any] | None] = ContextVar("l2c_notes", default=None)
LIBRARIES = ("l2c_export", "uvicorn.error")


def note(**facts: Any) -> None:
    """Add to the line of the log that is about this request."""
    notes = NOTES.get()
    if notes is not None:
        notes.update(facts)


class JsonLines(logging.Formatter):
    """Time in UTC, level, message, what the record has in `facts`, and the traceback of an exception."""

    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {"time": f"{at}.{int(record.msecs):03}Z", "level": record.levelname.lower(), "message": record.getMessage()}
        notes = NOTES.get()
        if notes and "request_id" in notes:
            line["request_id"] = notes["request_id"]
        line |= getattr(record, "facts", {})
        if record.exc_info:
            line["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        return msgspec.json.encode(line, enc_hook=str).decode()


LINES = JsonLines()


class Stderr(logging.StreamHandler[Any]):
    """In lines of JSON, whatever formatter a library gives it; a log that nobody can read stops nothing."""

    def format(self, record: logging.LogRecord) -> str:
        return LINES.format(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        return


@contextlib.contextmanager
def json_lines(libraries: Sequence[str] = LIBRARIES) -> Iterator[None]:
    """While a server runs, what these log goes to stderr in lines of JSON, and nowhere else."""
    handler = Stderr(sys.stderr)
    loggers = [logging.getLogger(name) for name in libraries]
    before = [(logger, logger.handlers, logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO if logger is LOG else logging.WARNING)
    try:
        yield
    finally:
        for logger, handlers, level, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)


def about_request(facts: dict[str, Any]) -> None:
    """The line of a request that has been answered."""
    LOG.info("request", extra={"facts": facts})
