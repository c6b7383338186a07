"""Tables of numbers that primitives have inside, made once on the host, as `models/primitives.py` makes them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ...ir.graph import Attribute, Value


def table(op: str, attributes: Mapping[str, Attribute], inputs: Sequence[Value]) -> np.ndarray | None:
    """float32; None for a primitive without one."""
    if op == "sinusoid":
        half, shift = _int(attributes["half"]), _int(attributes["shift"])
        frequencies: np.ndarray = np.exp(
            np.float32(-math.log(10000)) * np.arange(half, dtype=np.float32) / np.float32(half - shift)
        )
        return frequencies
    if op == "rope":
        tokens, width = _int(inputs[0].shape[1]), _int(inputs[0].shape[2])
        half, theta = width // _int(attributes["heads"]) // 2, attributes["theta"]
        assert isinstance(theta, float)
        angles = np.arange(tokens)[:, None] * theta ** (-np.arange(half, dtype=np.float64) / half)[None]
        return np.stack([np.cos(angles), np.sin(angles)]).astype(np.float32)
    return None


def _int(value: object) -> int:
    assert isinstance(value, int)
    return value
