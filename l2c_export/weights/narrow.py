"""Matrices stored narrower than they are computed: in 16 bits, or in 8 with a float32 scale for every row.

A row of a stored matrix is an output of a product, or an entry of a table that is looked up.  Its scale is symmetric: the
largest number of the row is 127.  What is stored is widened once, when an artefact is loaded; nothing else knows of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import msgspec
import numpy as np

from ..ir.dtypes import BYTES
from ..support.words import counted
from .recipe import Narrowing, TensorRecord, stored_type

STORES = {"fp16": "float16", "bf16": "bfloat16", "int8": "int8"}  # by the word for them
SCALE = ".scale"  # ends the name of a matrix' scales in the file
LEAST = 4096  # numbers of a matrix that is worth it
MOST = 127  # what the largest number of a row becomes


class Losses:
    """Adds up what is lost, matrix by matrix."""

    def __init__(self) -> None:
        self._parts: dict[str, tuple[float, float]] = {}  # squares of what is lost, and of what there was

    def add(self, name: str, given: np.ndarray, kept: np.ndarray) -> None:
        lost = np.asarray(given, np.float32) - np.asarray(kept, np.float32)
        self._parts[name] = square(lost), square(given)

    @property
    def narrowing(self) -> Narrowing | None:
        """None where nothing is stored narrower."""
        if not self._parts:
            return None
        errors = {name: math.sqrt(lost / there) if there else 0.0 for name, (lost, there) in self._parts.items()}
        worst = max(errors, key=lambda name: errors[name])
        lost, there = (sum(part[n] for part in self._parts.values()) for n in (0, 1))
        return Narrowing(len(errors), math.sqrt(lost / there) if there else 0.0, worst, errors[worst])


def square(values: np.ndarray) -> float:
    flat = np.ravel(values).astype(np.float64)
    return float(flat @ flat)


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


def width(stored: str) -> int:
    """Bytes of a number."""
    return 1 if stored == "int8" else BYTES[stored]


def problems(tensors: Mapping[str, TensorRecord]) -> Iterator[str]:
    """Where records of a manifest cannot be stored as they say; their types and shapes are usable."""
    for name, record in tensors.items():
        if record.stored and width(record.stored) >= BYTES[record.dtype]:
            yield f"the weight {name[:100]!r} is stored as {record.stored}, and computed as {record.dtype}"
        if record.stored == "int8" and (len(record.shape) < 2 or f"{name}{SCALE}" in tensors):
            yield f"the weight {name[:100]!r} has no rows with scales of their own"


def scales(value: np.ndarray) -> np.ndarray:
    """(N, ..) float32 -> (N,) float32, all above 0."""
    largest = np.abs(value).reshape(len(value), -1).max(1) if value.size else np.zeros(len(value), np.float32)
    made: np.ndarray = np.where(largest / np.float32(MOST) > 0, largest / np.float32(MOST), np.float32(1))
    return made


def quantised(value: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """(N, ..) float32 and a scale for every row -> int8 of the same shape, rounded to the nearest."""
    rows = scale.reshape(-1, *[1] * (value.ndim - 1))
    made: np.ndarray = np.clip(np.rint(value / rows), -MOST, MOST).astype(np.int8)
    return made


def widened(stored: np.ndarray, scale: np.ndarray | None, dtype: str) -> np.ndarray:
    """What is computed with: a new array of `dtype`."""
    wide = stored.astype(np.float32)
    if scale is not None:
        wide *= scale.reshape(-1, *[1] * (stored.ndim - 1))
    return wide.astype(dtype, copy=False)
