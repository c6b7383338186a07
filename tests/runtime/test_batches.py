"""Images of one batch, and one request after another."""

from __future__ import annotations

from helpers import case
from recorded import close, same

import l2c_export
from l2c_export.compiler.compile import compile_artefact


def test_a_smaller_batch_gives_the_same_images(pipe):
    both = pipe([3, 5], seed=[11, 12]).latents
    for i, (label, seed) in enumerate([(3, 11), (5, 12)]):
        assert close(pipe([label], seed=seed).latents, both[i : i + 1])


def test_an_image_does_not_depend_on_its_neighbour(pipe):
    assert close(pipe([3, 5], seed=[11, 12]).latents[:1], pipe([3, 9], seed=[11, 0]).latents[:1])


def test_three_images_without_guidance_equal_their_recordings_together_and_alone(tmp_path):
    chosen = case("dit_batch3_no_cfg")
    compile_artefact(chosen.options(tmp_path / "e"))
    pipe = l2c_export.load(tmp_path / "e", backend="onnxruntime")
    golden = chosen.golden
    out = pipe(golden["y"], latents=golden["x_T"]).latents
    assert close(out, golden["cached_final"])
    for i in range(3):
        assert close(pipe(golden["y"][i], latents=golden["x_T"][i : i + 1]).latents, out[i : i + 1])


def test_a_generation_repeats_to_the_bit_whatever_ran_between(pipe):
    first = pipe([1, 2], seed=5).latents
    kept = first.copy()
    between = [pipe([1, 2], seed=5).latents, pipe([7]).latents, pipe([4, 4], guidance_scale=1, seed=9).latents]
    next(pipe.steps([1, 2], None, pipe.noise(2, 1)))  # and one that nobody finished
    assert same(pipe([1, 2], seed=5).latents, kept)
    assert same(between[0], kept)
    assert same(first, kept), "a result is not overwritten by the next request"
