"""Memory is taken when there is enough of it, stays flat, and is let go."""

from __future__ import annotations

import contextlib
import os
import random
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from folders import GOLDEN
from recorded import latents

import l2c_export
from l2c_export.artefact import store
from l2c_export.artefact.records import FILE
from l2c_export.errors import RunError
from l2c_export.runtime import loop


@pytest.fixture
def pipe():
    """One of one's own: it may be closed."""
    with l2c_export.load(GOLDEN) as loaded:
        yield loaded


@pytest.mark.parametrize("place", ["a buffer", "the loop", "an engine"])
def test_without_memory_a_generation_fails_and_the_next_one_does_not(pipe, monkeypatch, place):
    wanted = latents(pipe)

    def fail(*_):
        raise MemoryError

    with monkeypatch.context() as patched:
        if place == "a buffer":
            patched.setattr(type(pipe._loaded.backend.memory), "empty", fail)
        elif place == "the loop":
            patched.setattr(loop.Loop, "bound", fail)
        else:
            engine = next(iter(pipe._loaded.engines.values()))
            patched.setattr(type(engine), "bind", fail)
        with pytest.raises(RunError, match="out of memory: generate fewer images at once"):
            pipe([0])  # a batch size that is new, so that buffers are made
    assert np.array_equal(latents(pipe), wanted)


def test_more_memory_than_the_machine_has_is_refused_before_it_is_taken(pipe):
    with pytest.raises(RunError, match="MB are needed at once, the machine has"):
        pipe._loaded.backend.memory.empty((2**20, 2**20), "float32")


def test_a_closed_pipeline_says_so_and_has_let_go_of_everything(copy):
    def mapped() -> bool:
        return str(copy) in Path("/proc/self/maps").read_text()

    with l2c_export.load(copy) as pipe:
        latents(pipe)
        if sys.platform == "linux":
            assert mapped()
    for act in (lambda: latents(pipe), lambda: next(pipe.steps([0], None, pipe.noise(1, 0)))):
        with pytest.raises(RunError, match="this pipeline is closed: load the artefact again"):
            act()
    pipe.close()
    assert pipe.manifest.batch == 2
    if sys.platform == "linux":
        assert not mapped(), "the weights are not mapped any more"


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_flat(pipe):
    for seed in range(50):
        latents(pipe, seed)
    before = resident()
    for seed in range(150):
        latents(pipe, seed)
        with contextlib.closing(pipe.steps([0], None, pipe.noise(1, seed))) as stepwise:
            next(stepwise)  # another batch size, and cancelled
    assert resident() <= 1.01 * before


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_flat_whatever_the_sizes(copy):
    store.write_json(copy / FILE, msgspec.structs.replace(store.read(copy), batch=8))
    pipe, sizes = l2c_export.load(copy), random.Random(0)
    pipe.warm(range(1, 9), 2.0)
    before = resident()
    for seed in range(200):
        pipe([0] * sizes.randint(1, 8), 2.0, seed=seed)
    assert resident() <= 1.01 * before


def test_a_block_ends_with_its_own_error_and_a_closed_pipeline(tiny):
    pipe = l2c_export.load(tiny[0], backend="onnxruntime")
    loop = pipe.steps([1], None, pipe.noise(1, 0))

    def block():
        with pipe:
            next(loop)
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        block()
    with pytest.raises(RunError, match="is closed"):
        pipe([1])
    assert list(loop) == []
