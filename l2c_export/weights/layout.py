"""The one copy of the weights: `weights.safetensors`, written tensor by tensor and read through a memory map.

Its layout follows from the names, shapes and types alone (sorted by name, no gaps), so step graphs can point into
it before there are any weights, and weights can be bound or swapped later without touching a graph.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import WeightsError
from ..ir.dtypes import BYTES
from ..support.files import replacing
from ..support.progress import Step, unsaid
from ..support.words import counted
from .recipe import Shape, TensorRecord

WEIGHTS = "weights.safetensors"
CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # what we write

Shapes = Mapping[str, Shape]
Tensors = Iterable[tuple[str, np.ndarray]]


class Place(NamedTuple):
    """Where a tensor, or some rows of one, lies in the file."""

    offset: int
    shape: tuple[int, ...]
    bytes: int


class Layout:
    """The file's header and the place of every weight."""

    def __init__(self, tensors: Mapping[str, TensorRecord]) -> None:
        self.tensors = tensors
        table: dict[str, dict[str, object]] = {}
        position = 0
        starts: dict[str, int] = {}
        for name, tensor in sorted(tensors.items()):
            end = position + tensor.bytes
            table[name] = {"dtype": CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [position, end]}
            starts[name], position = position, end
        text = json.dumps(table, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % 64)
        self.header = len(text).to_bytes(8, "little") + text
        self.bytes = len(self.header) + position
        self._starts = {name: len(self.header) + start for name, start in starts.items()}

    def place(self, name: str, rows: slice = slice(None)) -> Place:
        """The place of some rows of a tensor, by default of all."""
        shape = self.tensors[name].shape
        row = BYTES[self.tensors[name].dtype] * math.prod(shape[1:])
        first, last, _ = rows.indices(shape[0])
        return Place(self._starts[name] + first * row, (last - first, *shape[1:]), (last - first) * row)

    def view(self, memory: np.ndarray, name: str) -> np.ndarray:
        """The tensor as an array inside `memory`, the file's bytes."""
        offset, shape, size = self.place(name)
        return memory[offset : offset + size].view(self.tensors[name].dtype).reshape(shape)


def mapped(path: Path, tensors: Mapping[str, TensorRecord]) -> Callable[[str], np.ndarray]:
    """Tensors by name, as views of the file.

    Nothing writes to them; the mapping is copy-on-write because some libraries do not take read-only memory.
    Raises WeightsError for a file of other tensors, where each would be read from the place of another one.
    """
    layout, memory = Layout(tensors), np.memmap(path, mode="c")
    if bytes(memory[: len(layout.header)]) != layout.header:
        raise WeightsError(f"{path}: holds other tensors than the manifest says: run l2c-export again")
    return lambda name: layout.view(memory, name)


def write(path: Path, layout: Layout, tensors: Tensors, step: Step = unsaid) -> None:
    """Write the file whole or not at all.  Raises WeightsError for NaN, infinite or overflowing values."""
    with replacing(path) as file:
        file.write(layout.header)
        step(len(layout.header))
        for name, value in tensors:
            data = rounded(name, value, layout.tensors[name].dtype)
            file.write(data.reshape(-1).view(np.uint8).data)  # bfloat16 is no type of buffers
            step(data.nbytes)


def rounded(name: str, value: np.ndarray, dtype: str) -> np.ndarray:
    """A finite tensor in the given type, rounded to the nearest.  Raises WeightsError naming the tensor."""
    if not np.isfinite(value).all():
        count = int(np.size(value) - np.isfinite(value).sum())
        raise WeightsError(
            f"weights: {counted(count, 'value')} of {name} {'is' if count == 1 else 'are'} NaN or infinite: "
            "export the checkpoint again"
        )
    with np.errstate(over="ignore"):
        wide = np.float32 if dtype == "bfloat16" else dtype  # from float64 in two steps, as PyTorch does
        data = np.ascontiguousarray(value, wide).astype(dtype, copy=False)
    check_fits(name, np.isfinite(data), dtype)
    return data


def check_fits(name: str, finite: np.ndarray, dtype: str) -> None:
    if not finite.all():
        count = int(np.size(finite) - finite.sum())
        remedy = "use precision='bf16', or fp32=.. with its sublayer" if dtype == "float16" else "use precision='fp32'"
        raise WeightsError(
            f"weights: {counted(count, 'value')} of {name} {'does' if count == 1 else 'do'} not fit into {dtype}: {remedy}"
        )
