"""A text encoder of transformers as its folder describes it: by its class and its configuration, without transformers.

It is written in primitives as the families are, and recorded and exported as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import msgspec
import numpy as np

from ...errors import ModelError
from ..diffusers.model_index import CONFIG, config

if TYPE_CHECKING:
    from ...weights.recipe import Read
    from ..family import Operation, Runner

HIDDEN = -1e9  # what is added to the score of a token that may not be looked at
Size = Annotated[int, msgspec.Meta(ge=1, le=2**20)]
Epsilon = Annotated[float, msgspec.Meta(ge=0, lt=1)]


def layers_of(modules: tuple[str, ...]) -> tuple[str, ...]:
    """Their weights and biases."""
    return tuple(f"{module}.{part}" for module in modules for part in ("weight", "bias"))


class TextEncoder(Protocol):
    """Token ids become states of `outputs`: "last" and "penultimate" (R, T, D) after and before the last layer, "pooled"
    (R, T, P) what would be pooled at each token."""

    tokens: int
    segments: Mapping[str, Operation]
    sublayers: tuple[str, ...]  # none: nothing is cached
    wide: tuple[str, ...]  # modules whose tensors are float32 whatever the others are
    kept: tuple[str, ...]  # and those whose tensors are stored as they are computed
    end: int | None  # the id whose first place is pooled; None: the largest id

    def stored(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor of a checkpoint."""

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor that is read."""

    def derived(self, name: str, read: Read) -> np.ndarray:
        """One that no checkpoint holds, from the configuration and those that one does."""

    def widths(self, outputs: tuple[str, ...]) -> dict[str, int]:
        """How wide each of these outputs is."""

    def call(self, run: Runner, ids: Any, mask: Any, outputs: tuple[str, ...]) -> None:
        """ids (R, T) int32; mask (R, T) int32, 0 for what no token may look at, or None.  Makes `outputs` by their names."""


def read(folder: Path, kind: type[msgspec.Struct]) -> Any:
    """The configuration in an encoder's folder.  Raises ModelError."""
    options = config(folder / CONFIG)
    try:
        return msgspec.convert({k: v for k, v in options.items() if k in kind.__struct_fields__ and v is not None}, kind)
    except msgspec.ValidationError as error:
        raise ModelError(f"{folder / CONFIG} does not describe a text encoder: {error}: download or save it again") from None
