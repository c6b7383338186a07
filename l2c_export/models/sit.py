"""SiT, Scalable Interpolant Transformers (arXiv 2401.08740): a DiT that was trained for flow matching, with a DiT's tensors.

Data lie at the time 1 and noise at 0 on a linear path, and the model predicts the velocity, data - noise.  Samplers of flows
count noise levels from 1000 down, and expect noise - data.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from .dit import DiT, DiTArch
from .primitives import affine


class SiT(DiT):
    """The same operations behind another time, and in front of another sign."""

    name: ClassVar[str] = "sit"

    @staticmethod
    def named(name: str) -> DiTArch | None:
        """Arch of "SiT-XL/2" (256 px) or "SiT-XL/2@512", as of the DiT of this size; None if the name is not a SiT's."""
        return DiT.named(f"DiT-{name.removeprefix('SiT-')}") if name.startswith("SiT-") else None

    def time(self, t: Tensor, *weights: Tensor) -> Any:
        """t (R,) float32, 1000 times the noise level -> (R, D)."""
        return super().time(affine(t, scale=-1 / 1000, shift=1.0), *weights)

    def final(self, h: Tensor, shift: Tensor, scale: Tensor, *weights: Tensor) -> Any:
        """h (R, T, D) -> (R, C or 2C, H, W) float32: noise - data."""
        return affine(super().final(h, shift, scale, *weights), scale=-1.0, shift=0.0)
