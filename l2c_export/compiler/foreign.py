"""Schedules of other tools: a file that is recognised by its content becomes ours, for the model that is asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ScheduleError, UsageError
from ..schedules.forms import file_source
from ..schedules.importers import mask, recognise
from ..schedules.importers.imported import Imported, Known, Selection
from ..schedules.rules import SUBLAYER
from ..schedules.schedule import Schedule
from ..support.extras import needs
from ..support.files import Report, small
from .request import Options, PathOrSchedule, options_of, wanted

if TYPE_CHECKING:
    from .source import Source

OF_MODEL = ("model", "weights", "sampler", "size", "tokens")  # the options of a compilation that say what a schedule is for
AS_IT_IS = Selection()  # a file that leaves nothing open


def options_with(
    schedule: PathOrSchedule | Sequence[PathOrSchedule] | None,
    steps: int | Sequence[int] | None,
    report: Report,
    *,
    router_kind: str = AS_IT_IS.router_kind,
    budget: int | None = None,
    full_calls: str | None = None,
    **options: Any,
) -> Options:
    """The same as `options_of`, where files may be of other tools; `report` is told in a line what each was taken for.

    A steps mask stays what it is: it has a meaning of its own.  Raises UsageError and ScheduleError.
    """
    chosen = Selection(router_kind, options.get("threshold"), budget=budget, full_calls=full_calls)
    programs = wanted(schedule, steps)
    paths = [program.schedule for program in programs if isinstance(program.schedule, str)]
    files = {path: recognised(path, chosen) for path in dict.fromkeys(paths)}
    for path, file in files.items():
        if file and file.form == mask.FORM:
            report(f"{path}: {file.form}, level {options.get('level') or SUBLAYER}")
    others = {path: file for path, file in files.items() if file and file.form != mask.FORM}
    if not others:
        check_unused(chosen, " ".join(files) or str(schedule))
        return options_of(schedule, steps, **options)
    model = {name: options.get(name) for name in OF_MODEL}
    read: list[Any] = [
        of_model(Path(one), others[one], count, report, **model) if isinstance(one, str) and one in others else one
        for one, count in programs
    ]
    if chosen.router_kind != AS_IT_IS.router_kind:
        options["threshold"] = None  # it was said of those
    all_have_steps = len(paths) == len(programs) and others.keys() == files.keys()
    return options_of(read, None if all_have_steps else steps, **options)


def check_unused(chosen: Selection, name: str) -> None:
    """Refuse what is said for a file of another tool, where there is none.  Raises UsageError."""
    for field in ("router_kind", "level", "budget", "full_calls"):
        if (value := getattr(chosen, field)) != getattr(AS_IT_IS, field):
            raise UsageError(f"{field}={value!r}: {name} is no schedule of another tool: leave it out")


def recognised(path: str | os.PathLike[str], chosen: Selection) -> Imported | None:
    """What a file of another tool says; None for one of ours, and for what is no file: a rule, or a name of the demo's."""
    return recognise.read(Path(path), chosen) if Path(path).is_file() else None


def of_model(path: Path, imported: Imported, steps: int | None, report: Report, **model: Any) -> Schedule:
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
    source = source_of("every:1", steps or own_steps or least, **model)
    folder, schedule = source.folder, source.schedule
    said = model.get("sampler") is not None or bool(folder and not folder.assumed_scheduler)
    return Known(source.family.name, source.family.sublayers, schedule.sampler, schedule.scheduler or None, said, steps)


def source_of(schedule: PathOrSchedule, steps: int | None, **options: Any) -> Source:
    """What these options of `compile` mean."""
    needs("torch", "export")
    from .source import resolve

    return resolve(options_of(schedule, steps, **options))
