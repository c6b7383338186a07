"""Weights that mean nothing, for latency work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import UsageError
from .layout import Shapes


def random(shapes: Shapes, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Weights for latency work: normal with standard deviation 0.02, norms around 1; a function of the seed."""
    for i, name in enumerate(sorted(shapes)):
        value = np.random.default_rng([seed, i]).standard_normal(shapes[name], dtype=np.float32) * np.float32(0.02)
        yield name, value + 1 if "norm" in name and name.endswith(".weight") else value


def random_seed(text: str) -> int | None:
    """The seed in "random" or "random:SEED"; None for anything else."""
    kind, _, seed = text.partition(":")
    if kind != "random" or Path(text).exists():
        return None
    if seed and not seed.isdecimal():
        raise UsageError(f"weights={text!r}: use random or random:SEED with a whole number")
    return int(seed or 0)
