"""Classes of diffusers without an adapter: by the names of their arguments, or refused in a line that says what is missing."""

from __future__ import annotations

import json

import diffusers
import prompted
import pytest
import torch
from prompted import PIPELINES, STEPS, TOKENS

import l2c_export
from l2c_export.compiler.compile import compile_artefact
from l2c_export.compiler.request import Options
from l2c_export.compiler.source import resolve
from l2c_export.errors import ModelError
from l2c_export.models.captured import adapters, signature
from l2c_export.models.families import FAMILIES
from l2c_export.schedules.schedule import Schedule

pytestmark = pytest.mark.usefixtures("one_thread")
IMAGES = 2


def options(folder, out, **others):
    return Options(schedule="every:2", steps=STEPS, model=str(folder), out=out, batch=IMAGES, **others)


@pytest.mark.parametrize("family", ["auraflow", "sd3", "sana-sized"])
def test_what_arguments_are_called_is_enough(family, tmp_path, monkeypatch):
    """Of classes whose adapters are taken away: levels of noise and timesteps, pooled embeddings, masks."""
    for name in ("auraflow", "sd3", "sana"):
        monkeypatch.delitem(FAMILIES, name)
        monkeypatch.delitem(adapters.ADAPTERS, name)
    pipeline = PIPELINES[family]._replace(pixels=8)
    folder = pipeline.folder(tmp_path / "model")
    if family == "sana-sized":  # its pipeline halves the timesteps, which no argument says
        config = json.loads((folder / "transformer" / "config.json").read_text())
        (folder / "transformer" / "config.json").write_text(json.dumps({**config, "timestep_scale": 1.0}))
    asked = options(folder, tmp_path / "out", tokens=TOKENS, size=pipeline.size)
    assert any("it has no adapter" in line for line in resolve(asked).describe())
    manifest = compile_artefact(asked)
    assert manifest.denoiser.family == "flow-transformer"
    noise = prompted.numbers(3, IMAGES, 4, prompted.HEIGHT, prompted.WIDTH)
    request = pipeline.request(IMAGES)
    with torch.no_grad():
        wanted = pipeline.latents(folder, noise, request, Schedule.read(tmp_path / "out" / "schedule.json"))
    with l2c_export.load(tmp_path / "out", backend="onnxruntime") as pipe:
        latents = pipe(latents=noise.numpy(), guidance_scale=4.0, **{n: v.numpy() for n, v in request.items()}).latents
    assert prompted.error(latents, wanted.numpy()) < 1e-5


class Strange(torch.nn.Module):
    def forward(self, hidden_states, timestep, crops, return_dict=True):
        return hidden_states


def test_an_argument_that_nothing_explains_is_named(monkeypatch):
    monkeypatch.setattr(diffusers, "StrangeTransformer2DModel", Strange, raising=False)
    with pytest.raises(
        ModelError, match="StrangeTransformer2DModel has no adapter, and nothing says what crops stand for: wri"
    ):
        signature.by_signature("StrangeTransformer2DModel")
    with pytest.raises(ModelError, match="diffusers has no OwnTransformer2DModel: use another release"):
        signature.by_signature("OwnTransformer2DModel")


def test_a_width_that_the_configuration_does_not_say_is_named():
    adapter = signature.by_signature("SD3Transformer2DModel")
    with pytest.raises(ModelError, match="its configuration does not say how wide pooled_prompt_embeds are: write one"):
        adapter.inputs({"joint_attention_dim": 8}, 4)


@pytest.mark.parametrize(("kind", "why"), [
    ("LTXVideoTransformer3DModel", "its latents have five axes"), ("WanTransformer3DModel", "its latents have five axes"),
    ("CogVideoXTransformer3DModel", "its latents have five axes"), ("HunyuanDiT2DModel", "embeddings of two encoders"),
    ("Lumina2Transformer2DModel", "the lengths of its prompts"), ("HiDreamImageTransformer2DModel", "which of its experts"),
    ("UNet2DConditionModel", "l2c-export knows DiT and U-ViT"), ("StableAudioTransformer1DModel", "of sound"),
])  # fmt: skip
@pytest.mark.parametrize("alone", [False, True])
def test_what_cannot_be_captured_is_refused_with_the_reason(kind, why, alone, tmp_path):
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text(json.dumps({"_class_name": kind}))
    if not alone:
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "P", "transformer": ["diffusers", kind]}))
    with pytest.raises(ModelError, match=f"a {kind}: .*{why}") as refused:
        resolve(options(tmp_path / "transformer" if alone else tmp_path, tmp_path / "out"))
    assert "\n" not in str(refused.value)
