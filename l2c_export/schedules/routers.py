"""Trained Learning-to-Cache routers, each as its family lays them out, read into a Schedule."""

from __future__ import annotations

import argparse
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..errors import ScheduleError, UsageError
from ..models.families import FAMILIES, by_hand
from ..models.family import Family
from ..samplers.scheduler_config import Scheduler
from ..support.files import small
from ..support.words import counted
from ..weights import containers, torch_file
from ..weights.checkpoint import FLOATS
from .forms import ScheduleSource, file_source
from .schedule import Schedule
from .values import sublayers_of

REMEDY = "give a .pt file that the router's training has saved"
LEAST_ROWS = {"ddim": 1, "dpm-solver++": 2}  # one per network evaluation, of which a step of DPM-Solver++ makes two
MOST_ROWS, MOST_COLUMNS = 1000, 2**14  # samplers have no more steps, models no more sublayers


class Router(NamedTuple):
    """The logits of a router file: one row per step, a column for every sublayer."""

    path: Path
    family: str
    logits: torch.Tensor  # (rows, columns) float32
    source: ScheduleSource

    @property
    def sampler(self) -> str:
        """The one that a router of this family is made for."""
        return FAMILIES[self.family].sampler

    @property
    def columns(self) -> int:
        return int(self.logits.shape[1])

    def schedule(
        self,
        threshold: float,
        steps: int | None,
        columns: int | Sequence[str] | None = None,
        scheduler: Scheduler | None = None,
    ) -> Schedule:
        """Sublayer j of row i is computed iff sigmoid(logit) > threshold, strictly, in float32.

        `columns` are the model's sublayers, or their number; a router may have spare columns behind those.
        """
        rows, width = self.logits.shape
        steps = rows if steps is None else steps
        if rows != steps:
            raise ScheduleError(f"{self.path}: the router has {counted(rows, 'row')}, but steps={steps}: they must be equal")
        names = sublayers_of(self.family, width if columns is None else columns)
        count = len(names)
        if count not in (width, width - FAMILIES[self.family].router.spare):
            raise ScheduleError(
                f"{self.path}: the router is {width} wide, but the model has {counted(count, 'sublayer')} "
                f"({counted(count // 2, 'block')}): give the model that the router was trained for with model=.."
            )
        if not 0 <= threshold <= 1:
            raise UsageError(f"threshold={threshold}: must be between 0 and 1")
        active = torch.sigmoid(self.logits) > torch.tensor(threshold, dtype=torch.float32)
        computed = [row[:count].nonzero().flatten().tolist() for row in active]
        try:
            return from_scores(self.family, self.sampler, steps, computed, names, threshold, self.source, scheduler)
        except UsageError as error:  # it speaks of an option that the router speaks for
            why = str(error).partition(": ")[2]
            raise ScheduleError(f"{self.path}: the router has {counted(rows, 'row')}, one per step: {why}: {REMEDY}") from None


def read(path: Path) -> Router:
    """Read a router file.  Raises ScheduleError for anything that is not one."""
    try:
        source = file_source(path, small(path))
    except OSError as error:
        raise ScheduleError(f"{path}: cannot be read: {error.strerror}: {REMEDY}") from None
    state = torch_file.load(path, ScheduleError, "a router", REMEDY)
    family, state = _whose(state)
    if not isinstance(family, str) or family not in by_hand():
        raise ScheduleError(f"{path}: a router of unknown family {family!r}: known are {', '.join(by_hand())}")
    rows = _rows(path, state, family)
    logits = torch.from_numpy(np.stack([row.float32() for row in rows]))
    if not logits.isfinite().all():
        raise ScheduleError(f"{path}: the router holds NaN or infinite logits: {REMEDY}")
    router = Router(path, family, logits, source)
    if len(rows) < (least := LEAST_ROWS.get(router.sampler, 1)):
        raise ScheduleError(f"{path} is not a router: {len(rows)} row, where a {family} has {least} or more: {REMEDY}")
    return router


def _whose(state: object) -> tuple[object, object]:
    """What a file says of its family, or how it is laid out does; and its rows."""
    file = state if isinstance(state, Mapping) else {}
    layouts = {family.name: family.router for family in by_hand().values()}
    boxes = [box for box in dict.fromkeys(layout.container for layout in layouts.values()) if box and box in file]
    if not boxes:
        bare = [name for name, layout in layouts.items() if not layout.container]
        return next((name for name in bare if layouts[name].row.format(0) in file), bare[0]), state
    unsigned = [name for name, layout in layouts.items() if layout.container in boxes and not layout.signed]
    said = file.get("family", unsigned[0] if unsigned else None)
    own = layouts[said].container if isinstance(said, str) and said in layouts else ""
    return said, file[own if own in boxes else boxes[0]]


def _rows(path: Path, state: object, family: str) -> list[torch_file.Tensor]:
    """The rows of a router in their order, all of one type and length."""
    layout, per_block = FAMILIES[family].router, max(1, len(FAMILIES[family].parts))
    names, length = ", ".join(layout.names(2)), {1: "one length", 2: "one even length"}.get(per_block, f"{per_block} a block")
    if not isinstance(state, Mapping) or not state:
        raise ScheduleError(f"{path} is not a router: expected tensors named {names}, ..: {REMEDY}")
    expected = layout.names(len(state))
    if odd := next((str(k) for k in state if k not in expected), None):
        remedy = "give weights with weights=.." if containers.holds_model(state, (torch_file.Tensor,)) else REMEDY
        raise ScheduleError(f"{path} is not a router: it holds {odd!r} instead of {names}, ..: {remedy}")
    rows = [state[name] for name in expected]
    if any(not isinstance(row, torch_file.Tensor) or row.dtype not in FLOATS or len(row.shape) != 1 for row in rows):
        raise ScheduleError(f"{path} is not a router: its rows must be float vectors of {length}: {REMEDY}")
    columns = rows[0].shape[0]
    if len(rows) > MOST_ROWS or columns > MOST_COLUMNS:
        raise ScheduleError(f"{path} is not a router: {len(rows)} rows of {columns} are more than any model has: {REMEDY}")
    if columns % per_block or any(row.shape != rows[0].shape for row in rows):
        raise ScheduleError(f"{path} is not a router: its rows must be float vectors of {length}: {REMEDY}")
    return rows


def encode(family: str, logits: torch.Tensor, optimizer: Mapping[str, Any], args: argparse.Namespace) -> bytes:
    """A router file in the reference's layout: logits (rows, columns) float32, as `read` takes them.

    U-ViT's has the rows alone.  DiT's is that of most others, too, which say whose it is.
    """
    layout = FAMILIES[family].router
    rows = dict(zip(layout.names(len(logits)), (row.clone() for row in logits), strict=True))
    content = {layout.container: rows, "opt": dict(optimizer), "args": args, **({"family": family} if layout.signed else {})}
    data = io.BytesIO()
    torch.save(content if layout.container else rows, data)
    return data.getvalue()


def width(family: Family) -> int:
    """The columns of a router file: the sublayers, and those that nobody reads."""
    layout = FAMILIES[family.name].router
    return len(family.sublayers) + (layout.spare if layout.spared(family.arch) else 0)


def default_threshold(family: str, latent_size: int) -> float:
    """The thresholds of the released routers."""
    return FAMILIES[family].router.threshold(latent_size)


def router_rows(sampler: str, steps: int) -> tuple[int | None, ...]:
    """The row of a Learning-to-Cache router that every call follows, None for a full call (SEMANTICS of the reference):

    With DDIM, call n uses row i = steps - 1 - n; it is a cached call if i is even, except the first.  So it is with
    a scheduler of diffusers, which also evaluates once per step, at other timesteps.
    With DPM-Solver++, the first evaluation of solver step j >= 1 uses row j; the midpoints are full.
    """
    if sampler == "dpm-solver++":
        return tuple(j // 2 if j % 2 == 0 and j else None for j in range(steps // 2 * 2))
    return tuple(i if i % 2 == 0 and i != steps - 1 else None for i in reversed(range(steps)))


def removed(schedule: Schedule) -> float:
    """The share of the sublayers that are reused, of those calls that follow a router's row."""
    rows = router_rows(schedule.sampler, schedule.steps)
    cached = [call for call, row in zip(schedule.calls, rows, strict=True) if row is not None]
    return sum(len(call.reused) for call in cached) / max(1, schedule.columns * len(cached))


def from_scores(
    family: str, sampler: str, steps: int, computed_of_row: Sequence[Sequence[int]], sublayers: Sequence[str],
    threshold: float, source: ScheduleSource, scheduler: Scheduler | None = None,
) -> Schedule:  # fmt: skip
    """A router's rows placed at the calls of its family's sampler, or of a scheduler of diffusers in its place."""
    sampler = scheduler.kind if scheduler else sampler
    computed = [range(len(sublayers)) if row is None else computed_of_row[row] for row in router_rows(sampler, steps)]
    return Schedule.make(family, sampler, steps, sublayers, computed, threshold, source, scheduler)
