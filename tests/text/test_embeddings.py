"""What becomes of prompts, against transformers through diffusers' own pipelines."""

from __future__ import annotations

import json
import shutil

import diffusers
import numpy as np
import pytest
import text_oracle
import texts
from prompted import error

import l2c_export
from l2c_export.artefact import store
from l2c_export.artefact import text as component
from l2c_export.runtime.tokens import TextTokenizer

pytestmark = pytest.mark.usefixtures("one_thread")
CLOSE = 1e-5
FAMILIES = ("pixart", "sd3", "flux")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_embeddings_are_those_of_diffusers(family, backend, request):
    made = request.getfixturevalue(family)
    without = ["ugly, " * n for n in range(len(texts.ODD))]
    wanted = text_oracle.encoded(text_oracle.pipeline(made.folder), texts.ODD, without, made.tokens)
    guides = {"negative_prompt": without} if family != "flux" else {}
    with l2c_export.load(made.out, backend=backend) as pipe:
        arrays = pipe.inputs(prompt=texts.ODD, **guides)
    assert arrays.keys() == wanted.keys()
    for name, values in wanted.items():
        assert arrays[name].shape == values.shape
        assert error(arrays[name], values) < CLOSE, name
        assert np.abs(arrays[name] - values).max() < CLOSE, name


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_transformers(family, request):
    """Of whole texts, padded ones and cut ones."""
    made = request.getfixturevalue(family)
    theirs, manifest = text_oracle.pipeline(made.folder), store.read(made.out)
    for name, encoder in manifest.text.encoders.items():
        tokenizer = getattr(theirs, name.replace("text_encoder", "tokenizer"))
        file = component.tokenizer_file(name)
        for most in (encoder.tokens, 77, 512):
            ours = TextTokenizer(made.out / file, manifest.files[file], most)
            for text in texts.ODD:
                assert ours(text).ids == tokenizer(text, truncation=True, max_length=most).input_ids, text
        assert encoder.padding == tokenizer.pad_token_id


def test_nothing_said_of_the_other_half_is_the_empty_text(sd3):
    with l2c_export.load(sd3.out) as pipe:
        usual, empty = pipe.inputs(prompt="a cat"), pipe.inputs(prompt="a cat", negative_prompt="")
        other = pipe.inputs(prompt="a cat", negative_prompt="a dog")
        assert all(np.array_equal(usual[name], empty[name]) for name in usual)
        assert np.array_equal(other["negative_prompt_embeds"], pipe.inputs(prompt="a dog")["prompt_embeds"])


def test_an_embedding_does_not_depend_on_its_neighbours(pixart):
    with l2c_export.load(pixart.out) as pipe, l2c_export.load(pixart.out) as other:
        both = pipe.inputs(prompt=["a cat", "two dogs in the rain"])
        alone = other.inputs(prompt="two dogs in the rain")
    assert all(np.array_equal(both[name][1:], alone[name]) for name in alone)


def test_images_are_those_of_the_arrays(pixart):
    with l2c_export.load(pixart.out) as pipe:
        arrays = pipe.inputs(prompt=["a cat", "a dog"], negative_prompt="blurry")
        by_arrays = pipe(**arrays, seed=3, output_type="latent").latents
        by_words = pipe(prompt=["a cat", "a dog"], negative_prompt="blurry", seed=3, output_type="latent").latents
        steps = list(pipe.steps(prompt=["a cat", "a dog"], negative_prompt="blurry", noise=pipe.noise(2, 3)))
    assert np.array_equal(by_arrays, by_words)
    assert np.abs(steps[-1].x - by_words).max() < 1e-5 * np.abs(by_words).max()
    assert np.abs(by_words[0] - by_words[1]).max() > 1e-3


def test_without_t5_its_tokens_are_zeros(tmp_path, sd3):
    folder = shutil.copytree(sd3.folder, tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index))
    made = texts.exported("sd3", folder, tmp_path / "out")
    theirs = diffusers.StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)
    wanted = text_oracle.encoded(theirs, ["a cat"], [""], made.tokens)
    with l2c_export.load(made.out) as pipe:
        arrays = pipe.inputs(prompt="a cat")
        assert list(pipe.manifest.text.encoders) == ["text_encoder", "text_encoder_2"]
    assert not arrays["prompt_embeds"][:, texts.CLIP_TOKENS :].any()
    assert all(error(arrays[name], values) < CLOSE for name, values in wanted.items())
