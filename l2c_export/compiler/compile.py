"""The compiler: a learned schedule and a model become per-call graphs.

`lower` and `compile_artefact` are the whole pipeline, top to bottom; every stage takes a value and returns a new one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from ..artefact import staging, store
from ..artefact.manifest import Manifest
from ..artefact.merged_lora import fit
from ..errors import UsageError
from ..ir.graph import NOTHING, Body, Graph, check
from ..ir.precisions import FP8
from ..pytorch import fingerprint
from ..pytorch.calibrate import calibrate
from ..support.files import Report
from ..support.progress import Progress, unseen
from ..support.words import counted
from ..weights.layout import Layout
from ..weights.lora import open_lora
from ..weights.recipe import Narrowing
from . import describe, dump, emit, sizes
from .describe import Planned
from .dump import stages
from .emit import bind_weights, tensors_of, write_decoder
from .onnx.export import export_bodies
from .onnx.fuse import fused_bodies
from .passes.bank import NO_BANKS, Banked
from .passes.calls import banked, specialise_calls
from .passes.fp8 import with_fp8
from .passes.hoist import Hoisted, hoist
from .passes.levels import with_levels
from .passes.merge_calls import share_graphs
from .passes.segment import Linked, cut
from .plan import Plan
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
    bodies: Mapping[str, Body]  # what operations compute, by their names


def lower(options: Options, source: Source, report: Report = id, prefix: str = "") -> Lowered:
    """From a model and its schedules to segments, step graphs and the manifest; graphs of further sizes have a `prefix`."""
    history = history_of(source)
    whole = record(source.family, options.weight_types, history)  # the uncached call as a graph
    check(whole, "record")
    if options.precision == FP8:
        whole = check(with_fp8(whole, (*options.fp32, *options.bf16)), "fp8")  # products of the sublayers in e4m3
    whole = check(with_levels(whole, levels_of(source)), "levels")  # what spans several sublayers is a value, too
    shared = [
        share_graphs(source, s, options.max_graphs, whole, report) for s in source.schedules
    ]  # perhaps fewer distinct calls
    parts = hoist(whole) if options.hoist else Hoisted(NOTHING, NOTHING, NOTHING, whole)  # what leaves the loop
    banks = banked_plans(options, parts.call, [program.plan for program in shared])  # sums for many calls at once
    calls = specialise_calls(parts.call, banks.plans, options.fold, banks)  # one graph per distinct call
    linked = cut(parts, calls, prefix)  # into segments; equal ones are one
    programs = describe.planned(source.schedules, [program.schedule for program in shared], banks.plans, linked)
    manifest = describe.describe(options, source, whole, programs, linked)  # buffers get their places
    kinds, count = counted(len(linked.segments), "segment"), sum(len(program.graphs) for program in programs)
    report(f"{counted(count, 'call')}: {counted(len(set(linked.names.values())), 'distinct graph')} of {kinds}")
    return Lowered(whole, linked, programs, manifest, stages(whole, parts, calls), bodies_of(whole, linked))


def banked_plans(options: Options, call: Graph, plans: Sequence[Plan]) -> Banked:
    """The plans with the banks that are worth it: where fold may move sums, and their gates are known before the loop."""
    if options.hoist and options.fold and options.max_graphs is None:
        return banked(call, plans)
    return NO_BANKS._replace(plans=tuple(plans))


def levels_of(source: Source) -> tuple[str, ...]:
    """The levels that some call of a schedule derives."""
    derived = {name for schedule in source.schedules for call in schedule.calls for name in call.rules}
    levels = (level for schedule in source.schedules for level in schedule.values.levels if level in derived)
    return tuple(dict.fromkeys(levels))


def bodies_of(whole: Graph, linked: Linked) -> dict[str, Body]:
    """The model's operations, and those that schedules add."""
    return {**whole.bodies, **{op: body for graph in linked.whole.values() for op, body in graph.bodies.items()}}


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
    sources = [resolve(own) for own in sizes.separate(options)]  # files -> a model and a schedule, for every size
    source = sources[0]
    for line in source.describe():
        report(line)
    texts = planned(options, source)  # what makes a request of a prompt
    loras = [open_lora(path) for path in options.lora]  # what is merged into the weights
    several = [
        lower(options, own, report, f"{sizes.name_of(own)}-" if n else "") for n, own in enumerate(sources)
    ]  # one by one
    described = sizes.manifest_of([lowered.manifest for lowered in several])
    layout, added = Layout(described.denoiser.tensors), [fit(lora, described.denoiser) for lora in loras]
    with staging.staged(options.out, report) as folder:
        for lowered in several:
            bodies = export_bodies(lowered.bodies)  # primitives -> ONNX, once per operation kind
            second = fused_bodies(lowered.bodies, options.weight_types.dtype)  # the same for ONNX Runtime on a GPU
            emit.write_models(folder, lowered.linked, bodies, second, layout)
            emit.write_schedules(folder, lowered.programs)
        whole = replace(source, checkpoint=sizes.checkpoint_of(sources))
        described = with_narrowing(described, bind_weights(folder, whole, added, layout, report, progress))
        if described.precision == FP8 and (tensors := tensors_of(whole, added, layout)):
            # what the scales of e4m3 are, how weights are rounded, and what biases make good
            described = with_corrected(described, calibrate(folder, described, tensors, report))
        write_decoder(folder, source, described, report)
        text = write_texts(folder, texts, report, progress)
        manifest = with_fingerprint(folder, described, report) if fingerprinted else described
        manifest = msgspec.structs.replace(manifest, text=text or msgspec.UNSET)
        store.write_manifest(folder, manifest)
        if options.dump:
            for lowered in several:
                dump.dump(options.dump, lowered.programs, lowered.stages, lowered.linked)
    return store.read(options.out, verify=False)


def with_narrowing(manifest: Manifest, narrowing: Narrowing | None) -> Manifest:
    """The manifest with what it has cost to store weights narrower."""
    denoiser = msgspec.structs.replace(manifest.denoiser, narrowing=narrowing or msgspec.UNSET)
    return msgspec.structs.replace(manifest, denoiser=denoiser)


def with_corrected(manifest: Manifest, changes: dict[str, float]) -> Manifest:
    """The manifest with by how much biases were changed."""
    denoiser = msgspec.structs.replace(manifest.denoiser, corrected=changes or msgspec.UNSET)
    return msgspec.structs.replace(manifest, denoiser=denoiser)


def with_fingerprint(folder: Path, manifest: Manifest, report: Report) -> Manifest:
    """The manifest with what PyTorch makes of a small request, where there are weights yet."""
    if manifest.denoiser.weights is None:
        return manifest
    recorded = fingerprint.record(folder, manifest)
    if recorded is None:
        report("no fingerprint: with these weights PyTorch makes latents that are NaN or infinite")
    return msgspec.structs.replace(manifest, fingerprint=recorded or msgspec.UNSET)
