"""The types of weights and values: their sizes, their names at each precision, and how numpy holds them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int32": 4}
# The type of weights and activations at each precision; the latents and the sampler are float32 in all of them.
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def stored(dtype: str) -> str:
    """How numpy holds a type: bfloat16 is unknown to it and kept as its 16 bits."""
    return "uint16" if dtype == "bfloat16" else dtype


def widened(bits: np.ndarray) -> np.ndarray:
    """The float32 numbers of bfloat16 ones, whose 16 bits are the upper halves."""
    numbers: np.ndarray = np.asarray(np.left_shift(bits.astype(np.uint32), 16)).view(np.float32)
    return numbers


class Types(NamedTuple):
    """The type of every tensor: one for all, but for the sublayers that are kept in float32."""

    dtype: str = "float32"
    fp32: tuple[str, ...] = ()

    def of(self, tensor: str) -> str:
        return "float32" if any(tensor.startswith(f"{sublayer}.") for sublayer in self.fp32) else self.dtype
