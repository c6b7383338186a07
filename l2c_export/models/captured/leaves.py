"""Modules of diffusers that are one primitive of ours, and are captured as such."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..primitives import sinusoid


@torch.library.custom_op("l2c_export::sinusoid", mutates_args=())
def sinusoid_op(t: Tensor, half: int, shift: int) -> Tensor:
    """t (N,) -> (N, 2 half), cosines first: the primitive, which the exporter takes for one operation."""
    made: Tensor = sinusoid(t.float(), half=half, shift=shift)
    return made


@sinusoid_op.register_fake
def _(t: Tensor, half: int, shift: int) -> Tensor:
    return t.new_empty((t.shape[0], 2 * half), dtype=torch.float32)


class Sinusoid(nn.Module):
    """`Timesteps` of diffusers, where it is the primitive: with cosines first, and not scaled."""

    def __init__(self, half: int, shift: int) -> None:
        super().__init__()
        self.waves, self.lowered = half, shift

    def forward(self, t: Tensor) -> Tensor:
        made: Tensor = sinusoid_op(t, self.waves, self.lowered)
        return made


def with_leaves(model: nn.Module) -> nn.Module:
    """The model, changed in place."""
    module: Any
    for name, module in list(model.named_modules()):
        if type(module).__name__ == "Timesteps" and _is_sinusoid(module):
            owner, _, last = name.rpartition(".")
            setattr(model.get_submodule(owner), last, Sinusoid(module.num_channels // 2, int(module.downscale_freq_shift)))
        if type(module).__name__ == "PixArtAlphaCombinedTimestepSizeEmbeddings" and module.use_additional_conditions:
            module.forward = partial(one_size, module)
    return model


def one_size(
    module: Any, timestep: Tensor, resolution: Tensor, aspect_ratio: Tensor, batch_size: int, hidden_dtype: Any
) -> Tensor:
    """The module's own forward, where all rows of a batch are pictures of one size: it embeds the size of the first."""
    conditions = (
        embedder(module.additional_condition_proj(given[:1].flatten()).to(hidden_dtype)).reshape(1, -1)
        for embedder, given in ((module.resolution_embedder, resolution), (module.aspect_ratio_embedder, aspect_ratio))
    )
    time: Tensor = module.timestep_embedder(module.time_proj(timestep).to(dtype=hidden_dtype))
    return time + torch.cat(list(conditions), dim=1)


def _is_sinusoid(module: Any) -> bool:
    fits = module.num_channels % 2 == 0 and int(module.downscale_freq_shift) == module.downscale_freq_shift
    return bool(fits and module.flip_sin_to_cos and module.scale == 1)
