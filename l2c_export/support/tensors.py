"""Tensors of PyTorch in the place of numpy's arrays.  PyTorch is not imported: only who has done so can have a tensor."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from ..errors import UsageError
from .words import first_line

FLOATS = ("torch.float16", "torch.float32", "torch.float64")  # that numpy has, too


def loaded() -> Any:
    """PyTorch where somebody has imported it, else None."""
    return sys.modules.get("torch")


def is_tensor(value: object) -> bool:
    return loaded() is not None and isinstance(value, loaded().Tensor)


def on_host(value: Any) -> Any:
    """A tensor as an array: floats that numpy lacks become float32, what requires a gradient is read without one.

    Anything else is returned as it is.  Raises UsageError for a tensor without values, or with some that no array holds.
    """
    if not is_tensor(value):
        return value
    try:
        tensor = value.detach().cpu()
        unsupported = tensor.is_floating_point() and str(tensor.dtype) not in FLOATS
        return (tensor.float() if unsupported else tensor).numpy()
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise UsageError(f"a tensor of PyTorch that numpy cannot read: {first_line(error)}") from None


def scalar(value: Any) -> Any:
    """The one value of a tensor or an array of no dimensions; anything else as it is."""
    value = on_host(value)
    return value[()] if isinstance(value, np.ndarray) and value.ndim == 0 else value
