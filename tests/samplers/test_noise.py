"""The noise of an image follows from its seed."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from recorded import same


@given(st.lists(st.integers(0, 2**64), min_size=1, max_size=4))
def test_the_noise_of_an_image_depends_on_its_seed_alone(pipe, seeds):
    many = pipe.noise(len(seeds), seeds)
    assert all(same(many[i], pipe.noise(1, seed)[0]) for i, seed in enumerate(seeds))
    assert len({n.tobytes() for n in many}) == len(set(seeds))


def test_one_seed_stands_for_consecutive_ones(pipe):
    assert same(pipe.noise(3, 7), pipe.noise(3, [7, 8, 9]))
    assert same(pipe([1, 2], seed=7).latents, pipe([1, 2], seed=np.array([7, 8])).latents)


def test_noise_is_standard_normal_and_the_same_in_every_release(pipe):
    noise = pipe.noise(64, 0)
    assert noise.dtype == np.float32
    assert abs(noise.mean()) < 0.03
    assert abs(noise.std() - 1) < 0.03
    assert np.allclose(noise[0].ravel()[:3], [-0.24822916, -0.02676702, -1.9444163], atol=1e-6)


def test_latents_are_the_noise_that_a_seed_would_have_made(pipe):
    drawn = pipe([1, 2], seed=3).latents
    assert same(pipe([1, 2], latents=pipe.noise(2, 3)).latents, drawn)
    assert same(pipe([1, 2], latents=pipe.noise(2, 3).astype(np.float64), seed=8).latents, drawn)
    assert not same(pipe([1, 2], seed=4).latents, drawn)
    half = pipe.noise(2, 3).astype(np.float16)
    assert same(pipe([1, 2], latents=half).latents, pipe([1, 2], latents=half.astype(np.float32)).latents)
