"""Schedules of any tool in our form: `l2c schedule convert`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..compiler.foreign import AS_IT_IS, check_unused, of_model, recognised, source_of
from ..errors import UsageError
from ..models.families import FAMILIES
from ..schedules.file import content
from ..schedules.importers.imported import Selection
from ..schedules.rules import is_rule
from ..schedules.schedule import Schedule
from ..support import file_kind
from ..support.files import Report
from ..support.log import logged


def convert(
    path: str | os.PathLike[str], chosen: Selection = AS_IT_IS, *, steps: int | None = None, report: Report = logged,
    **model: Any,
) -> Schedule:  # fmt: skip
    """The schedule of a file of any form that is known, or of a rule, for a model: `model`, `weights`, `sampler`, `size` and
    `tokens` are those of `compile`, and so is `steps`, where the file does not say them.

    Our own JSON needs no model.  Raises ScheduleError or UsageError for a file that cannot be read, and what `compile` does.
    """
    path = Path(path)
    if not path.is_file() and not is_rule(str(path)):
        raise UsageError(f"{path}: no such file: give a schedule or a router")
    if imported := recognised(path, chosen):
        return of_model(path, imported, steps, report, **model)
    check_unused(chosen, str(path))
    if path.is_file() and file_kind.is_json(path) and steps is chosen.threshold is None and not any(model.values()):
        return Schedule.from_json(content(path), str(path))
    return source_of(path, steps, threshold=chosen.threshold, **model).schedule


def published(family: str) -> str:
    """The model of a family that its published routers are for."""
    return next(iter(FAMILIES[family].routed.values()))
