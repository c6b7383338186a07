"""What an artefact, a schedule or a router says about every call."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import artefact
from .errors import UsageError
from .manifest import Manifest
from .program import rows_of, split_at
from .schedule import Schedule


@dataclass(frozen=True)
class CallView:
    """One network evaluation.  Bytes are for the largest batch; None where only a schedule is known."""

    index: int
    timestep: float
    computed: list[int]
    reused: list[int]
    graph: str | None = None
    weight_bytes: int | None = None
    cache_bytes_read: int | None = None
    cache_bytes_written: int | None = None


@dataclass(frozen=True)
class View:
    """A whole schedule, and the artefact's summary if there is one."""

    title: str
    sublayers: list[str]
    calls: list[CallView]
    artefact: dict[str, Any] | None = None

    def table(self) -> list[tuple[Any, ...]]:
        head: tuple[Any, ...] = ("call", "timestep", "computed", "reused")
        rows: list[tuple[Any, ...]] = [(c.index, round(c.timestep, 2), len(c.computed), len(c.reused)) for c in self.calls]
        if self.artefact is not None:
            head += ("graph", "weights MB", "cache read KB", "cache written KB")
            rows = [
                (*row, c.graph, round((c.weight_bytes or 0) / 1e6, 1), round((c.cache_bytes_read or 0) / 1e3),
                 round((c.cache_bytes_written or 0) / 1e3))
                for row, c in zip(rows, self.calls, strict=True)
            ]  # fmt: skip
        return [head, *rows]


def inspect(path: Path, threshold: float | None = None) -> View:
    """Look at an artefact's folder, a schedule (.json) or a router file."""
    if path.is_dir():
        return of_artefact(artefact.read(path, verify=False))
    if not path.is_file():
        raise UsageError(f"{path}: no such file or folder")
    if path.suffix == ".json":
        return of_schedule(Schedule.from_json(path.read_bytes(), str(path)), str(path))
    from .backends import needs

    needs("torch", "export")
    from . import routers

    router = routers.read(path)
    chosen = routers.default_threshold(router.family, 32) if threshold is None else threshold
    return of_schedule(router.schedule(chosen, None), f"{path}: {router.family} router, threshold {chosen}")


def of_schedule(schedule: Schedule, title: str) -> View:
    calls = [CallView(n, c.timestep, list(c.computed), list(c.reused)) for n, c in enumerate(schedule.calls)]
    names = [f"{j // 2}.{'mlp' if j % 2 else 'attn'}" for j in range(schedule.columns)]
    return View(title, names, calls)


def of_artefact(manifest: Manifest) -> View:
    """Calls with the bytes that they move: weights, and cached values read and written."""
    rows = manifest.batch * (1 if manifest.guidance.mode == "none" else 2)
    weights = {name: _weight_bytes(manifest, graph.inputs) for name, graph in manifest.graphs.items()}
    calls = [
        CallView(
            index=n,
            timestep=call.timestep,
            computed=list(call.computed),
            reused=list(call.reused),
            graph=call.graph,
            weight_bytes=weights[call.graph],
            cache_bytes_read=rows * sum(_row_bytes(manifest, name) for name in call.reads),
            cache_bytes_written=rows * sum(_row_bytes(manifest, name) for name in call.writes),
        )
        for n, call in enumerate(manifest.calls)
    ]
    bound = manifest.weights
    summary = {
        "tool": manifest.tool,
        "family": manifest.model.family,
        "model": manifest.model.name,
        "sampler": manifest.sampler,
        "guidance": manifest.guidance.mode,
        "precision": manifest.precision,
        "batch": manifest.batch,
        "backend": manifest.backend,
        "link": manifest.link,
        "passes": list(manifest.passes),
        "graphs": sum(n not in (manifest.constants, manifest.prologue) for n in manifest.graphs),
        "segments": len(manifest.segments),
        "weights": None if bound is None else bound.source,
        "random_weights": bool(bound and bound.random is not None),
        "prologue_weight_bytes": sum(weights[n] for n in (manifest.constants, manifest.prologue) if n),
        "cache_bytes": rows * sum(manifest.cache_bytes),
        "scratch_bytes": rows * max(sum(g.slot_bytes) for n, g in manifest.graphs.items() if n.startswith("step")),
        "bytes": sum(f.bytes for f in manifest.files.values()),
    }
    state = "unlinked" if bound is None else "RANDOM weights" if bound.random is not None else f"weights {bound.source}"
    name = manifest.model.name or manifest.model.family
    title = f"{name}, {manifest.sampler}, {manifest.precision}, {manifest.link} link, {state}"
    return View(title, list(manifest.model.sublayers), calls, summary)


def _weight_bytes(manifest: Manifest, names: tuple[str, ...]) -> int:
    """Bytes of the weights among the inputs of a graph."""
    item, total = np.dtype(manifest.weight_dtype).itemsize, 0
    for name in names:
        tensor, rows = rows_of(name)
        if split_at(name)[0] in manifest.values or tensor not in manifest.tensors:
            continue
        shape = manifest.tensors[tensor]
        total += len(range(*rows.indices(shape[0]))) * int(np.prod(shape[1:])) * item
    return total


def _row_bytes(manifest: Manifest, name: str) -> int:
    return manifest.values[split_at(name)[0]].row_bytes
