"""Live pipelines of diffusers run compiled calls."""

from __future__ import annotations

import argparse

import diffusers
import numpy as np
import pytest
import torch
from in_pytorch import IN_PYTORCH
from small_pipelines import LABELS, SCALE, STEPS, small_pipeline

import l2c_export
from l2c_export.artefact import store
from l2c_export.backends import descriptors
from l2c_export.compiler.compile import compile_artefact
from l2c_export.compiler.request import Options
from l2c_export.errors import UsageError
from l2c_export.runtime.decoder import Decoder

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_live_pipeline_runs_compiled_calls(world, live):
    want = live(LABELS, SCALE, torch.manual_seed(3), STEPS, "np").images
    loops = []
    live.transformer.register_forward_pre_hook(lambda *_: loops.append(1))
    assert l2c_export.enable_l2c(live, world.compiled()) is live
    done = live(LABELS, SCALE, torch.manual_seed(3), STEPS, "np")
    assert isinstance(done, diffusers.ImagePipelineOutput)
    assert np.abs(done.images - want).max() < 1e-4
    assert not loops
    assert isinstance(live, diffusers.DiTPipeline)
    assert live(LABELS, generator=torch.manual_seed(3)).images[0].size == (16, 16)
    live.disable_l2c()
    assert type(live) is diffusers.DiTPipeline
    assert np.array_equal(live(LABELS, SCALE, torch.manual_seed(3), STEPS, "np").images, want)
    assert loops


def test_a_live_pipeline_draws_its_noise_in_its_own_type(world, live):
    l2c_export.enable_l2c(live.to(torch.float16), world.compiled())
    drawn = torch.randn((2, 4, 8, 8), generator=torch.manual_seed(3), dtype=torch.float16)
    got = live(LABELS, SCALE, torch.manual_seed(3), output_type="latent").images
    assert np.array_equal(got, live.l2c.compiled(LABELS, SCALE, latents=drawn.numpy()).latents)


def test_a_live_pipeline_lets_offloaded_models_go(world, live, monkeypatch):
    freed = []
    monkeypatch.setattr(diffusers.DiTPipeline, "maybe_free_model_hooks", lambda self: freed.append(self))
    l2c_export.enable_l2c(live, world.compiled())(LABELS)
    assert freed == [live]


def test_a_live_pipeline_decodes_once_with_its_own_autoencoder(world, live, monkeypatch):
    monkeypatch.setattr(Decoder, "__call__", lambda *_: pytest.fail("the artefact's decoder ran, too"))
    assert l2c_export.enable_l2c(live, world.pictures())(LABELS, output_type="np").images.shape == (2, 16, 16, 3)


@pytest.mark.parametrize("change", [lambda w: w.mul_(1.005), lambda w: w[-1].add_(0.01)])
def test_a_fine_tune_of_any_layer_has_other_weights(world, live, change):
    """As a LoRA of the attention in the middle, merged."""
    l2c_export.enable_l2c(live.to(torch.float16).to(torch.float32), world.compiled(precision="fp16"))
    live.disable_l2c()
    with torch.no_grad():
        change(live.transformer.transformer_blocks[1].attn1.to_v.weight)
    with pytest.raises(UsageError, match=r"other weights than .* \(blocks.1.attn.qkv.weight\): run l2c_export.link"):
        l2c_export.enable_l2c(live, world.compiled(precision="fp16"))


def test_a_live_pipeline_is_that_of_an_artefact_in_fp8_whose_biases_are_corrected(world, live, monkeypatch):
    monkeypatch.setattr(descriptors, "BACKENDS", (*descriptors.BACKENDS, IN_PYTORCH))
    engines = world.compiled(precision="fp8", backend="cuda")
    changes = store.read(engines).denoiser.corrected
    l2c_export.enable_l2c(live, engines, backend=IN_PYTORCH.name)
    live.disable_l2c()
    bias = live.transformer.transformer_blocks[1].ff.net[2].bias
    with torch.no_grad():
        bias[0] += 3 * changes["blocks.1.mlp.fc2.bias"] + 2.0**-5 * bias[0].abs()
    with pytest.raises(UsageError, match=r"other weights than .* \(blocks.1.mlp.fc2.bias\): run l2c_export.link"):
        l2c_export.enable_l2c(live, engines, backend=IN_PYTORCH.name)


def test_a_u_vit_is_in_no_dit_pipeline(live, pixels, tmp_path):
    chosen = {"schedule": "every:2", "steps": 4, "sampler": "DDIMScheduler", "guidance": "all"}
    compile_artefact(Options(**chosen, model=str(pixels.parent / "model.json"), weights="random:0", out=tmp_path / "e"))
    with pytest.raises(UsageError, match="was compiled from a uvit, which no DiTPipeline has"):
        l2c_export.enable_l2c(live, tmp_path / "e")


def test_enabling_again_replaces_the_artefact(world, live):
    l2c_export.enable_l2c(live, world.compiled())
    l2c_export.enable_l2c(live, world.compiled("every:2"))
    assert any(call.reused for call in live.l2c.compiled.manifest.program().calls)
    live.disable_l2c()
    assert type(live) is diffusers.DiTPipeline


def test_what_was_not_compiled_is_refused(world, worlds, live, tmp_path):
    with pytest.raises(UsageError, match="a Namespace is not supported: give a DiTPipeline"):
        l2c_export.enable_l2c(argparse.Namespace(), world.compiled())
    with pytest.raises(UsageError, match=r"pipe.scheduler is not what was compiled \(kind DDIMScheduler instead of DPMSolver"):
        l2c_export.enable_l2c(live, worlds["dpm2"].compiled())
    with pytest.raises(UsageError, match="compiled with sampler='ddim', which no DiTPipeline has"):
        l2c_export.enable_l2c(live, world.compiled(sampler="ddim"))
    with pytest.raises(UsageError, match="compiled with guidance='first3', which no DiTPipeline has"):
        l2c_export.enable_l2c(live, world.compiled(guidance="first3"))
    other = small_pipeline(tmp_path / "other", "ddim", seed=5)
    with pytest.raises(UsageError, match=r"other weights than .* run l2c_export.link"):
        l2c_export.enable_l2c(other, world.compiled())
    l2c_export.enable_l2c(live, world.compiled())
    with pytest.raises(UsageError, match="num_inference_steps 50"):
        live(LABELS, num_inference_steps=50)
    live.scheduler = diffusers.DDIMScheduler(clip_sample=False, beta_end=0.03)
    with pytest.raises(UsageError, match=r"beta_end 0.03 instead of 0.02"):
        live(LABELS)
