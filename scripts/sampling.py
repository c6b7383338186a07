"""Images by a schedule, through the project's own PyTorch loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from l2c_export import Schedule
from l2c_export.compiler.passes.levels import spans, with_levels
from l2c_export.compiler.record import record
from l2c_export.models.family import Family
from l2c_export.pytorch.eager import Denoiser, Earlier
from l2c_export.samplers.noise import standard_normal
from l2c_export.schedules.forecast import Terms
from l2c_export.schedules.resolve import forecasts
from l2c_export.schedules.values import STACK


class Step(NamedTuple):
    """A call of a schedule with its sampler's coefficients."""

    timestep: float
    computed: tuple[int, ...]
    reused: tuple[int, ...]
    derived: dict[str, Terms]
    coefficients: tuple[float, ...]
    ends_step: bool


class DemoDenoiser(Denoiser):
    """The loop for a model whose blocks may be jumped over: where the stack follows, they are not computed for nothing."""

    def __init__(self, family: Family, weights: dict[str, Tensor]) -> None:
        super().__init__(family, weights, spans=spans(with_levels(record(family), (STACK,))))

    def _evaluate(self, n: int, reused: frozenset[str], *inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        *arguments, cache = inputs
        if STACK in cache:
            nothing = Earlier((arguments[0].new_zeros(()),), None)
            cache = {**dict.fromkeys(self.family.sublayers, nothing), **cache}
        return super()._evaluate(n, frozenset(cache), *arguments, cache)


def steps_of(schedule: Schedule) -> list[Step]:
    derived = forecasts(schedule.cacheable, schedule.calls)
    return [
        Step(call.timestep, call.computed, call.reused, terms, update.coefficients, update.ends_step)
        for call, terms, update in zip(schedule.calls, derived, schedule.table().updates, strict=True)
    ]


def sample(denoiser: Denoiser, schedule: Schedule, noise: Tensor, labels: Tensor, scale: float, batch: int = 500) -> Tensor:
    """Final latents (N, C, H, W) for noise of that shape and labels (N,), with a guidance scale on all channels."""
    family, steps = denoiser.family, steps_of(schedule)
    strength = torch.full((1, family.latent[0], 1, 1), scale - 1, device=noise.device)
    samples = []
    for x, y in zip(noise.split(batch), labels.int().split(batch), strict=True):
        rows = torch.cat([y, torch.full_like(y, family.inputs[0].unconditional)]) if scale != 1 else y
        samples.append(denoiser(steps, x, {"class_labels": rows}, strength))
    return torch.cat(samples)


def noise_of(latent: tuple[int, int, int], seeds: Sequence[int], device: torch.device) -> Tensor:
    """The noise that `l2c run` uses for these seeds."""
    return torch.from_numpy(standard_normal(latent, seeds)).to(device)


def grid(images: Tensor, columns: int) -> np.ndarray:
    """Images (N, 1, H, W) in -1..1, row by row, as one picture (uint8); dark on light, which prints better."""
    n, _, height, width = images.shape
    tiles = (255 - (images.clamp(-1, 1) * 127.5 + 127.5)).round().byte().cpu().numpy()
    return tiles.reshape(n // columns, columns, height, width).transpose(0, 2, 1, 3).reshape(-1, columns * width)
