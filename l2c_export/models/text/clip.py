"""The text encoder of CLIP (arXiv 2103.00020), alone or with its projection: with the names and options of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from torch import Tensor

from ...errors import ModelError
from ...weights.recipe import Read
from ..family import Operation, Runner
from ..layers import wide
from ..primitives import add, affine, gather, gelu, layer_norm, linear, sdpa, silu
from .encoder import HIDDEN, Epsilon, Size, layers_of

SIGMOID = 1.702  # quick_gelu is x sigmoid(1.702 x)
ACTIVATIONS = ("quick_gelu", "gelu")
CAUSAL = "scores.causal_mask"  # follows from the number of tokens, and is stored with the weights
LARGEST_IS_END = 2  # an end token that older configurations name, and no tokenizer has


class ClipConfig(msgspec.Struct, frozen=True):
    """What of its `config.json` is needed here, with the defaults of transformers."""

    vocab_size: Size = 49408
    hidden_size: Size = 512
    intermediate_size: Size = 2048
    projection_dim: Size = 512
    num_hidden_layers: Size = 12
    num_attention_heads: Size = 8
    max_position_embeddings: Size = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: Epsilon = 1e-5
    eos_token_id: int = 49407


class Clip:
    """Layers of attention to earlier tokens, and of an MLP."""

    sublayers: tuple[str, ...] = ()
    kept: tuple[str, ...] = ("embeddings.position_embedding",)
    wide: tuple[str, ...] = ("scores", "embeddings", "encoder", "final_layer_norm", "text_projection")  # it is small beside T5

    def __init__(self, config: ClipConfig, tokens: int, projected: bool = False) -> None:
        if config.hidden_act not in ACTIVATIONS:
            raise ModelError(f"CLIP with hidden_act={config.hidden_act!r}: only {' and '.join(ACTIVATIONS)} are supported")
        if config.hidden_size % config.num_attention_heads:
            raise ModelError(f"CLIP: its width {config.hidden_size} is no multiple of {config.num_attention_heads} heads")
        if tokens != config.max_position_embeddings:
            raise ModelError(f"CLIP has {config.max_position_embeddings} positions, and its tokenizer {tokens}: save it again")
        self.config, self.tokens, self.projected = config, tokens, projected
        self.end = None if config.eos_token_id == LARGEST_IS_END else config.eos_token_id
        self.blocks = [f"encoder.layers.{n}" for n in range(config.num_hidden_layers)]
        attention = ("layer_norm1", *(f"self_attn.{part}_proj" for part in ("q", "k", "v", "out")))
        self.segments: Mapping[str, Operation] = {
            "embed": Operation(embed, ("token_embedding.weight", "position_embedding.weight")),
            "attention": Operation(self.attention, layers_of(attention)),
            "mlp": Operation(self.mlp, layers_of(("layer_norm2", "mlp.fc1", "mlp.fc2"))),
            "norm": Operation(self.norm, layers_of(("final_layer_norm",))),
            "project": Operation(project, ("weight",)),
        }

    def stored(self) -> dict[str, tuple[int, ...]]:
        c = self.config
        width, hidden = c.hidden_size, c.intermediate_size
        shapes: dict[str, tuple[int, ...]] = {
            "embeddings.token_embedding.weight": (c.vocab_size, width),
            "embeddings.position_embedding.weight": (c.max_position_embeddings, width),
        }
        layers: dict[str, tuple[int, ...]] = {"final_layer_norm": (width,)}
        for block in self.blocks:
            layers |= {f"{block}.layer_norm{n}": (width,) for n in (1, 2)}
            layers |= {f"{block}.self_attn.{part}_proj": (width, width) for part in ("q", "k", "v", "out")}
            layers |= {f"{block}.mlp.fc1": (hidden, width), f"{block}.mlp.fc2": (width, hidden)}
        for name, shape in layers.items():
            shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]
        return shapes | ({"text_projection.weight": (c.projection_dim, width)} if self.projected else {})

    def widths(self, outputs: tuple[str, ...]) -> dict[str, int]:
        pooled = self.config.projection_dim if self.projected else self.config.hidden_size
        return {name: pooled if name == "pooled" else self.config.hidden_size for name in outputs}

    def tensors(self) -> dict[str, tuple[int, ...]]:
        return {**self.stored(), CAUSAL: (1, 1, self.tokens, self.tokens)}

    def derived(self, name: str, read: Read) -> np.ndarray:
        """That a token looks at no later one."""
        later: np.ndarray = np.triu(np.ones((1, 1, self.tokens, self.tokens), np.float32), 1)
        later *= np.float32(HIDDEN)
        return later

    def call(self, run: Runner, ids: Any, mask: Any, outputs: tuple[str, ...]) -> None:
        causal = run.weight(CAUSAL)
        *others, last = self.blocks
        h = run("embed", ids, at="embeddings", name="" if others else "penultimate")
        for block in others:
            h = run("attention", h, causal, at=block)
            h = run("mlp", h, at=block, name="penultimate" if block == others[-1] else "")
        h = run("mlp", run("attention", h, causal, at=last), at=last)
        h = run("norm", h, name="last" if self.projected else "pooled")
        if self.projected:
            run("project", h, at="text_projection", name="pooled")

    # the operations: activations, then weights

    def attention(self, h: Tensor, causal: Tensor, norm: Tensor, shift: Tensor, *weights: Tensor) -> Any:
        """h (R, T, D) -> (R, T, D)."""
        q, query_bias, k, key_bias, v, value_bias, out, bias = map(wide, weights)
        x = self.norm(h, norm, shift)
        parts = linear(x, q, query_bias), linear(x, k, key_bias), linear(x, v, value_bias)
        return add(h, linear(sdpa(*parts, wide(causal), heads=self.config.num_attention_heads), out, bias))

    def mlp(self, h: Tensor, norm: Tensor, shift: Tensor, *weights: Tensor) -> Any:
        """h (R, T, D) -> (R, T, D)."""
        up, up_bias, down, bias = map(wide, weights)
        x = linear(self.norm(h, norm, shift), up, up_bias)
        return add(h, linear(self.activation(x), down, bias))

    def activation(self, x: Tensor) -> Any:
        if self.config.hidden_act == "gelu":
            return gelu(x)
        return affine(silu(affine(x, scale=SIGMOID, shift=0.0)), scale=1 / SIGMOID, shift=0.0)

    def norm(self, h: Tensor, weight: Tensor, bias: Tensor) -> Any:
        return layer_norm(h, wide(weight), wide(bias), eps=self.config.layer_norm_eps)


def embed(ids: Tensor, table: Tensor, positions: Tensor) -> Any:
    """(R, T) -> (R, T, D)."""
    return add(wide(gather(table, ids)), wide(positions))


def project(h: Tensor, weight: Tensor) -> Any:
    """h (R, T, D) -> (R, T, P), at every token."""
    return linear(h, wide(weight))
