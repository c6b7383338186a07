"""The compiler: a learned schedule and a model become per-call graphs.

`lower` and `compile_artefact` are the whole pipeline, top to bottom; every stage takes a value and returns a new one.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from . import artefact, autoencoder, emit, staging, vae
from . import weights as weight_file
from .backends import Request, open_backend
from .calibrate import segment_times
from .manifest import Manifest
from .models.base import record
from .options import Options, Source, resolve
from .passes.fold import Folded, fill, fold
from .passes.group import group
from .passes.hoist import Hoisted, hoist
from .passes.share import Shared, share
from .passes.specialise import specialise
from .plan import Key, Plan, make_plan
from .predict import Prediction, predict
from .program import CACHE, NOTHING, Graph, check, live, split_at
from .schedule import Schedule
from .segments import export_bodies
from .words import counted

Report = Callable[[str], object]


@dataclass(frozen=True)
class Linked:
    """Graphs as calls of segments and as a whole, and which graph every call runs."""

    segments: dict[str, Graph]
    graphs: dict[str, Graph]
    whole: dict[str, Graph]
    calls: tuple[str, ...]


@dataclass(frozen=True)
class Lowered:
    """All that is decided before anything is exported."""

    schedule: Schedule
    whole: Graph  # the uncached call
    linked: Linked
    manifest: Manifest  # without weights and hashes
    stages: Mapping[str, Graph]  # for --dump


def lower(options: Options, source: Source, report: Report = id) -> Lowered:
    """From a model and a schedule to segments, step graphs and the manifest."""
    whole, flops = record(source.family, options.weight_types, source.schedule.table().history)  # the uncached call as a graph
    check(whole, "record")
    shared = share_graphs(source, options.max_graphs, flops, report)  # perhaps fewer distinct calls
    parts = hoist(whole) if options.hoist else Hoisted(NOTHING, NOTHING, whole)  # what leaves the loop
    calls = specialise_calls(parts.call, shared.plan, options.fold)  # one graph per distinct call
    linked = cut(parts, calls, shared.plan)  # into segments; equal ones are one
    manifest = emit.describe(options, source, shared.schedule, linked, flops)  # buffers get their places
    report(f"{counted(len(linked.calls), 'call')}: {counted(len(calls), 'distinct graph')} of {len(linked.segments)} segments")
    return Lowered(shared.schedule, whole, linked, manifest, stages(whole, parts, calls))


def compile_artefact(options: Options, report: Report = id) -> Manifest:
    """Compile, and write the artefact to `options.out`.  Raises L2CError, with nothing written, when that fails."""
    staging.check_target(options.out, report)
    source = resolve(options)  # files -> a model and a schedule
    for line in source.describe():
        report(line)
    lowered = lower(options, source, report)
    bodies = export_bodies(source.family, lowered.whole)  # PyTorch -> ONNX, once per operation kind
    layout = weight_file.Layout(source.family.tensors(), options.weight_types)
    with staging.staged(options.out, report) as folder:
        emit.write_models(folder, lowered.linked, bodies, layout)
        emit.write_schedule(folder, lowered.schedule)
        bind_weights(folder, source, layout, report)
        write_decoder(folder, source, lowered.manifest, report)
        artefact.write_manifest(folder, lowered.manifest)
        if options.dump:
            emit.dump(options.dump, lowered.schedule, lowered.stages, lowered.linked)
    return artefact.read(options.out, verify=False)


def dry_run(options: Options, device: str, calibrated: bool, report: Report = id) -> tuple[Prediction, Prediction]:
    """What the artefact would cost, and its uncached twin; nothing is written but the cache of exported segments.

    `calibrated` exports the segments to a temporary folder and times them on this machine.
    """
    source = resolve(options)
    for line in source.describe():
        report(line)
    twin = dataclasses.replace(source, schedule=source.schedule.uncached())
    found = []
    for each, how in ((source, options), (twin, dataclasses.replace(options, max_graphs=None))):
        lowered = lower(how, each)
        times = _calibrate(how, each, lowered) if calibrated else None
        found.append(predict(lowered.manifest, device, options.batch, times))
    return found[0], found[1]


def _calibrate(options: Options, source: Source, lowered: Lowered) -> dict[str, float]:
    bodies = export_bodies(source.family, lowered.whole)
    backend = open_backend(options.backend, Request(precision=options.precision)).backend
    with tempfile.TemporaryDirectory() as folder:
        layout = weight_file.Layout(source.family.tensors(), lowered.manifest.weight_types)
        emit.write_models(Path(folder), lowered.linked, bodies, layout)
        return segment_times(Path(folder), lowered.manifest, backend, options.batch)


def share_graphs(source: Source, most: int | None, flops: Mapping[str, int], report: Report) -> Shared:
    """Merge calls until at most `most` graphs are left, if that is asked for."""
    if most is None:
        return Shared(source.schedule, make_plan(source.schedule), 0.0)
    cost = [float(flops[name.rpartition(".")[2]]) for name in source.family.sublayers]
    shared = share(source.schedule, most, cost)
    report(f"--max-graphs {most}: {shared.added:.2%} more computation than the schedule asks for")
    return shared


def specialise_calls(call: Graph, plan: Plan, folding: bool) -> dict[Key, Graph]:
    """The distinct calls: each prunes what it reuses, and computes what later calls read."""
    reading = {}
    for sources in {s for key in plan.keys for s in (key.sources, *(r for _, r in key.readers))}:
        pruned = check(specialise(call, sources), "specialise")
        reading[sources] = fold(pruned) if folding else Folded(pruned, ())
        check(reading[sources].call, "fold")
    return {key: check(fill_for_readers(key, reading), "fill") for key in plan.distinct()}


def fill_for_readers(key: Key, reading: Mapping[tuple[int, ...], Folded]) -> Graph:
    """A call with everything that its readers want from it: folded sums, and values as they are."""
    graph = reading[key.sources].call
    fragments, plain = [], []
    for offset, sources in key.readers:
        reader = reading[sources]
        fragments += [(offset, fragment) for age, fragment in reader.fragments if age == offset]
        whole = [split_at(name) for name in reader.call.inputs if reader.call.kind(name) == CACHE]
        plain += [name for name, back in whole if back == -offset and name in graph.sublayers]
    outputs = tuple(dict.fromkeys((*graph.outputs, *plain)))
    return fill(msgspec.structs.replace(graph, outputs=outputs), fragments)


def cut(parts: Hoisted, calls: Mapping[Key, Graph], plan: Plan) -> Linked:
    """Cut every graph into segments and share the equal ones."""
    names = {key: f"step-{i:03d}" for i, key in enumerate(calls)}
    whole = {n: live(g) for n, g in (("constants", parts.constants), ("prologue", parts.prologue)) if g.nodes}
    whole |= {names[key]: live(graph) for key, graph in calls.items()}
    graphs, segments = {}, {}
    for name, graph in whole.items():
        graphs[name], found = group(graph)
        segments.update(found)
    return Linked(segments, graphs, whole, tuple(names[key] for key in plan.keys))


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


def write_decoder(folder: Path, source: Source, described: Manifest, report: Report) -> None:
    """Export the autoencoder's decoder, if that is asked for."""
    if source.vae and described.decoder:
        report(autoencoder.said(source.vae, described.decoder))
        vae.write(source.vae, described.decoder, source.family.latent[0], folder / described.decoder.file)


def stages(whole: Graph, parts: Hoisted, calls: Mapping[Key, Graph]) -> dict[str, Graph]:
    """The graphs between the passes, for --dump."""
    hoisted = {f"2-{n}": g for n, g in zip(("constants", "prologue", "call"), parts, strict=True) if g.nodes}
    return {"1-recorded": whole, **hoisted, **{f"3-step-{i:03d}": graph for i, graph in enumerate(calls.values())}}
