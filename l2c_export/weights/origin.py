"""Where the weights of a model come from: a checkpoint, or a seed."""

from __future__ import annotations

from .checkpoint import Checkpoint
from .layout import Shapes, Tensors
from .random import random


def tensors(shapes: Shapes, checkpoint: Checkpoint | None, seed: int | None) -> Tensors | None:
    """Name and values of a model's tensors: those of a checkpoint, else random ones of a seed, else none.

    Raises WeightsError where the checkpoint does not fit.
    """
    if checkpoint:
        return checkpoint.tensors(shapes)
    return None if seed is None else random(shapes, seed)
