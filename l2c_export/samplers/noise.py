"""The noise that images start from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def standard_normal(latent: tuple[int, ...], seeds: Sequence[int]) -> np.ndarray:
    """Noise (seeds, *latent) float32."""
    return np.stack([np.random.Generator(np.random.Philox(s)).standard_normal(latent, np.float32) for s in seeds])
