"""What importers are told of small models, and what they make of a value that a test wrote."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from l2c_export.schedules.forms import ScheduleSource
from l2c_export.schedules.importers import recognise
from l2c_export.schedules.importers.imported import Imported, Known, Selection
from l2c_export.schedules.importers.text import decoded
from l2c_export.schedules.schedule import Schedule
from l2c_export.schedules.values import sublayers_of

BLOCKS = 3
DIT = Known("dit", sublayers_of("dit", 2 * BLOCKS), "ddim")
PIXART = Known(
    "pixart", tuple(f"transformer_blocks.{b}.{part}" for b in range(BLOCKS) for part in ("attn1", "attn2", "ff")), "ddim"
)
DOUBLE = tuple(f"transformer_blocks.{b}.{part}" for b in range(2) for part in ("attn", "ff", "ff_context"))
FLUX = Known("flux", (*DOUBLE, *(f"single_transformer_blocks.{b}.proj_out" for b in range(3))), "ddim")
FINE = Known(
    "flux",
    (*DOUBLE, *(f"single_transformer_blocks.{b}.{part}" for b in range(3) for part in ("attn", "proj_mlp", "proj_out"))),
    "ddim",
)


def imported(content: Any, **chosen: Any) -> Imported:
    """A file with this content as JSON, or with this text."""
    data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
    result = recognise.of_content(decoded(data), Selection(**chosen))
    assert result is not None
    return result


def schedule(content: Any, known: Known = DIT, steps: int | None = None, **chosen: Any) -> Schedule:
    """The same for a model, through the JSON of version 2."""
    result = imported(content, **chosen).schedule_for(
        dataclasses.replace(known, steps=steps) if steps else known, ScheduleSource(file="f")
    )
    assert Schedule.from_json(result.to_json()) == result
    return result


def computed(schedule: Schedule) -> list[set[str]]:
    """The sublayers that every call computes."""
    return [{schedule.sublayers[j] for j in call.computed} for call in schedule.calls]


def bits(schedule: Schedule) -> str:
    """A 1 for every call that computes everything."""
    return "".join(str(int(len(call.computed) == schedule.columns)) for call in schedule.calls)
