"""The segments of captured transformers, which NVIDIA's libraries and generated kernels cover."""

from __future__ import annotations

import pytest

from l2c_export.artefact import store
from l2c_export.backends.nvidia.graphs import pieces
from l2c_export.backends.nvidia.plan import plan, uncovered
from l2c_export.backends.nvidia.steps import Attention, Product


@pytest.mark.parametrize("name", ["pixart", "flux"])
def test_every_segment_is_covered(name, request):
    manifest = store.read(request.getfixturevalue(name).out)
    segments = pieces(manifest, 2)
    assert {piece.name for piece in segments} == set(manifest.denoiser.segments)
    for piece in segments:
        assert uncovered(piece.primitives) == []
        steps = plan(piece.primitives, dict(piece.inputs), piece.outputs).steps
        ops = [p.op for p in piece.primitives]
        assert sum(isinstance(step, Attention) for step in steps) == ops.count("sdpa")
        assert sum(isinstance(step, Product) for step in steps) >= ops.count("linear")
