"""Qwen-Image (arXiv 2508.02324): blocks of two streams over latents that are packed, two by two.

Its pipeline guides by predictions whose lengths it then changes token by token, which no sampler here does: it is compiled
without guidance, for a scale of 1.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...ir.inputs import RequestInput
from .adapter import Adapter, Config, mask, packed, prompt, unpacked


def call(model: Any, x: Tensor, t: Tensor, prompt_embeds: Tensor, prompt_embeds_mask: Tensor) -> Tensor:
    prediction: Tensor = model(
        packed(x), encoder_hidden_states=prompt_embeds, encoder_hidden_states_mask=prompt_embeds_mask, timestep=t / 1000,
        img_shapes=[[(1, x.shape[2] // 2, x.shape[3] // 2)]], return_dict=False,
    )[0]  # fmt: skip
    return unpacked(prediction, x)


def inputs(config: Config, tokens: int) -> tuple[RequestInput, ...]:
    return (prompt(config["joint_attention_dim"], tokens, False), mask("prompt_embeds_mask", tokens, False))


def small(config: Config) -> Config:
    return {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16, "joint_attention_dim": 16,
            "axes_dims_rope": [4, 6, 6]}  # fmt: skip


QWEN_IMAGE = Adapter(
    call, inputs, 512, small,
    lambda config: 3 * int(config["num_layers"]) - 1,  # joint attention and two MLPs; the last block has none for the text
    channels=lambda config: int(config["in_channels"]) // 4,
    sides=lambda config: (128, 128),
    guidance=lambda config: ("none", 1.0),
    from_one=True,
    patch=lambda config: 2,
)  # fmt: skip
