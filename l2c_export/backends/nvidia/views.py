"""Where the values of a segment are: buffers by name, and views of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...ir.graph import Value
from .index import Index, plus, times


def shape_of(value: Value) -> tuple[int, ...]:
    """A concrete shape."""
    assert all(isinstance(n, int) for n in value.shape), value
    return value.shape  # type: ignore[return-value]


def dense_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


@dataclass(frozen=True)
class ArrayView:
    """An array in a buffer: an input or output of the segment, a temporary value or a table; counted in entries."""

    buffer: str
    shape: tuple[int, ...]
    dtype: str
    strides: tuple[int, ...]
    offset: int = 0

    @property
    def dense(self) -> bool:
        wanted = dense_strides(self.shape)
        return all(s == w or n == 1 for s, w, n in zip(self.strides, wanted, self.shape, strict=True))

    def place(self, index: Index) -> str:
        """The place of an entry in the buffer."""
        return plus(str(self.offset), *(times(i, s) for i, s in zip(index, self.strides, strict=True)))

    def reshaped(self, shape: tuple[int, ...]) -> ArrayView:
        assert self.dense
        return ArrayView(self.buffer, shape, self.dtype, dense_strides(shape), self.offset)

    def parts(self, count: int) -> list[ArrayView]:
        """Equal parts of the last axis."""
        *rows, width = self.shape
        size = width // count
        return [ArrayView(self.buffer, (*rows, size), self.dtype, self.strides, self.offset + n * size) for n in range(count)]


def whole(buffer: str, value: Value) -> ArrayView:
    """All of a buffer."""
    shape = shape_of(value)
    return ArrayView(buffer, shape, value.dtype, dense_strides(shape))


def first_fit(lives: dict[str, tuple[int, int, int]], align: int) -> tuple[dict[str, int], int]:
    """Offsets of buffers (bytes, first step, last step) such that no two that live at once overlap; and the bytes in all."""
    placed: dict[str, int] = {}
    for name, (size, first, last) in sorted(lives.items(), key=lambda item: -item[1][0]):
        taken = sorted(
            (placed[other], placed[other] + lives[other][0])
            for other in placed
            if lives[other][1] <= last and first <= lives[other][2]
        )
        offset = 0
        for begin, end in taken:
            if offset + size <= begin:
                break
            offset = max(offset, -(-end // align) * align)
        placed[name] = offset
    return placed, max((placed[name] + lives[name][0] for name in placed), default=0)
