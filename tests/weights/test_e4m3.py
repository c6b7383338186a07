"""Numbers of e4m3 and their scales."""

from __future__ import annotations

import math

import ml_dtypes  # noqa: F401  (a type of numpy's)
import numpy as np
import pytest

from l2c_export.ir.dtypes import E4M3
from l2c_export.weights import e4m3, layout
from l2c_export.weights.recipe import TensorRecord


@pytest.mark.parametrize(("largest", "exponent"), [
    (448.0, 0), (448.1, 1), (224.0, -1), (1.0, -8), (896.0, 1), (0.0, 0), (math.inf, 0), (math.nan, 0), (1e-38, -60),
])  # fmt: skip
def test_a_scale_is_the_least_power_of_two_that_fits(largest, exponent):
    scale = e4m3.scale_of(largest)
    assert (scale.dtype, scale.tolist()) == (np.float32, [2.0**exponent, 2.0**-exponent])


def test_numbers_are_rounded_to_the_nearest_and_cut_off():
    scale = e4m3.scale_of(448.0)
    numbers = np.array([0.0, 1.0, 1.0625, 1.07, 447.0, 1e9, -1e9, 2.0**-9, 2.0**-11], np.float32)
    codes = e4m3.rounded(numbers, scale)
    assert codes.dtype == E4M3
    assert codes.astype(np.float32).tolist() == [0.0, 1.0, 1.0, 1.125, 448.0, 448.0, -448.0, 2.0**-9, 0.0]


def test_what_is_stored_is_exact_in_bfloat16():
    numbers = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32) * 0.02
    kept = layout.stored("w.weight", numbers, TensorRecord((64, 64), E4M3))
    assert list(kept) == ["w.weight", "w.weight.scale"]
    wide = e4m3.widened(kept["w.weight"], kept["w.weight.scale"])
    assert np.array_equal(wide, wide.astype("bfloat16").astype(np.float32))
    assert np.abs(wide - numbers).max() <= np.abs(numbers).max() / 16
    again = layout.stored("w.weight", wide, TensorRecord((64, 64), E4M3))
    assert np.array_equal(again["w.weight"].view(np.uint8), kept["w.weight"].view(np.uint8))


def test_the_names_of_scales():
    assert e4m3.weight_scale("blocks.0.mlp.fc1.weight") == "blocks.0.mlp.fc1.weight.scale"
    assert e4m3.input_scale("blocks.0.mlp.fc1.weight") == "blocks.0.mlp.fc1.input.scale"
