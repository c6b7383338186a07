"""BERT (arXiv 1810.04805) as an encoder of tokens, as MiniLM and its kin are: with the names and options of transformers."""

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
from ..primitives import add, affine, cast, gather, gelu, gelu_tanh, layer_norm, linear, reshape, sdpa
from .encoder import HIDDEN, Epsilon, Size, layers_of

ACTIVATIONS = {"gelu": gelu, "gelu_new": gelu_tanh, "gelu_pytorch_tanh": gelu_tanh}
WORDS, PLACES, KINDS = (f"embeddings.{name}_embeddings.weight" for name in ("word", "position", "token_type"))
OFFSETS = "embeddings.offsets.table"  # follow from the tables of places and of kinds, and are stored with the weights
PARTS = ("query", "key", "value")


class BertConfig(msgspec.Struct, frozen=True):
    """What of its `config.json` is needed here, with the defaults of transformers."""

    vocab_size: Size = 30522
    hidden_size: Size = 768
    num_hidden_layers: Size = 12
    num_attention_heads: Size = 12
    intermediate_size: Size = 3072
    hidden_act: str = "gelu"
    max_position_embeddings: Size = 512
    type_vocab_size: Size = 2
    layer_norm_eps: Epsilon = 1e-12
    position_embedding_type: str = "absolute"
    is_decoder: bool = False


class Bert:
    """Layers of attention and of an MLP, each with a norm behind its sum."""

    sublayers: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    end: int | None = None  # nothing is pooled

    def __init__(self, config: BertConfig, tokens: int) -> None:
        if config.hidden_act not in ACTIVATIONS:
            known = " and ".join(ACTIVATIONS)
            raise ModelError(f"BERT with hidden_act={config.hidden_act!r}: only {known} are supported")
        if config.position_embedding_type != "absolute" or config.is_decoder:
            odd = "is_decoder=true" if config.is_decoder else f"position_embedding_type={config.position_embedding_type!r}"
            raise ModelError(f"BERT with {odd}: only an encoder with absolute positions is supported")
        if config.hidden_size % config.num_attention_heads:
            raise ModelError(f"BERT: its width {config.hidden_size} is no multiple of {config.num_attention_heads} heads")
        if tokens > config.max_position_embeddings:
            raise ModelError(f"BERT has {config.max_position_embeddings} positions, not {tokens}: use tokens=.. for fewer")
        self.config, self.tokens = config, tokens
        self.blocks = [f"encoder.layer.{n}" for n in range(config.num_hidden_layers)]
        norms = [f"{block}.{part}output.LayerNorm" for block in self.blocks for part in ("attention.", "")]
        self.wide = ("scores", "embeddings.offsets", "embeddings.LayerNorm", *norms)
        attention = (*(f"attention.self.{part}" for part in PARTS), "attention.output.dense", "attention.output.LayerNorm")
        self.segments: Mapping[str, Operation] = {
            "embed": Operation(self.embed, ("word_embeddings.weight", "offsets.table", "LayerNorm.weight", "LayerNorm.bias")),
            "mask": Operation(self.mask),
            "attention": Operation(self.attention, layers_of(attention)),
            "mlp": Operation(self.mlp, layers_of(("intermediate.dense", "output.dense", "output.LayerNorm"))),
        }

    def stored(self) -> dict[str, tuple[int, ...]]:
        c = self.config
        width, hidden = c.hidden_size, c.intermediate_size
        shapes: dict[str, tuple[int, ...]] = {
            WORDS: (c.vocab_size, width),
            PLACES: (c.max_position_embeddings, width),
            KINDS: (c.type_vocab_size, width),
        }
        layers: dict[str, tuple[int, ...]] = {"embeddings.LayerNorm": (width,)}
        for block in self.blocks:
            layers |= {f"{block}.attention.self.{part}": (width, width) for part in PARTS}
            layers |= {f"{block}.attention.output.dense": (width, width), f"{block}.attention.output.LayerNorm": (width,)}
            layers |= {f"{block}.intermediate.dense": (hidden, width), f"{block}.output.dense": (width, hidden)}
            layers[f"{block}.output.LayerNorm"] = (width,)
        for name, shape in layers.items():
            shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]
        return shapes

    def widths(self, outputs: tuple[str, ...]) -> dict[str, int]:
        return dict.fromkeys(outputs, self.config.hidden_size)

    def tensors(self) -> dict[str, tuple[int, ...]]:
        read = {name: shape for name, shape in self.stored().items() if name not in (PLACES, KINDS)}
        return {**read, OFFSETS: (self.tokens, self.config.hidden_size)}

    def derived(self, name: str, read: Read) -> np.ndarray:
        """What is added to the word at every place: all of a text are of the first kind."""
        table: np.ndarray = read(PLACES)[: self.tokens] + read(KINDS)[:1]
        return table

    def call(self, run: Runner, ids: Any, mask: Any, outputs: tuple[str, ...]) -> None:
        assert mask is not None, "every pipeline tells it what is padding"
        seen = run("mask", mask, name="scores")
        h = run("embed", ids, at="embeddings")
        for block in self.blocks:
            h = run("attention", h, seen, at=block)
            h = run("mlp", h, at=block, name="last" if block == self.blocks[-1] else "")

    # the operations: activations, then weights

    def embed(self, ids: Tensor, table: Tensor, offsets: Tensor, norm: Tensor, shift: Tensor) -> Any:
        """(R, T) -> (R, T, D)."""
        return self.norm(add(wide(gather(table, ids)), wide(offsets)), norm, shift)

    def mask(self, mask: Tensor) -> Any:
        """(R, T) -> (R, 1, 1, T)."""
        seen = affine(cast(mask, dtype="float32"), scale=-HIDDEN, shift=HIDDEN)
        return reshape(seen, shape=(-1, 1, 1, self.tokens))

    def attention(self, h: Tensor, scores: Tensor, *weights: Tensor) -> Any:
        """h (R, T, D) -> (R, T, D)."""
        q, query_bias, k, key_bias, v, value_bias, out, bias, norm, shift = map(wide, weights)
        parts = linear(h, q, query_bias), linear(h, k, key_bias), linear(h, v, value_bias)
        mixed = sdpa(*parts, scores, heads=self.config.num_attention_heads)
        return self.norm(add(linear(mixed, out, bias), h), norm, shift)

    def mlp(self, h: Tensor, *weights: Tensor) -> Any:
        """h (R, T, D) -> (R, T, D)."""
        up, up_bias, down, bias, norm, shift = map(wide, weights)
        x = ACTIVATIONS[self.config.hidden_act](linear(h, up, up_bias))
        return self.norm(add(linear(x, down, bias), h), norm, shift)

    def norm(self, h: Tensor, weight: Tensor, bias: Tensor) -> Any:
        return layer_norm(h, wide(weight), wide(bias), eps=self.config.layer_norm_eps)
