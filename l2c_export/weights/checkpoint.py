"""Checkpoints as people have them: one file or several, their tensors by name, read when they are asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import safetensors

from ..errors import WeightsError
from ..support import file_kind
from . import containers, pickled, torch_file
from .layout import CODES, Shapes
from .recipe import Recipe, Unfit

READABLE = (*CODES.values(), "F64")  # types of a .safetensors checkpoint
FLOATS = (*CODES, "float64")  # and of a PyTorch one
INTEGERS = ("I64", "I32", "int64", "int32")  # of both
NUMPY = {**{code: dtype for dtype, code in CODES.items()}, "F64": "float64", "I64": "int64", "I32": "int32"}
FILES = (file_kind.SAFETENSORS, file_kind.TORCH, file_kind.LEGACY_TORCH)
REMEDY = "give the model's .safetensors or .pt file"


class ShardIndex(msgspec.Struct, frozen=True):
    """Which file every tensor is in, as `save_pretrained` writes it."""

    weight_map: dict[str, str]


class Checkpoint(NamedTuple):
    """A checkpoint's tensors, not read yet: their shapes, and how to read one; and what its training noted of itself."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]
    args: Mapping[str, object] = {}  # the options of the training script, as far as the file has them
    taken: str = ""  # which of its models, where it holds several
    recipes: Mapping[str, Recipe] = {}  # what its tensors are made of, where the file has others

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

    def by_recipe(self, recipes: Mapping[str, Recipe]) -> Checkpoint:
        """What recipes make of it, each tensor when it is read.  Raises WeightsError naming the first that cannot be made."""
        shapes = {}
        for name, recipe in recipes.items():
            try:
                shapes[name] = recipe.shape(self.shapes)
            except Unfit as reason:
                raise WeightsError(f"{self.path} does not fit its model, for {name}: {reason}") from None
        return self._replace(shapes=shapes, read=lambda name: recipes[name].value(self.read, shapes[name]), recipes=recipes)


def open_checkpoint(path: Path, passed_over: str | None = None, whole: str | None = None) -> Checkpoint:
    """Open a file of safetensors or torch.save, or an index (JSON) of several, whatever it is called.

    Tensors whose names end with `passed_over` are left out, whatever their type; those that end with `whole` may hold whole
    numbers.  Raises WeightsError.
    """
    tree = _tree(path, (file_kind.JSON, *FILES))
    model = containers.find(tree, (torch_file.Tensor, Slice), path, REMEDY)
    if passed_over:
        kept = {name: tensor for name, tensor in model.tensors.items() if not name.endswith(passed_over)}
        model = model._replace(tensors=kept)
    for name, tensor in model.tensors.items():
        allowed = READABLE if isinstance(tensor, Slice) else FLOATS
        if tensor.dtype not in (allowed if whole is None or not name.endswith(whole) else (*allowed, *INTEGERS)):
            raise WeightsError(f"{path}: {name} has dtype {tensor.dtype}: use one of {', '.join(allowed)}")
    shapes = {name: tensor.shape for name, tensor in model.tensors.items()}
    args = pickled.plain(tree.get("args")) if isinstance(tree, Mapping) else {}
    return Checkpoint(path, shapes, lambda name: model.tensors[name].float32(), args, model.taken)


def _tree(path: Path, allowed: tuple[file_kind.Kind, ...]) -> Any:
    """What a file holds: a mapping with tensors somewhere below it, in most cases."""
    if not path.is_file():
        raise WeightsError(f"weights={str(path)!r}: no such file: {REMEDY}")
    try:
        kind = file_kind.of(path)
    except OSError as error:
        raise WeightsError(f"weights={str(path)!r}: cannot be read: {error.strerror or error}: {REMEDY}") from None
    if kind not in allowed:
        raise WeightsError(f"{path} is not a checkpoint: {kind.instead(REMEDY)}")
    if kind == file_kind.JSON:
        return _sharded(path)
    return _safetensors(path) if kind == file_kind.SAFETENSORS else torch_file.load(path, WeightsError, "a checkpoint", REMEDY)


def weight_map(path: Path) -> dict[str, str]:
    """The file of every tensor, as an index (JSON) says it.  Raises WeightsError for what is none."""
    try:
        text = file_kind.json_text(path)
        kind = file_kind.of_json(msgspec.json.decode(text))
        if kind not in (None, file_kind.INDEX):
            raise WeightsError(f"{path} is not a checkpoint: {kind.instead(REMEDY)}")
        return msgspec.json.decode(text, type=ShardIndex).weight_map
    except OSError as error:
        raise WeightsError(f"weights={str(path)!r}: cannot be read: {error.strerror or error}: {REMEDY}") from None
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise WeightsError(f"{path}: weight_map is damaged: {error}: download or save it again") from None


def _sharded(path: Path) -> dict[str, Any]:
    """Several files, of which an index says where every tensor is."""
    places = weight_map(path)
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
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path} is not a safetensors file, or is truncated: {error}: {REMEDY}") from None
    memory = Mapped(path)
    return {name: Slice(tuple(s.get_shape()), s.get_dtype(), partial(memory.float32, name)) for name, s in slices.items()}


class Mapped:
    """The numbers of a checked file, in its own memory.  The library would copy them, and lacks bfloat16 in older releases."""

    def __init__(self, path: Path) -> None:
        self._memory = np.memmap(path, mode="c")  # some libraries do not take read-only memory
        self._start = 8 + int.from_bytes(bytes(self._memory[:8]), "little")
        self._entries = json.loads(bytes(self._memory[8 : self._start]))

    def float32(self, name: str) -> np.ndarray:
        """A view of a float32 tensor whose place in the file is as it has to be in memory, else a copy."""
        entry = self._entries[name]
        first, last = (self._start + offset for offset in entry["data_offsets"])
        numbers = self._memory[first:last].view(NUMPY[entry["dtype"]]).reshape(entry["shape"])
        return np.require(numbers, np.float32, "A")
