"""Names of values: which call a value belongs to, and which rows of a weight are meant."""

from __future__ import annotations

import re

_SUFFIX = re.compile(r"@([+-]\d+)$")


def at(name: str, offset: int) -> str:
    """The name of a value as seen from a call `offset` calls away: at("a", 1) is "a@+1"."""
    return f"{name}@{offset:+d}" if offset else name


def split_at(name: str) -> tuple[str, int]:
    """The inverse of `at`: ("a", 1) for "a@+1", ("a", 0) for "a"."""
    suffix = _SUFFIX.search(name)
    return (name[: suffix.start()], int(suffix.group(1))) if suffix else (name, 0)


def rows_of(weight: str) -> tuple[str, slice]:
    """Split a weight's name into its tensor and its rows: ("w", slice(0, 32)) for "w[0:32]"."""
    rows = re.search(r"\[(\d+):(\d+)\]$", weight)
    return (weight[: rows.start()], slice(int(rows.group(1)), int(rows.group(2)))) if rows else (weight, slice(None))
