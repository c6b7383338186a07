"""Files of other tools, where a command takes a schedule: the options that say what they leave open."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .console import say
from .options import Choice, option

KINDS = ("l2c", "harmonica")
NAMES = ("router_kind", "budget", "full_calls")
OPTIONS = (
    option("--router-kind", type=Choice(KINDS), default=KINDS[0], help="Which training a router (.pt) is from."),
    option("--budget", type=int, help="Of lists of computed steps, the one with so many (LeMiCa)."),
    option("--full-calls", metavar="RULE", help="The calls that are computed, where a predictor does not say them (L2P)."),
)


def read(schedules: Sequence[str], options: dict[str, Any]) -> dict[str, Any]:
    """The options of `compile`, where files of other tools have become schedules, each after a line that says what it is.

    A steps mask stays what it is: it has a meaning of its own there.
    """
    from ..inspection import convert
    from ..schedules.importers import mask
    from ..schedules.importers.imported import Selection
    from ..schedules.rules import SUBLAYER

    rest = dict(options)
    asked = {name: rest.pop(name) for name in NAMES}
    chosen = Selection(**asked, threshold=rest["threshold"])
    files = [convert.recognised(schedule, chosen) for schedule in schedules]
    for schedule, file in zip(schedules, files, strict=True):
        if file and file.form == mask.FORM:
            say(f"{schedule}: {file.form}, level {rest.get('level') or SUBLAYER}")
    files = [None if file and file.form == mask.FORM else file for file in files]
    rest["schedule"] = schedules[0] if len(schedules) == 1 else list(schedules) or None
    if not any(files):
        convert.check_unused(chosen, " ".join(schedules))
        return rest
    counts = rest["steps"] or [None]
    if len(files) > 1 and len(counts) > 1:
        raise UsageError("several schedules and several numbers of steps: give one schedule with steps=.., or schedules alone")
    model = {name: rest[name] for name in convert.OF_MODEL}
    read = [
        convert.of_model(Path(schedule), file, count, say, **model) if file else schedule
        for schedule, file in zip(schedules, files, strict=True)
        for count in counts
    ]
    rest["schedule"] = read[0] if len(read) == 1 else read
    rest["steps"] = None if all(files) else rest["steps"]
    rest["threshold"] = None if chosen.router_kind != KINDS[0] else rest["threshold"]
    return rest
