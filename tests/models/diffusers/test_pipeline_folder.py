"""Pipeline folders, whole and in parts: their models, weights and names."""

from __future__ import annotations

import re
import shutil

import diffusers
import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_pipelines import INDEX, PLAIN, close, edited, fine_tune, noise, source

from l2c_export.compiler.compile import compile_artefact
from l2c_export.compiler.request import Options
from l2c_export.compiler.source import resolve
from l2c_export.errors import L2CError, ModelError, UsageError, WeightsError
from l2c_export.models import families
from l2c_export.models.diffusers import pipeline_folder
from l2c_export.pytorch.eager import Eager
from l2c_export.samplers.scheduler_config import DDIM, DPM, EULER

pytestmark = pytest.mark.usefixtures("one_thread")


def eager(folder: pipeline_folder.Folder, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    family = families.build("dit", folder.arch)
    weights = {name: torch.from_numpy(value.copy()) for name, value in folder.checkpoint().tensors(family.tensors())}
    with torch.no_grad():
        return family.call(
            Eager(family, weights, frozenset(), {}, {}), x, torch.arange(2, dtype=torch.int32), t, {"class_labels": y}
        )


@pytest.mark.parametrize("shared", [False, True])
def test_embedders_may_be_the_same_in_every_block_or_not(world, tmp_path, shared):
    shutil.copytree(world.folder, tmp_path / "p")
    weights = tmp_path / "p/transformer/diffusion_pytorch_model.safetensors"
    model = diffusers.DiTTransformer2DModel.from_pretrained(weights.parent, low_cpu_mem_usage=False)
    if shared:
        for block in model.transformer_blocks[1:]:
            block.norm1.emb.load_state_dict(model.transformer_blocks[0].norm1.emb.state_dict())
        save_file(model.state_dict(), weights)
    folder = pipeline_folder.read(tmp_path / "p")
    assert folder.arch["block_embeddings"] is not shared
    assert ("t_embedder.mlp.0.weight" in folder.checkpoint().shapes) is shared
    x, t, y = torch.from_numpy(noise()), torch.tensor([333.0, 999.0]), torch.tensor([7, 1000], dtype=torch.int32)
    with torch.no_grad():
        want = model(x, timestep=t.long(), class_labels=y.long()).sample
    assert close(eager(folder, x, t, y).numpy(), want.numpy(), 2e-6)


def test_weights_in_several_files_or_pickled_are_the_same(world, tmp_path):
    want = pipeline_folder.read(world.folder).checkpoint()
    for name in ("sharded", "pickled"):
        shutil.copytree(world.folder, tmp_path / name)
    world.pipe.transformer.save_pretrained(tmp_path / "sharded/transformer", max_shard_size="200KB")
    state = load_file(tmp_path / "pickled/transformer/diffusion_pytorch_model.safetensors")
    (tmp_path / "pickled/transformer/diffusion_pytorch_model.safetensors").unlink()
    torch.save(state, tmp_path / "pickled/transformer/diffusion_pytorch_model.bin")
    (tmp_path / "sharded/transformer/diffusion_pytorch_model.safetensors").unlink(missing_ok=True)
    assert len(list((tmp_path / "sharded/transformer").glob("*.safetensors"))) > 1
    for name in ("sharded", "pickled"):
        got = pipeline_folder.read(tmp_path / name).checkpoint()
        assert got.shapes == want.shapes
        assert all(np.array_equal(got.read(n), want.read(n)) for n in want.shapes)


@pytest.mark.parametrize(("spoilt", "sampler"), [
    ({"prediction_type": "v_prediction"}, "ddim"), ({"beta_schedule": "scaled_linear"}, "ddim"),
    ({"rescale_betas_zero_snr": True}, "ddim"), ({}, "dpm-solver++"),
])  # fmt: skip
def test_a_sampler_for_other_noise_than_the_model_was_trained_with_is_refused(world, tmp_path, spoilt, sampler):
    """Its pictures would be noise, and no check of ours against PyTorch would notice."""
    shutil.copytree(world.folder, tmp_path / "p")
    edited(tmp_path / "p" / "scheduler" / "scheduler_config.json", **spoilt)
    options = Options(schedule="every:2", steps=4, model=str(tmp_path / "p"), sampler=sampler, out=tmp_path / "e")
    with pytest.raises(UsageError, match=f"sampler={re.escape(repr(sampler))}: the model of .* was trained with ") as error:
        compile_artefact(options)
    assert next(iter(spoilt), "beta_schedule") in str(error.value)


@pytest.mark.parametrize(("name", "other"), [("DiT-S/2", "dpm-solver++"), ("U-ViT-H/2", "ddim")])
def test_without_a_folder_a_family_says_what_noise_it_was_trained_with(name, other):
    options = Options(schedule="every:2", steps=4, model=name, weights="random", sampler=other)
    with pytest.raises(UsageError, match=r"it is for models trained with beta_schedule = .*, which a .* is not: use "):
        resolve(options)


def test_a_class_alone_is_for_the_noise_of_the_family():
    """The betas of U-ViT's training are Stable Diffusion's."""
    dit, uvit = (
        resolve(Options(schedule="every:2", steps=4, model=name, weights="random", sampler=DPM)).schedules[0].scheduler
        for name in ("DiT-S/2", "U-ViT-H/2")
    )
    assert (dit.beta_schedule, dit.beta_end) == ("linear", 0.02)
    assert (uvit.beta_schedule, uvit.beta_start, uvit.beta_end) == ("scaled_linear", 0.00085, 0.012)


def test_the_decoder_may_be_that_of_another_pipeline_folder(world):
    options = [
        Options(schedule="every:2", steps=4, model=str(world.folder), vae=vae) for vae in (world.folder, world.folder / "vae")
    ]
    assert {resolve(asked).vae for asked in options} == {world.folder / "vae"}


SPOILT = {
    "norm": ("transformer", {"norm_type": "ada_norm"}, "norm_type = 'ada_norm' is not supported: a DiT has 'ada_norm_zero'"),
    "gelu": ("transformer", {"activation_fn": "geglu"}, "activation_fn = 'geglu' is not supported"),
    "affine": ("transformer", {"norm_elementwise_affine": True}, "norm_elementwise_affine = True is not supported"),
    "bias": ("transformer", {"attention_bias": False}, "attention_bias = False is not supported"),
    "out": ("transformer", {"out_channels": 5}, "out_channels = 5: must be once or twice the 4"),
    "kind": ("transformer", {"num_layers": "many"}, "does not describe a DiT: .*num_layers"),
    "deep": ("transformer", {"num_layers": 4}, "does not fit its model: it has 3 blocks, not 4"),
    "bottomless": ("transformer", {"num_layers": 3 * 10**9}, "does not describe a DiT: .*num_layers"),
    "shallow": ("transformer", {"num_layers": 2}, "does not fit its model: it has 3 blocks, not 2"),
    "clip": ("scheduler", {"clip_sample": True}, "scheduler: clip_sample = True is not supported: it must be False"),
    "betas": ("scheduler", {"trained_betas": [0.1]}, "has 1 betas from 0.1 to 0.1: it needs 1000 .*from 0 to 1"),
    "negative": ("scheduler", {"beta_start": -1, "beta_schedule": "scaled_linear"}, "Expected `float` >= 0"),
    "groups": ("vae", {"norm_num_groups": 0}, "vae cannot be read as an AutoencoderKL"),
    "act": ("vae", {"act_fn": None}, "vae cannot be read as an AutoencoderKL"),
    "patch": ("transformer", {"patch_size": 0}, "does not describe a DiT: .*>= 1"),
    "large": ("transformer", {"sample_size": 10**9}, "does not describe a DiT: .*<= "),
    "nan": ("scheduler", {"beta_end": float("nan")}, "not a scheduler that is supported: .*beta_end"),
    "latents": ("vae", {"latent_channels": 16}, "decodes 16 channels, but the model's latents have 4"),
}


@pytest.mark.parametrize("spoilt", SPOILT)
def test_what_cannot_be_compiled_is_named(world, tmp_path, spoilt):
    part, change, says = SPOILT[spoilt]
    shutil.copytree(world.folder, tmp_path / "p")
    edited(next((tmp_path / "p" / part).glob("*config.json")), **change)
    options = Options(schedule="every:2", steps=4, model=str(tmp_path / "p"), with_vae=True, out=tmp_path / "e")
    with pytest.raises(L2CError, match=says) as error:
        compile_artefact(options)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize("names", [["dog"], {"one": "dog"}, {"1": 5}, {"1": None}])
def test_damaged_class_names_are_one_line(world, tmp_path, names):
    shutil.copytree(world.folder, tmp_path / "p")
    edited(tmp_path / "p" / "model_index.json", id2label=names)
    with pytest.raises(ModelError, match=r"model_index.json: id2label is damaged: ") as error:
        compile_artefact(Options(schedule="every:2", steps=4, model=str(tmp_path / "p"), out=tmp_path / "e"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("gone", "kind", "says"), [
    ("transformer/diffusion_pytorch_model.safetensors", WeightsError, "holds no weights: one of diffusion_pytorch_model.saf"),
    ("scheduler/scheduler_config.json", ModelError, "No such file or directory: the folder is not complete"),
    ("model_index.json", ModelError, "no pipeline folder of diffusers"),
])  # fmt: skip
def test_an_incomplete_folder_says_what_is_missing(world, tmp_path, gone, kind, says):
    shutil.copytree(world.folder, tmp_path / "p")
    (tmp_path / "p" / gone).unlink()
    with pytest.raises(kind, match=says):
        compile_artefact(Options(schedule="every:2", steps=4, model=str(tmp_path / "p"), out=tmp_path / "e"))


def test_a_transformers_folder_is_a_model_and_its_weights(saved, tmp_path):
    fine_tune(tmp_path / "other")
    want = source(tmp_path / "other")
    for options in (
        {"model": str(tmp_path / "other/alone")}, {"model": str(tmp_path / "other/transformer")},
        {"weights": str(tmp_path / "other/alone")}, {"weights": str(tmp_path / "other")},
        {"weights": str(tmp_path / "other/alone" / PLAIN)}, {"model": str(saved), "weights": str(tmp_path / "other/alone")},
        {"model": str(tmp_path / "other" / INDEX)},
    ):  # fmt: skip
        got = source(**options)
        assert msgspec.structs.asdict(got.family.arch) == msgspec.structs.asdict(want.family.arch), options
        assert got.schedule.scheduler == want.schedule.scheduler
        assert got.guidance == "all"
        assert all(np.array_equal(got.checkpoint.read(n), want.checkpoint.read(n)) for n in want.checkpoint.shapes)


def test_the_scheduler_of_a_transformer_alone_is_said_to_be_assumed(tmp_path):
    fine_tune(tmp_path / "other")
    (note,) = source(tmp_path / "other/alone").notes
    assert f"has no scheduler: {DDIM} as in the released DiT pipelines is ASSUMED" in note
    assert source(tmp_path / "other/alone", sampler=EULER).notes == ()
    assert source(tmp_path / "other/transformer").notes == (), "its pipeline says it"


def test_a_file_is_no_model(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError):
        source(tmp_path / "w.safetensors")
