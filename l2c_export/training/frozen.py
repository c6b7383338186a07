"""The model that stays as it is: its weights, and how strongly it is guided."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..artefact.guidance import strength
from ..artefact.records import Guidance
from ..ir.precisions import DTYPES
from ..models.family import Family
from ..weights import layout, origin
from ..weights.checkpoint import Checkpoint


def load_tensors(
    family: Family, checkpoint: Checkpoint | None, seed: int, precision: str, device: torch.device
) -> dict[str, Tensor]:
    """The frozen weights in the given precision: those of a checkpoint, or random ones of a seed."""
    shapes, dtype = family.tensors(), getattr(torch, DTYPES[precision])
    values = origin.tensors(shapes, checkpoint, seed)
    assert values is not None  # there is a seed
    tensors = {}
    for name, value in values:
        layout.rounded(name, value, DTYPES[precision])  # names the tensor that does not fit
        tensors[name] = torch.from_numpy(np.ascontiguousarray(value)).to(device, dtype)
    return tensors


def guidance_strength(guidance: Guidance, family: Family, device: torch.device) -> Tensor | None:
    """(1, C, 1, ..) as in `updates.update`, None without guidance."""
    if guidance.scale == 1:
        return None
    return torch.from_numpy(strength(guidance, family.latent, [guidance.scale])).to(device)
