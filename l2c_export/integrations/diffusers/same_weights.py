"""Whether two tensors are one that was rounded in several ways."""

from __future__ import annotations

import numpy as np

from ...ir.dtypes import E4M3
from ...weights.narrow import scales
from .live_weights import ROUNDING

COARSE = 2.0**-3  # of a whole matrix: e4m3 is off by 0.03 to the nearest, by 0.05 where columns make good for others
PASSES = 8  # of the power method: 0.9 of the largest singular value of random numbers


def same(array: np.ndarray, other: np.ndarray, kept: str, rounding: float, fused: bool = False, corrected: float = 0.0) -> bool:
    """Whether an artefact's tensor, which is stored as `kept`, is one of the transformer's, which was rounded itself.

    `rounding` is how coarse the transformer is, relatively; a bias was `corrected` for its product by that at most.  Where
    LoRAs were `fused` into both, it holds for a matrix and not for its single numbers: what a sum has lost is of the size of
    its parts, which may nearly cancel.
    """
    if array.shape != other.shape:
        return False
    if kept == E4M3:
        return bool(np.linalg.norm(array - other) <= COARSE * np.linalg.norm(other))
    # what is rounded to 8 bits is off by half a step
    step = 0.51 * scales(other).reshape(-1, *[1] * (other.ndim - 1)) if kept == "int8" else 1e-6 + corrected
    lost, near = array.astype(np.float32) - other, max(ROUNDING.get(kept, 0.0), rounding)
    lost -= np.clip(lost, -step, step)
    if np.all(np.abs(lost) <= near * np.abs(other)):
        return True
    return fused and other.ndim > 1 and spectral_norm(lost) <= near * spectral_norm(other)


def spectral_norm(value: np.ndarray) -> float:
    """(D, ..) -> the largest singular value of (D, N), nearly, from below.

    It tells a LoRA's few directions from rounding, which has none: the Frobenius norm of both may be the same.
    """
    matrix = value.reshape(len(value), -1)
    vector = np.random.default_rng(0).standard_normal(matrix.shape[1], np.float32)
    for _ in range(PASSES):
        length = np.linalg.norm(vector)
        vector = matrix.T @ (matrix @ (vector / (length or 1)))
    return float(np.sqrt(np.linalg.norm(vector)))
