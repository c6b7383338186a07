"""AuraFlow: blocks of two streams, then blocks of one; a prompt's empty tokens are zeros, and no mask tells of them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...ir.inputs import RequestInput
from .adapter import Adapter, Config, prompt


def call(model: Any, x: Tensor, t: Tensor, prompt_embeds: Tensor) -> Tensor:
    prediction: Tensor = model(x, encoder_hidden_states=prompt_embeds, timestep=t / 1000, return_dict=False)[0]
    return prediction


def inputs(config: Config, tokens: int) -> tuple[RequestInput, ...]:
    return (prompt(config["joint_attention_dim"], tokens),)


def small(config: Config) -> Config:
    """With blocks of either kind, if it has both."""
    layers = {name: min(2, int(config[name])) for name in ("num_mmdit_layers", "num_single_dit_layers")}
    return {**layers, "num_attention_heads": 2, "attention_head_dim": 8, "joint_attention_dim": 16,
            "caption_projection_dim": 16, "pos_embed_max_size": 64}  # fmt: skip


def sublayers(config: Config) -> int:
    """Joint attention and two MLPs; attention and MLP.  Without the latter blocks the last text has no reader."""
    joint, single = int(config["num_mmdit_layers"]), int(config["num_single_dit_layers"])
    return 3 * joint + 2 * single - (not single)


AURAFLOW = Adapter(call, inputs, 256, small, sublayers, guidance=lambda config: ("all", 3.5))
