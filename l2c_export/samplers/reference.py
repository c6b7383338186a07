"""Samplers as tables: for every call its timestep and the coefficients of one affine update.

All samplers here are of one form.  With `base` the latents at the start of the solver step, `x` the latents that
this call saw and `noise` its (guided) prediction,

    next = c[0] base + c[1] x + c[2] noise.

The tables are evaluated in float64 from the float32 or float64 noise schedule of the reference, and rounded to
float32 once at the end.  `diffusers.py` has those of diffusers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from ..errors import UsageError
from .update import Update, float32


def ddim(steps: int) -> tuple[Update, ...]:
    """DDIM with eta = 0 (arXiv 2010.02502) over the linear schedule of guided-diffusion, `steps` of 1000 timesteps.

    x0 = r1 x - r2 noise;  next = sqrt(a') x0 + sqrt(1 - a') noise,  with r1 = sqrt(1/a), r2 = sqrt(1/a - 1).
    """
    if not 2 <= steps <= 1000:
        raise UsageError(f"steps={steps}: DDIM takes 2 to 1000 steps")
    timesteps, position = [], 0.0
    for _ in range(steps):
        timesteps.append(round(position))
        position += 999 / (steps - 1)
    signal = np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000))[timesteps]
    # the respaced process is defined by its betas, and its products are taken again
    betas = 1.0 - signal / np.append(1.0, signal[:-1])
    alpha = np.cumprod(1.0 - betas)
    before = np.append(1.0, alpha[:-1])
    of_x = np.sqrt(before / alpha)
    of_noise = np.sqrt(1.0 - before) - np.sqrt(before) * np.sqrt(1.0 / alpha - 1.0)
    rows = zip(timesteps, of_x, of_noise, np.sqrt(alpha).tolist(), np.sqrt(1.0 - alpha).tolist(), strict=True)
    return tuple(Update(float(t), float32(0.0, x, e), True, *noised) for t, x, e, *noised in reversed(list(rows)))


def dpm_solver_pp(steps: int) -> tuple[Update, ...]:
    """DPM-Solver++ (arXiv 2211.01095), singlestep, order 2, uniform in time, over Stable Diffusion's linear schedule.

    `steps` counts network evaluations, two per solver step; an odd one is lost.  In the second evaluation of a
    step the data prediction of the first cancels (r1 = 1/2), so both are affine in (base, x, noise).
    """
    if not 2 <= steps <= 1000:
        raise UsageError(f"steps={steps}: DPM-Solver++ takes 2 to 1000 network evaluations")
    betas = (np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2).astype(np.float32)
    # float32 logarithms, summed in float64: what PyTorch's cumsum does on a CPU
    table = (0.5 * np.cumsum(np.log(np.float32(1) - betas), dtype=np.float64)).astype(np.float32).astype(np.float64)
    knots = (np.arange(1, 1001, dtype=np.float32) / np.float32(1000)).astype(np.float64)
    times = np.linspace(1.0, 0.001, steps // 2 + 1, dtype=np.float32).astype(np.float64)

    def at(t: float) -> tuple[float, float, float]:
        """alpha, sigma and half the log signal-to-noise ratio."""
        log_alpha = float(np.interp(t, knots, table))
        sigma2 = -np.expm1(2 * log_alpha)
        return float(np.exp(log_alpha)), float(np.sqrt(sigma2)), log_alpha - 0.5 * float(np.log(sigma2))

    def time_of(lam: float) -> float:
        return float(np.interp(-0.5 * np.logaddexp(0.0, -2 * lam), table[::-1], knots[::-1]))

    updates = []
    for s, t in itertools.pairwise(times):
        (a_s, sig_s, lam_s), (a_t, sig_t, lam_t) = at(s), at(t)
        h = lam_t - lam_s
        mid = time_of(lam_s + h / 2)
        a_m, sig_m, _ = at(mid)
        half, whole = a_m * -np.expm1(-h / 2), a_t * -np.expm1(-h)  # weights of the data prediction
        first = float32(0.0, sig_m / sig_s + half / a_s, -half * sig_s / a_s)
        second = float32(sig_t / sig_s, whole / a_m, -whole * sig_m / a_m)
        updates += [Update(_timestep(s), first, False, a_s, sig_s), Update(_timestep(mid), second, True, a_m, sig_m)]
    return tuple(updates)


def _timestep(t: float) -> float:
    return float(np.float32(t) * np.float32(1000))


SAMPLERS: dict[str, Callable[[int], tuple[Update, ...]]] = {"ddim": ddim, "dpm-solver++": dpm_solver_pp}


def updates(sampler: str, steps: int) -> tuple[Update, ...]:
    """The table of a sampler by name."""
    if sampler not in SAMPLERS:
        raise UsageError(f"unknown sampler {sampler!r}: known are {', '.join(SAMPLERS)}")
    return SAMPLERS[sampler](steps)
