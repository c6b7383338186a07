"""MeanCache, which cannot be read: what it reuses is corrected by a derivative along the latents, which are no cached value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import ScheduleError
from .imported import Imported, Selection

FORM = "a schedule of MeanCache"
TAKES: tuple[str, ...] = ()
CORRECTIONS = ("edge_source", "edge_order", "cache_jvp")


def claims(content: Any) -> bool:
    return isinstance(content, Mapping) and any(key in content for key in CORRECTIONS)


def read(content: Any, chosen: Selection) -> Imported:
    """Raises ScheduleError."""
    key = next(key for key in CORRECTIONS if key in content)
    raise ScheduleError(
        f"MeanCache corrects what it reuses ({key}) by the latents of earlier steps, which no schedule says: give its list of "
        "computed steps alone"
    )
