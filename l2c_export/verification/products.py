"""Which sublayers' products should not be in e4m3: those that change the latents most, each tried by itself in PyTorch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from ..artefact import store
from ..errors import UsageError
from ..support.extras import needs

PART = 4  # of the sublayers with products in e4m3 one in so many is worth its time in bf16


class Lossy(NamedTuple):
    """Sublayers by the share of what their products in e4m3 change, worst first, and which of them to keep in bf16."""

    shares: dict[str, float]
    bf16: tuple[str, ...]

    @property
    def summary(self) -> str:
        """One line: what to do."""
        if not self.shares:
            return "no sublayer has a product in e4m3 that changes anything: there is nothing to keep in bf16"
        share = sum(self.shares[name] for name in self.bf16)
        options = " ".join(f"--bf16 {name}" for name in self.bf16)
        count = f"{len(self.bf16)} of {len(self.shares)}"
        return f"{count} make {share:.0%} of the change: compile with {options}, besides those that are kept already"


def lossy(path: str | os.PathLike[str], steps: int | None = None) -> Lossy:
    """Try the products of every sublayer of an fp8 artefact by themselves; nothing is run but PyTorch, in float32.

    `steps` chooses the program with so many, by default the first.  Raises UsageError for an artefact of another precision or
    without weights, and what reading one raises.
    """
    needs("torch", "export")
    from ..pytorch.effects import effects

    manifest = store.read(Path(path), verify=False)
    if manifest.precision != "fp8":
        raise UsageError(f"{path}: is {manifest.precision}, none of it is e4m3: only sublayers of fp8 can be kept in bf16")
    if manifest.denoiser.weights is None:
        raise UsageError(f"{path}: has no weights yet, which decide what products lose: run l2c link first")
    shares = effects(Path(path), manifest, steps)
    return Lossy(shares, tuple(shares)[: -(-len(shares) // PART)])
