"""What a stored tensor is made of: tensors of a checkpoint, or parts of them, joined along an axis.

A recipe is data: a manifest can hold it, shapes tell whether it can be carried out, and it is carried out when its tensor is
asked for.  The last step, rounding to the type that is stored, belongs to the file (`layout.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

import msgspec
import numpy as np

from ..ir.dtypes import BYTES, Types

Shape = tuple[int, ...]
Read = Callable[[str], np.ndarray]  # a tensor of a checkpoint, by its name


class Unfit(Exception):
    """Why tensors of some shapes do not make what a recipe says, in words."""


class TensorSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A tensor of a checkpoint, or a part of it: from `first` up to `last`, not including it, along `axis`."""

    tensor: str
    first: int = 0
    last: int | None = None  # its end
    axis: int = 0

    def __post_init__(self) -> None:
        if self.axis < 0 or self.first < 0 or (self.last is not None and self.last <= self.first):
            raise ValueError(f"no part of {self.tensor}: {self.first} to {self.last} along axis {self.axis}")

    def shape(self, shapes: Mapping[str, Shape]) -> Shape:
        """Raises Unfit for a tensor that is missing or too small."""
        if self.tensor not in shapes:
            raise Unfit(f"{self.tensor} is missing")
        whole = shapes[self.tensor]
        if not self._is_part:
            return whole
        length = whole[self.axis] if self.axis < len(whole) else 0
        last = length if self.last is None else self.last
        if not self.first < last <= length:
            raise Unfit(f"{self.tensor} has shape {list(whole)}: there is no {self.first} to {last} along axis {self.axis}")
        return (*whole[: self.axis], last - self.first, *whole[self.axis + 1 :])

    def value(self, read: Read) -> np.ndarray:
        """Its numbers; a view of what is read."""
        whole = read(self.tensor)
        return whole[(slice(None),) * self.axis + (slice(self.first, self.last),)] if self._is_part else whole

    @property
    def _is_part(self) -> bool:
        return self.first > 0 or self.last is not None


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One source or several, one behind the other along `axis`."""

    sources: tuple[TensorSource, ...]
    axis: int = 0

    def __post_init__(self) -> None:
        if not self.sources or self.axis < 0:
            raise ValueError(f"no recipe: {len(self.sources)} sources, joined along axis {self.axis}")

    @staticmethod
    def of(*tensors: str) -> Recipe:
        """Whole tensors, joined along the first axis if they are several."""
        return Recipe(tuple(TensorSource(tensor) for tensor in tensors))

    def shape(self, shapes: Mapping[str, Shape]) -> Shape:
        """What it makes of tensors of these shapes.  Raises Unfit where it makes nothing."""
        parts = [source.shape(shapes) for source in self.sources]
        if len(parts) == 1:
            return parts[0]
        axis, first = self.axis, parts[0]
        for source, part in zip(self.sources, parts, strict=True):
            if axis >= len(first) or (*part[:axis], first[axis], *part[axis + 1 :]) != first:
                raise Unfit(
                    f"{source.tensor} gives {list(part)}, {self.sources[0].tensor} {list(first)}: not along axis {axis}"
                )
        return (*first[:axis], sum(part[axis] for part in parts), *first[axis + 1 :])

    def value(self, read: Read, shape: Shape) -> np.ndarray:
        """A tensor of `shape`, float32; of its sources only one is in memory at a time.  A single one is not copied."""
        if len(self.sources) == 1:
            return self.sources[0].value(read)
        joined, position = np.empty(shape, np.float32), 0
        for source in self.sources:
            part = source.value(read)
            length = part.shape[self.axis]
            joined[(slice(None),) * self.axis + (slice(position, position + length),)] = part
            position += length
        return joined


class TensorRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor as it is computed with, how it is stored, where that is narrower (`narrow.py`), and what of a checkpoint it is
    made of, where that is not the tensor of its own name."""

    shape: Shape
    dtype: str
    recipe: Recipe | msgspec.UnsetType = msgspec.UNSET
    stored: Literal["float16", "bfloat16", "int8"] | msgspec.UnsetType = msgspec.UNSET
    scale: Literal["weight", "input"] | msgspec.UnsetType = msgspec.UNSET  # of what it is the scale, which no checkpoint has

    @property
    def bytes(self) -> int:
        """As it is computed with."""
        return BYTES[self.dtype] * math.prod(self.shape)


class Narrowing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What storing matrices narrower has cost: what is off of their numbers, as a share of them (Frobenius norms)."""

    matrices: int
    error: float  # of all together
    worst: str  # the matrix with the largest,
    worst_error: float

    def problem(self, tensors: Mapping[str, TensorRecord]) -> str | None:
        """What cannot be of it, in words."""
        worst = tensors.get(self.worst)
        errors = all(0 <= error < math.inf for error in (self.error, self.worst_error))
        if errors and self.matrices > 0 and worst and worst.stored:
            return None
        return f"storing {self.matrices} matrices narrower, {self.worst[:100]!r} among them, has cost {self.error}"


def stored_type(tensors: Mapping[str, TensorRecord]) -> str | None:
    """The type in which matrices are stored narrower, if any are."""
    return next((tensor.stored for tensor in tensors.values() if tensor.stored), None)


def records(shapes: Mapping[str, Shape], types: Types, recipes: Mapping[str, Recipe]) -> dict[str, TensorRecord]:
    """A model's tensors as they are stored, for a checkpoint that has these recipes."""
    told = {name: recipe for name, recipe in recipes.items() if recipe != Recipe.of(name)}
    return {name: TensorRecord(shape, types.of(name), told.get(name, msgspec.UNSET)) for name, shape in shapes.items()}
