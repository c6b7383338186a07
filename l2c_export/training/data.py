"""Data to train on: an .npz of latents or images and what they are of, or a folder with a file for every image."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from ..errors import UsageError
from ..ir import inputs as ir_inputs
from ..ir.inputs import Inputs, RequestInput
from ..models.family import Family
from ..support import file_kind
from ..support.words import first_line

REMEDY = "give an .npz with `latents` or `images`, and `labels`, or a folder of features and labels"
FEATURES, LABELS = "features", "labels"  # how the names of fast-DiT's folders end; the latter also is an array of an .npz


class Values(Protocol):
    """(N, C, ..) float32, of which some are taken at a time."""

    def __len__(self) -> int: ...

    def __getitem__(self, chosen: list[int]) -> np.ndarray: ...


class Samples(NamedTuple):
    """Values (N, C, ..) float32 as the model was trained on, and what it takes besides: (N, ..) by the name of the input."""

    values: Values
    inputs: Inputs


def read(path: Path, family: Family) -> Samples:
    """`latents` are taken as they are; `images` are floats (N, C, H, W) in -1..1, or uint8 (N, H, W, C) or (N, H, W).

    What the model takes is an array of its name; the only input with choices is called `labels`, too.
    A folder holds `*_features` and `*_labels`, with an .npy file for every image: (1, C, H, W) floats, and its label.
    Raises UsageError for anything else, and for what does not fit the model.
    """
    if path.is_dir():
        return in_folder(path, family)
    arrays = load(path)
    name = next((n for n in ("latents", "images") if n in arrays), None)
    keys = {declared.name: key_of(declared, family, arrays) for declared in family.inputs}
    if name is None or not set(keys.values()) <= set(arrays):
        lacks = next((f"no `{key}`" for key in keys.values() if key not in arrays), "")
        missing = "neither `latents` nor `images`" if name is None else lacks
        raise UsageError(f"data={str(path)!r}: holds {missing} (but {', '.join(arrays) or 'nothing'}): {REMEDY}")
    values = as_floats(path, name, without_axis(arrays[name], family))
    check_values(path, name, values, family)
    inputs = {d.name: checked(path, keys[d.name], arrays[keys[d.name]], len(values), d) for d in family.inputs}
    return Samples(values, inputs)


def requests(path: Path, family: Family, guided: bool) -> Inputs:
    """What a model is asked for, (N, ..) by the name of the array, such as the embeddings that `l2c encode` writes.

    Other arrays, as data to train on have them, are left alone.  Raises UsageError for anything else, for what does not fit
    the model, and with guidance where what stands for nothing is missing.
    """
    if path.is_dir():
        return in_folder(path, family).inputs
    arrays = load(path)
    declared = ir_inputs.arrays(family.inputs) if guided else ir_inputs.asked(family.inputs)
    keys = {one.name: key_of(one, family, arrays) for one in declared}
    lacks = [key for key in keys.values() if key not in arrays]
    if lacks:
        remedy = "give what `l2c encode` writes" if family.inputs[0].shape else REMEDY
        raise UsageError(f"data={str(path)!r}: holds no `{lacks[0]}` (but {', '.join(arrays) or 'nothing'}): {remedy}")
    count = len(arrays[keys[declared[0].name]])
    if not count:
        raise UsageError(f"data={str(path)!r}: `{keys[declared[0].name]}` is empty: give one request at least")
    return {one.name: checked(path, keys[one.name], arrays[keys[one.name]], count, one) for one in declared}


def key_of(declared: RequestInput, family: Family, arrays: Collection[str]) -> str:
    """What an .npz calls an input."""
    single = [other.name for other in family.inputs if other.choices and not other.shape] == [declared.name]
    return LABELS if single and declared.name not in arrays else declared.name


def load(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise UsageError(f"data={str(path)!r}: no such file: {REMEDY}, or self for the model's own trajectories")
    try:
        kind = file_kind.of(path)
        if kind != file_kind.NPZ:
            raise UsageError(f"data={str(path)!r}: cannot be read: {kind.instead(REMEDY)}")
        with np.load(path) as file:
            return {name: file[name] for name in file.files}
    except UsageError:
        raise
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise UsageError(f"data={str(path)!r}: cannot be read: {_reason(error)}: {REMEDY}") from None


def _reason(error: Exception) -> str:
    return first_line(error).partition(" If you trust")[0]


def without_axis(values: np.ndarray, family: Family) -> np.ndarray:
    """Latents (N, 1, C, H, W), as encoders that see one image at a time leave them, without that axis."""
    return values[:, 0] if values.ndim == 5 and values.shape[1:] == (1, *family.latent) else values


def as_floats(path: Path, name: str, values: np.ndarray) -> np.ndarray:
    if name == "images" and values.dtype == np.uint8 and values.ndim in (3, 4):
        channels_last = values if values.ndim == 4 else values[..., None]
        floats = np.ascontiguousarray(channels_last.transpose(0, 3, 1, 2), np.float32)
        return np.asarray(floats / 127.5 - 1, np.float32)
    if not np.issubdtype(values.dtype, np.floating):
        kinds = "floats in -1..1 or uint8" if name == "images" else "floats"
        raise UsageError(f"data={str(path)!r}: `{name}` are {values.dtype} of shape {values.shape}: use {kinds}")
    return np.ascontiguousarray(values, np.float32)


def check_values(path: Path, name: str, values: np.ndarray, family: Family) -> None:
    if values.shape[1:] != family.latent or not len(values):
        raise UsageError(
            f"data={str(path)!r}: `{name}` are {values.shape} as (N, C, H, W): the model needs (N, *{family.latent})"
        )
    if not np.isfinite(values).all():
        raise UsageError(f"data={str(path)!r}: `{name}` hold NaN or infinite values: leave those out")
    if name == "images" and np.abs(values).max() > 1 + 1e-3:
        raise UsageError(f"data={str(path)!r}: `images` reach {np.abs(values).max():.3g}: scale them to -1..1, or save uint8")


def checked(path: Path, name: str, values: np.ndarray, count: int, declared: RequestInput) -> np.ndarray:
    """(N, *shape) of an input's type; labels (N, 1) without that axis."""
    flat = values[:, 0] if values.shape == (count, 1) and not declared.shape else values
    kind, numbers = (np.integer, "whole numbers") if declared.dtype == "int32" else (np.floating, "floats")
    if flat.shape != (count, *declared.shape) or not np.issubdtype(flat.dtype, kind):
        need = f"{count} {numbers}" if not declared.shape else f"{numbers} {(count, *declared.shape)}"
        raise UsageError(f"data={str(path)!r}: `{name}` are {values.dtype} of shape {values.shape}: use {need}")
    if declared.choices and (flat.min() < 0 or flat.max() >= declared.choices):
        most = declared.choices - 1
        raise UsageError(f"data={str(path)!r}: `{name}` from {flat.min()} to {flat.max()}: the model has 0 to {most}")
    if not np.isfinite(flat).all():
        raise UsageError(f"data={str(path)!r}: `{name}` hold NaN or infinite values: leave those out")
    return flat.astype(declared.dtype)


# folders with a file for every image


@dataclass(frozen=True)
class Files:
    """The features of every image, each read when it is taken."""

    paths: tuple[Path, ...]
    shape: tuple[int, ...]

    def __getitem__(self, chosen: list[int]) -> np.ndarray:
        return np.stack([self._one(self.paths[n]) for n in chosen])

    def __len__(self) -> int:
        return len(self.paths)

    def _one(self, path: Path) -> np.ndarray:
        values = array(path)
        if values.shape not in (self.shape, (1, *self.shape)) or not np.issubdtype(values.dtype, np.floating):
            raise UsageError(
                f"data={str(path)!r}: {values.dtype} of shape {values.shape}: the model needs floats (1, *{self.shape})"
            )
        if not np.isfinite(values).all():
            raise UsageError(f"data={str(path)!r}: holds NaN or infinite values: leave it out, with its label")
        return np.asarray(values, np.float32).reshape(self.shape)


def array(path: Path) -> np.ndarray:
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(
            f"data={str(path)!r}: cannot be read: {_reason(error)}: leave it out, with its label, or save it again"
        ) from None


def in_folder(path: Path, family: Family) -> Samples:
    """Features and labels that have the same file names."""
    if len(family.inputs) != 1 or not family.inputs[0].choices or family.inputs[0].shape:
        takes = ", ".join(f"`{declared.name}`" for declared in family.inputs) or "nothing"
        raise UsageError(f"data={str(path)!r}: a folder holds labels, but the model takes {takes}: give an .npz with these")
    features, labels = (_by_name(path, end) for end in (FEATURES, LABELS))
    if unpaired := sorted(set(features) ^ set(labels), key=_order):
        has, lacks = ("features", "label") if unpaired[0] in features else ("a label", "features")
        raise UsageError(f"data={str(path)!r}: {unpaired[0]} has {has}, but no {lacks}: give one of each for every image")
    names = sorted(features, key=_order)
    values = Files(tuple(features[name] for name in names), family.latent)
    values[[0]]  # refuse another model's at once
    declared = family.inputs[0]
    read = _labels([labels[name] for name in names])
    return Samples(values, {declared.name: checked(path, LABELS, read, len(names), declared)})


def _by_name(path: Path, end: str) -> Mapping[str, Path]:
    folders = [p for p in sorted(path.iterdir()) if p.is_dir() and p.name.endswith(end)]
    if len(folders) != 1:
        names = ", ".join(p.name for p in folders) or "none"
        raise UsageError(
            f"data={str(path)!r}: must hold one folder *{FEATURES} and one *{LABELS}, of *{end} it has {names}: {REMEDY}"
        )
    files = {p.name: p for p in folders[0].glob("*.npy")}
    if not files:
        raise UsageError(f"data={str(folders[0])!r}: holds no .npy files: {REMEDY}")
    return files


def _order(name: str) -> list[tuple[int, str]]:
    """2.npy before 10.npy."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _labels(paths: Sequence[Path]) -> np.ndarray:
    """One number of each file, (1,), (1, 1) or ()."""
    labels = []
    for path in paths:
        label = array(path)
        if label.size != 1:
            raise UsageError(f"data={str(path)!r}: {label.dtype} of shape {label.shape}: use one whole number")
        labels.append(label.reshape(()))
    return np.stack(labels)
