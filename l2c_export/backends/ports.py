"""The inputs of an engine that is to be built, and the sizes that it must run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

Shape = tuple[int, ...]


class Range(NamedTuple):
    """Sizes of a batch axis that an engine must run: fewest, most frequent, most."""

    least: int
    usual: int
    most: int


class Port(NamedTuple):
    """An input of an engine; a batch axis is named in its shape ("B" images, "R" rows)."""

    name: str
    shape: tuple[int | str, ...]

    def at(self, sizes: Mapping[str, int]) -> Shape:
        return tuple(sizes[n] if isinstance(n, str) else n for n in self.shape)
