"""The compiler: a learned schedule and a model become per-call graphs.

`lower` and `compile_artefact` are the whole pipeline, top to bottom; every stage takes a value and returns a new one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ..artefact import staging, store
from ..artefact.manifest import Manifest
from ..errors import UsageError
from ..ir.graph import NOTHING, Graph, check
from ..pytorch import fingerprint
from ..support.files import Report
from ..support.progress import Progress, unseen
from ..support.words import counted
from ..weights.layout import Layout
from . import describe, dump, emit
from .describe import Planned
from .dump import stages
from .emit import bind_weights, write_decoder
from .onnx.export import export_bodies
from .onnx.fuse import fused_bodies
from .passes.calls import specialise_calls
from .passes.hoist import Hoisted, hoist
from .passes.merge_calls import share_graphs
from .passes.segment import Linked, cut
from .record import record
from .request import Options
from .source import Source, resolve
from .text import planned, write_texts


@dataclass(frozen=True)
class Lowered:
    """All that is decided before anything is exported."""

    whole: Graph  # the uncached call
    linked: Linked
    programs: tuple[Planned, ...]
    manifest: Manifest  # without weights and hashes
    stages: Mapping[str, Graph]  # for --dump


def lower(options: Options, source: Source, report: Report = id) -> Lowered:
    """From a model and its schedules to segments, step graphs and the manifest."""
    history = history_of(source)
    whole = record(source.family, options.weight_types, history)  # the uncached call as a graph
    check(whole, "record")
    shared = [
        share_graphs(source, s, options.max_graphs, whole, report) for s in source.schedules
    ]  # perhaps fewer distinct calls
    parts = hoist(whole) if options.hoist else Hoisted(NOTHING, NOTHING, whole)  # what leaves the loop
    calls = specialise_calls(parts.call, [program.plan for program in shared], options.fold)  # one graph per distinct call
    linked = cut(parts, calls)  # into segments; equal ones are one
    programs = describe.planned(source.schedules, shared, linked)
    manifest = describe.describe(options, source, programs, linked)  # buffers get their places
    kinds, count = counted(len(linked.segments), "segment"), sum(len(program.graphs) for program in programs)
    report(f"{counted(count, 'call')}: {counted(len(calls), 'distinct graph')} of {kinds}")
    return Lowered(whole, linked, programs, manifest, stages(whole, parts, calls))


def history_of(source: Source) -> int:
    """How many earlier data predictions a call reads, which the programs of an artefact have in common."""
    needed = {schedule.table().history for schedule in source.schedules}
    if len(needed) > 1:
        raise UsageError(f"steps=..: {source.schedules[0].sampler} is of another order with so few steps: use more steps")
    return needed.pop()


def compile_artefact(
    options: Options, report: Report = id, progress: Progress = unseen, fingerprinted: bool = True
) -> Manifest:
    """Compile, and write the artefact to `options.out`.  Raises L2CError, with nothing written, when that fails."""
    staging.check_target(options.out, report)
    source = resolve(options)  # files -> a model and a schedule
    for line in source.describe():
        report(line)
    texts = planned(options, source)  # what makes a request of a prompt
    lowered = lower(options, source, report)
    bodies = export_bodies(lowered.whole.bodies, progress)  # PyTorch -> ONNX, once per operation kind
    second = fused_bodies(lowered.whole.bodies, options.weight_types.dtype)  # the same for ONNX Runtime on a GPU
    layout = Layout(lowered.manifest.denoiser.tensors)
    with staging.staged(options.out, report) as folder:
        emit.write_models(folder, lowered.linked, bodies, second, layout)
        emit.write_schedules(folder, lowered.programs)
        bind_weights(folder, source, layout, report, progress)
        write_decoder(folder, source, lowered.manifest, report)
        write_texts(folder, texts, report, progress)
        manifest = with_fingerprint(folder, lowered.manifest, report) if fingerprinted else lowered.manifest
        manifest = msgspec.structs.replace(manifest, text=texts.record if texts else msgspec.UNSET)
        store.write_manifest(folder, manifest)
        if options.dump:
            dump.dump(options.dump, lowered.programs, lowered.stages, lowered.linked)
    return store.read(options.out, verify=False)


def with_fingerprint(folder: Path, manifest: Manifest, report: Report) -> Manifest:
    """The manifest with what PyTorch makes of a small request, where there are weights yet."""
    if manifest.denoiser.weights is None:
        return manifest
    recorded = fingerprint.record(folder, manifest)
    if recorded is None:
        report("no fingerprint: with these weights PyTorch makes latents that are NaN or infinite")
    return msgspec.structs.replace(manifest, fingerprint=recorded or msgspec.UNSET)
