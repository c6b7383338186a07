"""The file that a schedule lies in."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ..errors import ScheduleError
from ..support import file_kind

REMEDY = "give the schedule.json of an artefact"


def content(path: Path) -> bytes:
    """The JSON in a schedule's file, UTF-8.  Raises ScheduleError for what is no such file, or far too large."""
    try:
        return file_kind.json_text(path, REMEDY)
    except file_kind.NotJson as error:
        raise ScheduleError(f"{path} is not a schedule: {error}") from None
    except OSError as error:
        raise ScheduleError(f"{path}: cannot be read: {error.strerror}: {REMEDY}") from None


def other_kind(data: bytes) -> file_kind.Kind | None:
    """What JSON is that is meant for another option."""
    try:
        kind = file_kind.of_json(msgspec.json.decode(data))
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return None
    return None if kind == file_kind.SCHEDULE else kind
