"""The compiler: a learned schedule and a model become per-call graphs.

`compile` is what a user calls; `lower` and `compile_artefact` are the whole pipeline, top to bottom: every stage takes a value
and returns a new one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..artefact import staging, store
from ..artefact.manifest import Manifest
from ..backends.contract import BUILT
from ..ir.graph import NOTHING, Graph, check
from ..runtime.artefact import Artefact
from ..schedules.schedule import Schedule
from ..support.files import Report
from ..support.log import logged
from ..support.progress import Progress, Watch, unseen, unwatched
from ..support.words import counted
from ..weights.layout import Layout
from . import build, dump, emit
from .dump import stages
from .emit import bind_weights, write_decoder
from .onnx.export import export_bodies
from .passes.calls import specialise_calls
from .passes.hoist import Hoisted, hoist
from .passes.merge_calls import share_graphs
from .passes.segment import Linked, cut
from .record import record
from .request import Options, options_of
from .source import Source, resolve


def compile(
    schedule: str | os.PathLike[str] | Schedule | None = None,
    *,
    out: str | os.PathLike[str] = "engines",
    model: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    steps: int | None = None,
    threshold: float | None = None,
    sampler: str | os.PathLike[str] | None = None,
    guidance: str | None = None,
    batch: int = 1,
    precision: str = "fp32",
    fp32: str | Sequence[str] = (),
    backend: str = "auto",
    link: str = "shared",
    cache: bool = True,
    hoist: bool = True,
    fold: bool = True,
    max_graphs: int | None = None,
    with_vae: bool = False,
    vae: str | os.PathLike[str] | None = None,
    dump: str | os.PathLike[str] | None = None,
    report: Report = logged,
    progress: Progress = unseen,
    watch: Watch = unwatched,
) -> Artefact:
    """Compile a schedule and a diffusion transformer into the folder `out`, and return what is there now.

    `schedule` is the path of a router, of a schedule (JSON) or of a steps mask, a rule such as "every:2", or a `Schedule`;
    only the demo model brings its own.  `model` is a name ("DiT-XL/2", "demo"), the folder or id of a pipeline of diffusers,
    or a JSON file; without it, what fits the weights.  `weights` is a checkpoint, a folder of diffusers, or "random[:SEED]";
    without any, `link` binds them later.  `steps` are sampling steps (DiT) or network evaluations (U-ViT), `threshold` is a
    router's, in 0..1; `guidance` is "first3", "all" or "none"; `batch` is the most images of one call.  `precision` is "fp32",
    "fp16" or "bf16", `fp32` names sublayers that stay in float32.  `cache=False` compiles the uncached twin.  `max_graphs`
    merges calls, which then compute more.  `with_vae` and `vae` add a decoder, so that images come out; `dump` is a folder for
    every stage as text.  For a backend whose engines are built beforehand (tensorrt, tensorrt-rtx) they are.

    `report` is told in lines what is understood and done, by default the log; `progress` which stage begins, how many
    parts it has and, part by part, that they are done; `watch` how far an engine is that takes long to build.

    Raises L2CError, with nothing written: UsageError for a value, ScheduleError, ModelError or WeightsError for a file,
    ArtefactError for a folder that is not ours to write, BackendError for a library that is missing.
    """
    options = options_of(
        schedule, out=out, model=model, weights=weights, steps=steps, threshold=threshold, sampler=sampler, guidance=guidance,
        batch=batch, precision=precision, fp32=fp32, backend=backend, link=link, cache=cache, hoist=hoist, fold=fold,
        max_graphs=max_graphs, with_vae=with_vae, vae=vae, dump=dump,
    )  # fmt: skip
    if options.backend in BUILT:
        build.check(options.backend)
    started = time.perf_counter()
    artefact = Artefact(options.out, compile_artefact(options, report, progress))
    report(f"{options.out}: {artefact.bytes / 2**20:.1f} MB in {time.perf_counter() - started:.1f} s")
    if options.backend not in BUILT:
        return artefact
    return build.build(artefact, options.backend, report=report, progress=progress, watch=watch)


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
    kinds = counted(len(linked.segments), "segment")
    report(f"{counted(len(linked.calls), 'call')}: {counted(len(calls), 'distinct graph')} of {kinds}")
    return Lowered(shared.schedule, whole, linked, manifest, stages(whole, parts, calls))


def compile_artefact(options: Options, report: Report = id, progress: Progress = unseen) -> Manifest:
    """Compile, and write the artefact to `options.out`.  Raises L2CError, with nothing written, when that fails."""
    staging.check_target(options.out, report)
    source = resolve(options)  # files -> a model and a schedule
    for line in source.describe():
        report(line)
    lowered = lower(options, source, report)
    bodies = export_bodies(source.family, lowered.whole, progress)  # PyTorch -> ONNX, once per operation kind
    layout = Layout(source.family.tensors(), options.weight_types)
    with staging.staged(options.out, report) as folder:
        emit.write_models(folder, lowered.linked, bodies, layout)
        emit.write_schedule(folder, lowered.schedule)
        bind_weights(folder, source, layout, report, progress)
        write_decoder(folder, source, lowered.manifest, report)
        store.write_manifest(folder, lowered.manifest)
        if options.dump:
            dump.dump(options.dump, lowered.schedule, lowered.stages, lowered.linked)
    return store.read(options.out, verify=False)
