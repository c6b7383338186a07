"""Sana (arXiv 2410.10629): linear attention to itself, attention to the prompt, and an MLP of convolutions."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...ir.inputs import RequestInput
from .adapter import Adapter, Config, mask, prompt


def call(model: Any, x: Tensor, t: Tensor, prompt_embeds: Tensor, prompt_attention_mask: Tensor) -> Tensor:
    prediction: Tensor = model(
        x, encoder_hidden_states=prompt_embeds, encoder_attention_mask=prompt_attention_mask.to(x.dtype),
        timestep=t * model.config.timestep_scale, return_dict=False,
    )[0]  # fmt: skip
    return prediction


def inputs(config: Config, tokens: int) -> tuple[RequestInput, ...]:
    return (prompt(config["caption_channels"], tokens), mask("prompt_attention_mask", tokens))


def small(config: Config) -> Config:
    return {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8, "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 8, "cross_attention_dim": 16, "caption_channels": 16}  # fmt: skip


SANA = Adapter(call, inputs, 300, small, lambda config: 3 * int(config["num_layers"]))
