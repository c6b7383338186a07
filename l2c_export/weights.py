"""The one copy of the weights: `weights.safetensors`, written tensor by tensor and read through a memory map.

Its layout follows from the names and shapes alone (sorted by name, no gaps), so step graphs can point into
it before there are any weights, and weights can be bound or swapped later without touching a graph.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import safetensors

from . import checkpoints, containers, file_kind, pickled
from .errors import UsageError, WeightsError
from .files import replacing
from .program import BYTES, rows_of, stored

FILE = "weights.safetensors"
CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # what we write
READABLE = (*CODES.values(), "F64")  # types of a .safetensors checkpoint
FLOATS = (*CODES, "float64")  # and of a PyTorch one
FILES = (file_kind.SAFETENSORS, file_kind.TORCH, file_kind.LEGACY_TORCH)
REMEDY = "give the model's .safetensors or .pt file"


class Index(msgspec.Struct, frozen=True):
    """Which file every tensor is in, as `save_pretrained` writes it."""

    weight_map: dict[str, str]


Shapes = Mapping[str, tuple[int, ...]]
Tensors = Iterable[tuple[str, np.ndarray]]
Progress = Callable[[int], object]  # told the number of bytes that were just written


class Place(NamedTuple):
    """Where a weight, or some rows of one, lies in the file."""

    offset: int
    shape: tuple[int, ...]
    bytes: int


class Types(NamedTuple):
    """The type of every tensor: one for all, but for the sublayers that are kept in float32."""

    dtype: str = "float32"
    fp32: tuple[str, ...] = ()

    def of(self, tensor: str) -> str:
        return "float32" if any(tensor.startswith(f"{sublayer}.") for sublayer in self.fp32) else self.dtype


class Layout:
    """The file's header and the place of every weight, for tensors of the given shapes and types."""

    def __init__(self, shapes: Shapes, types: Types = Types()) -> None:  # noqa: B008  (frozen)
        self.types = types
        table: dict[str, dict[str, object]] = {}
        position = 0
        starts: dict[str, int] = {}
        for name in sorted(shapes):
            size = BYTES[types.of(name)] * int(np.prod(shapes[name]))
            table[name] = {
                "dtype": CODES[types.of(name)],
                "shape": list(shapes[name]),
                "data_offsets": [position, position + size],
            }
            starts[name] = position
            position += size
        text = json.dumps(table, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % 64)
        self.header = len(text).to_bytes(8, "little") + text
        self.bytes = len(self.header) + position
        self._starts = {name: len(self.header) + start for name, start in starts.items()}
        self._shapes = dict(shapes)

    def place(self, weight: str) -> Place:
        """The place of "name" or of "name[first:last]"."""
        name, rows = rows_of(weight)
        shape = self._shapes[name]
        row = BYTES[self.types.of(name)] * int(np.prod(shape[1:]))
        first, last, _ = rows.indices(shape[0])
        return Place(self._starts[name] + first * row, (last - first, *shape[1:]), (last - first) * row)

    def view(self, memory: np.ndarray, weight: str) -> np.ndarray:
        """The weight as an array inside `memory`, the file's bytes; bfloat16 as its 16 bits."""
        offset, shape, size = self.place(weight)
        return memory[offset : offset + size].view(stored(self.types.of(weight))).reshape(shape)


def write(path: Path, layout: Layout, tensors: Tensors, progress: Progress = id) -> None:
    """Write the file whole or not at all.  Raises WeightsError for NaN, infinite or overflowing values."""
    with replacing(path) as file:
        file.write(layout.header)
        for name, value in tensors:
            data = rounded(name, value, layout.types.of(name))
            file.write(data.data)
            progress(data.nbytes)


def rounded(name: str, value: np.ndarray, dtype: str) -> np.ndarray:
    """A finite tensor in the given type, rounded to the nearest.  Raises WeightsError naming the tensor."""
    if not np.isfinite(value).all():
        count = int(np.size(value) - np.isfinite(value).sum())
        raise WeightsError(f"weights: {count} values of {name} are NaN or infinite: export the checkpoint again")
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(value, np.float32).view(np.uint32)
        data = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)  # ties to even
        check_fits(name, (data & 0x7F80) != 0x7F80, dtype)  # an exponent of ones is infinite
        return data.reshape(np.shape(value))
    with np.errstate(over="ignore"):
        data = np.ascontiguousarray(value, dtype=dtype)
    check_fits(name, np.isfinite(data), dtype)
    return data


def check_fits(name: str, finite: np.ndarray, dtype: str) -> None:
    if not finite.all():
        count = int(np.size(finite) - finite.sum())
        remedy = "use --precision bf16, or --fp32 for its sublayer" if dtype == "float16" else "use --precision fp32"
        raise WeightsError(f"weights: {count} values of {name} do not fit into {dtype}: {remedy}")


def random(shapes: Shapes, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Weights for latency work: normal with standard deviation 0.02, norms around 1; a function of the seed."""
    for i, name in enumerate(sorted(shapes)):
        value = np.random.default_rng([seed, i]).standard_normal(shapes[name], dtype=np.float32) * np.float32(0.02)
        yield name, value + 1 if "norm" in name and name.endswith(".weight") else value


def random_seed(text: str) -> int | None:
    """The seed in "random" or "random:SEED"; None for anything else."""
    kind, _, seed = text.partition(":")
    if kind != "random" or Path(text).exists():
        return None
    if seed and not seed.isdecimal():
        raise UsageError(f"--weights {text}: use random or random:SEED with a whole number")
    return int(seed or 0)


class Checkpoint(NamedTuple):
    """A checkpoint's tensors, not read yet: their shapes, and how to read one; and what its training noted of itself."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]
    args: Mapping[str, object] = {}  # the options of the training script, as far as the file has them
    taken: str = ""  # which of its models, where it holds several

    @property
    def described(self) -> str:
        return f"{self.path} ({self.taken})" if self.taken else str(self.path)

    def tensors(self, shapes: Shapes) -> Iterator[tuple[str, np.ndarray]]:
        """The tensors of a model in layout order.  Raises WeightsError naming the first that do not fit."""
        problems = [f"{n} is missing" for n in sorted(shapes) if n not in self.shapes]
        problems += [f"{n} is not part of the model" for n in sorted(self.shapes) if n not in shapes]
        problems += [
            f"{n} has shape {list(self.shapes[n])}, the model needs {list(shapes[n])}"
            for n in sorted(shapes)
            if n in self.shapes and tuple(self.shapes[n]) != tuple(shapes[n])
        ]
        if problems:
            more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise WeightsError(
                f"{self.path} does not fit the model: {'; '.join(problems[:3])}{more}: give the weights of this model"
            )
        return ((name, self.read(name)) for name in sorted(shapes))


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a file of safetensors or torch.save, or an index (JSON) of several, whatever it is called.  Raises WeightsError."""
    tree = _tree(path, (file_kind.JSON, *FILES))
    model = containers.find(tree, (checkpoints.Tensor, Slice), path, REMEDY)
    for name, tensor in model.tensors.items():
        known = READABLE if isinstance(tensor, Slice) else FLOATS
        if tensor.dtype not in known:
            raise WeightsError(f"{path}: {name} has dtype {tensor.dtype}: use one of {', '.join(known)}")
    shapes = {name: tensor.shape for name, tensor in model.tensors.items()}
    args = pickled.plain(tree.get("args")) if isinstance(tree, Mapping) else {}
    return Checkpoint(path, shapes, lambda name: model.tensors[name].float32(), args, model.taken)


def _tree(path: Path, allowed: tuple[file_kind.Kind, ...]) -> Any:
    """What a file holds: a mapping with tensors somewhere below it, in most cases."""
    if not path.is_file():
        raise WeightsError(f"--weights {path}: no such file: {REMEDY}")
    try:
        kind = file_kind.of(path)
    except OSError as error:
        raise WeightsError(f"--weights {path}: cannot be read: {error.strerror or error}: {REMEDY}") from None
    if kind not in allowed:
        raise WeightsError(f"{path} is not a checkpoint: {kind.instead(REMEDY)}")
    if kind == file_kind.JSON:
        return _sharded(path)
    return _safetensors(path) if kind == file_kind.SAFETENSORS else checkpoints.load(path, WeightsError, "a checkpoint", REMEDY)


def _sharded(path: Path) -> dict[str, Any]:
    """Several files, of which an index says where every tensor is."""
    try:
        text = file_kind.json_text(path)
        other = file_kind.of_json(msgspec.json.decode(text))
        if other not in (None, file_kind.INDEX):
            raise WeightsError(f"{path} is not a checkpoint: {other.instead(REMEDY)}")
        places = msgspec.json.decode(text, type=Index).weight_map
    except OSError as error:
        raise WeightsError(f"--weights {path}: cannot be read: {error.strerror or error}: {REMEDY}") from None
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise WeightsError(f"{path}: weight_map is damaged: {error}: download or save it again") from None
    files = {name: _tree(path.parent / Path(name).name, FILES) for name in sorted(set(places.values()))}
    for name, place in places.items():
        if not isinstance(files[place], Mapping) or name not in files[place]:
            raise WeightsError(f"{path}: {name} is not in {places[name]}: download or save it again")
    return {name: files[place][name] for name, place in places.items()}


class Slice(NamedTuple):
    """A tensor of a safetensors file, not read yet."""

    shape: tuple[int, ...]
    dtype: str  # in the words of the format
    float32: Callable[[], np.ndarray]


def _safetensors(path: Path) -> dict[str, Slice]:
    try:
        file = safetensors.safe_open(path, framework="numpy")
        stored = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path} is not a safetensors file, or is truncated: {error}: {REMEDY}") from None
    widened = _BFloat16(path) if any(tensor.get_dtype() == "BF16" for tensor in stored.values()) else None

    def read(name: str) -> np.ndarray:
        if widened and stored[name].get_dtype() == "BF16":
            return widened.read(name)
        return np.asarray(file.get_tensor(name)).astype(np.float32)

    return {name: Slice(tuple(tensor.get_shape()), tensor.get_dtype(), partial(read, name)) for name, tensor in stored.items()}


class _BFloat16:
    """Tensors of a checked file in a type that numpy lacks: the upper halves of float32."""

    def __init__(self, path: Path) -> None:
        self._memory = np.memmap(path, mode="r")
        self._start = 8 + int.from_bytes(bytes(self._memory[:8]), "little")
        self._entries = json.loads(bytes(self._memory[8 : self._start]))

    def read(self, name: str) -> np.ndarray:
        entry = self._entries[name]
        first, last = (self._start + offset for offset in entry["data_offsets"])
        upper = np.frombuffer(bytes(self._memory[first:last]), "<u2").astype(np.uint32)
        shape: list[int] = entry["shape"]
        return np.left_shift(upper, 16).view(np.float32).reshape(shape)
