"""SiT: flow matching with the tensors of a DiT, against its own module and loop, written out again here."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.numpy import save_file
from safetensors.torch import load_file

import l2c_export
from l2c_export.compiler.request import Options
from l2c_export.compiler.source import resolve
from l2c_export.errors import L2CError
from l2c_export.models.dit import DiT, DiTArch
from l2c_export.schedules.schedule import Schedule

pytestmark = pytest.mark.usefixtures("one_thread")
ARCH = DiTArch(input_size=8, hidden_size=48, depth=3, num_heads=4, num_classes=10)
OWN = {"model": "SiT-S/2", "path_type": "Linear", "prediction": "velocity", "num_classes": 10, "num_heads": 4}
DESCRIBED = '{"family": "sit", "arch": {"input_size": 8, "hidden_size": 48, "depth": 3, "num_heads": 4, "num_classes": 10}}'
STEPS, SCALE, LABELS = 6, 3.0, [3, 7]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file, and a description of its model beside it."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("sit")
    tensors = {name: rng.normal(0, 0.15, shape).astype("f4") for name, shape in DiT(ARCH).tensors().items()}
    save_file(tensors, folder / "w.safetensors")
    (folder / "m.json").write_text(DESCRIBED)
    return folder


class Module:
    """The model of SiT's repository: t in 0..1, where 1 is data; and a cache of the sublayers that a call reuses."""

    def __init__(self, file):
        self.w = {name: value.double() for name, value in load_file(file).items()}
        self.kept = {}

    def linear(self, name, x):
        return F.linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def __call__(self, x, t, y, computed):
        waves = t * torch.exp(-math.log(10000) * torch.arange(128).float() / 128).double()
        wave = torch.cat([waves.cos(), waves.sin()])[None]
        c = self.linear("t_embedder.mlp.2", F.silu(self.linear("t_embedder.mlp.0", wave)))
        c = F.silu(c + self.w["y_embedder.embedding_table.weight"][y])
        patches = F.conv2d(x, self.w["x_embedder.proj.weight"], self.w["x_embedder.proj.bias"], stride=2)
        h = patches.flatten(2).transpose(1, 2) + self.w["pos_embed"]
        for i in range(ARCH.depth):
            parts = self.linear(f"blocks.{i}.adaLN_modulation.1", c)[:, None].chunk(6, -1)
            for kind, (shift, scale, gate) in (("attn", parts[:3]), ("mlp", parts[3:])):
                name = f"blocks.{i}.{kind}"
                if name in computed:
                    normed = F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale) + shift
                    self.kept[name] = getattr(self, kind)(name, normed)
                h = h + gate * self.kept[name]
        shift, scale = self.linear("final_layer.adaLN_modulation.1", c)[:, None].chunk(2, -1)
        h = self.linear("final_layer.linear", F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale) + shift)
        output = h.reshape(len(x), 4, 4, 2, 2, 8).permute(0, 5, 1, 3, 2, 4).reshape(len(x), 8, 8, 8)
        return output[:, :4]  # the velocity: data - noise

    def attn(self, name, h):
        q, k, v = self.linear(f"{name}.qkv", h).reshape(len(h), 16, 3, 4, 12).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(h.shape)
        return self.linear(f"{name}.proj", mixed)

    def mlp(self, name, h):
        return self.linear(f"{name}.fc2", F.gelu(self.linear(f"{name}.fc1", h), approximate="tanh"))


@torch.no_grad()
def euler(file, noise, calls):
    """Euler's method over even times from noise at 0 to data at 1, with guidance of the first three channels."""
    model, x = Module(file), torch.from_numpy(noise).double()
    y = torch.tensor([*LABELS, *[10] * len(LABELS)])
    for n, computed in enumerate(calls):
        velocity = model(torch.cat([x, x]), n / len(calls), y, computed)
        asked, without = velocity.chunk(2)
        guided = torch.cat([(without + SCALE * (asked - without))[:, :3], asked[:, 3:]], 1)
        x = x + guided / len(calls)
    return x.numpy()


@pytest.mark.parametrize("rule", ["every:1", "every:2", "full:0,3,4"])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_latents_are_those_of_its_own_loop(weights, tmp_path, rule, backend):
    l2c_export.compile(model=weights / "m.json", weights=weights / "w.safetensors", schedule=rule, steps=STEPS, batch=2,
                       out=tmp_path / "out")  # fmt: skip
    schedule = Schedule.read(tmp_path / "out" / "schedule.json")
    assert schedule.sampler == "FlowMatchEulerDiscreteScheduler"
    noise = np.random.default_rng(1).standard_normal((2, 4, 8, 8)).astype(np.float32)
    with l2c_export.load(tmp_path / "out", backend=backend) as pipe:
        latents = pipe(LABELS, latents=noise, guidance_scale=SCALE).latents
        assert l2c_export.verify(pipe).passed
    computed = [{schedule.sublayers[j] for j in call.computed} for call in schedule.calls]
    wanted = euler(weights / "w.safetensors", noise, computed)
    assert np.abs(latents - wanted).max() < 1e-5 * np.abs(wanted).max()


def saved(folder, weights, **args):
    torch.save({"ema": load_file(weights / "w.safetensors"), "args": args}, folder / "w.pt")
    return folder / "w.pt"


def test_what_its_training_noted_is_evidence(weights, tmp_path):
    named = {name: value for name, value in OWN.items() if name != "model"}  # SiT-S/2 is another size
    source = resolve(Options(schedule="every:2", steps=STEPS, weights=str(saved(tmp_path, weights, **named, model="my SiT"))))
    assert (source.family.name, source.family.arch, source.assumed) == ("sit", ARCH, ())
    assert source.schedule.scheduler.from_one


@pytest.mark.parametrize(("model", "sampler", "problem"), [
    ("m.json", "ddim", "sampler='ddim': the model predicts a flow, and not noise: use FlowMatchEulerDiscreteScheduler"),
    ("m.json", "DDIMScheduler", "DDIMScheduler is not supported: use one of FlowMatchEulerDiscreteScheduler"),
])  # fmt: skip
def test_samplers_of_noise_are_refused(weights, model, sampler, problem):
    with pytest.raises(L2CError, match=problem):
        resolve(Options(schedule="every:2", steps=STEPS, model=str(weights / model), sampler=sampler))


def test_a_router_cannot_be_trained_for_it(weights, tmp_path):
    with pytest.raises(L2CError, match="a sit predicts a flow: routers are for noise"):
        l2c_export.train(model=weights / "m.json", weights=weights / "w.safetensors", steps=6, data="self", out=tmp_path / "r")


def test_a_name_is_a_size():
    source = resolve(Options(schedule="every:2", steps=STEPS, model="SiT-XL/2"))
    assert (source.name, source.family.arch.depth, source.family.arch.hidden_size) == ("SiT-XL/2", 28, 1152)
    assert (source.guidance, source.scale) == ("first3", 4.0)
