"""What a request says in words: its prompts, checked against the artefact, and the arrays in their place."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..artefact import check_text, integrity, store
from ..artefact.manifest import Manifest
from ..backends.choose import open_backend
from ..backends.contract import Request
from ..backends.descriptors import AUTO, built
from ..errors import RunError, UsageError
from ..ir.inputs import NEGATIVE_PROMPT, PROMPT, RequestInput, asked
from ..support.tensors import scalar
from ..support.words import counted
from . import request
from .inputs import check_count
from .text import TextEncoders


class Prompts(NamedTuple):
    """The texts of a request, one per image, and what it says besides; None where it says nothing."""

    asked: list[str] | None
    without: list[str] | None  # of the unconditional half
    others: Mapping[str, Any]

    def encoded(self, manifest: Manifest, arrays: Callable[[Sequence[str]], Mapping[str, np.ndarray]]) -> dict[str, Any]:
        """The request with arrays in the place of texts."""
        inputs: dict[str, Any] = dict(self.others)
        if self.asked is not None:
            inputs |= arrays(self.asked)
        if self.without is not None:
            values = arrays(self.without)
            inputs |= {theirs: values[ours] for ours, theirs in negatives(manifest).items()}
        return inputs


def told(manifest: Manifest, request: Mapping[str, Any], encoders: TextEncoders | None) -> dict[str, Any]:
    """What a request says, with arrays in the place of its prompts.  Raises UsageError for prompts that it cannot have."""
    prompts = checked(manifest, request, manifest.batch)
    if prompts.asked is None and prompts.without is None:
        return dict(prompts.others)
    if encoders is None:
        raise RunError("this pipeline is closed: load the artefact again")
    return prompts.encoded(manifest, encoders.arrays)


def checked(manifest: Manifest, request: Mapping[str, Any], most: int | None = None) -> Prompts:
    """The prompts of a request for at most so many images.  Raises UsageError for those that the artefact cannot have.

    Where nothing is said of the unconditional half, and there is one, it is the empty text.
    """
    prompt, negative = request.get(PROMPT), request.get(NEGATIVE_PROMPT)
    others = {name: value for name, value in request.items() if name not in (PROMPT, NEGATIVE_PROMPT)}
    if prompt is None and negative is None:
        return Prompts(None, None, others)
    inputs = asked(manifest.inputs)
    if not manifest.text and not any(field.negated or field.name == "prompt_embeds" for field in inputs):
        return Prompts(None, None, request)  # a model of something else, which refuses them as whatever it does not take
    name = PROMPT if prompt is not None else NEGATIVE_PROMPT
    if not manifest.text:
        arrays = ", ".join(f"{field.name}=.." for field in inputs)
        raise UsageError(
            f"{name}=..: this artefact has no text encoders: compile it again with with_text=True, or give {arrays}"
        )
    texts = None
    if prompt is not None:
        _refuse_both(PROMPT, [field.name for field in inputs], others)
        texts = listed(PROMPT, prompt)
        check_count(len(texts), len(texts) if most is None and texts else most or 1, counted(len(texts), "prompt"))
    count = len(texts) if texts is not None else images(inputs, others)
    return Prompts(texts, _without(manifest, negative, texts, count, others), others)


def _without(
    manifest: Manifest, negative: Any, texts: list[str] | None, count: int, others: Mapping[str, Any]
) -> list[str] | None:
    """The texts of the unconditional half; None where a request has other arrays for it, or the model has none."""
    names = list(negatives(manifest).values())
    if not names:
        if negative is not None:
            raise UsageError("negative_prompt=..: this artefact has no unconditional half, which it is for: leave it out")
        return None
    if negative is None:
        is_given = texts is None or any(others.get(name) is not None for name in names)
        return None if is_given else [""] * count
    _refuse_both(NEGATIVE_PROMPT, names, others)
    without = listed(NEGATIVE_PROMPT, negative, count)
    if len(without) != count:
        raise UsageError(
            f"negative_prompt of {counted(len(without), 'text')} for {counted(count, 'image')}: give one, or as many"
        )
    return without


def negatives(manifest: Manifest) -> dict[str, str]:
    """What the unconditional half's arrays are called, by those that they stand for; none where there is no such half."""
    pairs = {field.name: field.negated.name for field in asked(manifest.inputs) if field.negated}
    return pairs if manifest.guidance.halves == 2 else {}


def images(inputs: Sequence[RequestInput], request: Mapping[str, Any]) -> int:
    """For how many images a request has arrays."""
    arrays = [request[field.name] for field in inputs if request.get(field.name) is not None]
    return len(arrays[0]) if arrays and hasattr(arrays[0], "__len__") else 1


def _refuse_both(name: str, arrays: Sequence[str], request: Mapping[str, Any]) -> None:
    if other := next((array for array in arrays if request.get(array) is not None), None):
        raise UsageError(f"{name}=.. and {other}=..: both say the same of an image: give one of the two")


def listed(name: str, value: Any, count: int = 1) -> list[str]:
    """One text, which is for `count` images, or several.  Raises UsageError for what is none."""
    value = scalar(value)
    if isinstance(value, str):
        return [str(value)] * count
    if not isinstance(value, (Sequence, np.ndarray)) or not all(isinstance(text, str) for text in value):
        raise UsageError(f"{name}={repr(value)[:40]}: give a text, or a list of them")
    return [str(text) for text in value]


def encode(
    path: str | os.PathLike[str],
    prompt: str | Sequence[str],
    negative_prompt: str | Sequence[str] | None = None,
    backend: str | None = None,
    device: str | None = None,
    threads: int | None = None,
) -> dict[str, np.ndarray]:
    """The arrays that stand for prompts in a request, (B, ..) by name, by an artefact's text encoders alone.

    Those of the unconditional half are among them, where there is one; `negative_prompt` is the empty text by default.  The
    rest of the artefact is not loaded, and may lack its weights.  `backend`, `device` and `threads` are those of `load`.
    Raises UsageError for what are no prompts, and for an artefact that has no text encoders.
    """
    folder = request.folder(path).absolute()
    manifest = store.read(folder, verify=False)
    prompts = checked(manifest, {PROMPT: prompt, NEGATIVE_PROMPT: negative_prompt})
    if not manifest.text:
        raise UsageError(f"{path}: its model takes no prompts: give it what l2c_export.inspect({str(path)!r}) shows")
    for name in sorted(check_text.files(manifest.text)):
        integrity.check_file(folder, name, manifest.files[name], hashed=True)
    chosen = backend or (AUTO if manifest.backend in built() else manifest.backend)
    opened = open_backend(chosen, Request(device, threads, "fp32", folder))
    return prompts.encoded(manifest, TextEncoders(folder, manifest, opened.backend, threads).arrays)
