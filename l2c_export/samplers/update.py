"""One call of a sampler as data."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Update(NamedTuple):
    """One call of the sampler."""

    timestep: float  # what the model is told, on the scale 0..1000
    coefficients: tuple[float, ...]  # float32 values
    ends_step: bool  # whether a solver step is complete after this call
    signal: float  # noised data at this timestep are signal * data + noise * standard normal
    noise: float


class Table(NamedTuple):
    """A sampler, call by call."""

    updates: tuple[Update, ...]
    history: int = 0  # how many earlier data predictions a call reads
    noise_scale: float = 1.0  # what the first latents are, in standard deviations


def float32(*values: float) -> tuple[float, ...]:
    """Coefficients, rounded once from float64."""
    return tuple(float(np.float32(value)) for value in values)
