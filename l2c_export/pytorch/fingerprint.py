"""The fingerprint of a new artefact, computed by the model in PyTorch: nothing that is checked with it took part.

In float32, whose errors are a tenth of what is allowed or less: float64 would take large models twice the time.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import Tensor

from ..artefact import fingerprint
from ..artefact.compiled import Compiled
from ..artefact.fingerprint import Fingerprint
from ..artefact.guidance import guided_request
from ..artefact.manifest import Manifest
from ..artefact.records import FINGERPRINT, FingerprintRecord, Origin, SegmentRecord
from ..ir.dtypes import HALVES
from ..ir.graph import Node, Primitive
from ..ir.inputs import usual
from ..models import bank  # noqa: F401  (its primitives)
from ..models.primitives import execute
from ..samplers.noise import standard_normal
from .eager import Denoiser, Parameters
from .family import family_of
from .stored import stored, unscaled


class Widened(Parameters):
    """Weights that are float32 while they are used: a large model need not fit into memory twice."""

    def __getitem__(self, name: str) -> Tensor:
        return super().__getitem__(name).float()


@torch.no_grad()
def record(folder: Path, manifest: Manifest) -> FingerprintRecord | None:
    """Write the fingerprint of an artefact whose weights lie in `folder`; None if its latents are not finite."""
    planned, compiled = fingerprint.planned(manifest), manifest.program()
    family = family_of(manifest)
    weights, kept = Widened(stored(folder, manifest)), unscaled(folder, manifest)
    noise = standard_normal(compiled.latent, [planned.seed])
    request = Fingerprint(noise, usual(manifest.inputs, 1), manifest.guidance.scale, (), {})
    latents = _latents(Denoiser(family, weights, spans=manifest.denoiser.levels), manifest, planned.calls, request)
    pieces = {}
    for name, piece in planned.pieces.items():
        called = manifest.piece(piece, name)
        assert called
        own, node = called
        inputs = fingerprint.inputs(own, node, planned.seed)
        outputs = _piece(own, own.segments[name], node, inputs, kept)
        pieces[name] = tuple(fingerprint.sketch(value, planned.seed) for value in outputs)
    result = request._replace(latents=latents, pieces=pieces)
    if not fingerprint.finite(result):
        return None
    fingerprint.write(folder / FINGERPRINT, result)
    return msgspec.structs.replace(planned, recorded_by=f"PyTorch {torch.__version__} in float32")


def _latents(model: Denoiser, manifest: Manifest, count: int, request: Fingerprint) -> tuple[np.ndarray, ...]:
    """After each of the first calls."""
    compiled = manifest.program()
    guided = guided_request(compiled, request.inputs, np.array([request.guidance_scale]))
    inputs = {name: torch.from_numpy(values) for name, values in guided.inputs.items()}
    x = torch.from_numpy(request.noise * np.float32(compiled.noise_scale))
    steps = model.steps(compiled.calls[:count], x, inputs, torch.from_numpy(guided.strength)) if count else ()
    return tuple(after.numpy().copy() for after in steps)


def _piece(
    compiled: Compiled, segment: SegmentRecord, node: Node, inputs: Mapping[str, np.ndarray], weights: Mapping[str, Tensor]
) -> list[np.ndarray]:
    """What a segment makes of these inputs when it is called as `node` says."""
    values = {}
    for name, value in zip(segment.inputs, node.inputs, strict=True):
        values[name] = _wide(inputs[value]) if value in inputs else _rows(weights, compiled.size.origins[value])
    outputs = execute(map(_widened, segment.primitives or ()), values)
    return [outputs[name].numpy() for name in segment.outputs]


def _widened(primitive: Primitive) -> Primitive:
    """The same in float32, whatever it would make narrower."""
    attributes = tuple((name, "float32" if value in HALVES else value) for name, value in primitive.attributes)
    return msgspec.structs.replace(primitive, attributes=attributes)


def _wide(value: np.ndarray) -> Tensor:
    return torch.from_numpy(value if value.dtype == np.int32 else value.astype(np.float32))


def _rows(weights: Mapping[str, Tensor], origin: Origin) -> Tensor:
    """A weight or some of its rows: float32, but for e4m3, which its product takes as it is."""
    rows = weights[origin.of][origin.first : origin.last]
    return rows if rows.dtype == torch.float8_e4m3fn else rows.float()
