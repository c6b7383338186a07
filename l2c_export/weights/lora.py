"""A LoRA (arXiv 2106.09685): for some modules a product of two small matrices, which is added to the module's weight.

W + scale * (alpha / rank) * up @ down, up (D, R), down (R, ..).  The files are those of peft, diffusers and kohya, safetensors
or torch.save, by their content; a product is made when it is asked for.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import UsageError, WeightsError
from . import lora_settings
from .checkpoint import Checkpoint, open_checkpoint
from .lora_keys import ALPHA, DOWN, UP, LoraKey, encoder, other_kind, parsed
from .recipe import Shape

FILES = ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin", "adapter_model.safetensors", "adapter_model.bin")
AGAIN = "download or save it again"
MERGE = "only a plain LoRA is, merge it with its own tool first"


class LowRank(NamedTuple):
    """factor * up @ down, of which only `rows` (from, to) may be meant, one behind the other; () is all."""

    down: str
    up: str
    factor: float
    rows: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Lora:
    """The products of a file by their modules; the names of `flat` ones have underscores for dots."""

    stored: Checkpoint
    scale: float
    products: Mapping[str, LowRank]
    flat: frozenset[str] = frozenset()
    encoders: Mapping[str, int] = field(default_factory=dict)  # how many tensors are for which text encoder

    @property
    def path(self) -> Path:
        return self.stored.path

    @property
    def called(self) -> str:
        """As it is given: FILE, or FILE:SCALE."""
        return self.path.name if self.scale == 1 else f"{self.path.name}:{self.scale:g}"

    def shape(self, module: str) -> Shape:
        """The shape of what is added to a module's weight."""
        product = self.products[module]
        rows = sum(last - first for first, last in product.rows) if product.rows else self.stored.shapes[product.up][0]
        return (rows, *self.stored.shapes[product.down][1:])

    def delta(self, module: str) -> np.ndarray:
        """What is added to a module's weight, float32.  Raises WeightsError for factors that are not finite."""
        product = self.products[module]
        down, up = (self._finite(name) for name in (product.down, product.up))
        up = up.reshape(len(up), -1)
        if product.rows:
            up = np.concatenate([up[first:last] for first, last in product.rows])
        delta: np.ndarray = (up @ down.reshape(len(down), -1)) * np.float32(self.scale * product.factor)
        return delta.reshape(self.shape(module))

    def _finite(self, name: str) -> np.ndarray:
        values = self.stored.read(name)
        if not np.isfinite(values).all():
            raise WeightsError(f"{self.path}: {name} holds NaN or infinite values: {AGAIN}")
        return values


def open_lora(text: str | os.PathLike[str]) -> Lora:
    """What "FILE" or "FILE:SCALE" means; a folder means the file that diffusers or peft has written there.

    Raises UsageError for a scale that is none, and WeightsError for a file that holds no LoRA, or something besides.
    """
    path, scale = _place(os.fspath(text))
    stored = open_checkpoint(path, whole=".alpha")
    names = [name for name in stored.shapes if not encoder(name)]
    if kind := next((f"{name} is of {words}" for name in names if (words := other_kind(name))), None):
        raise WeightsError(f"{path}: {kind}, which is not supported: {MERGE}")
    keys: dict[str, LoraKey] = {}
    for name in names:
        key = parsed(name)
        if key is None:
            raise WeightsError(f"{path}: {name} is no tensor of a LoRA: give a file of peft, diffusers or kohya")
        keys[name] = key
    encoders = Counter(filter(None, map(encoder, stored.shapes)))
    if not any(key.part == DOWN for key in keys.values()):
        held = f"only one of {' and '.join(encoders)}" if encoders else "none"
        raise WeightsError(f"{path}: holds no LoRA of a transformer, {held}: give one of this model")
    flat = frozenset(key.module for key in keys.values() if key.flat)
    return Lora(stored, scale, _products(stored, keys), flat, encoders)


def _place(text: str) -> tuple[Path, float]:
    """The file and the scale of "FILE:SCALE"."""
    name, _, number = text.rpartition(":")
    if not name or Path(text).exists():
        name, number = text, "1"
    try:
        scale = float(number)
    except ValueError:
        raise UsageError(f"lora={text!r}: no such file, and {number!r} is no scale: use FILE or FILE:SCALE") from None
    if not math.isfinite(scale):
        raise UsageError(f"lora={text!r}: the scale must be a finite number")
    path = Path(name)
    if path.is_dir():
        files = [path / file for file in FILES if (path / file).is_file()]
        if not files:
            raise UsageError(f"lora={text!r}: the folder holds no {FILES[0]}: give the file")
        path = files[0]
    if not path.is_file():
        raise UsageError(f"lora={text!r}: no such file: use FILE or FILE:SCALE")
    return path, scale


def _products(stored: Checkpoint, keys: Mapping[str, LoraKey]) -> dict[str, LowRank]:
    """The products by their modules, and what each is multiplied by: what the file says, else 1."""
    path, parts = stored.path, dict[tuple[str, str], str]()
    for name, key in keys.items():
        if other := parts.get((key.module, key.part)):
            raise WeightsError(f"{path}: {other} and {name} say the same twice: {AGAIN}")
        parts[key.module, key.part] = name
    settings = lora_settings.read(path, any(key.peft for key in keys.values()))
    if settings and (alpha := next((name for name, key in keys.items() if key.part == ALPHA), None)):
        raise WeightsError(f"{path}: {alpha} and what peft has noted both say the scale: {AGAIN}")
    products = {}
    for module in dict.fromkeys(key.module for key in keys.values()):
        if missing := next((part for part in (DOWN, UP) if (module, part) not in parts), None):
            beside = next(name for name, key in keys.items() if key.module == module)
            raise WeightsError(f"{path}: {beside} has no part lora_{missing} beside it: {AGAIN}")
        down, up = parts[module, DOWN], parts[module, UP]
        rank = _rank(stored, down, up)
        factor = settings.factor(module, rank) if settings else _alpha(stored, parts.get((module, ALPHA)), rank) / rank
        products[module] = LowRank(down, up, factor)
    return products


def _rank(stored: Checkpoint, down: str, up: str) -> int:
    """How many columns of `up` meet how many rows of `down`."""
    narrow, wide = stored.shapes[down], stored.shapes[up]
    if len(narrow) < 2 or len(wide) != len(narrow) or narrow[0] != wide[1] or not narrow[0] or any(n != 1 for n in wide[2:]):
        raise WeightsError(f"{stored.path}: {down} of shape {list(narrow)} and {up} of {list(wide)} make no product: {AGAIN}")
    return narrow[0]


def _alpha(stored: Checkpoint, name: str | None, rank: int) -> float:
    """What a file says of a module; its rank, where it says nothing."""
    if name is None:
        return rank
    value = stored.read(name)
    if value.size != 1 or not np.isfinite(value).all():
        raise WeightsError(f"{stored.path}: {name} is no finite number: {AGAIN}")
    return float(value.reshape(()))
