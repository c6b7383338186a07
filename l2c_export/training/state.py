"""What a training leaves on disk while it runs: its checkpoint, replaced whole, and its log."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import ArtefactError
from ..support.files import replacing, sweep
from ..weights import torch_file

CHECKPOINT, LOG = "checkpoint.pt", "log.csv"
REMEDY = "remove it to start again"


class State(NamedTuple):
    """A router in training after `iteration` iterations: what the error of every pair (pairs,) counts, logits (pairs, columns),
    both float32, and AdamW's state."""

    iteration: int
    lambda_: float
    influence: Tensor
    logits: Tensor
    optimizer: dict[str, Any]


class LogEntry(NamedTuple):
    """A line of the log.  `loss` and `mse` are means over the cached calls, `computed` is the share of their sublayers.

    The loss counts errors by their influence, `mse` counts them as they are.
    """

    iteration: int
    loss: float
    mse: float
    computed: float
    seconds: float


def replace(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    try:
        with replacing(path) as file:
            file.write(data)
    except OSError as error:
        raise ArtefactError(f"{path}: cannot be written: {error.strerror or error}: choose another out=..") from None


def save(folder: Path, state: State, options: Mapping[str, str]) -> None:
    data = io.BytesIO()
    torch.save({**state._asdict(), "options": dict(options)}, data)
    replace(folder / CHECKPOINT, data.getvalue())


def restore(folder: Path, options: Mapping[str, str], lambda_: float | None = None) -> State | None:
    """The training in a folder, None if there is none; without a lambda, that one's goes on to hold.

    Raises ArtefactError where it was made with other options.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    content = torch_file.load(path, ArtefactError, "a training's checkpoint", REMEDY)
    try:
        content = as_torch(content)
        stored = dict(content.pop("options"))
        state = State(**content)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        raise ArtefactError(f"{path} is not a training's checkpoint: {REMEDY}") from None
    stored["lambda"] = f"{state.lambda_:g}"
    current = {**options, "lambda": stored["lambda"] if lambda_ is None else f"{lambda_:g}"}
    for name in sorted({*current, *stored}):
        if stored.get(name) != current.get(name):
            then, now = (short(values.get(name)) for values in (stored, current))
            raise ArtefactError(
                f"{folder} holds a training with {parameter(name)}={then}, not {now}: go on with that, or choose another out=.."
            )
    return state


def parameter(name: str) -> str:
    """The parameter of `train` that a checkpoint knows by another name."""
    return "lambda_" if name == "lambda" else name.replace("-", "_")


def as_torch(value: Any) -> Any:
    """The same with tensors of PyTorch, in memory of their own: an optimizer writes to them."""
    if isinstance(value, torch_file.Tensor):
        return torch.from_numpy(value.array().copy())
    if isinstance(value, dict):
        return {key: as_torch(item) for key, item in value.items()}
    return type(value)(map(as_torch, value)) if isinstance(value, (list, tuple)) else value


def short(value: str | None) -> str:
    text = value or "left out"
    return text if len(text) <= 40 else text[:20] + ".."


class Log:
    """The lines of a training that goes on after `iteration`; what a killed one had logged beyond that is dropped."""

    def __init__(self, folder: Path, iteration: int) -> None:
        sweep(folder)
        self._path, rows = folder / LOG, []
        if iteration and self._path.exists():
            rows = list(csv.reader(io.StringIO(self._path.read_text())))[1:][:iteration]
        text = io.StringIO()
        csv.writer(text).writerows([LogEntry._fields, *rows])
        replace(self._path, text.getvalue().encode())

    def add(self, entry: LogEntry) -> None:
        with open(self._path, "a", newline="") as file:
            csv.writer(file).writerow([f"{v:.6g}" if isinstance(v, float) else v for v in entry])
