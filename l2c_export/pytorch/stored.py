"""The weights of an artefact as tensors of PyTorch, which stay in their file until they are used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..artefact.manifest import Manifest
from ..weights.layout import WEIGHTS, mapped


def stored(folder: Path, manifest: Manifest) -> dict[str, Tensor]:
    """The artefact's weights, in the type in which they are stored: views of the file."""
    view = mapped(folder / WEIGHTS, manifest.denoiser.tensors)
    return {name: as_tensor(view(name)) for name in manifest.denoiser.tensors}


def as_tensor(array: np.ndarray) -> Tensor:
    """The same memory; PyTorch takes bfloat16 by its bits."""
    return torch.from_numpy(array.view(f"i{array.itemsize}")).view(getattr(torch, str(array.dtype)))
