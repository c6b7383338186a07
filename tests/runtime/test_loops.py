"""Batches of several sizes, programs and guidance over one arena; made warm, replaced, cancelled."""

from __future__ import annotations

import gc
import threading
import time
import weakref

import msgspec
import numpy as np
import pytest
from recorded import asked, close, latents, same

import l2c_export
from l2c_export.artefact import store
from l2c_export.artefact.records import FILE
from l2c_export.errors import ArtefactError, Cancelled, RunError, UsageError
from l2c_export.runtime import loops
from l2c_export.runtime.arena import Arena, Slot, cut, size_of


@pytest.fixture
def own(copy):
    """A pipeline of one's own, for up to eight images: it may be closed, or replaced."""
    store.write_json(copy / FILE, msgspec.structs.replace(store.read(copy), batch=8))
    with l2c_export.load(copy, "onnxruntime") as pipe:
        yield pipe


def bound(pipe) -> list[tuple[int, bool]]:
    return [(batch.images, batch.guided) for batch in pipe._loops._bound]


def test_an_arena_is_cut_into_arrays_that_do_not_touch(own):
    layout = {"a": Slot((3, 5), "float32"), "b": Slot((7,), "uint8"), "none": Slot((0,), "uint8"), "c": Slot((2, 2), "float16")}
    arena = Arena(own._loaded.backend.memory, size_of(slot.nbytes for slot in layout.values()), "arrays")
    arrays = arena.cut(layout)
    for n, array in enumerate(arrays.values()):
        array[...] = n
    for n, (name, array) in enumerate(arrays.items()):
        assert (array.shape, array.dtype) == layout[name]
        assert (array == n).all()


def test_parts_of_a_block_begin_where_something_may():
    parts = cut(np.arange(2000, dtype=np.uint16).view(np.uint8), [5, 256, 300])
    assert [part.nbytes for part in parts] == [5, 256, 300]
    assert [int(part[:2].view(np.uint16)[0]) * 2 for part in parts] == [0, 256, 512]


def test_sizes_take_turns_without_being_bound_again(own):
    alone = {n: own(list(range(n)), 2.0, seed=3).latents for n in (3, 1, 2)}
    first = own._loops.loop(own.manifest.program(), 1, True)
    for n in (2, 3, 1, 3, 2):
        assert same(own(list(range(n)), 2.0, seed=3).latents, alone[n])
    assert own._loops.loop(own.manifest.program(), 1, True) is first
    for n, images in alone.items():
        assert close(images, alone[3][:n])


def test_a_smaller_batch_works_in_the_memory_of_the_larger(own):
    large, small = (own.generation(asked(range(n)), 2.0, n).loop for n in (4, 1))
    assert np.shares_memory(small.states[0], large.states[0])
    assert own._loops._arena.size == size_of(slot.nbytes for slot in loops.loop.layout(large.compiled, 4, 8, "shared").values())


def test_a_larger_batch_takes_the_arena_of_the_smaller_away_first(own):
    """On a GPU that is full, both do not fit."""
    own([0], 2.0)
    gc.collect()
    arena, small = weakref.ref(own._loops._arena), weakref.ref(own._loops.loop(own.manifest.program(), 1, True))
    memory, alive = own._loaded.backend.memory, []
    empty = type(memory).empty
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(memory), "empty", lambda *arguments: (alive.append((arena(), small())), empty(*arguments))[1])
        own([0, 1], 2.0)
    assert alive[0] == (None, None)


def test_so_many_loops_stay_bound_the_last_used_ones(own, monkeypatch):
    monkeypatch.setattr(own._loops, "kept", 2)
    for n in (3, 2, 1, 2, 3):
        own(list(range(n)), 2.0)
    assert bound(own) == [(2, True), (3, True)]


def test_what_is_warm_has_its_memory_and_its_bindings(own, monkeypatch):
    own.warm([1, 3, 2], 2.0)
    assert bound(own) == [(3, True), (2, True), (1, True)]
    monkeypatch.setattr(type(own._loaded.backend.memory), "empty", None)  # nothing more is taken
    for n in (2, 1, 3):
        assert own(list(range(n)), 2.0).latents.shape[0] == n


@pytest.mark.parametrize("sizes", [[0], [1, -2], [9, 1]])
def test_sizes_to_warm_are_those_that_a_request_may_have(own, sizes):
    with pytest.raises(UsageError, match=r"sizes=\[.*\]: this artefact makes 1 to 8 images at once: "):
        own.warm(sizes)
    own.warm([])


# -- replaced while it runs


def test_another_artefact_takes_over_between_two_generations(own, other, monkeypatch):
    before, wanted = latents(own), latents(l2c_export.load(other, "onnxruntime"))
    assert not close(before, wanted)
    own.warm([2], 2.0)
    own.replace(other)
    assert bound(own) == [(2, True)], "warm as before"
    assert same(latents(own), wanted)
    assert own.path == other
    own.replace(other)
    assert same(latents(own), wanted)


def test_what_is_replaced_is_let_go(own, other):
    latents(own)
    engines = [weakref.ref(engine) for engine in own._loaded.engines.values()]
    own.replace(other)
    gc.collect()
    assert not [engine for engine in engines if engine()]


def test_a_generation_ends_as_it_began(own, other):
    want_old, want_new = latents(own), latents(l2c_export.load(other, "onnxruntime"))
    began, swapped = threading.Event(), threading.Event()
    seen = []

    def slow(pipe, step, timestep, values):
        began.set()
        if step == 0:
            time.sleep(0.2)  # while the other one is loaded
        assert not swapped.is_set()

    generating = threading.Thread(target=lambda: seen.append(own([0, 1], 2.0, seed=0, callback_on_step_end=slow).latents))
    generating.start()
    began.wait()
    own.replace(other)
    swapped.set()
    generating.join()
    assert same(seen[0], want_old)
    assert same(latents(own), want_new)


def test_what_cannot_take_over_changes_nothing(own, other, pixels, tmp_path):
    wanted = latents(own)
    for path, error, says in (
        (tmp_path / "none", ArtefactError, "none"),
        (pixels, UsageError, r"its latents are \(3, 4, 4\), not .*: load it as a pipeline of its own"),
    ):
        with pytest.raises(error, match=says):
            own.replace(path)
        assert same(latents(own), wanted)
    (other / "weights.safetensors").write_bytes(b"damaged")
    with pytest.raises(ArtefactError):
        own.replace(other)
    assert same(latents(own), wanted)


def test_a_pipeline_is_not_replaced_under_its_own_generation(own, other):
    stepwise = own.steps([0], 2.0, own.noise(1, 0))
    next(stepwise)
    with pytest.raises(RunError, match="in the middle of a generation"):
        own.replace(other)
    stepwise.close()
    own.replace(other)
    own.close()
    with pytest.raises(RunError, match="is closed"):
        own.replace(other)


# -- cancelled


@pytest.mark.parametrize("after", [0, 1, 3])
@pytest.mark.parametrize("way", ["whole", "callback", "steps"])
def test_a_generation_is_cancelled_before_its_next_call(own, way, after, monkeypatch):
    wanted, cancel, calls = latents(own), threading.Event(), []
    if not after:
        cancel.set()

    def count(*_):
        calls.append(1)
        if len(calls) == after:
            cancel.set()

    if way == "whole":  # a piece for each step, where launching costs nothing
        loop = own.generation(asked([0, 1]), 2.0, 2).loop
        own([0, 1], 2.0)
        pieces = [piece._replace(run=lambda run=piece.run: (run(), count())) for piece in loop._pieces]
        monkeypatch.setattr(loop, "_pieces", pieces)
        act = lambda: own([0, 1], 2.0, cancel=cancel)  # noqa: E731
    elif way == "callback":
        act = lambda: own([0, 1], 2.0, cancel=cancel, callback_on_step_end=count)  # noqa: E731
    else:
        act = lambda: [count() for _ in own.steps([0, 1], 2.0, own.noise(2, 0), cancel=cancel)]  # noqa: E731
    total = len(own.manifest.program().calls)
    with pytest.raises(Cancelled, match=f"cancelled before call {after + 1} of {total}"):
        act()
    assert len(calls) == after
    monkeypatch.undo()
    assert same(latents(own), wanted)


def test_previews_are_all_that_is_copied(own, monkeypatch):
    noise, copies = own.noise(2, 0), []
    steps = list(own.steps([0, 1], 2.0, noise))
    memory = own._loaded.backend.memory
    get = type(memory).get
    monkeypatch.setattr(type(memory), "get", lambda *arguments: (copies.append(1), get(*arguments))[1])
    for every in (2, 3, len(steps), 100):
        copies.clear()
        seen = list(own.steps([0, 1], 2.0, noise, every=every))
        kept = [step for step in steps if (step.index + 1) % every == 0 or step is steps[-1]]
        assert [step.index for step in seen] == [step.index for step in kept]
        assert all(same(a.x, b.x) for a, b in zip(seen, kept, strict=True))
        assert len(copies) == len(kept)
    with pytest.raises(UsageError, match="every=0: must be at least 1"):
        own.steps([0, 1], 2.0, noise, every=0)


def test_a_changed_preview_goes_on_from_there(own):
    def ends(every: int) -> np.ndarray:
        for step in own.steps([0], 2.0, own.noise(1, 0), every=every):
            if step.index == 1:
                step.x[...] = 2 * step.x
        return step.x

    assert same(ends(1), ends(2))
    assert not close(ends(1), ends(3)), "which leaves the second call alone"


def test_an_engine_of_a_whole_graph_needs_no_room_for_what_is_inside(own):
    """Only segments hand each other values in the loop's memory."""
    compiled = own.manifest.program()
    by_segments, whole = (loops.loop.layout(compiled, 2, 4, link) for link in ("shared", "static"))
    assert (by_segments["scratch"].nbytes > 0, whole["scratch"].nbytes) == (True, 0)
    assert whole == {**by_segments, "scratch": whole["scratch"]}
