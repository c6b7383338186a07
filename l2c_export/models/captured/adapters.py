"""What has to be said of a transformer of diffusers, so that its own module can be captured: which input is what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

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

    `call` (model, x, t, and what a request says by name) returns the prediction, (R, C or more, H, W), of latents x (R, C, H, W)
    at timesteps t (R,), from 0 to 1000.
    """

    call: Callable[..., Tensor]
    inputs: Callable[[Config, int], tuple[RequestInput, ...]]  # of a number of tokens
    tokens: int  # of a prompt, where nothing else is said
    sublayers: Callable[[Config], int]  # how many there are, whatever capturing finds
    channels: Callable[[Config], int] = lambda config: int(config["in_channels"])
    sides: Callable[[Config], tuple[int, int]] = sides


def prompt(width: int, tokens: int, unconditional: bool = True) -> RequestInput:
    """The embedding of a text."""
    return given("prompt_embeds", (tokens, width), unconditional)


def given(name: str, shape: tuple[int, ...], unconditional: bool = True) -> RequestInput:
    """An array that a request gives, and for the unconditional half another one."""
    return RequestInput(name=name, shape=shape, **({"negative": f"negative_{name}"} if unconditional else {}))


def pixart(model: Any, x: Tensor, t: Tensor, prompt_embeds: Tensor, prompt_attention_mask: Tensor) -> Tensor:
    made: Tensor = model(
        x, encoder_hidden_states=prompt_embeds, encoder_attention_mask=prompt_attention_mask.to(x.dtype), timestep=t,
        added_cond_kwargs={"resolution": None, "aspect_ratio": None}, return_dict=False,
    )[0]  # fmt: skip
    return made


def pixart_inputs(config: Config, tokens: int) -> tuple[RequestInput, ...]:
    mask = RequestInput(
        name="prompt_attention_mask", shape=(tokens,), dtype="int32", choices=2, negative="negative_prompt_attention_mask"
    )
    return (prompt(config["caption_channels"], tokens), mask)


PIXART = Adapter(pixart, pixart_inputs, 300, lambda config: 3 * int(config["num_layers"]))
