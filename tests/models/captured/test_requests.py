"""What a request for a captured model may say, and what is refused: one line each, with the remedy."""

from __future__ import annotations

import numpy as np
import pytest

import l2c_export
from l2c_export.errors import UsageError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def pipe(pixart):
    with l2c_export.load(pixart.out) as loaded:
        yield loaded


def changed(request, **others):
    return {name: value for name, value in {**request, **others}.items() if value is not None}


@pytest.mark.parametrize(("others", "problem"), [
    ({"prompt_embeds": np.zeros((2, 5, 24), np.float32)}, "prompt_embeds of shape (2, 5, 24): this model needs (B, 6, 24)"),
    ({"prompt_embeds": np.zeros((2, 6, 16), np.float32)}, "prompt_embeds of shape (2, 6, 16): this model needs (B, 6, 24)"),
    ({"prompt_attention_mask": np.ones((2, 7), np.int64)}, "prompt_attention_mask of shape (2, 7): this model needs (B, 6)"),
    ({"prompt_attention_mask": np.full((2, 6), 2)}, "prompt_attention_mask: holds numbers that are not from 0 to 1"),
    ({"prompt_attention_mask": None}, "prompt_attention_mask=..: is missing: give an array of shape (B, 6)"),
    ({"negative_prompt_embeds": None}, "negative_prompt_embeds=..: is missing: give an array of shape (B, 6, 24), or"),
    ({"negative_prompt_attention_mask": np.ones((1, 6), np.int64)}, "negative_prompt_attention_mask of 1 image: give as many"),
    ({"prompt": "a cat"}, "prompt=..: this artefact has no text encoders: compile it again with with_text=True, or give"),
    ({"prompt_embeds": np.full((2, 6, 24), np.nan, np.float32)}, "prompt_embeds: holds NaN or infinite values"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(pipe, pixart, others, problem):
    with pytest.raises(UsageError) as refused:
        pipe(**changed(pixart.request, **others))
    assert problem in str(refused.value)
    assert "\n" not in str(refused.value)


def test_without_guidance_nothing_negative_is_needed(pipe, pixart):
    asked = {name: values for name, values in pixart.request.items() if not name.startswith("negative")}
    latents = pipe(**asked, guidance_scale=1).latents
    assert np.array_equal(latents, pipe(**pixart.request, guidance_scale=1).latents)


def test_a_mask_may_be_of_truth_values(pipe, pixart):
    as_booleans = {name: values.astype(bool) if "mask" in name else values for name, values in pixart.request.items()}
    assert np.array_equal(pipe(**as_booleans).latents, pipe(**pixart.request).latents)


def test_an_image_does_not_depend_on_its_neighbour(pipe, pixart):
    both = pipe(**pixart.request, seed=[4, 5]).latents
    alone = pipe(**{name: values[1:] for name, values in pixart.request.items()}, seed=5).latents
    assert np.abs(both[1:] - alone).max() < 1e-5


def test_flux_is_told_the_guidance_scale_of_every_image(flux):
    with l2c_export.load(flux.out) as pipe:
        low, high = (pipe(**flux.request, guidance_scale=scale).latents for scale in (1.0, 5.0))
        mixed = pipe(**flux.request, guidance_scale=[1.0, 5.0]).latents
        usual = pipe(**flux.request).latents
        assert np.array_equal(usual, pipe(**flux.request, guidance_scale=3.5).latents)
    assert np.abs(mixed - np.stack([low[0], high[1]])).max() < 1e-5
    assert np.abs(low - high).max() > 1e-3
