"""`l2c build --backend cuda` without a GPU: which kernels are made for which GPUs, and that the artefact stays what it is."""

from __future__ import annotations

import pytest

import l2c_export
from l2c_export.artefact import store
from l2c_export.backends.nvidia import prepare as prepared
from l2c_export.backends.nvidia.facts import COVERED
from l2c_export.backends.nvidia.graphs import pieces
from l2c_export.backends.nvidia.plan import plan, uncovered
from l2c_export.errors import BackendError, UsageError
from l2c_export.ir.graph import Primitive


@pytest.fixture
def compilations(monkeypatch):
    """(source, architecture) of what would be compiled."""
    kernels = []
    monkeypatch.setattr(prepared, "compiled", lambda *kernel: kernels.append(kernel))
    return kernels


def test_every_kernel_is_compiled_for_every_gpu_and_the_artefact_stays_what_it_is(tiny, compilations):
    folder, _ = tiny
    before = store.read(folder)
    said = []
    after = l2c_export.build(folder, "cuda", targets=("sm80", "sm90"), batch="1:1:2", report=said.append).manifest
    assert (after, after.builds) == (before, {})
    sources = {source for source, _ in compilations}
    assert sorted(compilations) == sorted((source, gpu) for source in sources for gpu in ("sm80", "sm90"))
    plans = [plan(p.primitives, dict(p.inputs), p.outputs) for images in (1, 2) for p in pieces(before, images)]
    assert sources == {kernel.source for own_plan in plans for kernel in own_plan.kernels}
    assert said == [f"cuda: {len(sources)} kernels for sm80, sm90, in the user's cache"]


def test_a_graph_that_is_linked_is_one_piece(tiny):
    folder, _ = tiny
    manifest = store.read(folder)
    names = {piece.name for piece in pieces(manifest, 1)}
    assert names == set(manifest.denoiser.segments)


@pytest.mark.parametrize(("asked", "says"), [
    ({"targets": "sm75"}, "targets='sm75': cuda takes GPUs from sm80 on"),
    ({"targets": "sm90", "level": 3}, "it builds no engines"),
    ({"targets": "sm90", "timing_cache": "t"}, "measures into the user's cache"),
])  # fmt: skip
def test_what_it_does_not_have_is_refused(tiny, compilations, asked, says):
    with pytest.raises(UsageError, match=says):
        l2c_export.build(tiny[0], "cuda", **asked)
    assert compilations == []


def test_a_primitive_that_there_is_nothing_for_is_named(tiny, compilations, monkeypatch):
    assert uncovered([Primitive(op, (), (), ()) for op in sorted(COVERED)]) == []
    monkeypatch.setattr("l2c_export.backends.nvidia.plan.COVERED", COVERED - {"sdpa", "linear"})
    with pytest.raises(BackendError, match=r"attn.* has primitives that there is nothing for: linear, sdpa"):
        l2c_export.build(tiny[0], "cuda", targets="sm90")
    assert compilations == []
