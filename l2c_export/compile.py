"""The compiler: a learned schedule and a model become per-call graphs.

`compile_artefact` is the whole pipeline, top to bottom; every stage takes a value and returns a new one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from . import artefact, emit
from . import weights as weight_file
from .manifest import Manifest
from .models.base import record
from .options import Options, Source, resolve
from .passes.fold import Folded, fill, fold
from .passes.group import group
from .passes.hoist import Hoisted, hoist
from .passes.specialise import specialise
from .plan import Key, Plan, make_plan
from .program import CACHE, NOTHING, Graph, check, live, split_at
from .segments import export_bodies

Report = Callable[[str], object]


def compile_artefact(options: Options, report: Report = id) -> Manifest:
    """Compile, and write the artefact to `options.out`.  Raises L2CError, with nothing written, when that fails."""
    artefact.check_target(options.out)
    source = resolve(options)  # files -> a model and a schedule
    report(source.describe())
    plan = make_plan(source.schedule)  # which call fills what for whom
    whole = check(record(source.family), "record")  # the uncached call as a graph
    parts = hoist(whole) if options.hoist else Hoisted(NOTHING, NOTHING, whole)  # what leaves the loop
    calls = specialise_calls(parts.call, plan, options.fold)  # one graph per distinct call
    linked = cut(parts, calls, plan)  # into segments; equal ones are one
    report(f"{len(plan.keys)} calls: {len(calls)} distinct graphs of {len(linked.segments)} segments")
    bodies = export_bodies(source.family, whole)  # PyTorch -> ONNX, once per operation kind
    layout = weight_file.Layout(source.family.tensors())
    result = emit.describe(options, source, linked)
    with artefact.staged(options.out) as folder:
        emit.write_models(folder, linked, bodies, layout)
        emit.write_schedule(folder, source.schedule)
        bind_weights(folder, source, layout, report)
        artefact.write_manifest(folder, result)
        if options.dump:
            emit.dump(options.dump, source.schedule, {"1-recorded": whole, **stages(parts, calls)}, linked)
    return artefact.read(options.out, verify=False)


def specialise_calls(call: Graph, plan: Plan, folding: bool) -> dict[Key, Graph]:
    """The distinct calls: each prunes what it reuses, and computes what later calls read."""
    reading = {}
    for sources in {key.sources for key in plan.keys}:
        pruned = check(specialise(call, sources), "specialise")
        reading[sources] = fold(pruned) if folding else Folded(pruned, ())
        check(reading[sources].call, "fold")
    return {key: check(fill_for_readers(key, reading), "fill") for key in plan.distinct()}


def fill_for_readers(key: Key, reading: Mapping[tuple[int, ...], Folded]) -> Graph:
    """A call with everything that its readers want from it: folded sums, and values as they are."""
    graph = reading[key.sources].call
    wanted = [(k, f) for offset, sources in key.readers for k, f in reading[sources].fragments if k == offset]
    plain = [
        split_at(name)[0]
        for offset, sources in key.readers
        for name in reading[sources].call.inputs
        if reading[sources].call.kind(name) == CACHE and split_at(name)[1] == -offset and not name.startswith("run.")
    ]
    outputs = tuple(dict.fromkeys((*graph.outputs, *plain)))
    return fill(msgspec.structs.replace(graph, outputs=outputs), wanted)


@dataclass(frozen=True)
class Linked:
    """Graphs as calls of segments, and which graph every call runs."""

    segments: dict[str, Graph]
    graphs: dict[str, Graph]
    calls: tuple[str, ...]


def cut(parts: Hoisted, calls: Mapping[Key, Graph], plan: Plan) -> Linked:
    """Cut every graph into segments and share the equal ones."""
    names = {key: f"step-{i:03d}" for i, key in enumerate(calls)}
    whole = {n: g for n, g in (("constants", parts.constants), ("prologue", parts.prologue)) if g.nodes}
    whole |= {names[key]: graph for key, graph in calls.items()}
    graphs, segments = {}, {}
    for name, graph in whole.items():
        graphs[name], found = group(live(graph))
        segments.update(found)
    return Linked(segments, graphs, tuple(names[key] for key in plan.keys))


def bind_weights(folder: Path, source: Source, layout: weight_file.Layout, report: Report) -> None:
    """Write the weights, if there are any yet."""
    shapes = source.family.tensors()
    path = folder / weight_file.FILE
    if source.checkpoint:
        report(f"weights from {source.checkpoint.path}")
        weight_file.write(path, layout, source.checkpoint.tensors(shapes))
    elif source.seed is not None:
        report(f"RANDOM weights, seed {source.seed}: good for latency, the images mean nothing")
        weight_file.write(path, layout, weight_file.random(shapes, source.seed))
    else:
        report("no weights yet: bind them with l2c link ENGINES --weights PATH")


def stages(parts: Hoisted, calls: Mapping[Key, Graph]) -> dict[str, Graph]:
    """The graphs between the passes, for --dump."""
    hoisted = {f"2-{n}": g for n, g in zip(("constants", "prologue", "call"), parts, strict=True) if g.nodes}
    return hoisted | {f"3-step-{i:03d}": graph for i, graph in enumerate(calls.values())}
