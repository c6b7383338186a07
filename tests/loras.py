"""LoRAs of random numbers, as trainings write them, and what they add by definition: scale * alpha / rank * up @ down."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file


class Factors(NamedTuple):
    """Of one module."""

    down: torch.Tensor
    up: torch.Tensor
    alpha: float | None = None

    @property
    def product(self) -> torch.Tensor:
        """What it adds, in float64."""
        rank = len(self.down)
        matrix = torch.einsum("or,ri->oi", self.up.double().flatten(1), self.down.double().flatten(1))
        return matrix.reshape(len(self.up), *self.down.shape[1:]) * ((self.alpha or rank) / rank)


Factored = Mapping[str, Factors]


def factors(shapes: Mapping[str, tuple[int, ...]], seed: int = 0, alpha: float | None = None) -> dict[str, Factors]:
    """For modules with weights of these shapes, each of a rank of its own."""
    by_module, generator = {}, torch.Generator().manual_seed(seed)
    for n, (module, (rows, *others)) in enumerate(shapes.items()):
        rank, kernel = 2 + n % 3, others[1:]
        down = torch.randn((rank, *others), generator=generator) * 0.2
        up = torch.randn((rows, rank, *(1 for _ in kernel)), generator=generator) * 0.2
        by_module[module] = Factors(down, up, None if alpha is None else alpha + n)
    return by_module


def merged(state: Mapping[str, torch.Tensor], *scaled: tuple[Factored, float]) -> dict[str, torch.Tensor]:
    """A transformer's tensors with several LoRAs, each with its scale."""
    sums = {name: tensor.double() for name, tensor in state.items()}
    for lora, scale in scaled:
        for module, factor in lora.items():
            sums[f"{module}.weight"] = sums[f"{module}.weight"] + scale * factor.product
    return {name: tensor.to(state[name].dtype) for name, tensor in sums.items()}


def diffusers_name(module: str, part: str) -> str:
    return f"transformer.{module}." + {"down": "lora_A.weight", "up": "lora_B.weight", "alpha": "alpha"}[part]


def older_name(module: str, part: str) -> str:
    return f"transformer.{module}." + {"down": "lora.down.weight", "up": "lora.up.weight", "alpha": "alpha"}[part]


def kohya_name(module: str, part: str, before: str = "lora_unet_") -> str:
    flat = before + module.replace(".", "_")
    return f"{flat}." + {"down": "lora_down.weight", "up": "lora_up.weight", "alpha": "alpha"}[part]


Name = Callable[[str, str], str]


def tensors(lora: Factored, name: Name = diffusers_name) -> dict[str, torch.Tensor]:
    """What a file holds."""
    state = {}
    for module, factor in lora.items():
        state |= {name(module, "down"): factor.down.clone(), name(module, "up"): factor.up.clone()}
        if factor.alpha is not None:
            state[name(module, "alpha")] = torch.tensor(factor.alpha)
    return state


def saved(path: Path, lora: Factored, name: Name = diffusers_name, **more: torch.Tensor) -> Path:
    """A file of them: of torch.save where it is called so."""
    held = tensors(lora, name) | more
    if path.suffix == ".safetensors":
        save_file(held, path)
    else:
        torch.save(held, path)
    return path
