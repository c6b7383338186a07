"""Scores between 0 and 1, and the threshold above which a value is computed."""

from __future__ import annotations

import math

import numpy as np

CLAMP = 5.0  # of logits, so that no score is ever beyond return
LAMBDA = 5e-6  # the price of computing a value: the reference's for 20 steps
MIDDLE = 0.5  # the threshold where the real one is chosen at the end, or none is given
SHARES = 10  # points of a curve


def threshold_for(scores: np.ndarray, removed: float) -> float:
    """The threshold at which at least this share of the scores is removed: a score is removed unless it is above it."""
    count = math.ceil(round(removed * scores.size, 6))
    return float(np.sort(scores, axis=None)[count - 1]) if count else 0.0


def candidates(scores: np.ndarray, chosen: float) -> list[float]:
    """Thresholds that remove from nothing to everything, and the chosen one, ascending."""
    return sorted({chosen, *(threshold_for(scores, k / SHARES) for k in range(SHARES + 1))})
