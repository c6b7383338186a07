"""How far latents are from the reference's, and how far they may be."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..errors import UsageError

# Largest error of a call that is fed the reference's latents, as a share of their largest value.  The first DDIM step
# amplifies an error of the noise up to 150 times, so: about 3 times the worst of the 22 golden cases (fp32, fp16), and
# about the worst of them (bf16, where PyTorch itself with model.to(bfloat16) reaches 1e-1; fp8: the worst is 3.6e-1, of random
# weights; of the demo, which is trained, 5.3e-2 where bf16 has 0.7e-2).
TOLERANCE = {"fp32": 3e-5, "fp16": 2e-2, "bf16": 5e-2, "fp8": 0.5}
AMPLIFIED = 150  # so much larger may an error be in the latents than in the value that it comes from
ROUNDING = {"fp32": 2e-6, "fp16": 1.5e-2, "bf16": 0.1, "fp8": 0.5}  # 32 units: what the depth of a model alone may add up to


@dataclass(frozen=True)
class Error:
    """How far latents are from the reference's."""

    largest: float  # max |x - reference|
    relative: float  # the same over max |reference|
    cosine: float
    psnr: float  # dB, over the reference's range

    @staticmethod
    def between(x: np.ndarray, reference: np.ndarray) -> Error:
        a, b = np.ravel(x).astype(np.float64), np.ravel(reference).astype(np.float64)
        if not np.isfinite(a).all():
            return Error(math.inf, math.inf, 0.0, -math.inf)
        largest, rms = float(np.abs(a - b).max()), float(np.sqrt(np.mean((a - b) ** 2)))
        cosine = float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-300))
        psnr = 20 * math.log10(float(np.ptp(b)) / rms) if rms else math.inf
        return Error(largest, largest / max(float(np.abs(b).max()), 1e-300), cosine, psnr)


@dataclass(frozen=True)
class Tolerance:
    """|error| <= atol + rtol * max |reference|."""

    atol: float
    rtol: float

    def inner(self, precision: str) -> Tolerance:
        """For values inside a call: less than for the latents, but never less than rounding."""
        least = ROUNDING[precision]
        return Tolerance(*(min(t, max(t / AMPLIFIED, least)) for t in (self.atol, self.rtol)))

    def share(self, error: Error, reference: np.ndarray) -> float:
        """The error over what is allowed; more than 1 is too much."""
        return error.largest / max(self.atol + self.rtol * float(np.abs(reference).max()), 1e-300)


def check_tolerances(**tolerances: float | None) -> None:
    """Raises UsageError for what is no number of at least 0."""
    for name, value in tolerances.items():
        if value is not None and not value >= 0:
            raise UsageError(f"{name}={value}: must be a number of at least 0")
