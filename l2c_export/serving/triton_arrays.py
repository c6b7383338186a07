"""Arrays between numpy and Triton's Python backend, by DLPack.

The backend of a server like 24.10 knows the layout of numpy 1 only: arrays of numpy 2 are empty to it, and what it makes into
one repeats its first row.  DLPack means the same to all of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backends.cuda.dlpack import capsule

CPU = 1  # DLDeviceType


def taken(tensor: Any) -> np.ndarray:
    """A tensor of Triton's as an array; texts are an array of bytes objects."""
    values: np.ndarray = tensor.as_numpy()
    return values if values.dtype.hasobject else np.from_dlpack(tensor).copy()


def tensor_of(utils: Any, name: str, values: np.ndarray) -> Any:
    """An array as a tensor of Triton's.  The capsule is ours: numpy's own complains of the name that some servers give it."""
    dense = np.ascontiguousarray(values)
    return utils.Tensor.from_dlpack(name, capsule(dense.ctypes.data, dense.shape, str(dense.dtype), (CPU, 0), dense))


def reads_texts(utils: Any) -> bool:
    """Whether the backend knows the layout of this numpy: otherwise a text would end its process."""
    probe = np.arange(4, dtype=np.float32)
    return np.array_equal(tensor_of(utils, "probe", probe).as_numpy(), probe)
