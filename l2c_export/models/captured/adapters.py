"""The adapters: PixArt, Stable Diffusion 3 and FLUX here, the others in files of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...ir.inputs import RequestInput
from .adapter import Adapter, Config, array_input, mask, packed, prompt, unpacked
from .aura_flow import AURAFLOW
from .qwen_image import QWEN_IMAGE
from .sana import SANA
from .signature import by_signature


def pixart(model: Any, x: Tensor, t: Tensor, prompt_embeds: Tensor, prompt_attention_mask: Tensor) -> Tensor:
    """PixArt-alpha of 1024 px is told the size of the pictures, too."""
    height, width = 8.0 * x.shape[2], 8.0 * x.shape[3]
    micro = {"resolution": [[height, width]], "aspect_ratio": [[height / width]]}
    told = model.use_additional_conditions
    conditions = {n: torch.tensor(v, dtype=x.dtype).expand(x.shape[0], -1) if told else None for n, v in micro.items()}
    prediction: Tensor = model(
        x, encoder_hidden_states=prompt_embeds, encoder_attention_mask=prompt_attention_mask.to(x.dtype), timestep=t,
        added_cond_kwargs=conditions, return_dict=False,
    )[0]  # fmt: skip
    return prediction


def pixart_inputs(config: Config, tokens: int) -> tuple[RequestInput, ...]:
    return (prompt(config["caption_channels"], tokens), mask("prompt_attention_mask", tokens))


def pixart_small(config: Config) -> Config:
    return {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 12, "cross_attention_dim": 24,
            "caption_channels": 16}  # fmt: skip


PIXART = Adapter(pixart, pixart_inputs, 300, pixart_small, lambda config: 3 * int(config["num_layers"]))


def sd3(model: Any, x: Tensor, t: Tensor, prompt_embeds: Tensor, pooled_prompt_embeds: Tensor) -> Tensor:
    prediction: Tensor = model(
        x, encoder_hidden_states=prompt_embeds, pooled_projections=pooled_prompt_embeds, timestep=t, return_dict=False
    )[0]
    return prediction


def sd3_inputs(config: Config, tokens: int) -> tuple[RequestInput, ...]:
    pooled = array_input("pooled_prompt_embeds", (config["pooled_projection_dim"],))
    return (prompt(config["joint_attention_dim"], tokens), pooled)


def sd3_sublayers(config: Config) -> int:
    """Joint attention and two MLPs, a second attention in some; the last block has no MLP for the text."""
    return 3 * int(config["num_layers"]) - 1 + len(config.get("dual_attention_layers") or ())


def sd3_small(config: Config) -> Config:
    """With a block of either kind, and the last."""
    dual = [0] if config.get("dual_attention_layers") else []
    return {"num_layers": 3, "num_attention_heads": 2, "attention_head_dim": 12, "caption_projection_dim": 24,
            "joint_attention_dim": 16, "pooled_projection_dim": 20, "dual_attention_layers": dual}  # fmt: skip


SD3 = Adapter(sd3, sd3_inputs, 333, sd3_small, sd3_sublayers, guidance=lambda config: ("all", 7.0))


def flux(model: Any, x: Tensor, t: Tensor, prompt_embeds: Tensor, pooled_prompt_embeds: Tensor,
         embedded_guidance: Tensor | None = None) -> Tensor:  # fmt: skip
    """Latents are packed, two by two; text tokens are all at the origin."""
    h, w = x.shape[2] // 2, x.shape[3] // 2
    down, along = torch.meshgrid(torch.arange(h).float(), torch.arange(w).float(), indexing="ij")
    places = torch.stack([torch.zeros(h, w), down, along], -1).reshape(h * w, 3)
    prediction: Tensor = model(
        packed(x), encoder_hidden_states=prompt_embeds, pooled_projections=pooled_prompt_embeds, timestep=t / 1000,
        guidance=embedded_guidance, img_ids=places, txt_ids=torch.zeros(prompt_embeds.shape[1], 3), return_dict=False,
    )[0]  # fmt: skip
    return unpacked(prediction, x)


def flux_inputs(config: Config, tokens: int) -> tuple[RequestInput, ...]:
    pooled = array_input("pooled_prompt_embeds", (config["pooled_projection_dim"],), unconditional=False)
    strength = (RequestInput(name="embedded_guidance", known="guidance"),) if config["guidance_embeds"] else ()
    return (prompt(config["joint_attention_dim"], tokens, unconditional=False), pooled, *strength)


def flux_sublayers(config: Config) -> int:
    """Joint attention and two MLPs; a single block is one."""
    return 3 * int(config["num_layers"]) + int(config["num_single_layers"])


def flux_small(config: Config) -> Config:
    return {"num_layers": 2, "num_single_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16,
            "joint_attention_dim": 16, "pooled_projection_dim": 20, "axes_dims_rope": [4, 6, 6]}  # fmt: skip


FLUX = Adapter(
    flux, flux_inputs, 512, flux_small, flux_sublayers,
    channels=lambda config: int(config["in_channels"]) // 4,
    sides=lambda config: (128, 128),
    guidance=lambda config: ("embedded", 3.5) if config["guidance_embeds"] else ("ignored", 1.0),
    from_one=True,
    patch=lambda config: 2,
)  # fmt: skip

# By family.
ADAPTERS = {"pixart": PIXART, "sd3": SD3, "flux": FLUX, "auraflow": AURAFLOW, "sana": SANA, "qwenimage": QWEN_IMAGE}


def adapter_of(family: str, kind: str) -> Adapter:
    """That of a family, or what the signature of class `kind` says.  Raises ModelError where that is not enough."""
    return ADAPTERS.get(family) or by_signature(kind)
