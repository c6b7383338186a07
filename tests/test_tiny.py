"""The whole way, in seconds: schedule and model -> artefact -> images' latents, against a loop of numpy alone; and `verify`.

It runs before all other tests (conftest.py): where it fails, little else is worth waiting for.
"""

from __future__ import annotations

import json

import numpy as np
from recorded import GOLDEN, asked, close
from safetensors.numpy import load_file, save_file

import l2c_export
from l2c_export.compiler.compile import compile_artefact
from l2c_export.compiler.request import Options
from l2c_export.pytorch.reference import Reference
from l2c_export.verification.compare import compare

MODEL = GOLDEN / "v2" / "model.json"
COMPUTED = [(0, 1, 2, 3), (0, 3), (0, 1, 2, 3), (2,)]  # of blocks.0.attn, blocks.0.mlp, blocks.1.attn, blocks.1.mlp
TIMESTEPS, LABELS, SCALE, NULL = (999.0, 666.0, 333.0, 0.0), [0, 2], 3.0, 3


def test_from_a_schedule_to_latents(tmp_path):
    calls = [{"timestep": t, "computed": on, "reused": sorted({0, 1, 2, 3} - {*on})}
             for t, on in zip(TIMESTEPS, COMPUTED, strict=True)]  # fmt: skip
    written = {"format": "l2c-schedule", "version": 1, "family": "dit", "sampler": "ddim", "steps": 4, "columns": 4}
    (tmp_path / "schedule.json").write_text(json.dumps({**written, "calls": calls}))
    weights = random_weights()
    save_file(weights, tmp_path / "weights.safetensors")
    folder = tmp_path / "engines"
    options = Options(str(tmp_path / "schedule.json"), folder, str(MODEL), str(tmp_path / "weights.safetensors"), batch=2)
    manifest = compile_artefact(options)

    pipe = l2c_export.load(folder)
    noise = pipe.noise(2, 7)
    found = pipe(LABELS, SCALE, latents=noise).latents
    assert close(found, denoised(weights, noise, COMPUTED))
    assert not close(found, denoised(weights, noise, [(0, 1, 2, 3)] * 4)), "what is reused makes a difference"
    assert compare(pipe, Reference(folder, manifest, noise, asked(LABELS), SCALE)).passed


def random_weights() -> dict[str, np.ndarray]:
    """Large enough that every sublayer counts."""
    shapes = {name: value.shape for name, value in load_file(GOLDEN / "v2" / "engines" / "weights.safetensors").items()}
    chance = np.random.default_rng(0)
    return {name: 0.3 * chance.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def denoised(w: dict[str, np.ndarray], x: np.ndarray, computed: list[tuple[int, ...]]) -> np.ndarray:
    """DDIM (eta = 0) from call to call; a sublayer that is not computed adds what it added last, by the gate of this call."""
    kept = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    cache: dict[int, np.ndarray] = {}
    for n, (t, on) in enumerate(zip(TIMESTEPS, computed, strict=True)):
        noise = guided(predicted(w, np.concatenate([x, x]), t, np.array([*LABELS, NULL, NULL]), on, cache))
        now, after = kept[int(t)], kept[int(TIMESTEPS[n + 1])] if n < 3 else 1.0
        data = (x - np.sqrt(1 - now) * noise) / np.sqrt(now)
        x = np.sqrt(after) * data + np.sqrt(1 - after) * noise
    return x


def guided(noise: np.ndarray) -> np.ndarray:
    """The first three of four channels are (DiT's own sampling script does it so)."""
    with_label, without = noise[:2], noise[2:]
    return np.concatenate([(without + SCALE * (with_label - without))[:, :3], with_label[:, 3:]], axis=1)


def predicted(w, x, t, y, on, cache) -> np.ndarray:
    """DiT (arXiv 2212.09748): x (R, 4, 4, 4) -> the predicted noise; 2 x 2 patches, width 8, 2 blocks, 2 heads."""

    def linear(name, h):
        return h @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    angle = t * np.exp(-np.log(10000) * np.arange(128) / 128)
    hidden = silu(linear("t_embedder.mlp.0", np.concatenate([np.cos(angle), np.sin(angle)])))
    c = silu(linear("t_embedder.mlp.2", hidden) + w["y_embedder.embedding_table.weight"][y])[:, None]
    patches = x.reshape(-1, 4, 2, 2, 2, 2).transpose(0, 2, 4, 1, 3, 5).reshape(len(x), 4, 16)
    h = patches @ w["x_embedder.proj.weight"].reshape(8, 16).T + w["x_embedder.proj.bias"] + w["pos_embed"]
    for column in range(4):
        block, kind = f"blocks.{column // 2}", ("attn", "mlp")[column % 2]
        parts = np.split(linear(f"{block}.adaLN_modulation.1", c), 6, axis=-1)
        shift, scale, gate = parts[:3] if kind == "attn" else parts[3:]
        if column in on:
            seen = norm(h) * (1 + scale) + shift
            cache[column] = attention(linear, block, seen) if kind == "attn" else mlp(linear, block, seen)
        h = h + gate * cache[column]
    shift, scale = np.split(linear("final_layer.adaLN_modulation.1", c), 2, axis=-1)
    out = linear("final_layer.linear", norm(h) * (1 + scale) + shift)
    return out.reshape(-1, 2, 2, 2, 2, 8).transpose(0, 5, 1, 3, 2, 4).reshape(-1, 8, 4, 4)[:, :4]


def attention(linear, block, h) -> np.ndarray:
    q, k, v = linear(f"{block}.attn.qkv", h).reshape(-1, 4, 3, 2, 4).transpose(2, 0, 3, 1, 4)  # heads before tokens
    scores = np.exp(q @ k.swapaxes(2, 3) / 2)
    mixed = scores / scores.sum(-1, keepdims=True) @ v
    return linear(f"{block}.attn.proj", mixed.transpose(0, 2, 1, 3).reshape(-1, 4, 8))


def mlp(linear, block, h) -> np.ndarray:
    u = linear(f"{block}.mlp.fc1", h)
    return linear(f"{block}.mlp.fc2", u * 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3))))


def silu(x) -> np.ndarray:
    return x / (1 + np.exp(-x))


def norm(h) -> np.ndarray:
    return (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-6)
