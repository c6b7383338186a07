"""What is taken for the same tensor after rounding, and what is noticed; LoRAs are fused as peft does it on a GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from l2c_export.integrations.diffusers.live_weights import ROUNDING
from l2c_export.integrations.diffusers.same_weights import same, spectral_norm

SIZE, RANK = 256, 4


def numbers(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def factors(share: float, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Up and down of a LoRA whose product has this share of the norm of `base()`."""
    up, down = numbers(SIZE, RANK, seed=seed), numbers(RANK, SIZE, seed=seed + 1)
    return up * (share * base().norm() / (up @ down).norm()), down


def base() -> torch.Tensor:
    return 0.03 * numbers(SIZE, SIZE, seed=0)


def fused(dtype: torch.dtype, share: float, scale: float = 1.0) -> np.ndarray:
    """Every step rounded to the type."""
    up, down = (part.to(dtype) for part in factors(share))
    return (base().to(dtype) + (up @ down) * scale).float().numpy()


def linked(dtype: torch.dtype, share: float) -> np.ndarray:
    """Merged in float32, and rounded once."""
    up, down = factors(share)
    return (base() + up @ down).to(dtype).float().numpy()


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 2.0])
@pytest.mark.parametrize("kept", ["float16", "bfloat16", "float32", "int8"])
@pytest.mark.parametrize("live", ["float16", "bfloat16"])
def test_a_fused_lora_is_itself_and_neither_half_nor_none_of_it(live, kept, share):
    dtype = getattr(torch, live)
    ours = linked(torch.float32 if kept == "int8" else getattr(torch, kept), share)
    assert same(ours, fused(dtype, share), kept, ROUNDING[live], fused=True)
    for scale in (0.0, 0.5):
        assert not same(ours, fused(dtype, share, scale), kept, ROUNDING[live], fused=True) or (kept, share) == ("int8", 0.02)


@pytest.mark.parametrize(("live", "smallest"), [("float16", 0.003), ("bfloat16", 0.02)])
def test_nine_tenths_of_a_lora_are_noticed(live, smallest):
    """A LoRA of this share of its matrix; rounding alone is of 0.002 of it in bfloat16."""
    dtype = getattr(torch, live)
    for share in (smallest, 0.1, 1.0):
        ours = linked(dtype, share)
        assert same(ours, fused(dtype, share), live, ROUNDING[live], fused=True)
        assert not same(ours, fused(dtype, share, 0.9), live, ROUNDING[live], fused=True)
        assert not same(ours, fused(dtype, share, 1.1), live, ROUNDING[live], fused=True)


def test_single_numbers_are_compared_where_nothing_was_fused_and_in_vectors():
    ours, theirs = linked(torch.bfloat16, 0.5), fused(torch.bfloat16, 0.5)
    assert not same(ours, theirs, "bfloat16", ROUNDING["bfloat16"])
    vector, other = np.ones(100, np.float32), np.ones(100, np.float32)
    other[3] = 1.01
    assert not same(vector, other, "bfloat16", ROUNDING["bfloat16"], fused=True)
    assert not same(ours, theirs[:, ::-1], "bfloat16", ROUNDING["bfloat16"], fused=True)
    assert not same(ours, theirs[:-1], "bfloat16", ROUNDING["bfloat16"], fused=True)


def test_a_kernel_is_a_matrix_of_its_rows():
    value = numbers(8, 3, 2, 2, seed=5).numpy()
    exact = np.linalg.svd(value.reshape(8, 12), compute_uv=False)[0]
    assert 0.9 * exact < spectral_norm(value) <= exact * (1 + 1e-5)
    assert spectral_norm(np.zeros((4, 3), np.float32)) == 0
