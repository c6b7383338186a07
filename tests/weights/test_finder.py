"""Which file of a folder holds the weights, as diffusers itself finds them."""

from __future__ import annotations

from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_pipelines import PLAIN, written

from l2c_export.artefact import autoencoder
from l2c_export.compiler.onnx import decoder as vae
from l2c_export.errors import WeightsError
from l2c_export.models.diffusers import pipeline_folder
from l2c_export.weights import finder
from l2c_export.weights.checkpoint import open_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


def in_forms(model: diffusers.ModelMixin, folder: Path, form: str) -> dict:
    """Save it; returned is how diffusers is asked for the same."""
    variant = form.split()[0] if form.split()[0] in ("fp16", "bf16", "ema") else None
    small = {"max_shard_size": "40KB"} if "shards" in form else {}
    model.save_pretrained(folder, variant=variant, safe_serialization="bin" not in form, **small)
    return {"variant": variant, "use_safetensors": "bin" not in form}


FORMS = ["one", "fp16 one", "bf16 one", "ema one", "shards", "fp16 shards", "bin", "fp16 bin", "bin shards", "fp16 bin shards"]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_weights_is_found(saved, tmp_path, form):
    transformer = diffusers.DiTTransformer2DModel.from_pretrained(saved / "transformer")
    transformer = transformer.half() if "fp16" in form else transformer.bfloat16() if "bf16" in form else transformer
    asked = in_forms(transformer, tmp_path, form)
    theirs = diffusers.DiTTransformer2DModel.from_pretrained(tmp_path, **asked).state_dict()
    choice = finder.find(tmp_path)
    assert len(finder.files(tmp_path, choice)) > 2 or "shards" not in form
    stored = pipeline_folder.read(tmp_path).stored
    assert stored.shapes.keys() == theirs.keys()
    assert all(np.array_equal(stored.read(name), value.float().numpy()) for name, value in theirs.items())


@pytest.mark.parametrize("form", ["fp16 one", "bin", "fp16 shards"])
def test_an_autoencoders_weights_are_found_in_every_form(saved, tmp_path, form):
    kept = diffusers.AutoencoderKL.from_pretrained(saved / "vae")
    kept = kept.half() if "fp16" in form else kept.bfloat16() if "bf16" in form else kept
    in_forms(kept, tmp_path, form)
    loaded = vae.load(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], value.float()) for name, value in kept.state_dict().items())
    assert len(autoencoder.digest(tmp_path, {})) == 64


@pytest.mark.parametrize(("names", "want"), [
    (["diffusion_pytorch_model.fp16.safetensors", PLAIN], PLAIN),
    (["diffusion_pytorch_model.bin", PLAIN], PLAIN),
    (["diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.safetensors"], "diffusion_pytorch_model.bin"),
    (["diffusion_pytorch_model.fp16.bin", "diffusion_pytorch_model.bf16.bin"], "diffusion_pytorch_model.bf16.bin"),
    (["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json"],
     "diffusion_pytorch_model.safetensors.index.json"),
    (["diffusion_pytorch_model.safetensors.index.fp16.json"], "diffusion_pytorch_model.safetensors.index.fp16.json"),
    (["diffusion_pytorch_model.safetensors.fp16.index.json"], "diffusion_pytorch_model.safetensors.fp16.index.json"),
    (["diffusion_pytorch_model.non_ema.safetensors", PLAIN], PLAIN),
    (["model.safetensors", "optimizer.bin", "x.safetensors"], "model.safetensors"), (["optimizer.bin", "config.json"], None),
    (["diffusion_pytorch_model-00001-of-00002.safetensors"], None),
])  # fmt: skip
def test_of_several_weights_the_most_precise_is_taken(names, want):
    choice = finder.choose(names)
    assert (choice and choice.name) == want


def test_weights_that_are_none_or_too_many_are_named(tmp_path):
    with pytest.raises(WeightsError, match=r"holds no weights: one of diffusion_pytorch_model\.safetensors"):
        finder.find(tmp_path)
    (tmp_path / "diffusion_pytorch_model-00001-of-00002.safetensors").touch()
    with pytest.raises(WeightsError, match=r"holds diffusion_pytorch_model-00001-of-00002\.safetensors, but no index"):
        finder.find(tmp_path)
    for variant in ("ema", "non_ema"):
        (tmp_path / f"diffusion_pytorch_model.{variant}.bin").touch()
    with pytest.raises(WeightsError, match=r"model\.ema\.bin and .*non_ema\.bin are different weights"):
        finder.find(tmp_path)
    written(tmp_path / "diffusion_pytorch_model.safetensors.index.json", {"weight_map": {"a": "gone.safetensors"}})
    with pytest.raises(WeightsError, match=r"gone\.safetensors: no such file, but .*index\.json names it"):
        finder.files(tmp_path, finder.find(tmp_path))


def test_an_index_that_lies_is_refused(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "one.safetensors")
    index = tmp_path / "x.safetensors.index.json"
    for content, says in (
        ("{", "weight_map is damaged"), ('{"weight_map": {"a": 1}}', "weight_map is damaged"),
        ('{"weight_map": {"a": "one.safetensors", "b": "one.safetensors"}}', "b is not in one.safetensors"),
        ('{"weight_map": {"a": "two.safetensors"}}', "two.safetensors': no such file"),
        ('{"weight_map": {"a": "x.safetensors.index.json"}}', "x.safetensors.index.json is not a checkpoint"),  # itself
        ('{"weight_map": {"a": "../one.safetensors"}}', ""),  # what lies elsewhere is not read
    ):  # fmt: skip
        index.write_text(content)
        if says:
            with pytest.raises(WeightsError, match=says):
                open_checkpoint(index)
        else:
            assert open_checkpoint(index).read("a").tolist() == [0, 0]
