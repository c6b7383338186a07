"""Whether what a graph does not make comes from somewhere: a tensor, the loop, a request, or another call."""

from __future__ import annotations

from collections.abc import Iterator

from ..ir.graph import Value
from ..ir.names import at
from ..weights.recipe import TensorRecord
from .manifest import Manifest
from .records import Origin, SizeRecord

# what the loop itself provides, by where it comes from: it knows them by these names
PROVIDED = {
    "state": {"x", "base", "x.data"},
    "index": {"rows", "conditional", "unconditional"},
    "guidance": {"guidance"},
    "coefficients": {"coefficients"},
    "time": {"t"},
}
NUMBER = Value((1,), "float32")  # of a forecast
MOST_HISTORY = 2  # DPM-Solver++ of order 3


def problems(manifest: Manifest, size: SizeRecord) -> Iterator[str]:
    """What is wrong with the origins of a size."""
    calls = max((len(program.calls) for program in manifest.programs.values()), default=0)
    for name, origin in size.origins.items():
        if not _is_somewhere(manifest, size, name, origin, calls):
            yield f"{name!r} is from nowhere: {origin.kind} {origin.of!r} {origin.offset:+d}"
        elif origin.kind == "guidance" and not _is_guidance(size, origin):
            yield f"guidance of shape {size.values[origin.of].shape} for latents of shape {size.latent}"


def _is_somewhere(manifest: Manifest, size: SizeRecord, name: str, origin: Origin, calls: int) -> bool:
    if origin.kind == "weight":
        return origin.offset == 0 and _is_weight(manifest.denoiser.tensors.get(origin.of), origin)
    if (origin.first, origin.last) != (None, None):
        return False
    if origin.kind == "request":
        return origin.offset == 0 and _is_requested(manifest, size, name, origin)
    if origin.kind == "forecast":
        return origin == Origin("forecast", name) and size.values.get(name) == NUMBER
    if origin.kind == "window":
        return origin.offset == 0 and _is_window(size.values.get(name), size.values.get(origin.of), calls)
    if origin.kind == "bank":
        return origin == Origin("bank", name) and name in size.values
    offsets = {
        "state": range(-MOST_HISTORY, 0) if origin.of == "x.data" else range(1),
        "time": range(calls + 1),
        "prologue": range(calls + 1),
        "cache": range(-calls, 0),
        "later": range(1, calls + 1),
    }
    provided = PROVIDED.get(origin.kind)
    known = provided is None or (origin.of in provided and name == at(origin.of, origin.offset))
    return known and origin.of in size.values and origin.offset in offsets.get(origin.kind, range(1))


def _is_window(value: Value | None, one: Value | None, calls: int) -> bool:
    """Whether a value is those of several calls."""
    if value is None or one is None:
        return False
    count, *shape = value.shape
    return isinstance(count, int) and 0 < count <= calls and (tuple(shape), value.dtype) == (one.shape, one.dtype)


def _is_weight(tensor: TensorRecord | None, origin: Origin) -> bool:
    """Whether there is such a tensor, and such rows of it."""
    if tensor is None or not tensor.shape:
        return False
    first, last = origin.first, origin.last
    if first is None or last is None:
        return first is last
    return 0 <= first < last <= tensor.shape[0]


def _is_requested(manifest: Manifest, size: SizeRecord, name: str, origin: Origin) -> bool:
    """Whether a graph's input is what is declared under that name."""
    declared = next((i for i in manifest.inputs if i.name == origin.of), None)
    value = size.values.get(name)
    if declared is None or value is None:
        return False
    return (value.shape, value.dtype) == (("R", *declared.shape), declared.dtype)


def _is_guidance(size: SizeRecord, origin: Origin) -> bool:
    """(B, C, 1, ..), or as in format 1 (1, C, 1, ..)."""
    value = size.values[origin.of]
    channels, *axes = size.latent
    return value.dtype == "float32" and value.shape[0] in ("B", 1) and value.shape[1:] == (channels, *(1 for _ in axes))
