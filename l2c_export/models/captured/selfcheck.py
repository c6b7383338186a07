"""Whether what was captured computes what the module computes: both on fresh numbers, of another batch size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ModelError
from ...ir.inputs import RequestInput
from .call import call, operations
from .pieces import Pieces

ROWS = 2  # of the check; what was captured had another number
TOLERANCE = 1e-4  # of the largest value; angles of timesteps are float32 in a module, whatever it is given
SEED = 7
TIMES = (500.0, 31.25)  # a half and 1/32 of all: in whatever order a module scales them, their angles are rounded alike


@dataclass(frozen=True)
class Direct:
    """A Runner that computes at once, of the module's own parameters."""

    pieces: Pieces
    weights: Mapping[str, Tensor]
    values: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)  # by sublayers

    def __call__(self, op: str, *inputs: Any, at: str = "", name: str = "") -> Any:
        return operations(self.pieces)[op].function(*inputs)

    def sublayer(self, op: str, *inputs: Any, at: str, name: str = "") -> Any:
        value = self(op, *inputs)
        self.values[name] = value if isinstance(value, tuple) else (value,)
        return value

    def weight(self, tensor: str) -> Tensor:
        derived = self.pieces.derived.get(tensor)
        if derived is not None:
            return torch.from_numpy(derived).double()
        return torch.cat([self.weights[name] for name in self.pieces.joined.get(tensor, (tensor,))])

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
    module.double()
    for name, parameter in module.named_parameters():
        spread = 0.2 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
        middle = 1.0 if "norm" in name and parameter.ndim == 1 else 0.0
        parameter.copy_(middle + spread * torch.randn(parameter.shape, generator=generator))
    x, t = torch.randn((ROWS, *latent), generator=generator).double(), torch.tensor(TIMES).double()
    request = {declaration.name: wide(torch.from_numpy(declaration.usual(ROWS))) for declaration in inputs}
    seen = watched(module, pieces.sublayers)
    wanted = adapted(module.eval(), x, t, **request)
    run = Direct(pieces, module.state_dict())
    prediction = call(pieces, run, x, torch.arange(ROWS, dtype=torch.int32), t, request)
    compare(module, "its output", (prediction,), (wanted,))
    for name in pieces.sublayers:
        compare(module, name, run.values[name], seen.get(name, ()))


def wide(x: Tensor) -> Tensor:
    """float64 for what are floats: of small differences, those of rounding are none."""
    return x.double() if x.is_floating_point() else x


def watched(module: nn.Module, names: Sequence[str]) -> dict[str, tuple[Tensor, ...]]:
    """What the modules of these names will have made, once the module is called."""
    seen: dict[str, tuple[Tensor, ...]] = {}
    modules = dict(module.named_modules())

    def watch(name: str) -> None:
        def keep(_: Any, __: Any, output: Any) -> None:
            seen[name] = tuple(output) if isinstance(output, (tuple, list)) else (output,)

        if name in modules:
            modules[name].register_forward_hook(keep)

    for name in names:
        watch(name)
    return seen


def compare(module: nn.Module, what: str, values: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    """Raise ModelError where the values of a sublayer, in any order, or of the model are not the module's own.

    The module may make another that nothing reads.
    """
    apart = [min((difference(one, other) for other in wanted), default=float("inf")) for one in values]
    if len(values) > len(wanted) or not max(apart) <= TOLERANCE:
        how = (
            f"by {max(apart):.1e} of its largest value"
            if len(values) <= len(wanted)
            else f"{len(values)} values for {len(wanted)}"
        )
        raise ModelError(
            f"{type(module).__name__}: {what} as it was captured differs from the module's, {how}: use another release of "
            "diffusers"
        )


def difference(value: Tensor, wanted: Tensor) -> float:
    """As a share of the largest value; a module may make pictures (R, D, H, W) of what the stream has as tokens (R, T, D)."""
    wanted = wanted.flatten(2).transpose(1, 2) if (value.ndim, wanted.ndim) == (3, 4) else wanted
    if value.shape != wanted.shape:
        return float("inf")
    return float((value - wanted).abs().max() / wanted.abs().max())
