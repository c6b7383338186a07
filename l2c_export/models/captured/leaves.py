"""Modules of diffusers that are one primitive of ours, and are captured as such."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..primitives import linear_attention, sinusoid


@torch.library.custom_op("l2c_export::sinusoid", mutates_args=())
def sinusoid_op(t: Tensor, half: int, shift: int) -> Tensor:
    """t (N,) -> (N, 2 half), cosines first: the primitive, which the exporter takes for one operation."""
    embedding: Tensor = sinusoid(t.float(), half=half, shift=shift)
    return embedding


@sinusoid_op.register_fake
def _(t: Tensor, half: int, shift: int) -> Tensor:
    return t.new_empty((t.shape[0], 2 * half), dtype=torch.float32)


class Sinusoid(nn.Module):
    """`Timesteps` of diffusers, where it is the primitive: with cosines first."""

    def __init__(self, half: int, shift: int, scale: float) -> None:
        super().__init__()
        self.waves, self.lowered, self.scale = half, shift, scale

    def forward(self, t: Tensor) -> Tensor:
        embedding: Tensor = sinusoid_op(t if self.scale == 1 else t * self.scale, self.waves, self.lowered)
        return embedding


@torch.library.custom_op("l2c_export::linear_attention", mutates_args=())
def linear_attention_op(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """q, k and v (R, T, D) -> (R, T, D): the primitive."""
    mixture: Tensor = linear_attention(q, k, v, heads=heads)
    return mixture.contiguous()


@linear_attention_op.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    return torch.empty_like(v)


class LinearAttention:
    """`SanaLinearAttnProcessor2_0` of diffusers."""

    def __call__(self, attn: Any, x: Tensor, encoder_hidden_states: Any = None, attention_mask: Any = None) -> Tensor:
        q, k, v = attn.to_q(x), attn.to_k(x), attn.to_v(x)
        q = q if attn.norm_q is None else attn.norm_q(q)
        k = k if attn.norm_k is None else attn.norm_k(k)
        output: Tensor = attn.to_out[1](attn.to_out[0](linear_attention_op(q, k, v, attn.heads)))
        return output


def with_leaves(model: nn.Module) -> nn.Module:
    """The model, changed in place."""
    module: Any
    for name, module in list(model.named_modules()):
        if type(module).__name__ == "Timesteps" and _is_sinusoid(module):
            owner, _, last = name.rpartition(".")
            setattr(
                model.get_submodule(owner),
                last,
                Sinusoid(module.num_channels // 2, int(module.downscale_freq_shift), module.scale),
            )
        if type(getattr(module, "processor", None)).__name__ == "SanaLinearAttnProcessor2_0":
            module.processor = LinearAttention()
        if type(module).__name__ == "PixArtAlphaCombinedTimestepSizeEmbeddings" and module.use_additional_conditions:
            module.forward = partial(one_size, module)
    return model


def one_size(
    module: Any, timestep: Tensor, resolution: Tensor, aspect_ratio: Tensor, batch_size: int, hidden_dtype: Any
) -> Tensor:
    """The module's own forward, where all rows of a batch are pictures of one size: it embeds the size of the first."""
    conditions = (
        embedder(module.additional_condition_proj(condition[:1].flatten()).to(hidden_dtype)).reshape(1, -1)
        for embedder, condition in ((module.resolution_embedder, resolution), (module.aspect_ratio_embedder, aspect_ratio))
    )
    time: Tensor = module.timestep_embedder(module.time_proj(timestep).to(dtype=hidden_dtype))
    return time + torch.cat(list(conditions), dim=1)


def _is_sinusoid(module: Any) -> bool:
    fits = module.num_channels % 2 == 0 and int(module.downscale_freq_shift) == module.downscale_freq_shift
    return bool(fits and module.flip_sin_to_cos)
