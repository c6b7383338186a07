"""Schedules of other tools in our form: `l2c schedule convert`, and what `l2c-export --schedule FILE` reads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..compiler.request import PathOrSchedule, options_of
from ..errors import L2CError
from ..models.families import FAMILIES
from ..schedules.importers import recognise
from ..schedules.importers.imported import Choices, Imported, Known
from ..schedules.schedule import Schedule, file_source
from ..support.files import Report, small
from ..support.log import logged

OF_MODEL = ("model", "weights", "sampler", "size", "tokens")  # the options of a compilation that say what a schedule is for


def convert(
    path: PathOrSchedule, choices: Choices = Choices(), *, steps: int | None = None, report: Report = logged,  # noqa: B008
    **model: Any,
) -> Schedule:  # fmt: skip
    """The schedule of a file of any form that is known, for a model: `model`, `weights`, `sampler`, `size` and `tokens` are
    those of `compile`, and so is `steps`, where the file does not say them.

    Raises ScheduleError or UsageError for a file that cannot be read, and what `compile` does for the model.
    """
    from ..compiler.source import resolve

    found = None if isinstance(path, Schedule) else recognised(path, choices)
    if found is None:
        return resolve(options_of(path, steps, **model)).schedule
    return of_model(Path(os.fspath(path)), found, steps, report, **model)  # type: ignore[arg-type]


def recognised(path: str | os.PathLike[str], choices: Choices) -> Imported | None:
    """What a file of another tool says; None for one of ours, and for what is no file: a rule, or a name of the demo's."""
    return recognise.read(Path(path), choices) if Path(path).is_file() else None


def of_model(path: Path, found: Imported, steps: int | None, report: Report = logged, **model: Any) -> Schedule:
    """The schedule for a model, after a line that says what the file was taken for."""
    known = known_of(steps or found.steps, **model)
    try:
        schedule = found.schedule_for(known, file_source(path, small(path)))
    except L2CError as error:
        raise type(error)(f"{path}: {str(error).removeprefix('schedule: ')}") from None
    report(f"{path}: {found.described(known, schedule)}")
    return schedule


def known_of(steps: int | None, **model: Any) -> Known:
    """The model and the sampler that these options of `compile` mean.  Raises what it does."""
    from ..compiler.source import resolve

    least = 2  # where nobody says how many: the sampler's name does not depend on it
    source = resolve(options_of("every:1", steps or least, **model))
    folder, schedule = source.folder, source.schedule
    said = model.get("sampler") is not None or bool(folder and not folder.assumed_scheduler)
    return Known(
        source.family.name, source.family.sublayers, schedule.sampler, schedule.scheduler or None, said, steps
    )  # fmt: skip


def published(family: str) -> str:
    """The model of a family that its routers are for.  Raises KeyError for a family that has none."""
    return next(iter(FAMILIES[family].routed.values()))
