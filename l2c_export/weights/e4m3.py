"""Numbers of e4m3 and their scales: one for a whole array, a power of two, so that what is stored is exact in bfloat16.

e4m3 has an exponent of its own: where a scale lies, and whether every row has one, changes next to nothing
(measured over the matrices of the demo: relative error 2.6e-2 with a scale for each matrix, and with one for every row).
"""

from __future__ import annotations

import math

import numpy as np

from ..ir.dtypes import E4M3

MOST = 448.0  # the largest number
LEAST = -60  # the exponent of the least scale, which is no subnormal number of float32, nor is 1 over it
WEIGHT = ".weight"
HEADROOM = 2.0  # so much more than was seen may what is multiplied become before it is cut off


def weight_scale(weight: str) -> str:
    """What the scale of a weight is called."""
    return f"{weight}.scale"


def input_scale(weight: str) -> str:
    """What the scale is called of that which is multiplied with a weight (of several, with the first)."""
    return f"{weight.removesuffix(WEIGHT)}.input.scale"


def scale_of(largest: float) -> np.ndarray:
    """(2,) float32: the least power of two with which numbers up to the largest fit, and 1 over it."""
    fits = largest > 0 and math.isfinite(largest)
    scale = 2.0 ** max(LEAST, math.ceil(math.log2(largest / MOST))) if fits else 1.0
    return np.array([scale, 1 / scale], np.float32)


def rounded(value: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """(..) float32 -> e4m3, to the nearest."""
    result: np.ndarray = np.clip(np.asarray(value, np.float32) * scale[1], -MOST, MOST).astype(E4M3)
    return result


def widened(stored: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """float32 of e4m3."""
    numbers: np.ndarray = stored.astype(np.float32) * scale[0]
    return numbers
