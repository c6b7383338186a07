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
from ..ir.dtypes import E4M3, width
from ..support.files import replacing
from ..support.progress import Step, unsaid
from ..support.words import counted
from . import e4m3
from .narrow import SCALE, Losses, quantised, scales, widened
from .recipe import Narrowing, Shape, TensorRecord

WEIGHTS = "weights.safetensors"
CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # what checkpoints have
COMPUTED = {**CODES, E4M3: "F8_E4M3"}  # what is computed with
FILED = {**COMPUTED, "int8": "I8"}  # what we write
LARGEST = 8  # bytes, more than a number has

Shapes = Mapping[str, Shape]
Tensors = Iterable[tuple[str, np.ndarray]]


class Place(NamedTuple):
    """Where a tensor, or some rows of one, lies in the file."""

    offset: int
    shape: tuple[int, ...]
    bytes: int


class FiledTensor(NamedTuple):
    """A tensor of the file, which may be the scales of another one."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        return width(self.dtype) * math.prod(self.shape)


class Layout:
    """The file's header and the place of every weight."""

    def __init__(self, tensors: Mapping[str, TensorRecord]) -> None:
        self.tensors = tensors
        self.entries = entries(tensors)
        table: dict[str, dict[str, object]] = {}
        position = 0
        starts: dict[str, int] = {}
        for name, entry in self.entries.items():
            end = position + entry.bytes
            table[name] = {"dtype": FILED[entry.dtype], "shape": list(entry.shape), "data_offsets": [position, end]}
            starts[name], position = position, end
        text = json.dumps(table, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % 64)
        self.header = len(text).to_bytes(8, "little") + text
        self.bytes = len(self.header) + position
        self._starts = {name: len(self.header) + start for name, start in starts.items()}

    def place(self, name: str, rows: slice = slice(None)) -> Place:
        """The place of some rows of a tensor of the file, by default of all."""
        entry = self.entries[name]
        row = width(entry.dtype) * math.prod(entry.shape[1:])
        first, last, _ = rows.indices(entry.shape[0])
        return Place(self._starts[name] + first * row, (last - first, *entry.shape[1:]), (last - first) * row)

    def view(self, memory: np.ndarray, name: str) -> np.ndarray:
        """The tensor of the file as an array inside `memory`, the file's bytes."""
        offset, shape, size = self.place(name)
        return memory[offset : offset + size].view(self.entries[name].dtype).reshape(shape)

    def wide(self, memory: np.ndarray, name: str) -> np.ndarray:
        """A tensor as it is computed with: a new array, where it is stored narrower."""
        record = self.tensors[name]
        if not record.stored:
            return self.view(memory, name)
        scale = self.view(memory, f"{name}{SCALE}") if record.stored == "int8" else None
        return widened(self.view(memory, name), scale, record.dtype)


def entries(tensors: Mapping[str, TensorRecord]) -> dict[str, FiledTensor]:
    """What lies in the file, in its order: by name, and what is stored narrower behind the rest, which stays aligned."""
    records = {name: FiledTensor(tensor.shape, tensor.stored or tensor.dtype) for name, tensor in tensors.items()}
    scaled = [name for name, tensor in tensors.items() if tensor.stored == "int8"]
    records |= {f"{name}{SCALE}": FiledTensor(tensors[name].shape[:1], "float32") for name in scaled}
    narrow = {name for name, tensor in tensors.items() if tensor.stored}
    order = sorted(records, key=lambda name: (-width(records[name].dtype) if name in narrow else -LARGEST, name))
    return {name: records[name] for name in order}


def mapped(path: Path, tensors: Mapping[str, TensorRecord]) -> Callable[[str], np.ndarray]:
    """Tensors by name, as views of the file; those that are stored narrower are widened once, when they are asked for.

    Nothing writes to them; the mapping is copy-on-write because some libraries do not take read-only memory.
    Raises WeightsError for a file of other tensors, where each would be read from the place of another one.
    """
    layout, memory = Layout(tensors), np.memmap(path, mode="c")
    if bytes(memory[: len(layout.header)]) != layout.header:
        raise WeightsError(f"{path}: holds other tensors than the manifest says: run l2c-export again")
    cache: dict[str, np.ndarray] = {}

    def tensor(name: str) -> np.ndarray:
        if not tensors[name].stored:
            return layout.view(memory, name)
        if name not in cache:
            cache[name] = layout.wide(memory, name)
        return cache[name]

    return tensor


def unscaled(name: str, view: Callable[[str], np.ndarray], record: TensorRecord) -> np.ndarray:
    """A tensor of a file that is seen through `view`, in numbers of its own: what is e4m3 is float32."""
    value = view(name)
    return e4m3.widened(value, view(e4m3.weight_scale(name))) if record.dtype == E4M3 else value


def write(path: Path, layout: Layout, tensors: Tensors, step: Step = unsaid) -> Narrowing | None:
    """Write the file whole or not at all; what storing matrices narrower has cost is returned, where any are.

    Raises WeightsError for NaN, infinite or overflowing values.
    """
    losses = Losses()
    with replacing(path) as file:
        file.write(layout.header)
        step(len(layout.header))
        for name, value in tensors:
            record = layout.tensors[name]
            kept = stored(name, value, record)
            if record.stored:
                losses.add(name, value, loaded(name, kept, record))
            for part, data in kept.items():
                file.seek(layout.place(part).offset)
                file.write(data.reshape(-1).view(np.uint8).data)  # bfloat16 is no type of buffers
                step(data.nbytes)
    return Narrowing(*losses.summed()) if losses else None


def stored(name: str, value: np.ndarray, record: TensorRecord) -> dict[str, np.ndarray]:
    """A tensor as it lies in the file, with its scales.  Raises WeightsError as `write`."""
    if record.dtype == E4M3:
        wide = rounded(name, value, "float32")
        one = e4m3.scale_of(float(np.abs(wide).max(initial=0)))
        return {name: e4m3.rounded(wide, one), e4m3.weight_scale(name): one}
    if record.stored != "int8":
        return {name: rounded(name, value, record.stored or record.dtype, bool(record.stored))}
    wide = rounded(name, value, "float32")
    scale = scales(wide)
    return {name: quantised(wide, scale), f"{name}{SCALE}": scale}


def as_loaded(name: str, value: np.ndarray, record: TensorRecord) -> np.ndarray:
    """A tensor as it is when it was stored and loaded again."""
    return loaded(name, stored(name, value, record), record)


def loaded(name: str, kept: Mapping[str, np.ndarray], record: TensorRecord) -> np.ndarray:
    """What `stored` made of a tensor, as it is computed with."""
    return widened(kept[name], kept.get(f"{name}{SCALE}"), record.dtype) if record.stored else kept[name]


def rounded(name: str, value: np.ndarray, dtype: str, is_stored: bool = False) -> np.ndarray:
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
    check_fits(name, np.isfinite(data), dtype, is_stored)
    return data


def check_fits(name: str, finite: np.ndarray, dtype: str, is_stored: bool = False) -> None:
    if not finite.all():
        count = int(np.size(finite) - finite.sum())
        remedy = "use precision='bf16', or fp32=.. with its sublayer" if dtype == "float16" else "use precision='fp32'"
        remedy = "use store='bf16' or int8" if is_stored else remedy
        raise WeightsError(
            f"weights: {counted(count, 'value')} of {name} {'does' if count == 1 else 'do'} not fit into {dtype}: {remedy}"
        )
