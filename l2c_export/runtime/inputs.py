"""What a request says of every image, checked against what the artefact declares: labels by number or name, or arrays.

Everything that is refused is a UsageError of one line.  Numbers of numpy and PyTorch become Python's, which do not wrap around.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..artefact.manifest import Manifest
from ..errors import UsageError
from ..ir.inputs import Inputs, RequestInput, arrays, asked
from ..support.tensors import scalar
from ..support.words import counted
from .request import array, floats, listed, whole

# of an input with choices: numbers, names, or an array or a tensor of one dimension
Labels = Sequence[int | str] | int | str | Any
OF_PICTURES = frozenset({"strength", "image", "mask_image"})  # of pipelines that change a picture


def checked(manifest: Manifest, values: Mapping[str, Any]) -> dict[str, Any]:
    """The array of every input that is declared, (B, *shape) of its type, and of the unconditional half's that are given.

    Raises UsageError for what is none, for an input that the artefact does not have, and for a batch that it does not make.
    """
    names = [declared.name for declared in arrays(manifest.inputs)]
    for name, value in values.items():
        if name not in names and value is not None:
            if name in OF_PICTURES:
                raise UsageError(f"{name}=..: a compiled loop begins with noise, it changes no picture: leave it out")
            takes = f"it takes {', '.join(f'{n}=..' for n in names)}" if names else "it takes none"
            raise UsageError(f"{name}=..: this artefact has no such input: {takes}")
    needed = [declared.name for declared in asked(manifest.inputs)]
    inputs = {
        declared.name: one(declared, values.get(declared.name), manifest.batch)
        for declared in arrays(manifest.inputs)
        if declared.name in needed or values.get(declared.name) is not None
    }
    if len({len(values) for values in inputs.values()}) > 1:
        counts = ", ".join(f"{name} of {counted(len(values), 'image')}" for name, values in inputs.items())
        raise UsageError(f"{counts}: give as many of each")
    return inputs


def images_of(manifest: Manifest, inputs: Inputs, seed: Any, latents: Any) -> int:
    """How many a request is for; noise says it where the model is told nothing else."""
    if inputs:
        return len(next(iter(inputs.values())))
    count = len(listed(seed if latents is None else latents, "seed"))
    check_count(count, manifest.batch, counted(count, "image"))
    return count


def one(declared: RequestInput, value: Any, batch: int) -> np.ndarray:
    """The array of one input, (B, *shape)."""
    if declared.choices and not declared.shape:
        return chosen(declared, value, batch)
    shape = ("B", *declared.shape)
    if value is None:
        raise UsageError(f"{declared.name}=..: is missing: give an array of shape {described(shape)}")
    values = array(value, declared.name, f"this model needs numbers of shape {described(shape)}")
    if values.ndim != len(shape) or values.shape[1:] != declared.shape:
        raise UsageError(f"{declared.name} of shape {values.shape}: this model needs {described(shape)}")
    check_count(len(values), batch, f"{declared.name} of {counted(len(values), 'image')}")
    values = floats(values, declared.name) if declared.dtype == "float32" else integers(values, declared)
    if not np.isfinite(values).all():
        raise UsageError(f"{declared.name}: holds NaN or infinite values")
    return values


def described(shape: Sequence[object]) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def integers(values: np.ndarray, declared: RequestInput) -> np.ndarray:
    """Whole numbers as int32, of the choices if there are some."""
    if values.dtype.kind not in "iub":
        raise UsageError(f"{declared.name} of dtype {values.dtype}: use int32")
    least, most = (0, declared.choices - 1) if declared.choices else (-(2**31), 2**31 - 1)
    if values.size and not (least <= int(values.min()) and int(values.max()) <= most):
        raise UsageError(f"{declared.name}: holds numbers that are not from {least} to {most}")
    return values.astype(np.int32)


def check_count(count: int, batch: int, words: str) -> None:
    """Refuse a batch that the artefact does not make."""
    if not 1 <= count <= batch:
        remedy = f"ask for fewer, or compile it with batch={count}" if count else "give at least one"
        able = "1 image" if batch == 1 else f"1 to {batch} images"
        raise UsageError(f"{words}: this artefact makes {able} at once: {remedy}")


# inputs with choices


def chosen(declared: RequestInput, value: Any, batch: int) -> np.ndarray:
    """The numbers of choices, (B,) int32."""
    values, words = scalar(value), declared.name.replace("_", " ")
    entries = [values] if isinstance(values, str) else listed(values, words)
    check_count(len(entries), batch, f"{len(entries)} {words}")
    return np.array([choice(declared, scalar(entry)) for entry in entries], np.int32)


def choice(declared: RequestInput, value: Any) -> int:
    """The number of one.  Text is the name of one, or else a number in digits, as at the command line."""
    number = value
    if isinstance(value, str) and value in (declared.names or {}):
        return named(declared, value)
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,18}", value, re.ASCII):
        number = int(value)
    elif isinstance(value, str) and declared.names:
        return named(declared, value)
    most = (declared.choices or 1) - 1
    if not whole(number) or not 0 <= number <= most:
        hint = f", every {single(declared).split()[-1]} on its own" if isinstance(number, str) and "," in number else ""
        raise UsageError(f"{single(declared)} {number!r}: must be a whole number from 0 to {most}{hint}")
    return int(number)


def named(declared: RequestInput, name: Any) -> int:
    """The number of a name."""
    names = declared.names or {}
    if not isinstance(name, str) or name not in names:
        close = " or ".join(difflib.get_close_matches(str(name), names, 3))
        remedy = f"did you mean {close}?" if close else "use a number"
        raise UsageError(f"{single(declared)} {name!r}: no such name: {remedy}")
    return names[name]


def single(declared: RequestInput) -> str:
    """What one value is called: "class label"."""
    return declared.name.replace("_", " ").removesuffix("s")
