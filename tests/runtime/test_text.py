"""What text encoders make of prompts, against transformers through diffusers' own pipelines."""

from __future__ import annotations

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import diffusers
import msgspec
import numpy as np
import pytest
import text_oracle
import texts
import torch
from prompted import error

import l2c_export
from l2c_export.artefact import integrity, store
from l2c_export.artefact import text as component
from l2c_export.backends.onnxruntime.cpu import OrtBackend
from l2c_export.errors import ArtefactError
from l2c_export.runtime import text as text_module
from l2c_export.runtime.prompts import encode
from l2c_export.runtime.tokens import TextTokenizer

pytestmark = pytest.mark.usefixtures("one_thread")
CLOSE = 1e-5
_sha256 = integrity.sha256
FAMILIES = ("pixart", texts.MINILM, "sd3", "flux")


@pytest.fixture(scope="module")
def pixart(prompted_by):
    return prompted_by("pixart")


@pytest.fixture(scope="module")
def sd3(prompted_by):
    return prompted_by("sd3")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_embeddings_are_those_of_diffusers(family, backend, prompted_by):
    export = prompted_by(family)
    without = ["ugly, " * n for n in range(len(texts.ODD))]
    wanted = text_oracle.encoded(text_oracle.pipeline(export.folder), texts.ODD, without, export.tokens)
    guides = {"negative_prompt": without} if family != "flux" else {}
    with l2c_export.load(export.out, backend=backend) as pipe:
        arrays = pipe.inputs(prompt=texts.ODD, **guides)
    assert arrays.keys() == wanted.keys()
    for name, values in wanted.items():
        assert arrays[name].shape == values.shape
        assert error(arrays[name], values) < CLOSE, name
        assert np.abs(arrays[name] - values).max() < CLOSE, name


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_transformers(family, prompted_by):
    """Of whole texts, padded ones and cut ones."""
    export = prompted_by(family)
    theirs, manifest = text_oracle.pipeline(export.folder), store.read(export.out)
    for name, encoder in manifest.text.encoders.items():
        tokenizer = getattr(theirs, name.replace("text_encoder", "tokenizer"))
        file = component.tokenizer_file(name)
        for most in (encoder.tokens, 77, 512):
            ours = TextTokenizer(export.out / file, manifest.files[file], most)
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


def test_pictures_are_those_of_a_pipeline_with_a_bert(prompted_by):
    """By diffusers' own loop and its tiny decoder, from the same noise."""
    export = prompted_by(texts.MINILM)
    said = {"prompt": ["A Cat", "two dogs in the rain"], "negative_prompt": "blurry", "guidance_scale": 4.0}
    with l2c_export.load(export.out) as pipe:
        noise = pipe.noise(2, 3)
        ours = pipe(**said, latents=noise, steps=3, output_type="np").images
    asked = {**texts.asked("pixart", **said), "latents": torch.from_numpy(noise), "output_type": "np"}
    theirs = texts.live(export.folder)(**asked).images
    assert ours.shape == theirs.shape == (2, 64, 64, 3)
    assert error(ours, theirs) < CLOSE
    assert np.abs(theirs[0] - theirs[1]).max() > 1e-3


def test_without_t5_its_tokens_are_zeros(tmp_path, sd3):
    folder = shutil.copytree(sd3.folder, tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index))
    export = texts.exported("sd3", folder, tmp_path / "out")
    theirs = diffusers.StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)
    wanted = text_oracle.encoded(theirs, ["a cat"], [""], export.tokens)
    with l2c_export.load(export.out) as pipe:
        arrays = pipe.inputs(prompt="a cat")
        assert list(pipe.manifest.text.encoders) == ["text_encoder", "text_encoder_2"]
    assert not arrays["prompt_embeds"][:, texts.CLIP_TOKENS :].any()
    assert all(error(arrays[name], values) < CLOSE for name, values in wanted.items())


def test_what_is_cut_off_is_said_as_it_was_written(prompted_by, caplog):
    prompt = "A photo of  a Cat, " + " ".join(f"CAT{n}" for n in range(40))
    with l2c_export.load(prompted_by("flux").out) as pipe, caplog.at_level("WARNING", "l2c_export"):
        pipe.inputs(prompt="a cat")
        assert not [line for line in caplog.messages if "prompt" in line]
        pipe.inputs(prompt=prompt)
        (line,) = (line for line in caplog.messages if "text_encoder_2" in line)
        pipe.inputs(prompt=prompt)
        assert caplog.messages.count(line) == 2  # also where it is known already
    cut = re.fullmatch(r"a prompt is longer than the 14 tokens of text_encoder_2, which is not told: '(.*)'", line)[1]
    assert prompt.endswith(cut)
    assert "CAT39" in cut
    assert "photo" not in cut


def test_encoders_are_loaded_when_they_are_needed_and_can_be_freed(prompted_by, monkeypatch):
    loads = []

    def load(self, segment):
        loads.append(segment.path.name)
        return OrtBackend._load(self, segment)

    monkeypatch.setattr(OrtBackend, "_load", OrtBackend.load, raising=False)
    with l2c_export.load(prompted_by("sd3").out, backend="onnxruntime") as pipe:
        monkeypatch.setattr(OrtBackend, "load", load)
        assert not loads
        first = pipe.inputs(prompt="a cat")
        assert loads == ["text_encoder.onnx", "text_encoder_2.onnx", "text_encoder_3.onnx"]
        pipe.inputs(prompt=["a cat", "two dogs"])
        pipe.free_text()
        again = pipe.inputs(prompt="a cat")  # which is known
        assert len(loads) == 3
        pipe.inputs(prompt="three dogs")
        assert len(loads) == 6
    assert all(np.array_equal(first[name], again[name]) for name in first)


def test_encoders_of_another_backend_have_the_threads_of_the_pipeline(prompted_by, monkeypatch):
    asked = []
    monkeypatch.setattr(text_module, "reading_onnx", lambda backend, threads: asked.append(threads) or backend)
    with l2c_export.load(prompted_by("pixart").out, backend="onnxruntime", threads=1) as pipe:
        pipe.inputs(prompt="a cat")
    assert asked == [1]
    encode(prompted_by("pixart").out, "a cat", backend="onnxruntime", threads=1)
    assert asked == [1, 1]


def test_as_many_texts_are_kept_as_there_is_room_for(prompted_by, monkeypatch):
    monkeypatch.setattr(text_module, "KEPT", 2)
    with l2c_export.load(prompted_by("pixart").out) as pipe:
        for prompt in ("a", "b", "a", "c"):
            pipe.inputs(prompt=prompt, negative_prompt=prompt)
        assert list(pipe._texts._kept) == ["a", "c"]


def test_threads_take_turns(prompted_by):
    prompts = [f"{n} cats" for n in range(12)]
    with l2c_export.load(prompted_by("sd3").out) as pipe, ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda prompt: pipe.inputs(prompt=prompt)["prompt_embeds"], prompts))
        pipe._texts._kept.clear()
        for prompt, embeddings in zip(prompts, together, strict=True):
            assert np.array_equal(pipe.inputs(prompt=prompt)["prompt_embeds"], embeddings)


@pytest.mark.parametrize("kind", ["onnx", "safetensors", "tokenizer.json"])
def test_an_encoder_that_was_changed_is_refused(prompted_by, tmp_path, kind):
    """When it is loaded, and later."""
    folder = shutil.copytree(prompted_by("pixart").out, tmp_path / "out")
    file = folder / "text" / f"text_encoder.{kind}"
    with l2c_export.load(folder, backend="onnxruntime") as pipe:
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
        if kind != "safetensors":  # which is mapped, as the denoiser's are
            with pytest.raises(ArtefactError, match=rf"text_encoder\.{kind}"):
                pipe.inputs(prompt="a cat")
    with pytest.raises(ArtefactError, match=rf"text_encoder\.{kind}"):
        l2c_export.load(folder)
    with pytest.raises(ArtefactError, match=rf"text_encoder\.{kind}"):
        encode(folder, "a cat")


def test_trusted_weights_are_those_of_encoders_too(prompted_by, tmp_path, monkeypatch):
    hashed = []
    monkeypatch.setattr(integrity, "sha256", lambda path: hashed.append(path.name) or _sha256(path))
    l2c_export.load(prompted_by("pixart").out, verify=False).close()
    assert "text_encoder.tokenizer.json" in hashed
    assert not [name for name in hashed if name.endswith("encoder.safetensors") or name == "weights.safetensors"]


def panics(model):
    """More of a prefix than there is of a token: the library ends in a panic."""
    model.update(continuing_subword_prefix="a" * 300)


@pytest.mark.parametrize("change", [
    panics, lambda model: model.clear(), lambda model: model.update(unk_token="<nothing>", vocab={"a": 0}),
    lambda model: model.update(vocab={name: 10**6 + n for name, n in model["vocab"].items()}),
], ids=["panics", "nothing", "no unknown token", "numbers too large"])  # fmt: skip
def test_a_tokenizer_of_no_sense_is_one_line(prompted_by, tmp_path, change):
    """With a hash that is right."""
    folder = shutil.copytree(prompted_by("flux").out, tmp_path / "out")
    file = folder / "text" / "text_encoder.tokenizer.json"
    tokenizer = json.loads(file.read_text())
    change(tokenizer["model"])
    file.write_text(json.dumps(tokenizer))
    manifest = store.read(folder, verify=False)
    files = {**manifest.files, "text/text_encoder.tokenizer.json": integrity.info(file)}
    store.write_json(folder / "manifest.json", msgspec.structs.replace(manifest, files=files))
    with l2c_export.load(folder) as pipe, pytest.raises(ArtefactError, match="tokenizer") as refused:
        pipe.inputs(prompt="a cat")
    assert "\n" not in str(refused.value)
