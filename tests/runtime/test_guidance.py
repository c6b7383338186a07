"""Guidance belongs to a request."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import case
from recorded import GOLDEN, asked, close, same

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
    assert pipe.generation(asked([1, 2]), 1, 2).loop.rows == 2
    assert pipe.generation(asked([1, 2]), 1.5, 2).loop.rows == 4
    assert close(pipe([1, 2], guidance_scale=1).latents, without([1, 2]).latents)
    assert without.manifest.guidance.scale == 1
    with pytest.raises(UsageError, match=r"guidance_scale=4: this artefact was compiled with guidance='none': use .*=1"):
        without([1, 2], guidance_scale=4)


def test_guidance_1_still_equals_full_guidance_with_a_scale_close_to_1(pipe):
    assert np.allclose(pipe([1, 2], guidance_scale=1).latents, pipe([1, 2], guidance_scale=1 + 1e-6).latents, atol=1e-3)


def test_a_guidance_that_float32_does_not_hold_is_refused(tiny):
    with pytest.raises(UsageError, match="must be a finite number"):
        l2c_export.load(tiny[0], "onnxruntime")([1], guidance_scale=1e39)


SCALES = [4.0, 1.0, 7.5]
MULTISTEP = {
    "schedule": "every:2",
    "sampler": "DPMSolverMultistepScheduler",
    "steps": 5,
    "threshold": None,
}  # reads earlier predictions


MIXED = {"dit": ("dit_tiny_odd_resetN", {}), "uvit": ("uvit_tiny_variant", {}), "all": ("dit_cfg_allchannels", {}),
         "dpm": ("dit_tiny_odd_resetN", MULTISTEP)}  # fmt: skip


@pytest.mark.parametrize(("name", "changes"), MIXED.values(), ids=MIXED)
def test_the_images_of_a_mixed_batch_have_the_bits_of_each_alone(name, changes, tmp_path):
    """The unconditional half of an unguided image counts exactly nothing."""
    compile_artefact(case(name).options(tmp_path / "e", batch=3, **changes))
    pipe = l2c_export.load(tmp_path / "e", backend="onnxruntime")
    together = pipe([1, 2, 3], SCALES, 5).latents
    alone = [pipe([1 + n], SCALES[n], 5 + n).latents[0] for n in range(3)]
    assert [same(*pair) for pair in zip(together, alone, strict=True)] == [True] * 3
    assert same(pipe([1, 2, 3], np.array(SCALES[::-1]), 5).latents[1], alone[1])
    assert not close(pipe([1, 2, 3], [4.0, 1.5, 7.5], 5).latents[1], alone[1])
    assert l2c_export.verify(pipe, class_labels=[1, 2, 3], guidance_scale=SCALES).passed


def test_every_way_of_saying_one_scale_is_the_same(pipe):
    want = pipe([1, 2], 3.0).latents
    for scales in ([3.0, 3], (3, 3), np.array([3.0, 3.0]), np.float32(3), torch.tensor([3.0, 3.0]), range(3, 5)):
        assert same(pipe([1, 2], scales).latents, want) == (not isinstance(scales, range))
    assert same(pipe([1, 2], [1, 1]).latents, pipe([1, 2], 1).latents)


@pytest.mark.parametrize(("scales", "says"), [
    ([1.0], r"guidance_scale=\[1.0\]: give one number, or one per image \(2\)"), ([1, 2, 3], "or one per image"),
    ([], "give one number, or one per image"), ([1.0, float("nan")], "must be a finite number"), (["4", 4], "must be a finite"),
    ([[1.0, 2.0], [3.0, 4.0]], "must be a finite number"), (np.ones((2, 1)), "must be a finite number"),
], ids=str)  # fmt: skip
def test_scales_that_are_none(pipe, scales, says):
    with pytest.raises(UsageError, match=says):
        pipe([1, 2], scales)


def test_an_artefact_of_format_1_has_one_scale_a_batch():
    with l2c_export.load(GOLDEN / "v1" / "engines", "onnxruntime") as old:
        assert same(old([0, 2], [2.0, 2.0], 7).latents, old([0, 2], 2.0, 7).latents)
        assert same(old([0, 2], [1.0, 1.0], 7).latents, old([0, 2], 1, 7).latents)
        with pytest.raises(UsageError, match=r"guidance_scale=\[2.0, 1.0\]: .* of an older format.*compile it again"):
            old([0, 2], [2.0, 1.0], 7)


def test_an_artefact_without_guidance_takes_no_scale_of_any_image(tiny, tmp_path):
    compile_artefact(tiny[1].options(tmp_path / "e", guidance="none"))
    without = l2c_export.load(tmp_path / "e", backend="onnxruntime")
    assert same(without([1, 2], [1, 1]).latents, without([1, 2]).latents)
    with pytest.raises(UsageError, match="guidance_scale=3: this artefact was compiled with guidance='none'"):
        without([1, 2], [1, 3])
