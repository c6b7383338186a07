"""A class of diffusers that has no adapter: one is brought, as the page says.  It is DiT, which is also written by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import diffusers
import numpy as np
import pytest
import torch
from prompted import error
from small_pipelines import LABELS, SCALE, STEPS, small_pipeline
from torch import Tensor

import l2c_export
from l2c_export.compiler.compile import compile_artefact
from l2c_export.compiler.request import Options
from l2c_export.ir.inputs import RequestInput, class_labels
from l2c_export.models.captured.adapters import ADAPTERS, Adapter
from l2c_export.models.captured.family import Captured
from l2c_export.models.descriptor import FamilyDescriptor
from l2c_export.models.families import FAMILIES

pytestmark = pytest.mark.usefixtures("one_thread")
NAME = "own"


def dit(model: Any, x: Tensor, t: Tensor, class_labels: Tensor) -> Tensor:
    output: Tensor = model(x, timestep=t, class_labels=class_labels, return_dict=False)[0]
    return output


def inputs(config: Mapping[str, Any], tokens: int) -> tuple[RequestInput, ...]:
    return (class_labels(config["num_embeds_ada_norm"], config["num_embeds_ada_norm"]),)


ADAPTER = Adapter(
    dit, inputs, 1, lambda config: {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8},
    lambda config: 2 * int(config["num_layers"]),
)  # fmt: skip
OWN = FamilyDescriptor(
    name=NAME, title="Own", home=__name__, model="Own", mark="", sampler="DDIMScheduler", guidance=("all", 4.0),
    captured="DiTTransformer2DModel",
)  # fmt: skip


class Own(Captured):
    name: ClassVar[str] = NAME


@pytest.fixture
def brought(monkeypatch):
    monkeypatch.setitem(ADAPTERS, NAME, ADAPTER)
    monkeypatch.setitem(FAMILIES, NAME, OWN)


def test_an_adapter_is_all_that_a_class_needs(tmp_path, brought):
    small_pipeline(tmp_path / "model", "ddim")
    out = tmp_path / "out"
    manifest = compile_artefact(
        Options(schedule="every:1", steps=STEPS, model=str(tmp_path / "model"), out=out, batch=2, guidance="all")
    )
    assert manifest.denoiser.sublayers[:3] == (
        "transformer_blocks.0.attn1",
        "transformer_blocks.0.ff",
        "transformer_blocks.1.attn1",
    )
    theirs = diffusers.DiTPipeline.from_pretrained(tmp_path / "model")
    theirs.set_progress_bar_config(disable=True)
    noise = np.random.default_rng(0).standard_normal((2, 4, 8, 8)).astype(np.float32)
    with l2c_export.load(out, backend="onnxruntime") as pipe:
        latents = pipe(LABELS, guidance_scale=SCALE, latents=noise).latents
    assert error(latents, by_diffusers(theirs, noise)) < 1e-5


@torch.no_grad()
def by_diffusers(pipe: diffusers.DiTPipeline, noise: np.ndarray) -> np.ndarray:
    """The loop of DiTPipeline, up to its decoder."""
    labels = torch.tensor([*LABELS, *[1000] * len(LABELS)])
    pipe.scheduler.set_timesteps(STEPS)
    x = torch.from_numpy(noise)
    for t in pipe.scheduler.timesteps:
        prediction = pipe.transformer(torch.cat([x, x]), timestep=t.expand(2 * len(x)), class_labels=labels).sample[:, :4]
        asked, without = prediction.chunk(2)
        x = pipe.scheduler.step(without + SCALE * (asked - without), t, x).prev_sample
    return x.numpy()
