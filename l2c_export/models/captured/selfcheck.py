"""Whether what was captured computes what the module computes: both on fresh numbers, of another batch size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ModelError
from ...ir.inputs import RequestInput
from .call import call, operations
from .pieces import Pieces

ROWS = 2  # of the check; what was captured had another number
TOLERANCE = 1e-4  # of the largest value, in float32
SEED = 7


@dataclass(frozen=True)
class Direct:
    """A Runner that computes at once, of the module's own parameters."""

    pieces: Pieces
    weights: Mapping[str, Tensor]

    def __call__(self, op: str, *inputs: Any, at: str = "", name: str = "") -> Any:
        return operations(self.pieces)[op].function(*inputs)

    def sublayer(self, op: str, *inputs: Any, at: str, name: str = "") -> Any:
        return self(op, *inputs)

    def weight(self, tensor: str) -> Tensor:
        derived = self.pieces.derived.get(tensor)
        return self.weights[tensor] if derived is None else torch.from_numpy(derived)

    def residual(self, stream: Any, value: Any, at: str, gate: Any = None) -> Any:
        return stream + (value if gate is None else gate * value)

    def chunks(self, op: str, value: Any, at: str, names: Sequence[str]) -> tuple[Any, ...]:
        raise AssertionError("captured models have no chunks")


@torch.no_grad()
def check(
    module: nn.Module, adapted: Callable[..., Tensor], pieces: Pieces, latent: Sequence[int], inputs: Sequence[RequestInput]
) -> None:
    """Raise ModelError where the pieces predict something else than the module, whose parameters it makes random."""
    generator = torch.Generator().manual_seed(SEED)
    for name, parameter in module.named_parameters():
        parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator) + ("norm" in name and parameter.ndim == 1))
    x, t = torch.randn((ROWS, *latent), generator=generator), torch.tensor([901.0, 17.0])
    request = {given.name: torch.from_numpy(given.usual(ROWS)) for given in inputs}
    wanted = adapted(module.eval(), x, t, **request)
    made = call(pieces, Direct(pieces, module.state_dict()), x, torch.arange(ROWS, dtype=torch.int32), t, request)
    error = float((made - wanted).abs().max() / wanted.abs().max())
    if not error <= TOLERANCE:
        raise ModelError(
            f"{type(module).__name__}: what was captured differs from the module by {error:.1e} of its largest value: "
            "use another release of diffusers"
        )
