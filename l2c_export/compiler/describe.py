"""The manifest of what is compiled: graphs and plans become records, and buffers get their places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from ..artefact import autoencoder
from ..artefact.call_record import BankRecord, CallRecord
from ..artefact.manifest import Manifest, program_name
from ..artefact.merged_lora import with_loras
from ..artefact.records import (
    CompilationRecord,
    DecoderRecord,
    DenoiserRecord,
    GraphRecord,
    Guidance,
    Origin,
    ProgramRecord,
    SegmentRecord,
    SizeRecord,
    WeightsRecord,
)
from ..ir.graph import REQUEST, REQUESTED, WEIGHT, WINDOW, Graph, Value
from ..ir.inputs import named
from ..ir.names import rows_of, split_at
from ..ir.precisions import DTYPES
from ..schedules.resolve import forecasts
from ..schedules.schedule import Schedule
from ..version import __version__
from ..weights.recipe import records
from ..weights.stored import stored_as
from .passes.flatten import flatten
from .passes.fp8 import records_of
from .passes.levels import spans
from .passes.place import caches, temporaries
from .plan import Plan

if TYPE_CHECKING:
    from .passes.segment import Linked
    from .request import Options
    from .source import Source


class Planned(NamedTuple):
    """A program before its buffers have places."""

    asked: Schedule
    schedule: Schedule  # perhaps with fewer distinct calls
    graphs: tuple[str, ...]  # of every call
    plan: Plan
    file: str  # for the schedule


def planned(
    asked: Sequence[Schedule], schedules: Sequence[Schedule], plans: Sequence[Plan], linked: Linked
) -> tuple[Planned, ...]:
    """Which graph every call of every program runs."""
    return tuple(
        Planned(
            wanted,
            schedule,
            tuple(linked.names[key] for key in plan.keys),
            plan,
            f"{linked.prefix}schedule.json" if len(schedules) == 1 else f"{linked.prefix}schedule-{wanted.steps}.json",
        )
        for wanted, schedule, plan in zip(asked, schedules, plans, strict=True)
    )


def describe(options: Options, source: Source, whole: Graph, programs: Sequence[Planned], linked: Linked) -> Manifest:
    """The manifest, without the files' hashes; `whole` is the uncached call."""
    values = value_types(linked.graphs)
    size = {name: value.row_bytes for name, value in values.items()}
    latent = source.family.latent
    name = "x".join(map(str, latent[1:]))
    record = SizeRecord(
        latent=latent,
        values=values,
        origins=origins(linked.graphs),
        graphs={name: graph_record(name, graph, size) for name, graph in linked.graphs.items()},
        constants=f"{linked.prefix}constants" if f"{linked.prefix}constants" in linked.graphs else None,
        request=f"{linked.prefix}request" if f"{linked.prefix}request" in linked.graphs else msgspec.UNSET,
        prologue=f"{linked.prefix}prologue" if f"{linked.prefix}prologue" in linked.graphs else None,
    )
    return Manifest(
        tool=f"l2c-export {__version__}",
        inputs=named(source.family.inputs, source.folder.labels if source.folder else {}),
        guidance=Guidance(
            mode=source.guidance,  # type: ignore[arg-type]  # validated by Options
            scale=source.scale,
        ),
        precision=options.precision,
        batch=options.batch,
        backend=options.backend,
        link=options.link,  # type: ignore[arg-type]
        passes=tuple(name for name in ("hoist", "fold") if getattr(options, name)),
        denoiser=denoiser(options, source, whole, linked, {name: record}),
        decoder=decoder_record(options, source) if source.vae else msgspec.UNSET,
        programs={
            program_name(p.schedule.steps, name if linked.prefix else None): program_record(options, p, name, linked, size)
            for p in programs
        },
        files={},
    )


def denoiser(options: Options, source: Source, whole: Graph, linked: Linked, sizes: dict[str, SizeRecord]) -> DenoiserRecord:
    family = source.family
    return DenoiserRecord(
        family=family.name,
        name=source.name,
        arch=msgspec.structs.asdict(family.arch),
        assumed=source.assumed or msgspec.UNSET,
        sublayers=family.sublayers,
        levels=spans(whole) or msgspec.UNSET,
        weight_dtype=DTYPES[options.precision],
        fp32=options.fp32,
        weights=weights_record(options, source),
        tensors=records_of(
            stored_as(
                records(family.tensors(), options.weight_types, source.checkpoint.recipes if source.checkpoint else {}),
                options.stored.denoiser,
                kept=options.fp32,
            ),
            whole,
        ),
        segments={name: segment_record(options, name, segment) for name, segment in linked.segments.items()},
        sizes=sizes,
    )


def decoder_record(options: Options, source: Source) -> DecoderRecord:
    assert source.vae
    described = autoencoder.describe(source.vae, source.family.latent[0], source.own_vae)
    return msgspec.structs.replace(described, stored="float16" if options.stored.decoder else msgspec.UNSET)


def program_record(options: Options, program: Planned, name: str, linked: Linked, size: Mapping[str, int]) -> ProgramRecord:
    """A loop over graphs of the size `name`, whose values have `size` bytes per row."""
    schedule, plan, table = program.schedule, program.plan, program.schedule.table()
    wiring, cache_bytes = caches([linked.graphs[graph] for graph in program.graphs], plan, size)
    followed = forecasts(schedule.cacheable, schedule.calls)
    calls = tuple(
        CallRecord(
            timestep=call.timestep,
            computed=call.computed,
            reused=call.reused,
            graph=graph,
            coefficients=update.coefficients,
            ends_step=update.ends_step,
            reads=wires.reads,
            writes=wires.writes,
            earlier=plan.earlier[n],
            later=plan.later[n],
            derived=derived or msgspec.UNSET,
            forecast=read_coefficients(plan.coefficients[n], linked.graphs[graph]) or msgspec.UNSET,
            banks=bank_records(plan, n) or msgspec.UNSET,
        )
        for n, (call, graph, update, wires, derived) in enumerate(
            zip(schedule.calls, program.graphs, table.updates, wiring, followed, strict=True)
        )
    )
    return ProgramRecord(
        size=name,
        schedule=program.file,
        sampler=schedule.sampler,
        steps=schedule.steps,
        calls=calls,
        cache_bytes=tuple(cache_bytes),
        history=table.history or msgspec.UNSET,
        noise_scale=table.noise_scale if table.noise_scale != 1 else msgspec.UNSET,
        asked=compilation_record(options, program.asked),
    )


def read_coefficients(coefficients: Mapping[str, float], graph: Graph) -> dict[str, float]:
    """Those that the call reads: the ones of a bank are the filling calls'."""
    inputs = set(graph.inputs)
    return {name: c for name, c in coefficients.items() if name in inputs}


def bank_records(plan: Plan, call: int) -> dict[str, BankRecord]:
    """What a call does with every bank."""
    uses = plan.banks[call] if plan.banks else {}
    return {
        name: BankRecord(slot=use.slot) if use.slot is not None else BankRecord(kept=use.kept, adds=use.adds)
        for name, use in uses.items()
    }


def segment_record(options: Options, name: str, segment: Graph) -> SegmentRecord:
    flat = flatten(segment)
    return SegmentRecord(
        file=f"segments/{name}.onnx",
        inputs=segment.inputs,
        outputs=segment.outputs,
        kind=flat.kind,
        precision=flat.precision(DTYPES[options.precision]),
        primitives=flat.primitives,
        flops=flat.flops,
    )


def compilation_record(options: Options, schedule: Schedule) -> CompilationRecord | msgspec.UnsetType:
    """`schedule` is the one that was asked for, before calls were merged."""
    if options.max_graphs is None:
        return msgspec.UNSET
    return CompilationRecord(max_graphs=options.max_graphs, computed=tuple(call.computed for call in schedule.calls))


def weights_record(options: Options, source: Source) -> WeightsRecord | None:
    if source.checkpoint:
        return with_loras(WeightsRecord(source=source.checkpoint.path.name), options.lora)
    random = WeightsRecord(source="random", random=source.seed)
    return with_loras(random, options.lora) if source.seed is not None else None


def graph_record(name: str, graph: Graph, size: Mapping[str, int]) -> GraphRecord:
    slots, slot_bytes = temporaries(graph, {n: size[split_at(n)[0]] for n in graph.values if graph.kind(n) != WEIGHT})
    return GraphRecord(
        file=f"{name}.onnx",
        nodes=graph.nodes,
        outputs=graph.outputs,
        slots=slots,
        slot_bytes=tuple(slot_bytes),
    )


def value_types(graphs: Mapping[str, Graph]) -> dict[str, Value]:
    """The type of every value that the runtime has to hold, under the name it has in its own call."""
    types: dict[str, Value] = {}
    for graph in graphs.values():
        for name, value in graph.values.items():
            if value.kind != WEIGHT:
                types.setdefault(split_at(name)[0], msgspec.structs.replace(value, kind=""))
    return types


def origins(graphs: Mapping[str, Graph]) -> dict[str, Origin]:
    """Where every value comes from that is not made by its own graph under its own name."""
    by_name: dict[str, Origin] = {}
    for graph in graphs.values():
        for name in graph.inputs:
            by_name[name] = origin(name, graph.kind(name))
        for name in (o for node in graph.nodes for o in node.outputs if split_at(o)[1]):
            by_name[name] = Origin("later", *split_at(name))
    return by_name


def origin(name: str, kind: str) -> Origin:
    """Of an input of a graph, by its name and its kind."""
    if kind == WEIGHT:
        tensor, rows = rows_of(name)
        return Origin("weight", tensor, 0, rows.start, rows.stop)
    if kind == REQUEST:
        return Origin("request", name.removeprefix(REQUESTED))
    if kind == WINDOW:
        return Origin("window", name.removeprefix("window."))
    return Origin(kind, *split_at(name))  # type: ignore[arg-type]  # the kinds of a graph's inputs are those of origins
