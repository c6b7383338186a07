"""The end of the compiler: graphs and plan become files and a manifest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ..artefact import autoencoder, manifest
from ..artefact.manifest import Manifest
from ..backends.contract import FUSED
from ..ir.dtypes import DTYPES
from ..ir.graph import FP32, WEIGHT, Graph, Value
from ..ir.names import split_at
from ..schedules.schedule import Schedule
from ..support.files import Report
from ..support.progress import Progress
from ..version import __version__
from ..weights import random
from ..weights.layout import FILE, Layout, write
from .onnx import decoder, models
from .onnx.fuse import fused
from .passes.place import caches, temporaries

if TYPE_CHECKING:
    from .passes.segment import Linked
    from .request import Options
    from .source import Source


def bind_weights(folder: Path, source: Source, layout: Layout, report: Report, progress: Progress) -> None:
    """Write the weights, if there are any yet."""
    shapes = source.family.tensors()
    path = folder / FILE
    if source.checkpoint:
        report(f"weights from {source.checkpoint.path}")
        write(path, layout, source.checkpoint.tensors(shapes), progress("writing weights", layout.bytes))
    elif source.seed is not None:
        report(f"RANDOM weights, seed {source.seed}: good for latency, the images mean nothing")
        write(path, layout, random.random(shapes, source.seed), progress("writing weights", layout.bytes))
    else:
        report("no weights yet: bind them with l2c_export.link('ENGINES', weights='PATH')")


def write_decoder(folder: Path, source: Source, described: Manifest, report: Report) -> None:
    """Export the autoencoder's decoder, if that is asked for."""
    if source.vae and described.decoder:
        report(autoencoder.said(source.vae, described.decoder))
        decoder.write(source.vae, described.decoder, source.family.latent[0], folder / described.decoder.file)


def describe(
    options: Options, source: Source, schedule: Schedule, linked: Linked, flops: Mapping[str, int]
) -> manifest.Manifest:
    """The manifest, without the files' hashes.  `flops` are those of every operation kind, per row."""
    family = source.family
    values = value_types(linked.graphs)
    size = {name: value.row_bytes for name, value in values.items()}
    wiring, cache_bytes = caches([linked.graphs[name] for name in linked.calls], size)
    table = schedule.table()
    calls = tuple(
        manifest.CallRecord(
            timestep=call.timestep,
            computed=call.computed,
            reused=call.reused,
            graph=graph,
            coefficients=update.coefficients,
            ends_step=update.ends_step,
            reads=wires.reads,
            writes=wires.writes,
        )
        for call, graph, update, wires in zip(schedule.calls, linked.calls, table.updates, wiring, strict=True)
    )
    on = [name for name in ("hoist", "fold") if getattr(options, name)]
    return manifest.Manifest(
        tool=f"l2c-export {__version__}",
        model=manifest.Model(
            family=family.name,
            name=source.name,
            arch=msgspec.structs.asdict(family.arch),
            latent=family.latent,
            labels=family.labels,
            null_label=family.null_label,
            sublayers=family.sublayers,
            names=(source.folder and source.folder.labels) or msgspec.UNSET,
            assumed=source.assumed or msgspec.UNSET,
        ),
        sampler=schedule.sampler,
        steps=schedule.steps,
        guidance=manifest.Guidance(
            mode=source.guidance,  # type: ignore[arg-type]  # validated by Options
            scale=source.scale,
        ),
        precision=options.precision,
        weight_dtype=DTYPES[options.precision],
        fp32=options.fp32,
        batch=options.batch,
        backend=options.backend,
        link=options.link,  # type: ignore[arg-type]
        passes=tuple(on),
        weights=described_weights(source),
        tensors=family.tensors(),
        values=values,
        segments={
            name: manifest.SegmentRecord(
                file=f"segments/{name}.onnx",
                inputs=segment.inputs,
                outputs=segment.outputs,
                flops=sum(flops[node.op.removesuffix(FP32)] for node in segment.nodes),
            )
            for name, segment in linked.segments.items()
        },
        constants="constants" if "constants" in linked.graphs else None,
        prologue="prologue" if "prologue" in linked.graphs else None,
        graphs={name: described_graph(name, graph, size) for name, graph in linked.graphs.items()},
        calls=calls,
        cache_bytes=tuple(cache_bytes),
        history=table.history or msgspec.UNSET,
        decoder=autoencoder.describe(source.vae, family.latent[0], source.own_vae) if source.vae else msgspec.UNSET,
        noise_scale=table.noise_scale if table.noise_scale != 1 else msgspec.UNSET,
        asked=described_request(options, source.schedule),
        files={},
    )


def described_request(options: Options, schedule: Schedule) -> manifest.CompilationRecord | msgspec.UnsetType:
    """`schedule` is the one that was asked for, before calls were merged."""
    if options.max_graphs is None:
        return msgspec.UNSET
    return manifest.CompilationRecord(max_graphs=options.max_graphs, computed=tuple(call.computed for call in schedule.calls))


def described_weights(source: Source) -> manifest.WeightsRecord | None:
    if source.checkpoint:
        return manifest.WeightsRecord(source=source.checkpoint.path.name)
    return manifest.WeightsRecord(source="random", random=source.seed) if source.seed is not None else None


def described_graph(name: str, graph: Graph, size: Mapping[str, int]) -> manifest.GraphRecord:
    slots, slot_bytes = temporaries(graph, {n: size[split_at(n)[0]] for n in graph.values if graph.kind(n) != WEIGHT})
    return manifest.GraphRecord(
        file=f"{name}.onnx",
        nodes=graph.nodes,
        inputs=graph.inputs,
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


def write_models(folder: Path, linked: Linked, bodies: models.Bodies, layout: Layout) -> None:
    """One ONNX file per segment and per distinct graph, and a fused form of the segments where it computes the same."""
    (folder / "segments").mkdir()
    for name, segment in linked.segments.items():
        model = models.segment_model(name, segment, bodies)
        (folder / "segments" / f"{name}.onnx").write_bytes(model.SerializeToString())
        if layout.types.dtype == "float16" and FP32 not in name and (second := fused(model)):
            (folder / "segments" / f"{name}{FUSED}").write_bytes(second.SerializeToString())
    for name, graph in linked.whole.items():
        step = models.step_model(name, graph, bodies, layout)
        (folder / f"{name}.onnx").write_bytes(step.SerializeToString())


def write_schedule(folder: Path, schedule: Schedule) -> None:
    (folder / "schedule.json").write_bytes(schedule.to_json())
