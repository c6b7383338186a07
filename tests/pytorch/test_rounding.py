"""Weights in e4m3 whose products change least."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from l2c_export.pytorch.rounding import AT_ONCE, TOGETHER, Moments, rounded
from l2c_export.weights import e4m3

ROWS = 48


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weight_and_scale(columns):
    weight = numbers(ROWS, columns, seed=1) * 0.03
    return weight, torch.from_numpy(e4m3.scale_of(float(weight.abs().max())))


def lost(x, weight, codes, scale):
    """Of the product, relatively."""
    return float((x @ (codes.float() * scale[0] - weight).T).norm() / (x @ weight.T).norm())


def moments_of(x):
    moments = Moments()
    for part in x.split(100):
        moments.add(part[None])
    return moments


def nearest(weight, scale):
    return torch.from_numpy(e4m3.rounded(weight.numpy(), scale.numpy()).view(np.uint8)).view(torch.float8_e4m3fn)


@pytest.mark.parametrize("columns", [AT_ONCE - 8, 3 * AT_ONCE + 16, TOGETHER + 64])
def test_products_of_what_goes_together_lose_a_fraction_of_what_the_nearest_do(columns):
    """Of inputs that the moments are of, and of others alike."""
    mixed = numbers(max(4, columns // 8), columns, seed=2)
    x, other = (numbers(4 * columns, len(mixed), seed=seed) @ mixed + 0.1 * numbers(4 * columns, columns) for seed in (3, 4))
    weight, scale = weight_and_scale(columns)
    codes = rounded(weight, moments_of(x), scale)
    assert (codes.dtype, codes.shape) == (torch.float8_e4m3fn, weight.shape)
    for inputs in (x, other):
        assert lost(inputs, weight, codes, scale) < 0.55 * lost(inputs, weight, nearest(weight, scale), scale)
    assert (codes.float() * scale[0] - weight).norm() < 0.1 * weight.norm()


@pytest.mark.parametrize("x", [torch.zeros(8, 64), torch.eye(64)])
def test_columns_that_nothing_connects_are_rounded_to_the_nearest(x):
    weight, scale = weight_and_scale(64)
    assert torch.equal(rounded(weight, moments_of(x), scale).float(), nearest(weight, scale).float())


def test_what_is_rounded_stays_as_it_is():
    weight, scale = weight_and_scale(96)
    moments = moments_of(numbers(200, 96) + 1)
    once = rounded(weight, moments, scale)
    assert torch.equal(rounded(once.float() * scale[0], moments, scale).float(), once.float())


def test_the_most_used_column_is_rounded_first_and_stays_the_nearest():
    x = numbers(400, 64) + numbers(400, 1, seed=5)
    x[:, 40] *= 9
    weight, scale = weight_and_scale(64)
    codes, plain = rounded(weight, moments_of(x), scale).float(), nearest(weight, scale).float()
    assert torch.equal(codes[:, 40], plain[:, 40])
    assert not torch.equal(codes, plain)


def test_columns_of_other_blocks_make_nothing_good():
    """So that moments are of a fixed width."""
    columns = 2 * TOGETHER
    x = numbers(2000, columns // 8) @ numbers(columns // 8, columns, seed=6)
    weight, scale = weight_and_scale(columns)
    first = rounded(weight[:, :TOGETHER].contiguous(), moments_of(x[:, :TOGETHER]), scale)
    assert torch.equal(rounded(weight, moments_of(x), scale)[:, :TOGETHER].float(), first.float())
    assert [tuple(sum_.shape) for sum_ in moments_of(x).sums] == [(TOGETHER, TOGETHER)] * 2
