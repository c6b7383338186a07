"""The weights of an artefact as tensors of PyTorch, which stay in their file until they are used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..artefact.manifest import Manifest
from ..ir.dtypes import E4M3
from ..weights.e4m3 import weight_scale
from ..weights.layout import WEIGHTS, mapped


def stored(folder: Path, manifest: Manifest) -> dict[str, Tensor]:
    """The artefact's weights, in the type in which they are stored: views of the file; what is e4m3 is bfloat16, exactly."""
    kept = unscaled(folder, manifest)
    for name, tensor in manifest.denoiser.tensors.items():
        if tensor.dtype == E4M3:
            kept[name] = kept[name].bfloat16() * kept[weight_scale(name)][0].bfloat16()
    return kept


def unscaled(folder: Path, manifest: Manifest) -> dict[str, Tensor]:
    """The same, with e4m3 as it is."""
    view = mapped(folder / WEIGHTS, manifest.denoiser.tensors)
    return {name: as_tensor(view(name)) for name in manifest.denoiser.tensors}


def as_tensor(array: np.ndarray) -> Tensor:
    """The same memory; PyTorch takes bfloat16 by its bits."""
    return torch.from_numpy(array.view(f"i{array.itemsize}")).view(getattr(torch, str(array.dtype)))
