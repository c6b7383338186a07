"""The schedulers of diffusers as tables, from their configurations (`scheduler_config.py`); diffusers itself is not needed.

Each function makes a table of every call's timestep and coefficients; `table.py` chooses among them.  Latents are kept in the
variance preserving scale that the model sees, alpha x0 + sigma noise.  EulerDiscreteScheduler's own are
1 / alpha times as large; the ratio is part of its coefficients.

Sources: scheduling_ddim, scheduling_dpmsolver_multistep and scheduling_euler_discrete of diffusers; the formulas are those
of arXiv 2010.02502 (DDIM), 2211.01095 (DPM-Solver++, multistep) and 2206.00364 (Euler).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..errors import ScheduleError, UsageError
from .scheduler_config import DPM, EULER, Scheduler
from .update import Table, Update, float32

Pair = tuple[float, float]  # of the latents, of the model's output


def ddim(s: Scheduler, steps: int) -> Table:
    """next = sqrt(a') data + sqrt(1 - a') noise, with a' of the timestep one stride before."""
    signal, times = _kept(s), _timesteps(s, steps)
    updates = []
    for t in times.tolist():
        before = t - s.num_train_timesteps // steps
        signal_now = signal[t]
        signal_next = signal[before] if before >= 0 else (1.0 if s.set_alpha_to_one else signal[0])
        data, noise = predictions(s, math.sqrt(signal_now), math.sqrt(1 - signal_now))
        x, out = (math.sqrt(signal_next) * d + math.sqrt(1 - signal_next) * n for d, n in zip(data, noise, strict=True))
        updates.append(Update(float(t), float32(0.0, x, out), True, math.sqrt(signal_now), math.sqrt(1 - signal_now)))
    return Table(tuple(updates))


def euler(s: Scheduler, steps: int) -> Table:
    """In diffusers' scale y = x / alpha: next y = y + (sigma' - sigma) noise, and the model sees y / sqrt(sigma^2 + 1)."""
    signal, times = _kept(s), _timesteps(s, steps).astype(np.float32)
    all_sigmas = _noise_to_data(signal)
    sigmas = [*np.interp(times, np.arange(len(signal)), all_sigmas).tolist(), _last_sigma(s, signal)]
    scales = [math.sqrt(sigma**2 + 1) for sigma in sigmas[:-1]] + [1.0]  # the last latents are y itself
    updates = []
    for n, t in enumerate(times.tolist()):
        _, noise = predictions(s, 1 / scales[n], sigmas[n] / scales[n])
        x, out = ((sigmas[n + 1] - sigmas[n]) * part / scales[n + 1] for part in noise)
        update = float32(0.0, x + scales[n] / scales[n + 1], out)
        updates.append(Update(t, update, True, 1 / scales[n], sigmas[n] / scales[n]))
    first = max(sigmas)
    spread = math.sqrt(first**2 + 1) if s.timestep_spacing == "leading" else first
    return Table(tuple(updates), noise_scale=float(np.float32(spread / scales[0])))


def dpm_solver(s: Scheduler, steps: int) -> Table:
    """Multistep DPM-Solver++: the next latents are affine in the latents and in this and earlier data predictions.

    Coefficients: data = c[0] x + c[1] output;  next = c[2] x + c[3] data + c[4] data@-1 + c[5] data@-2.
    """
    times, points = _of_flow(s, steps) if s.use_flow_sigmas else _of_noise(s, steps)
    updates = []
    for n, t in enumerate(times.tolist()):
        order = _order(s, n, steps)
        data, _ = predictions(s, points[n].alpha, points[n].sigma)
        history = [points[n - k] for k in range(min(order, n + 1))]
        of_x, weights = _multistep(s, order, points[n + 1], history)
        if s.solver_order == 1:
            coefficients = float32(0.0, of_x + weights[0] * data[0], weights[0] * data[1])
        else:
            padded = [*weights, *[0.0] * (s.solver_order - len(weights))]
            coefficients = float32(*data, of_x, *padded)
        updates.append(Update(float(t), coefficients, True, points[n].alpha, points[n].sigma))
    return Table(tuple(updates), history=s.solver_order - 1)


def _of_noise(s: Scheduler, steps: int) -> tuple[np.ndarray, list[_Point]]:
    """The timestep of every step, and where it begins; and where the last ends."""
    signal, times = _kept(s), _timesteps(s, steps)
    sigmas = np.interp(times, np.arange(len(signal)), _noise_to_data(signal)).tolist()
    return times, [_Point.at(sigma) for sigma in (*sigmas, _last_sigma(s, signal))]


def _of_flow(s: Scheduler, steps: int) -> tuple[np.ndarray, list[_Point]]:
    """The same on the straight path of a flow; its timesteps are cut to whole numbers.

    Raises UsageError where the first two are one: diffusers then begins at the second.
    """
    even = 1 - np.linspace(1, 1 / s.num_train_timesteps, steps + 1)
    sigmas = np.flip(s.flow_shift * even / (1 + (s.flow_shift - 1) * even))[:-1]
    times = (sigmas * s.num_train_timesteps).astype(np.int64)
    if len(times) > 1 and times[0] == times[1]:
        raise UsageError(f"steps={steps}: the first two timesteps are both {times[0]}: use fewer")
    return times, [_Point.of_flow(sigma) for sigma in (*sigmas.astype(np.float32).tolist(), 0.0)]


class _Point(NamedTuple):
    alpha: float
    sigma: float
    lam: float  # half the log signal-to-noise ratio

    @staticmethod
    def at(sigma: float) -> _Point:
        alpha = 1 / math.sqrt(sigma**2 + 1)
        return _Point(alpha, sigma * alpha, -math.log(sigma) if sigma else math.inf)

    @staticmethod
    def of_flow(sigma: float) -> _Point:
        return _Point(1 - sigma, sigma, math.log((1 - sigma) / sigma) if sigma else math.inf)


def _order(s: Scheduler, n: int, steps: int) -> int:
    """Low at the start, where nothing came before, and at the end of short loops, or where the last sigma is zero."""
    short = s.lower_order_final and steps < 15
    if n == steps - 1 and (s.euler_at_final or short or s.final_sigmas_type == "zero"):
        return 1
    if n == steps - 2 and short:
        return min(2, s.solver_order, n + 1)
    return min(s.solver_order, n + 1)


def _multistep(s: Scheduler, order: int, to: _Point, history: list[_Point]) -> tuple[float, list[float]]:
    """The weights of the latents and of the data predictions, newest first (arXiv 2211.01095, algorithm 2; 2206.00927)."""
    now = history[0]
    h = to.lam - now.lam
    shrink = math.expm1(-h)  # exp(-inf) is 0
    first = -to.alpha * shrink
    if order == 1:
        return to.sigma / now.sigma, [first]
    r0 = (now.lam - history[1].lam) / h
    heun = to.alpha * (shrink / h + 1)
    if order == 2:
        slope = (0.5 * first if s.solver_type == "midpoint" else heun) / r0
        return to.sigma / now.sigma, [first + slope, -slope]
    r1 = (history[1].lam - history[2].lam) / h
    curve = -to.alpha * ((shrink + h) / h**2 - 0.5) / (r0 + r1)
    newer, older = 1 / r0, 1 / r1  # D1_0 = newer (m0 - m1), D1_1 = older (m1 - m2)
    blend = r0 / (r0 + r1)
    of_newer, of_older = heun * (1 + blend) + curve, -heun * blend - curve
    return to.sigma / now.sigma, [first + of_newer * newer, -of_newer * newer + of_older * older, -of_older * older]


def predictions(s: Scheduler, alpha: float, sigma: float) -> tuple[Pair, Pair]:
    """The predicted data and noise, each as (of the latents, of the model's output)."""
    if s.prediction_type == "epsilon":
        return (1 / alpha, -sigma / alpha), (0.0, 1.0)
    if s.prediction_type == "sample":
        return (0.0, 1.0), (1 / sigma, -alpha / sigma)
    if s.prediction_type == "flow_prediction":
        return (1.0, -sigma), (1.0, alpha)
    return (alpha, -sigma), (sigma, alpha)


def _timesteps(s: Scheduler, steps: int) -> np.ndarray:
    """Descending, int64 (Euler's with "linspace": float64); arXiv 2305.08891, table 2.

    Raises UsageError where strides that are rounded make no such steps: diffusers then has an extra one at -1, or one twice.
    """
    total = s.num_train_timesteps
    more = s.kind == DPM  # it has one more interval than steps
    if s.timestep_spacing == "linspace":
        spread = np.linspace(0, total - 1, steps + more)[::-1][:steps]
        timesteps = spread if s.kind == EULER else spread.round().astype(np.int64)
    elif s.timestep_spacing == "leading":
        timesteps = np.arange(steps + more)[::-1][:steps] * (total // (steps + more)) + s.steps_offset
    else:
        timesteps = np.arange(total, 0, -total / steps).round().astype(np.int64) - 1
    if timesteps.max() >= total:
        raise ScheduleError(f"steps_offset = {s.steps_offset}: with {steps} steps the first timestep is {timesteps.max()}")
    if timesteps.min() < 0 or len(set(timesteps.tolist())) != steps:
        raise UsageError(f"steps={steps}: {s.timestep_spacing} spacing makes no {steps} timesteps: use more or fewer")
    return timesteps


def _kept(s: Scheduler) -> np.ndarray:
    """The share of signal at every training timestep, float64 (T,) from float32 betas as in diffusers."""
    if s.trained_betas is not None:
        betas = np.array(s.trained_betas, np.float32)
    elif s.beta_schedule == "linear":
        betas = np.linspace(s.beta_start, s.beta_end, s.num_train_timesteps).astype(np.float32)
    elif s.beta_schedule == "scaled_linear":
        roots = np.linspace(s.beta_start**0.5, s.beta_end**0.5, s.num_train_timesteps).astype(np.float32)
        betas = roots**2
    else:
        kept = np.cos((np.arange(s.num_train_timesteps + 1) / s.num_train_timesteps + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - kept[1:] / kept[:-1], 0.999).astype(np.float32)
    if len(betas) != s.num_train_timesteps or not ((betas >= 0) & (betas <= 1)).all():
        raise ScheduleError(
            f"the scheduler has {len(betas)} betas from {betas.min(initial=np.inf):g} to {betas.max(initial=-np.inf):g}: "
            f"it needs {s.num_train_timesteps} (num_train_timesteps), all from 0 to 1"
        )
    # float32 factors, multiplied in float64: what PyTorch's cumprod does on a CPU
    signal: np.ndarray = np.cumprod(np.float32(1) - betas, dtype=np.float64).astype(np.float32).astype(np.float64)
    return signal


def _noise_to_data(kept: np.ndarray) -> np.ndarray:
    ratio: np.ndarray = np.sqrt((1 - kept) / kept)
    return ratio


def _last_sigma(s: Scheduler, kept: np.ndarray) -> float:
    return 0.0 if s.final_sigmas_type == "zero" else float(_noise_to_data(kept[:1])[0])
