"""The encoder of T5 (arXiv 1910.10683), also with gated GELUs as in T5 v1.1: with the names and options of transformers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from ...errors import ModelError
from ...weights.recipe import Read
from ..family import Operation, Runner
from ..layers import wide
from ..primitives import add, affine, cast, gather, gelu_tanh, linear, mul, relu, reshape, rms_norm, sdpa
from .encoder import HIDDEN, Epsilon, Size

BIAS = "scores.relative_bias"  # follows from a table and the number of tokens, and is stored with the weights
MATRICES = {"relu": ("wi", "wo"), "gated-gelu": ("wi_0", "wi_1", "wo")}  # of an MLP, by what is between them


class T5Config(msgspec.Struct, frozen=True):
    """What of its `config.json` is needed here, with the defaults of transformers."""

    vocab_size: Size = 32128
    d_model: Size = 512
    d_kv: Size = 64
    d_ff: Size = 2048
    num_layers: Size = 6
    num_heads: Size = 8
    relative_attention_num_buckets: Size = 32
    relative_attention_max_distance: Size = 128
    layer_norm_epsilon: Epsilon = 1e-6
    feed_forward_proj: str = "relu"


class T5:
    """Layers of attention with a bias by distance, which the first has for all, and of an MLP, gated or not."""

    sublayers: tuple[str, ...] = ()
    end: int | None = None  # nothing is pooled

    def __init__(self, config: T5Config, tokens: int) -> None:
        if config.feed_forward_proj not in MATRICES:
            raise ModelError(f"T5 with feed_forward_proj={config.feed_forward_proj!r}: use {' or '.join(MATRICES)}")
        self.matrices = MATRICES[config.feed_forward_proj]
        self.config, self.tokens = config, tokens
        self.blocks = [f"encoder.block.{n}" for n in range(config.num_layers)]
        layers = [f"{block}.layer.{n}" for block in self.blocks for n in (0, 1)]
        kept = [f"{layer}.{module}" for layer in layers for module in ("layer_norm", "DenseReluDense.wo")]
        self.wide = self.kept = ("scores", "shared", "encoder.final_layer_norm", *kept)
        self.table = f"{self.blocks[0]}.layer.0.SelfAttention.relative_attention_bias.weight"
        names = ("layer_norm", *(f"SelfAttention.{part}" for part in "qkvo"))
        mlp = ("layer_norm", *(f"DenseReluDense.{part}" for part in self.matrices))
        self.segments: Mapping[str, Operation] = {
            "embed": Operation(embed, ("weight",)),
            "mask": Operation(self.mask),
            "attention": Operation(self.attention, tuple(f"{name}.weight" for name in names)),
            "mlp": Operation(self.mlp, tuple(f"{name}.weight" for name in mlp)),
            "norm": Operation(self.norm, ("weight",)),
        }

    def stored(self) -> dict[str, tuple[int, ...]]:
        c = self.config
        inner, width = c.num_heads * c.d_kv, c.d_model
        shapes: dict[str, tuple[int, ...]] = {
            "shared.weight": (c.vocab_size, width),
            "encoder.final_layer_norm.weight": (width,),
            self.table: (c.relative_attention_num_buckets, c.num_heads),
        }
        for block in self.blocks:
            first, second = f"{block}.layer.0", f"{block}.layer.1"
            shapes |= {f"{layer}.layer_norm.weight": (width,) for layer in (first, second)}
            shapes |= {f"{first}.SelfAttention.{part}.weight": (inner, width) for part in "qkv"}
            shapes[f"{first}.SelfAttention.o.weight"] = (width, inner)
            shapes |= {f"{second}.DenseReluDense.{part}.weight": (c.d_ff, width) for part in self.matrices[:-1]}
            shapes[f"{second}.DenseReluDense.wo.weight"] = (width, c.d_ff)
        return shapes

    def widths(self, outputs: tuple[str, ...]) -> dict[str, int]:
        return dict.fromkeys(outputs, self.config.d_model)

    def tensors(self) -> dict[str, tuple[int, ...]]:
        read = {name: shape for name, shape in self.stored().items() if name != self.table}
        return {**read, BIAS: (1, self.config.num_heads, self.tokens, self.tokens)}

    def derived(self, name: str, read: Read) -> np.ndarray:
        """What is added to the score of every query and key, by their distance."""
        c = self.config
        places = buckets(self.tokens, c.relative_attention_num_buckets, c.relative_attention_max_distance)
        return np.ascontiguousarray(read(self.table)[places].transpose(2, 0, 1)[None])

    def call(self, run: Runner, ids: Any, mask: Any, outputs: tuple[str, ...]) -> None:
        h = run("embed", ids, at="shared")
        scores = run.weight(BIAS)
        if mask is not None:
            scores = run("mask", scores, mask, name="scores")
        for block in self.blocks:
            h = run("attention", h, scores, at=f"{block}.layer.0")
            h = run("mlp", h, at=f"{block}.layer.1")
        run("norm", h, at="encoder.final_layer_norm", name="last")

    # the operations: activations, then weights

    def mask(self, scores: Tensor, mask: Tensor) -> Any:
        """scores (1, heads, T, T), mask (R, T) -> (R, heads, T, T)."""
        seen = affine(cast(mask, dtype="float32"), scale=-HIDDEN, shift=HIDDEN)
        return add(reshape(seen, shape=(-1, 1, 1, self.tokens)), wide(scores))

    def attention(self, h: Tensor, scores: Tensor, norm: Tensor, *weights: Tensor) -> Any:
        """h (R, T, D) -> (R, T, D); queries are not scaled."""
        q, k, v, o = map(wide, weights)
        x = self.norm(h, norm)
        query = affine(linear(x, q), scale=float(self.config.d_kv) ** 0.5, shift=0.0)  # which sdpa takes back
        mixed = sdpa(query, linear(x, k), linear(x, v), wide(scores), heads=self.config.num_heads)
        return add(h, linear(mixed, o))

    def mlp(self, h: Tensor, norm: Tensor, *weights: Tensor) -> Any:
        """h (R, T, D) -> (R, T, D)."""
        *into, down = map(wide, weights)
        x = self.norm(h, norm)
        inner = [linear(x, matrix) for matrix in into]
        return add(h, linear(mul(gelu_tanh(inner[0]), inner[1]) if inner[1:] else relu(inner[0]), down))

    def norm(self, h: Tensor, weight: Tensor) -> Any:
        return rms_norm(h, wide(weight), eps=self.config.layer_norm_epsilon)


def embed(ids: Tensor, table: Tensor) -> Any:
    """(R, T) -> (R, T, D)."""
    return wide(gather(table, ids))


def buckets(tokens: int, count: int, distance: int) -> np.ndarray:
    """The bucket of every query and key, (T, T): one for each of the nearest keys of either side, then ever more keys in one.

    It is computed in float32, as it was when T5 was trained.
    """
    places = torch.arange(tokens)
    ahead = places[None] - places[:, None]
    side, near = count // 2, count // 4
    away = ahead.abs()
    scaled = torch.log(away.float() / near) / math.log(distance / near) * (side - near)
    far = torch.clamp(near + torch.where(away < near, 0.0, scaled).long(), max=side - 1)
    table: np.ndarray = (torch.where(ahead > 0, side, 0) + torch.where(away < near, away, far)).numpy()
    return table
