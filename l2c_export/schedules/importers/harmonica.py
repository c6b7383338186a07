"""HarmoniCa (github.com/ModelTC/HarmoniCa): a file of the form of Learning-to-Cache's routers, of which every row is used.

Nothing in such a file says which of the two it is, so it is asked for by `router_kind="harmonica"`.  Call n follows row
steps - 1 - n, whatever its parity; a sublayer runs if its score is above the threshold, 0.1, and is else what it was when it
ran last.
"""

from __future__ import annotations

import functools
from pathlib import Path

from ...errors import ScheduleError, UsageError
from ..schedule import Schedule
from .imported import Imported, Known, Selection, of_sublayers

FORM = "a router of HarmoniCa"
KIND = "harmonica"
THRESHOLD = 0.1


def read(path: Path, chosen: Selection) -> Imported:
    """Raises ScheduleError for what is no router, or UsageError for another threshold than one from 0 to 1."""
    from .. import routers

    router = routers.read(path)
    threshold = THRESHOLD if chosen.threshold is None else chosen.threshold
    if not 0 <= threshold <= 1:
        raise UsageError(f"threshold={threshold}: must be between 0 and 1")
    active = router.logits.sigmoid() > router.logits.new_tensor(threshold)
    rows = [row.nonzero().flatten().tolist() for row in active]
    assumed = () if chosen.threshold is not None else (f"the threshold is {THRESHOLD}",)
    return Imported(FORM, len(rows), functools.partial(schedule, router.family, router.columns, rows), assumed)


def schedule(family: str, width: int, rows: list[list[int]], known: Known, steps: int) -> Schedule:
    """Raises ScheduleError for another model, or for a sampler that evaluates it otherwise than once a step."""
    names = known.sublayers
    if (family, width) != (known.family, len(names)):
        raise ScheduleError(
            f"it is for a {family} of {width} sublayers, but the model is a {known.family} of {len(names)}: check model=.."
        )
    if known.count(steps) != steps or known.sampler == "dpm-solver++":
        raise ScheduleError(f"the router has a row for every step, but {known.sampler} evaluates twice: use sampler='ddim'")
    computed = [names if n == 0 else [names[j] for j in rows[steps - 1 - n]] for n in range(steps)]
    return of_sublayers(known, steps, computed)
