"""What has to be said of a class of diffusers, so that its own module can be captured: which input is what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
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
    sublayers: Callable[[Config], int | None]  # how many there are, whatever capturing finds; None: nobody knows
    channels: Callable[[Config], int] = lambda config: int(config["in_channels"])
    sides: Callable[[Config], tuple[int, int]] = sides
    guidance: Callable[[Config], tuple[str, float]] = lambda config: ("all", 4.5)
    from_one: bool = False  # whether its pipeline tells a scheduler of flows to begin at the level 1
    patch: Callable[[Config], int] = lambda config: int(config["patch_size"])  # latents a token, along each side


def prompt(width: int, tokens: int, unconditional: bool = True) -> RequestInput:
    """The embedding of a text."""
    return array_input("prompt_embeds", (tokens, width), unconditional)


def array_input(name: str, shape: tuple[int, ...], unconditional: bool = True) -> RequestInput:
    """An array that a request gives, and for the unconditional half another one."""
    return RequestInput(name=name, shape=shape, negative=f"negative_{name}" if unconditional else msgspec.UNSET)


def mask(name: str, tokens: int, unconditional: bool = True) -> RequestInput:
    """Which tokens of a prompt count: 1, and 0 for the others."""
    negative = f"negative_{name}" if unconditional else msgspec.UNSET
    return RequestInput(name=name, shape=(tokens,), dtype="int32", choices=2, negative=negative)


def packed(x: Tensor) -> Tensor:
    """Latents (R, C, H, W) as tokens (R, T, 4 C) of two by two."""
    rows, channels, height, width = x.shape
    pairs = x.reshape(rows, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return pairs.reshape(rows, (height // 2) * (width // 2), 4 * channels)


def unpacked(tokens: Tensor, like: Tensor) -> Tensor:
    """The reverse, for latents `like`."""
    rows, channels, height, width = like.shape
    pairs = tokens.reshape(rows, height // 2, width // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return pairs.reshape(rows, channels, height, width)
