"""What leaves the loop is computed for the labels of the request, for as many calls at once as fit."""

from __future__ import annotations

import sys

from recorded import asked, close, same

import l2c_export


def test_hoisted_rows_that_do_not_fit_are_computed_in_chunks(pipe, tiny, monkeypatch):
    whole, manifest = pipe([1, 2], seed=5).latents, pipe.manifest
    hoisted = pipe.generation(asked([1, 2]), None, 2).loop.hoisted
    assert hoisted.window.calls == len(manifest.program().calls)
    compiled = manifest.program()
    per_call = 2 * 2 * sum(compiled.value(name).row_bytes for name in compiled.graphs[compiled.prologue].outputs)
    for calls in (1, 2, 3, 5):
        monkeypatch.setattr(sys.modules[type(hoisted).__module__], "HOISTED_BYTES", calls * per_call)
        chunked = l2c_export.load(tiny[0], backend="onnxruntime")
        assert chunked.generation(asked([1, 2]), None, 2).loop.hoisted.window.calls < len(manifest.program().calls)
        first = chunked([1, 2], seed=5).latents
        assert close(first, whole), f"{calls} calls at a time"
        assert same(chunked([1, 2], seed=5).latents, first)
        assert close(chunked([1, 2], seed=5, callback_on_step_end=lambda *_: None).latents, whole)
        assert not close(chunked([3, 4], seed=5).latents, whole), "with the labels of the last request"


def test_new_labels_replace_all_that_the_old_ones_made(pipe):
    """With and without stops, and after a request that nobody finished."""
    want = {labels: pipe(labels, seed=5).latents for labels in [(1, 2), (3, 4)]}
    for labels in [(1, 2), (3, 4), (1, 2)]:
        assert same(pipe(labels, seed=5, callback_on_step_end=lambda *_: None).latents, want[labels])
        next(pipe.steps([5, 6], None, pipe.noise(2, 1)))
    for labels in [(1, 2), (3, 4), (1, 2)]:
        assert same(pipe(labels, seed=5).latents, want[labels])
