"""Schedules of other tools in our form: `l2c schedule convert`, and what `l2c-export --schedule FILE` reads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..compiler.request import PathOrSchedule, options_of
from ..errors import ScheduleError, UsageError
from ..models.families import FAMILIES
from ..schedules.file import content
from ..schedules.forms import file_source
from ..schedules.importers import recognise
from ..schedules.importers.imported import Imported, Known, Selection
from ..schedules.rules import is_rule
from ..schedules.schedule import Schedule
from ..support import file_kind
from ..support.extras import needs
from ..support.files import Report, small
from ..support.log import logged

if TYPE_CHECKING:
    from ..compiler.source import Source

OF_MODEL = ("model", "weights", "sampler", "size", "tokens")  # the options of a compilation that say what a schedule is for
AS_IT_IS = Selection()  # a file that leaves nothing open


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
    return _source(path, steps, threshold=chosen.threshold, **model).schedule


def check_unused(chosen: Selection, name: str) -> None:
    """Refuse what is said for a file of another tool, where there is none.  Raises UsageError."""
    for field in ("router_kind", "level", "budget", "full_calls"):
        if (value := getattr(chosen, field)) != getattr(AS_IT_IS, field):
            raise UsageError(f"{field}={value!r}: {name} is no schedule of another tool: leave it out")


def recognised(path: str | os.PathLike[str], chosen: Selection) -> Imported | None:
    """What a file of another tool says; None for one of ours, and for what is no file: a rule, or a name of the demo's."""
    return recognise.read(Path(path), chosen) if Path(path).is_file() else None


def of_model(path: Path, imported: Imported, steps: int | None, report: Report = logged, **model: Any) -> Schedule:
    """The schedule for a model, after a line that says what the file was taken for."""
    try:
        known = known_of(steps, imported.steps, **model)
        schedule = imported.schedule_for(known, file_source(path, small(path)))
    except (ScheduleError, UsageError) as error:
        raise type(error)(f"{path}: {str(error).removeprefix('schedule: ')}") from None
    report(f"{path}: {imported.described(known, schedule)}")
    return schedule


def known_of(steps: int | None, own_steps: int | None, **model: Any) -> Known:
    """The model and the sampler that these options of `compile` mean, with the `steps` that are asked for."""
    least = 2  # where nobody says how many: the sampler does not depend on it
    source = _source("every:1", steps or own_steps or least, **model)
    folder, schedule = source.folder, source.schedule
    said = model.get("sampler") is not None or bool(folder and not folder.assumed_scheduler)
    return Known(source.family.name, source.family.sublayers, schedule.sampler, schedule.scheduler or None, said, steps)


def _source(schedule: PathOrSchedule, steps: int | None, **options: Any) -> Source:
    """What these options of `compile` mean."""
    needs("torch", "export")
    from ..compiler.source import resolve

    return resolve(options_of(schedule, steps, **options))


def published(family: str) -> str:
    """The model of a family that its published routers are for."""
    return next(iter(FAMILIES[family].routed.values()))
