"""Matrices stored narrower than they are computed: in 16 bits, or in 8 with a float32 scale for every row.

A row of a stored matrix is an output of a product, or an entry of a table that is looked up.  Its scale is symmetric: the
largest number of the row is 127.  What is stored is widened once, when an artefact is loaded; nothing else knows of it.
"""

from __future__ import annotations

import math

import numpy as np

SCALE = ".scale"  # ends the name of a matrix' scales in the file
MOST = 127  # what the largest number of a row becomes


class Losses:
    """Adds up what is lost, matrix by matrix."""

    def __init__(self) -> None:
        self._parts: dict[str, tuple[float, float]] = {}  # squares of what is lost, and of what there was

    def __bool__(self) -> bool:
        return bool(self._parts)

    def add(self, name: str, original: np.ndarray, kept: np.ndarray) -> None:
        lost = np.asarray(original, np.float32) - np.asarray(kept, np.float32)
        self._parts[name] = square(lost), square(original)

    def summed(self) -> tuple[int, float, str, float]:
        """How many matrices there are, the relative error of all, and which has the largest, and that."""
        errors = {name: math.sqrt(lost / there) if there else 0.0 for name, (lost, there) in self._parts.items()}
        worst = max(errors, key=lambda name: errors[name])
        lost, there = (sum(part[n] for part in self._parts.values()) for n in (0, 1))
        return len(errors), math.sqrt(lost / there) if there else 0.0, worst, errors[worst]


def square(values: np.ndarray) -> float:
    flat = np.ravel(values).astype(np.float64)
    return float(flat @ flat)


def scales(value: np.ndarray) -> np.ndarray:
    """(N, ..) float32 -> (N,) float32, all above 0."""
    largest = np.abs(value).reshape(len(value), -1).max(1) if value.size else np.zeros(len(value), np.float32)
    scale: np.ndarray = np.where(largest / np.float32(MOST) > 0, largest / np.float32(MOST), np.float32(1))
    return scale


def quantised(value: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """(N, ..) float32 and a scale for every row -> int8 of the same shape, rounded to the nearest."""
    rows = scale.reshape(-1, *[1] * (value.ndim - 1))
    codes: np.ndarray = np.clip(np.rint(value / rows), -MOST, MOST).astype(np.int8)
    return codes


def widened(stored: np.ndarray, scale: np.ndarray | None, dtype: str) -> np.ndarray:
    """What is computed with: a new array of `dtype`."""
    wide = stored.astype(np.float32)
    if scale is not None:
        wide *= scale.reshape(-1, *[1] * (stored.ndim - 1))
    return wide.astype(dtype, copy=False)
