"""The memory of a loop: one block, which loops of all batch sizes cut into their own arrays."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from ..backends.contract import ALIGNED, Array, Memory


class Slot(NamedTuple):
    """An array that is wanted."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


Layout = Mapping[str, Slot]


class Arena:
    """A block of a backend's memory.  What one loop leaves in it the next one overwrites."""

    def __init__(self, memory: Memory, size: int, what: str) -> None:
        """Raises RunError if `size` bytes for `what` are more than is free."""
        memory.reserve(size, what)
        self.size = size
        self._block = memory.empty((size,), "uint8")

    def cut(self, layout: Layout) -> dict[str, Array]:
        """The arrays of a layout that fits in, one after the other."""
        blocks = cut(self._block, (slot.nbytes for slot in layout.values()))
        return {
            name: block.view(slot.dtype).reshape(slot.shape) for (name, slot), block in zip(layout.items(), blocks, strict=True)
        }


def cut(block: Array, sizes: Iterable[int]) -> list[Array]:
    """Consecutive parts of a block of bytes, each where something may begin."""
    parts, first = [], 0
    for size in sizes:
        parts.append(block[first : first + size])
        first += aligned(size)
    return parts


def size_of(sizes: Iterable[int]) -> int:
    """Bytes of a block that is cut into parts of these sizes."""
    return sum(map(aligned, sizes))


def aligned(size: int) -> int:
    """The next size at which something else may begin."""
    return -(-size // ALIGNED) * ALIGNED
