"""Precision is recorded three times, for those who read one of them: they must say the same."""

from __future__ import annotations

import pytest
from manifests import changed
from msgspec.structs import replace
from recorded import GOLDEN

from l2c_export.artefact import store
from l2c_export.artefact.check import problem
from l2c_export.artefact.check_precision import problems

SOUND = store.read(GOLDEN / "v2" / "engines")
MLP = "blocks.1.mlp"


def of_type(dtype, fp32=()):
    """The denoiser with weights of this type, but for those of some sublayers."""
    tensors = {
        name: replace(tensor, dtype="float32" if any(name.startswith(f"{sublayer}.") for sublayer in fp32) else dtype)
        for name, tensor in SOUND.denoiser.tensors.items()
    }
    return replace(SOUND.denoiser, weight_dtype=dtype, fp32=fp32, tensors=tensors)


def said(denoiser, precision="fp16"):
    return next(problems(replace(SOUND, precision=precision, denoiser=denoiser)), "nothing")


def test_half_precision_with_a_sublayer_in_float32_is_sound():
    assert said(of_type("float16")) == said(of_type("float16", (MLP,))) == "nothing"
    assert said(of_type("bfloat16", (MLP,)), "bf16") == "nothing"


@pytest.mark.parametrize("precision", ["fp16", "bf16", "float32", "", "x" * 1000])
def test_the_precision_is_that_of_the_weights(precision):
    words = problem(changed(SOUND, precision=precision))
    assert "its weights are 'float32'" in words
    assert len(words) < 200


def test_a_list_of_sublayers_in_float32_that_the_tensors_do_not_know():
    assert f"the weight '{MLP}.fc1.weight' is 'float16', its sublayer float32" in said(replace(of_type("float16"), fp32=(MLP,)))
    assert f"the weight '{MLP}.fc1.weight' is 'float32', its sublayer float16" in said(
        replace(of_type("float16", (MLP,)), fp32=())
    )


def test_a_sublayer_in_float32_is_one_and_needs_the_word():
    assert "'blocks.9.mlp' is kept in float32, and is no sublayer" in said(of_type("float16", ("blocks.9.mlp",)))
    assert f"{MLP!r} is kept in float32, as all the rest" in said(of_type("float32", (MLP,)), "fp32")
