"""What has to be said of a transformer of diffusers, so that its own module can be captured: which input is what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import torch
from torch import Tensor

from ...ir.inputs import RequestInput

Config = Mapping[str, Any]


def sides(config: Config) -> tuple[int, int]:
    """Height and width of the latents, where a request for another size is not made."""
    size = config["sample_size"]
    return (size, size) if isinstance(size, int) else (size[0], size[1])


@dataclass(frozen=True)
class Adapter:
    """One class of diffusers.

    `call` (model, x, t, and what a request says by name) returns the prediction, (R, C or more, H, W), of latents x
    (R, C, H, W) at timesteps t (R,), from 0 to 1000.
    """

    call: Callable[..., Tensor]
    inputs: Callable[[Config, int], tuple[RequestInput, ...]]  # of a number of tokens
    tokens: int  # of a prompt, where nothing else is said
    small: Callable[[Config], Config]  # the options of a model of the same structure and few parameters
    sublayers: Callable[[Config], int]  # how many there are, whatever capturing finds
    channels: Callable[[Config], int] = lambda config: int(config["in_channels"])
    sides: Callable[[Config], tuple[int, int]] = sides
    guidance: Callable[[Config], tuple[str, float]] = lambda config: ("all", 4.5)
    from_one: bool = False  # whether its pipeline tells a scheduler of flows to begin at the level 1
    patch: Callable[[Config], int] = lambda config: int(config["patch_size"])  # latents a token, along each side


def prompt(width: int, tokens: int, unconditional: bool = True) -> RequestInput:
    """The embedding of a text."""
    return given("prompt_embeds", (tokens, width), unconditional)


def given(name: str, shape: tuple[int, ...], unconditional: bool = True) -> RequestInput:
    """An array that a request gives, and for the unconditional half another one."""
    return RequestInput(name=name, shape=shape, negative=f"negative_{name}" if unconditional else msgspec.UNSET)


def pixart(model: Any, x: Tensor, t: Tensor, prompt_embeds: Tensor, prompt_attention_mask: Tensor) -> Tensor:
    """PixArt-alpha of 1024 px is told the size of the pictures, too."""
    height, width = 8.0 * x.shape[2], 8.0 * x.shape[3]
    micro = {"resolution": [[height, width]], "aspect_ratio": [[height / width]]}
    told = model.use_additional_conditions
    conditions = {n: torch.tensor(v, dtype=x.dtype).expand(x.shape[0], -1) if told else None for n, v in micro.items()}
    made: Tensor = model(
        x, encoder_hidden_states=prompt_embeds, encoder_attention_mask=prompt_attention_mask.to(x.dtype), timestep=t,
        added_cond_kwargs=conditions, return_dict=False,
    )[0]  # fmt: skip
    return made


def pixart_inputs(config: Config, tokens: int) -> tuple[RequestInput, ...]:
    mask = RequestInput(
        name="prompt_attention_mask", shape=(tokens,), dtype="int32", choices=2, negative="negative_prompt_attention_mask"
    )
    return (prompt(config["caption_channels"], tokens), mask)


def pixart_small(config: Config) -> Config:
    return {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 12, "cross_attention_dim": 24,
            "caption_channels": 16}  # fmt: skip


PIXART = Adapter(pixart, pixart_inputs, 300, pixart_small, lambda config: 3 * int(config["num_layers"]))


def sd3(model: Any, x: Tensor, t: Tensor, prompt_embeds: Tensor, pooled_prompt_embeds: Tensor) -> Tensor:
    made: Tensor = model(
        x, encoder_hidden_states=prompt_embeds, pooled_projections=pooled_prompt_embeds, timestep=t, return_dict=False
    )[0]
    return made


def sd3_inputs(config: Config, tokens: int) -> tuple[RequestInput, ...]:
    pooled = given("pooled_prompt_embeds", (config["pooled_projection_dim"],))
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
    rows, channels, height, width = x.shape
    h, w = height // 2, width // 2
    packed = x.reshape(rows, channels, h, 2, w, 2).permute(0, 2, 4, 1, 3, 5).reshape(rows, h * w, 4 * channels)
    down, along = torch.meshgrid(torch.arange(h).float(), torch.arange(w).float(), indexing="ij")
    places = torch.stack([torch.zeros(h, w), down, along], -1).reshape(h * w, 3)
    made = model(
        packed, encoder_hidden_states=prompt_embeds, pooled_projections=pooled_prompt_embeds, timestep=t / 1000,
        guidance=embedded_guidance, img_ids=places, txt_ids=torch.zeros(prompt_embeds.shape[1], 3), return_dict=False,
    )[0]  # fmt: skip
    unpacked: Tensor = made.reshape(rows, h, w, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return unpacked.reshape(rows, channels, height, width)


def flux_inputs(config: Config, tokens: int) -> tuple[RequestInput, ...]:
    pooled = given("pooled_prompt_embeds", (config["pooled_projection_dim"],), unconditional=False)
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

ADAPTERS = {"pixart": PIXART, "sd3": SD3, "flux": FLUX}  # by family
