"""What a request says of every image besides the noise: declared by the model's family, stored in the artefact.

A class label is such an input, and so is the embedding of a text; nothing between the family and the request knows more of one
than what is declared here.
"""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np

CLASS_LABELS = "class_labels"
PROMPT, NEGATIVE_PROMPT = "prompt", "negative_prompt"  # texts, of which encoders make what is declared
LARGEST, LARGEST_FLOAT = 2**31, 3.4e38  # no axis is longer, no number is larger
Inputs = Mapping[str, Any]  # what a request says: arrays by name, whose first axis counts images, or rows of the model's batch
# what else a request is told by its keywords
RESERVED = frozenset({"self", "guidance_scale", "seed", "latents", "noise", "output_type", "callback_on_step_end",
                      "check_finite", "steps", "every", "cancel", "height", "width"})  # fmt: skip


TAKEN = RESERVED | {PROMPT, NEGATIVE_PROMPT}


class RequestInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An input of the model that a request gives: an array of `shape` for every image.

    With `choices` they are whole numbers from 0 to choices - 1, of which some may have names.  `unconditional` is what stands
    in its place where nothing is asked for, as one number or as all of the array's in order; or a request gives that, too, as
    the array `negative`.  Guidance needs an input with one or the other.
    """

    name: str
    shape: tuple[int, ...] = ()
    dtype: Literal["int32", "float32"] = "float32"
    known: Literal["request", "guidance"] = "request"  # with the request; "guidance": it is the request's guidance scale
    choices: int | msgspec.UnsetType = msgspec.UNSET
    names: dict[str, int] | msgspec.UnsetType = msgspec.UNSET
    unconditional: int | float | tuple[int | float, ...] | msgspec.UnsetType = msgspec.UNSET
    negative: str | msgspec.UnsetType = msgspec.UNSET

    @property
    def guides(self) -> bool:
        """Whether a model can be told to do without it."""
        return self.unconditional is not msgspec.UNSET or self.negative is not msgspec.UNSET

    def without(self, images: int) -> np.ndarray:
        """(images, *shape): what the unconditional half is given, for an input that guides."""
        value = np.asarray(self.unconditional, self.dtype)
        image = value if value.ndim == 0 else value.reshape(self.shape)
        return np.broadcast_to(image, (images, *self.shape))

    def usual(self, images: int) -> np.ndarray:
        """(images, *shape) for pictures of which it does not matter what they show; image n's are the same in every batch."""
        if self.choices:
            numbers = np.arange(207, 207 + images) % self.choices
            return np.broadcast_to(numbers.reshape(-1, *(1 for _ in self.shape)), (images, *self.shape)).astype(self.dtype)
        if self.dtype == "int32":
            return np.zeros((images, *self.shape), self.dtype)
        seed = sum(map(ord, self.name)) if self.name.startswith("negative") else 0
        return np.stack([np.random.default_rng(seed + n).standard_normal(self.shape, np.float32) for n in range(images)])

    @property
    def negated(self) -> RequestInput | None:
        """The array that a request gives for the unconditional half, as an input; None where there is none."""
        if self.negative is msgspec.UNSET:
            return None
        return msgspec.structs.replace(self, name=self.negative, negative=msgspec.UNSET)

    def problem(self) -> str | None:
        """What is wrong with the declaration, None if nothing is."""
        if self.negated and (wrong := self.negated.problem()):
            return wrong
        if self.negated and self.unconditional is not msgspec.UNSET:
            return f"the input {self.name!r} has two values for the unconditional half"
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,99}", self.name) or keyword.iskeyword(self.name) or self.name in TAKEN:
            return f"an input is called {self.name[:100]!r}"
        if not all(0 < size < LARGEST for size in self.shape) or math.prod(self.shape) >= LARGEST:
            return f"the input {self.name!r} has the shape {self.shape}"
        if self.choices is not msgspec.UNSET and not (0 < self.choices < LARGEST and self.dtype == "int32"):
            return f"the input {self.name!r} of type {self.dtype} has {self.choices} choices"
        if not all(0 <= number < (self.choices or 0) for number in (self.names or {}).values()):
            return f"the input {self.name!r} has names of no choice"
        fits = self.unconditional is msgspec.UNSET or self._fits()
        return None if fits else f"the unconditional value of {self.name!r} does not fit it"

    def _fits(self) -> bool:
        """Whether the unconditional value is one.  Of `choices` there may be one more for it."""
        single = not isinstance(self.unconditional, tuple)
        numbers: Any = (self.unconditional,) if single else self.unconditional
        if self.dtype == "float32":
            right = all(abs(n) <= LARGEST_FLOAT for n in numbers)
        else:
            least, most = (0, self.choices) if self.choices else (-LARGEST, LARGEST - 1)
            right = all(least <= n <= most and n == int(n) for n in numbers)
        return right and (single or len(numbers) == math.prod(self.shape))


def class_labels(count: int, null: int | None) -> RequestInput:
    """Labels 0 .. count-1, and the one of the unconditional half where the model has it."""
    unconditional = msgspec.UNSET if null is None else null
    return RequestInput(name=CLASS_LABELS, dtype="int32", choices=count, unconditional=unconditional)


def guided(inputs: Sequence[RequestInput]) -> bool:
    """Whether a model that takes these can be guided."""
    return any(field.guides for field in inputs)


def arrays(inputs: Sequence[RequestInput]) -> tuple[RequestInput, ...]:
    """All that a request may give: its inputs, and behind them what some of them are in the unconditional half."""
    own = asked(inputs)
    return (*own, *(field.negated for field in own if field.negated))


def asked(inputs: Sequence[RequestInput]) -> tuple[RequestInput, ...]:
    """Those that a request has to give; the others follow from its guidance scale."""
    return tuple(field for field in inputs if field.known == "request")


def usual(inputs: Sequence[RequestInput], images: int) -> dict[str, Any]:
    """A request for pictures of which it does not matter what they show."""
    return {field.name: field.usual(images) for field in arrays(inputs)}


def names_of(inputs: Sequence[RequestInput]) -> dict[str, int]:
    """The names of the first input's choices that have some."""
    return next((field.names for field in inputs if field.names), {})


def named(inputs: Sequence[RequestInput], names: Mapping[str, int]) -> tuple[RequestInput, ...]:
    """The same inputs with these names, if there are any, for the choices of the first that has some."""
    first = next((field.name for field in inputs if field.choices and names), None)
    return tuple(msgspec.structs.replace(i, names=dict(names)) if i.name == first else i for i in inputs)
