"""Requests in words: what they become, and what is refused, in one line with the remedy."""

from __future__ import annotations

import shutil

import msgspec
import numpy as np
import pytest

import l2c_export
from l2c_export.artefact import store
from l2c_export.artefact.records import FILE
from l2c_export.errors import RunError, UsageError
from l2c_export.runtime.prompts import encode

pytestmark = pytest.mark.usefixtures("one_thread")
ARRAY = np.zeros((1, 14, 24), np.float32)


@pytest.fixture(scope="module")
def pipe(prompted_by):
    with l2c_export.load(prompted_by("pixart").out) as loaded:
        yield loaded


@pytest.mark.parametrize(("inputs", "problem"), [
    ({"prompt": "a", "prompt_embeds": ARRAY}, "prompt=.. and prompt_embeds=..: both say the same of an image: give one of"),
    ({"prompt": "a", "prompt_attention_mask": ARRAY[..., 0]}, "prompt=.. and prompt_attention_mask=..: both say"),
    ({"prompt": "a", "negative_prompt": "b", "negative_prompt_embeds": ARRAY}, "negative_prompt=.. and negative_prompt_emb"),
    ({"prompt": ["a"] * 17}, "17 prompts: this artefact makes 1 to 16 images at once"),
    ({"prompt": []}, "0 prompts: this artefact makes 1 to 16 images at once: give at least one"),
    ({"prompt": ["a", "b"], "negative_prompt": ["c"] * 3}, "negative_prompt of 3 texts for 2 images: give one, or as many"),
    ({"prompt": 7}, "prompt=7: give a text, or a list of them"),
    ({"prompt": ["a", None]}, "prompt=['a', None]: give a text, or a list of them"),
    ({"prompt": {"a": 1}}, "prompt={'a': 1}: give a text, or a list of them"),
    ({"prompt": "a \ud800"}, "prompt='a \\ud800': holds half a character"),
    ({"prompt": "a", "class_labels": [1]}, "class_labels=..: this artefact has no such input"),
    ({"negative_prompt": "b"}, "prompt_embeds=..: is missing"),
], ids=repr)  # fmt: skip
def test_what_is_no_prompt_is_refused(pipe, inputs, problem):
    with pytest.raises(UsageError) as refused:
        pipe(**inputs)
    assert problem in str(refused.value)
    assert "\n" not in str(refused.value)


def test_arrays_may_stand_for_one_half(pipe):
    both = pipe.inputs(prompt="a cat", negative_prompt="a dog")
    asked = {name: values for name, values in both.items() if not name.startswith("negative")}
    without = {name: values for name, values in both.items() if name.startswith("negative")}
    for mixed in (pipe.inputs(**asked, negative_prompt="a dog"), pipe.inputs(prompt="a cat", **without)):
        assert all(np.array_equal(mixed[name], values) for name, values in both.items())


def test_one_negative_prompt_is_for_all_images(pipe):
    encodings = pipe.inputs(prompt=("a", "b"), negative_prompt="c")
    listed = pipe.inputs(prompt=np.array(["a", "b"]), negative_prompt=["c", "c"])
    assert all(np.array_equal(encodings[name], listed[name]) for name in encodings)
    assert len(encodings["negative_prompt_embeds"]) == 2


def test_a_model_without_a_second_half_takes_no_negative_prompt(prompted_by):
    with l2c_export.load(prompted_by("flux").out) as flux:
        assert flux.inputs(prompt="a cat").keys() == {"prompt_embeds", "pooled_prompt_embeds"}
        with pytest.raises(UsageError, match=r"negative_prompt=..: this artefact has no unconditional half"):
            flux(prompt="a cat", negative_prompt="blurry")


def test_without_encoders_the_remedy_is_said(prompted_by, tmp_path):
    folder = shutil.copytree(prompted_by("pixart").out, tmp_path / "out")
    store.write_json(folder / FILE, msgspec.structs.replace(store.read(folder), text=msgspec.UNSET))
    wanted = (
        "artefact has no text encoders: compile it again with with_text=True, or give prompt_embeds=.., prompt_attention_mask"
    )
    with l2c_export.load(folder) as other:
        for inputs in ({"prompt": "a"}, {"negative_prompt": "a", "prompt_embeds": ARRAY}):
            with pytest.raises(UsageError, match=wanted):
                other(**inputs)
    with pytest.raises(UsageError, match=wanted):
        encode(folder, "a cat")


def test_a_model_of_labels_takes_no_prompt(tiny):
    with l2c_export.load(tiny[0]) as labels, pytest.raises(UsageError, match=r"prompt=..: this artefact has no such input: it"):
        labels(prompt="a cat")
    with pytest.raises(UsageError, match="its model takes no prompts"):
        encode(tiny[0], "a cat")


def test_arrays_can_be_made_without_the_rest(prompted_by, tmp_path):
    """Of an artefact whose denoiser has no weights yet, for more images than it makes at once."""
    folder = shutil.copytree(prompted_by("sd3").out, tmp_path / "out")
    manifest = store.read(folder)
    files = {
        name: info for name, info in manifest.files.items() if name not in ("weights.safetensors", "fingerprint.safetensors")
    }
    denoiser = msgspec.structs.replace(manifest.denoiser, weights=None)
    bare = msgspec.structs.replace(manifest, denoiser=denoiser, files=files, fingerprint=msgspec.UNSET)
    store.write_json(folder / FILE, bare)
    (folder / "weights.safetensors").unlink()
    arrays = encode(folder, ["a cat"] * 20, "blurry", backend="onnxruntime")
    with l2c_export.load(prompted_by("sd3").out, backend="onnxruntime") as pipe:
        wanted = pipe.inputs(prompt="a cat", negative_prompt="blurry")
    assert all(np.array_equal(arrays[name][19:], values) for name, values in wanted.items())


def test_a_closed_pipeline_says_so(prompted_by):
    pipe = l2c_export.load(prompted_by("flux").out)
    pipe.close()
    with pytest.raises(RunError, match="this pipeline is closed"):
        pipe(prompt="a cat")


def test_what_takes_a_pipelines_place_takes_prompts_too(prompted_by, tmp_path):
    folder = shutil.copytree(prompted_by("flux").out, tmp_path / "out")
    store.write_json(folder / FILE, msgspec.structs.replace(store.read(folder), text=msgspec.UNSET))
    with l2c_export.load(prompted_by("flux").out) as pipe:
        with pytest.raises(UsageError, match="has no text encoders, which the one in its place has"):
            pipe.replace(folder)
        pipe.replace(prompted_by("flux").out)
        pipe(prompt="a cat")


def test_many_are_sampled_of_the_prompts_of_a_file_in_turn(prompted_by, tmp_path):
    from l2c_export.sampling.sample import sample

    (tmp_path / "prompts.txt").write_text("a cat\n\n  ein Hündchen \n")
    folder, asked = prompted_by("sd3").out, {"negative_prompt": "blurry", "backend": "onnxruntime"}
    sample(folder, tmp_path / "s", 5, prompts=tmp_path / "prompts.txt", **asked)
    shard = np.load(tmp_path / "s" / "00000.npz")
    assert shard["prompt"].tolist() == ["a cat", "ein Hündchen", "a cat", "ein Hündchen", "a cat"]
    with l2c_export.load(folder, backend="onnxruntime", threads=1) as pipe:
        texts = shard["prompt"].tolist()[: pipe.manifest.batch]
        assert np.array_equal(shard["latents"][: len(texts)], pipe(prompt=texts, negative_prompt="blurry", seed=0).latents)
    (tmp_path / "prompts.txt").write_text("\n \n")
    with pytest.raises(UsageError, match=r"prompts=.*: holds no prompt"):
        sample(folder, tmp_path / "t", prompts=tmp_path / "prompts.txt", **asked)
    with pytest.raises(UsageError, match=r"prompt_embeds=..: is missing"):
        sample(folder, tmp_path / "t", 5)
