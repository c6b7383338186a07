"""`verify` of captured models: what float32 itself costs is no fault, and a fault is found where it is."""

from __future__ import annotations

import numpy as np
import pytest

import l2c_export
from l2c_export.ir.inputs import usual
from l2c_export.runtime.loaded import Bound
from l2c_export.verification.compare import verify


@pytest.fixture
def pipe(sana):
    """Its timesteps are angles of up to 1000, which float32 rounds: PyTorch in float32 is 7e-5 off by itself."""
    with l2c_export.load(sana.out, backend="onnxruntime") as pipe:
        yield pipe


def loop_of(pipe):
    return pipe.generation(usual(pipe.manifest.inputs, 2), None, 2).loop


def test_sana_is_right_at_the_default_tolerance(pipe):
    verdict = verify(pipe)
    assert verdict.passed
    assert not verdict.calls[-1].as_exact
    assert max(check.from_float32 for check in verdict.calls) < 2e-5


def test_a_fault_of_1e_4_is_noticed_although_float32_has_as_much(pipe):
    loop = loop_of(pipe)

    def wrong():
        x = loop.array(3, "x.next")
        x[...] += np.float32(1e-4) * np.abs(x).max()

    loop.bound(3).append(Bound("a test's", "a test's", (), (), wrong))
    assert [check.passed for check in verify(pipe).calls] == [True] * 3 + [False]


def test_a_wrong_engine_is_named_and_not_what_float32_rounds(pipe):
    loop = loop_of(pipe)
    name = "transformer_blocks.1.ff.residual"
    index = next(n for n, bound in enumerate(loop.bound(2)) if name in bound.outputs)
    right = loop.bound(2)[index]

    def wrong():
        right.run()
        loop.array(2, name)[...] *= np.float32(1.01)

    loop.bound(2)[index] = right._replace(run=wrong)
    place = verify(pipe).place
    assert (place.call, place.value) == (2, name)
    assert "what it reads is right" in place.cause
