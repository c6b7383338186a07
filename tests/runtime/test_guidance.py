"""Guidance belongs to a request."""

from __future__ import annotations

import numpy as np
import pytest
from recorded import close, same

import l2c_export
from l2c_export.compiler.compile import compile_artefact
from l2c_export.errors import UsageError


def test_the_guidance_scale_of_one_request_is_not_that_of_the_next(pipe, tiny):
    golden = tiny[1].golden
    request = {"class_labels": golden["y"][:2], "latents": golden["x_T"][:2]}
    first = pipe(**request, guidance_scale=4.0).latents
    assert close(first, golden["cached_final"][:2])
    assert not close(pipe(**request, guidance_scale=1.5).latents, golden["cached_final"][:2])
    assert same(pipe(**request, guidance_scale=4).latents, first)


def test_without_a_guidance_scale_the_artefact_has_one(pipe):
    assert same(pipe([1, 2]).latents, pipe([1, 2], guidance_scale=pipe.manifest.guidance.scale).latents)


def test_first3_leaves_the_fourth_channel_of_the_first_call_unguided(pipe):
    noise = pipe.noise(1, 0)
    first = {scale: next(pipe.steps([1], scale, noise)).x.copy() for scale in (1, 2, 4)}
    for channel, guided in enumerate((True, True, True, False)):
        low, high = (first[s][:, channel] - first[1][:, channel] for s in (2, 4))
        assert np.allclose(high, 3 * low, rtol=1e-3, atol=1e-4)
        assert (np.abs(high).max() > 1e-2) == guided


def test_guidance_1_runs_half_the_rows_and_equals_an_artefact_without_guidance(pipe, tiny, tmp_path):
    compile_artefact(tiny[1].options(tmp_path / "e", guidance="none"))
    without = l2c_export.load(tmp_path / "e", backend="onnxruntime")
    assert pipe.generation([1, 2], 1).loop.rows == 2
    assert pipe.generation([1, 2], 1.5).loop.rows == 4
    assert close(pipe([1, 2], guidance_scale=1).latents, without([1, 2]).latents)
    assert without.manifest.guidance.scale == 1
    with pytest.raises(UsageError, match=r"guidance_scale=4: this artefact was compiled with guidance='none': use .*=1"):
        without([1, 2], guidance_scale=4)


def test_guidance_1_still_equals_full_guidance_with_a_scale_close_to_1(pipe):
    assert np.allclose(pipe([1, 2], guidance_scale=1).latents, pipe([1, 2], guidance_scale=1 + 1e-6).latents, atol=1e-3)


def test_a_guidance_that_float32_does_not_hold_is_refused(tiny):
    with pytest.raises(UsageError, match="must be a finite number"):
        l2c_export.load(tiny[0], "onnxruntime")([1], guidance_scale=1e39)
