"""DiT (arXiv 2212.09748) and its guided DDIM loop in numpy alone: 2 x 2 patches, width 8, 2 blocks, 2 heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from recorded import GOLDEN
from safetensors.numpy import load_file

MODEL = GOLDEN / "v2" / "model.json"
LABELS, SCALE, NULL = [0, 2], 3.0, 3
KEPT = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
NAMES = tuple(f"blocks.{b}.{kind}" for b in range(2) for kind in ("attn", "mlp"))


def random_weights() -> dict[str, np.ndarray]:
    """Large enough that every sublayer counts."""
    shapes = {name: value.shape for name, value in load_file(GOLDEN / "v2" / "engines" / "weights.safetensors").items()}
    chance = np.random.default_rng(0)
    return {name: 0.3 * chance.standard_normal(shape, np.float32) for name, shape in shapes.items()}


Value = Callable[[str, Callable[[], np.ndarray]], np.ndarray]  # of a name, and how it is computed if it is


class Blocks(NamedTuple):
    """The blocks of `stack[first:last]`."""

    name: str
    first: int
    last: int


def step(x: np.ndarray, noise: np.ndarray, t: float, after: float | None) -> np.ndarray:
    """DDIM (eta = 0) from timestep t to the one after it, None behind the last."""
    now, later = KEPT[int(t)], 1.0 if after is None else KEPT[int(after)]
    data = (x - np.sqrt(1 - now) * noise) / np.sqrt(now)
    return np.sqrt(later) * data + np.sqrt(1 - later) * noise


def guided(noise: np.ndarray) -> np.ndarray:
    """The first three of four channels are (DiT's own sampling script does it so)."""
    with_label, without = noise[:2], noise[2:]
    return np.concatenate([(without + SCALE * (with_label - without))[:, :3], with_label[:, 3:]], axis=1)


def predicted(w, x, t, y, value: Value, stack: Blocks | None = None) -> np.ndarray:
    """x (R, 4, 4, 4) -> the predicted noise.  `value` makes or finds every sublayer, the blocks of `stack` and the output."""

    def linear(name, h):
        return h @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    angle = t * np.exp(-np.log(10000) * np.arange(128) / 128)
    hidden = silu(linear("t_embedder.mlp.0", np.concatenate([np.cos(angle), np.sin(angle)])))
    c = silu(linear("t_embedder.mlp.2", hidden) + w["y_embedder.embedding_table.weight"][y])[:, None]
    patches = x.reshape(-1, 4, 2, 2, 2, 2).transpose(0, 2, 4, 1, 3, 5).reshape(len(x), 4, 16)
    start = patches @ w["x_embedder.proj.weight"].reshape(8, 16).T + w["x_embedder.proj.bias"] + w["pos_embed"]

    def blocks(h, first, last):
        for block, kind in ((f"blocks.{b}", kind) for b in range(first, last) for kind in ("attn", "mlp")):
            parts = np.split(linear(f"{block}.adaLN_modulation.1", c), 6, axis=-1)
            shift, scale, gate = parts[:3] if kind == "attn" else parts[3:]
            seen, layer = norm(h) * (1 + scale) + shift, attention if kind == "attn" else mlp
            h = h + gate * value(f"{block}.{kind}", lambda at=block, seen=seen, layer=layer: layer(linear, at, seen))
        return h

    def head():
        first, last = (stack.first, stack.last) if stack else (0, 0)
        h = blocks(start, 0, first)
        if stack:
            h = h + value(stack.name, lambda h=h: blocks(h, first, last) - h)
        h = blocks(h, last, 2)
        shift, scale = np.split(linear("final_layer.adaLN_modulation.1", c), 2, axis=-1)
        out = linear("final_layer.linear", norm(h) * (1 + scale) + shift)
        return out.reshape(-1, 2, 2, 2, 2, 8).transpose(0, 5, 1, 3, 2, 4).reshape(-1, 8, 4, 4)

    return value("output", head)[:, :4]


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
