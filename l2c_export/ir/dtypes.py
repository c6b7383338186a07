"""The types of weights and values: their sizes, and their names at each precision.

numpy has a bfloat16 once `ml_dtypes` is imported, so every type is a dtype of its arrays, by its name.  What exchanges arrays
with a library goes by pointers, or gives it the bits: buffers, DLPack, OpenVINO's tensors, PyTorch and ONNX Runtime do not know
this dtype.
"""

from __future__ import annotations

from typing import NamedTuple

import ml_dtypes
import numpy as np

from .precisions import FP8

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
HALVES = ("float16", "bfloat16")
E4M3 = "float8_e4m3fn"  # of four bits for the exponent and three behind the point; without infinity
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int32": 4, E4M3: 1}
# The type of weights and activations at each precision; the latents and the sampler are float32 in all of them.
# In fp8 most products take e4m3 instead (`compiler/passes/fp8.py`).
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "fp8": "bfloat16"}

ONE_TYPE = tuple(precision for precision in DTYPES if precision != FP8)  # those whose products are all of one type


def width(stored: str) -> int:
    """Bytes of a number in a file, where it may have 8 bits."""
    return 1 if stored == "int8" else BYTES[stored]


DERIVED = "derived."  # begins the names of tensors that follow from a configuration


class Types(NamedTuple):
    """The type of every tensor: one for all, but for the sublayers that are kept in float32.

    What follows from a configuration, as positions and angles, is float32 as well.
    """

    dtype: str = "float32"
    fp32: tuple[str, ...] = ()

    def of(self, tensor: str) -> str:
        kept = tensor.startswith((DERIVED, *(f"{sublayer}." for sublayer in self.fp32)))
        return "float32" if kept else self.dtype
