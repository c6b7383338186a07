"""Which tensors of a model are stored narrower than they are computed (`narrow.py`), and how that is said."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import msgspec

from ..ir.dtypes import BYTES, width
from ..support.words import counted
from .narrow import SCALE
from .recipe import Narrowing, TensorRecord, stored_type

STORES = {"fp16": "float16", "bf16": "bfloat16", "int8": "int8"}  # by the word for them
LEAST = 4096  # numbers of a matrix that is worth it


def stored_as(records: Mapping[str, TensorRecord], kind: str | None, kept: tuple[str, ...] = ()) -> dict[str, TensorRecord]:
    """The records with matrices stored in `kind`, where that is narrower than what they are computed in.

    `kept` are modules whose matrices stay as they are.  Norms, biases, tables that are added, and small tensors stay, too.
    """
    if kind is None:
        return dict(records)
    outside = tuple(f"{module}." for module in kept)
    return {
        name: msgspec.structs.replace(record, stored=STORES[kind])
        if fits(name, record, STORES[kind]) and not name.startswith(outside)
        else record
        for name, record in records.items()
    }


def said(tensors: Mapping[str, TensorRecord], narrowing: Narrowing | None) -> str:
    """How matrices are stored narrower, and what that has cost, in words; nothing where none are, or there are none yet."""
    if not narrowing:
        return ""
    cost = f"relative error {narrowing.error:.1e}, at most {narrowing.worst_error:.1e} ({narrowing.worst})"
    exact = "without loss" if narrowing.worst_error == 0 else cost
    return f"{counted(narrowing.matrices, 'matrix', 'matrices')} stored in {stored_type(tensors)}, {exact}"


def fits(name: str, record: TensorRecord, stored: str) -> bool:
    """Whether a tensor is one of the matrices that are worth it: what a module multiplies with, or looks up."""
    is_matrix = name.endswith(".weight") and len(record.shape) > 1 and math.prod(record.shape) >= LEAST
    return is_matrix and width(stored) < BYTES[record.dtype]


def problems(tensors: Mapping[str, TensorRecord]) -> Iterator[str]:
    """Where records of a manifest cannot be stored as they say; their types and shapes are usable."""
    for name, record in tensors.items():
        if record.stored and width(record.stored) >= BYTES[record.dtype]:
            yield f"the weight {name[:100]!r} is stored as {record.stored}, and computed as {record.dtype}"
        if record.stored == "int8" and (len(record.shape) < 2 or f"{name}{SCALE}" in tensors):
            yield f"the weight {name[:100]!r} has no rows with scales of their own"
