"""What the shapes of a checkpoint do not show of its model: known from a published size, or missing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

IMAGENET = 1000  # classes; with a null class the only table of 1001 rows that is published
NOTHING: Mapping[str, Any] = {}


class Unshown(NamedTuple):
    """Fields of an architecture by name; `usual` are values that a model of a published name has, unless it was changed."""

    known: Mapping[str, Any] = NOTHING
    missing: Mapping[str, str] = NOTHING  # what is not known, in words
    usual: Mapping[str, Any] = NOTHING

    def and_known(self, **fields: Any) -> Unshown:
        return self._replace(known={**self.known, **fields})

    def and_missing(self, name: str, words: str, usual: Mapping[str, Any] = NOTHING) -> Unshown:
        return self._replace(missing={**self.missing, name: words}, usual={**self.usual, **usual})

    def with_heads(
        self, sizes: Mapping[str, tuple[int, int, int]], depth: int, width: int, fields: Mapping[str, Any]
    ) -> Unshown:
        """The number of heads of a published (depth, width, heads), where nobody has said it."""
        if "num_heads" in fields:
            return self
        heads = next((h for d, w, h in sizes.values() if (d, w) == (depth, width)), None)
        if heads is None:
            return self.and_missing("num_heads", f"how many heads it has ({depth} x {width} is no published size)")
        return self.and_known(num_heads=heads)


def last_row(rows: int, null: str, label: str) -> str:
    return f"whether the last of its {rows} class embeddings is the null class ({null}) or a class ({label})"


def side(count: int) -> int:
    """The side of a square of so many patches.  Raises ValueError for another number."""
    root = math.isqrt(max(count, 0))
    if root * root != count:
        raise ValueError(f"{count} patches are no square")
    return root
