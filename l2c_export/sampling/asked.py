"""What the images are to show: all classes, some of them, or prompts; checked against the artefact."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ..artefact.manifest import Manifest
from ..errors import UsageError
from ..ir.inputs import CLASS_LABELS, NEGATIVE_PROMPT, PROMPT, RequestInput, asked
from ..runtime import inputs, prompts, request
from ..runtime.inputs import Labels
from ..support.files import small

Texts = str | os.PathLike[str] | Sequence[str]
Asked = tuple[Literal["class_labels", "prompt"] | None, tuple[int | str, ...]]


def asked_of(manifest: Manifest, labels: Labels | None, texts: Texts | None, negative: str | None) -> Asked:
    """The input that says what an image shows, and its values in turn; by default all classes.  Raises UsageError."""
    if texts is not None and labels is not None:
        raise UsageError("prompts=.. and class_labels=..: both say what is asked for: give one of the two")
    if texts is not None:
        return "prompt", _prompts(manifest, texts, negative)
    if negative is not None:
        raise UsageError("negative_prompt=..: goes with prompts=..: give those, or leave it out")
    declared = asked(manifest.inputs)
    classes = next((field for field in declared if field.name == CLASS_LABELS and field.choices and not field.shape), None)
    if classes:
        return "class_labels", _classes(classes, labels)
    inputs.checked(manifest, {CLASS_LABELS: labels} if labels is not None or not declared else {})
    return None, ()


def _classes(declared: RequestInput, labels: Labels | None) -> tuple[int, ...]:
    if labels is None:
        return tuple(range(declared.choices or 0))
    listed = [labels] if isinstance(labels, str) else request.listed(labels, "class labels")
    if not listed:
        raise UsageError("class_labels=[]: give at least one")
    return tuple(inputs.choice(declared, label) for label in listed)


def _prompts(manifest: Manifest, texts: Texts, negative: str | None) -> tuple[str, ...]:
    lines = read(Path(texts)) if isinstance(texts, (str, os.PathLike)) else tuple(prompts.listed(PROMPT, texts))
    said = {PROMPT: list(lines), **({} if negative is None else {NEGATIVE_PROMPT: negative})}
    if prompts.checked(manifest, said).asked is None:
        inputs.checked(manifest, said)  # a model of something else
    return lines


def read(path: Path) -> tuple[str, ...]:
    """The prompts of a text file, one a line; empty lines are none.  Raises UsageError."""
    try:
        lines = small(path).decode().splitlines()
    except OSError as error:
        raise UsageError(f"prompts={str(path)!r}: cannot be read: {error.strerror or error}: give a text file") from None
    except UnicodeDecodeError:
        raise UsageError(f"prompts={str(path)!r}: is no text in UTF-8: give one, with a prompt on every line") from None
    texts = tuple(line.strip() for line in lines if line.strip())
    if not texts:
        raise UsageError(f"prompts={str(path)!r}: holds no prompt: write one on every line")
    return texts
