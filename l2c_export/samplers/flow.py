"""FlowMatchEulerDiscreteScheduler and FlowMatchHeunDiscreteScheduler of diffusers as tables (arXiv 2210.02747, 2403.03206).

Latents are (1 - sigma) data + sigma noise, and the model predicts noise - data: a step adds (sigma' - sigma) of it.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from .scheduler_config import Scheduler
from .update import Table, Update, float32


def flow_euler(s: Scheduler, steps: int) -> Table:
    """Every step's noise level as the scheduler computes it, in its types."""
    updates = []
    for now, after in itertools.pairwise([*_sigmas(s, steps), np.float32(0)]):
        updates.append(_at(s, now, float32(0.0, 1.0, float(after - now)), True))
    return Table(tuple(updates))


def flow_heun(s: Scheduler, steps: int) -> Table:
    """Heun's method, two calls a step but for the last: the mean of two slopes, the first of which is (x - base) / width."""
    sigmas = _shifted(s, _spaced(s, steps)).astype(np.float32)
    updates = []
    for now, after in itertools.pairwise([*sigmas, np.float32(0)]):
        width, ends = float(after - now), after == 0
        updates.append(_at(s, now, float32(0.0, 1.0, width), bool(ends)))
        if not ends:
            updates.append(_at(s, after, float32(0.5, 0.5, 0.5 * width), True))
    return Table(tuple(updates))


def _at(s: Scheduler, sigma: np.float32, coefficients: tuple[float, ...], ends_step: bool) -> Update:
    """An update by what a model predicts of latents of this noise level."""
    return Update(float(sigma * np.float32(s.num_train_timesteps)), coefficients, ends_step, 1 - float(sigma), float(sigma))


def _sigmas(s: Scheduler, steps: int) -> np.ndarray:
    """(steps,) float32, descending."""
    sigmas = np.linspace(1.0, 1 / steps, steps).astype(np.float32) if s.from_one else _spaced(s, steps)
    shifted = _by_size(s, sigmas) if s.use_dynamic_shifting else _shifted(s, sigmas)
    if s.shift_terminal:
        shifted = 1 - (1 - shifted) / ((1 - shifted[-1]) / (1 - s.shift_terminal))
    first, last = float(shifted[0]), float(shifted[-1])
    if s.use_karras_sigmas:  # arXiv 2206.00364
        shifted = np.linspace(first ** (1 / 7), last ** (1 / 7), steps) ** 7.0
    elif s.use_exponential_sigmas:
        shifted = np.exp(np.linspace(math.log(first), math.log(last), steps))
    return shifted.astype(np.float32)


def _spaced(s: Scheduler, steps: int) -> np.ndarray:
    """(steps,) float64, from the first to the last level of the training, which the scheduler shifts when it is made."""
    total = s.num_train_timesteps
    levels = np.array([total, 1], np.float32) / np.float32(total)
    first, last = levels if s.use_dynamic_shifting else _shifted(s, levels)
    return np.linspace(float(first) * total, float(last) * total, steps) / total


def _shifted(s: Scheduler, sigmas: np.ndarray) -> np.ndarray:
    moved: np.ndarray = s.shift * sigmas / (1 + (s.shift - 1) * sigmas)
    return moved


def _by_size(s: Scheduler, sigmas: np.ndarray) -> np.ndarray:
    """More noise for pictures of more tokens, as pipelines compute it."""
    slope = (s.max_shift - s.base_shift) / (s.max_image_seq_len - s.base_image_seq_len)
    mu = s.image_seq_len * slope + (s.base_shift - slope * s.base_image_seq_len)
    strength = math.exp(mu) if s.time_shift_type == "exponential" else mu
    moved: np.ndarray = strength / (strength + (1 / sigmas - 1) ** 1.0)
    return moved
