"""Every stage of the compiler as text, for reading and comparing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ArtefactError
from ..ir.graph import Graph, text
from .emit import write_schedules
from .passes.hoist import Hoisted
from .plan import Key

if TYPE_CHECKING:
    from .describe import Planned
    from .passes.segment import Linked


def stages(whole: Graph, parts: Hoisted, calls: Mapping[Key, Graph]) -> dict[str, Graph]:
    """The graphs between the passes, for --dump."""
    hoisted = {f"2-{n}": g for n, g in zip(Hoisted._fields, parts, strict=True) if g.nodes}
    return {"1-recorded": whole, **hoisted, **{f"3-step-{i:03d}": graph for i, graph in enumerate(calls.values())}}


def dump(folder: Path, programs: Sequence[Planned], stages: Mapping[str, Graph], linked: Linked) -> None:
    """Every stage as text, for reading and comparing."""
    graphs = {**stages, **{f"4-{n}": g for n, g in linked.graphs.items()}}
    graphs |= {f"5-segment-{name}": segment for name, segment in linked.segments.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_schedules(folder, programs)
        for name, graph in graphs.items():
            (folder / f"{name}.txt").write_text(text(graph))
    except OSError as error:
        raise ArtefactError(f"dump={str(folder)!r}: cannot be written: {error.strerror}: choose another folder") from None
