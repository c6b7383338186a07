"""What a prompt alone decides is computed once for a request, and lies in memory once for all its calls."""

from __future__ import annotations

from collections import defaultdict

import msgspec
import numpy as np
from manifests import changed

import l2c_export
from l2c_export.artefact import fingerprint, store
from l2c_export.artefact.check import problem
from l2c_export.artefact.records import Origin
from l2c_export.inspection.predict import predict
from l2c_export.runtime import prologue


def runs(pipe, request):
    """What runs before every call, by name, and the latents in the end."""
    asked, seen = pipe.generation(request, None, 2), defaultdict(list)
    own = {node.name for graph in asked.loop.compiled.step_graphs for node in asked.loop.compiled.graphs[graph].nodes}

    def noted(index, bound):
        if bound.name not in own:
            seen[index].append(bound.name)
        bound.run()

    *_, last = asked.loop.denoise(pipe.noise(2, 0), asked.inputs, asked.guidance, noted)
    return seen, last.x


def test_it_runs_once_and_not_for_every_call(pixart, flux, monkeypatch):
    monkeypatch.setattr(prologue, "HOISTED_BYTES", 1)  # as at 1024 px, where the prologue runs again and again
    for own, windows in ((pixart, 1), (flux, 4)):
        with l2c_export.load(own.out, backend="onnxruntime") as pipe:
            compiled = pipe.manifest.program()
            seen, first = runs(pipe, own.request)
            nodes = {name: [n.name for n in compiled.graphs[name].nodes] for name in compiled.before_loop}
            assert seen[0] == [*nodes["request"], *nodes.get("prologue", [])]
            assert [seen[n] for n in range(1, windows)] == [nodes.get("prologue")] * (windows - 1)
            assert len(seen) == windows
            other = {name: values[::-1].copy() for name, values in own.request.items()}
            again, second = runs(pipe, other)
            assert again == seen, "a new request makes its own"
            assert not np.allclose(first, second)
            assert np.array_equal(runs(pipe, own.request)[1], first)


def test_it_takes_the_memory_of_one_call(pixart, flux):
    for own, repeated in ((pixart, set()), (flux, {"prompt_embeds", "pooled_prompt_embeds", "embedded_guidance"})):
        compiled = store.read(own.out).program()
        rows, calls = compiled.rows(2), len(compiled.calls)
        places = prologue.layout(compiled, rows)
        once = sum(slot.nbytes for name, slot in places.items() if name.startswith("once."))
        assert once == rows * sum(compiled.value(name).row_bytes for name in compiled.graphs[compiled.request].outputs)
        for field in compiled.inputs:
            count = calls if field.name in repeated else 1
            assert places[f"input.{field.name}"].shape[0] == rows * count, (
                "only what the prologue reads has rows for every call"
            )


def test_what_is_made_on_the_way_lies_in_the_scratch_of_the_calls(pixart, flux):
    for own in (pixart, flux):
        compiled, places = store.read(own.out).program(), set()
        for graph, prefix in ((compiled.request, "once."), (compiled.prologue, "hoisted.")):
            places |= {f"{prefix}{name}" for name in compiled.graphs[graph].slots} if graph else set()
        assert places
        assert places.isdisjoint(prologue.layout(compiled, 2))


def test_it_is_counted_once(pixart):
    """In what a dry run says of time and memory, and in what may be recorded as a fingerprint."""
    compiled = store.read(pixart.out).program()
    rows, graph = compiled.rows(2), compiled.graphs[compiled.request]
    predicted = predict(compiled, images=2)
    per_row = sum(compiled.segments[node.op].flops for node in graph.nodes)
    assert predicted.prologue.flops == rows * per_row
    constants = compiled.graphs[compiled.constants]
    once, timed = (sum(compiled.value(name).row_bytes for name in g.outputs) for g in (graph, constants))
    scratch = max(sum(compiled.graphs[name].slot_bytes) for name in compiled.step_graphs)
    held = once + len(compiled.calls) * timed + sum(compiled.cache_bytes) + scratch
    assert predicted.peak_bytes == predicted.weight_bytes + rows * held
    calls = sum(compiled.segments[node.op].flops for node in compiled.graphs[compiled.calls[0].graph].nodes)
    times = sum(compiled.segments[node.op].flops for node in constants.nodes)
    assert fingerprint.flops(compiled, 1) == compiled.rows(1) * (per_row + len(compiled.calls) * times + calls)


def test_a_manifest_that_contradicts_itself_about_it_is_refused(flux):
    manifest = store.read(flux.out)
    compiled = manifest.program()
    size, prologue_graph = compiled.size, compiled.graphs["prologue"]
    (name,) = compiled.graphs["request"].outputs

    def said(**fields):
        return problem(changed(manifest, **fields)) or "nothing"

    def with_graph(which, **fields):
        return said(graphs={**size.graphs, which: msgspec.structs.replace(size.graphs[which], **fields)})

    assert said() == "nothing"
    assert f"graph request: {name!r} is not its own to make" in said(request=msgspec.UNSET)
    assert "there is no graph 'other'" in said(request="other")
    assert f"{name!r} is an inner value, and has no slot" in with_graph("request", outputs=())
    assert f"{name!r} is from nowhere" in said(origins={**size.origins, name: Origin("once", name, 1)})
    assert f"{name!r} is not its own to make" in said(origins={**size.origins, name: Origin("cache", name, -1)})
    timed, *_ = compiled.graphs["constants"].outputs
    assert f"request: nothing makes {timed!r}" in with_graph(
        "request",
        nodes=prologue_graph.nodes,
        outputs=prologue_graph.outputs,
        slots=prologue_graph.slots,
        slot_bytes=prologue_graph.slot_bytes,
    )
