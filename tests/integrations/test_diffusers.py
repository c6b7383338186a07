"""At home in the diffusers world: folders in, images out, against diffusers itself."""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import re
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import diffusers
import msgspec
import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file
from small_pipelines import LABELS, SCALE, SCHEDULERS, STEPS, World, edited, small_pipeline

import l2c_export
from l2c_export.artefact import store
from l2c_export.backends import units as building
from l2c_export.backends.choose import open_backend
from l2c_export.backends.ports import Range
from l2c_export.backends.tensorrt.builder import Builder, BuildSettings
from l2c_export.cli.main import l2c
from l2c_export.compiler.compile import compile_artefact
from l2c_export.compiler.link import bind
from l2c_export.compiler.request import Options
from l2c_export.compiler.source import resolve
from l2c_export.errors import ArtefactError, L2CError, ModelError, ScheduleError, UsageError, WeightsError
from l2c_export.inspection import view
from l2c_export.models import families
from l2c_export.models.diffusers import pipeline_folder
from l2c_export.models.updates import UPDATES
from l2c_export.pytorch.eager import Eager
from l2c_export.pytorch.reference import Reference
from l2c_export.runtime import decoder
from l2c_export.runtime.decoder import Decoder, decode_tiles
from l2c_export.samplers.scheduler_config import DDIM
from l2c_export.schedules import schedule
from l2c_export.verification import compare
from l2c_export.weights.checkpoint import open_checkpoint


@pytest.fixture(scope="module")
def worlds(tmp_path_factory, own_cache):
    root = tmp_path_factory.mktemp("diffusers")
    return {name: World(root, root / name, small_pipeline(root / name, name), name) for name in SCHEDULERS}


@pytest.fixture(scope="module")
def world(worlds):
    return worlds["ddim"]


def noise(seed: int = 0) -> np.ndarray:
    return torch.randn((2, 4, 8, 8), generator=torch.manual_seed(seed)).numpy()


def their_latents(pipe: diffusers.DiTPipeline, scale: float, seed: int = 0) -> np.ndarray:
    """What the pipeline hands to its autoencoder."""
    seen = []
    hook = pipe.vae.post_quant_conv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].numpy()))
    pipe(LABELS, scale, torch.manual_seed(seed), STEPS, "np")
    hook.remove()
    return seen[0] * pipe.vae.config.scaling_factor


@torch.no_grad()
def euler_latents(pipe: diffusers.DiTPipeline, scale: float, x: np.ndarray) -> np.ndarray:
    """The loop that diffusers' other pipelines have.  DiTPipeline goes on from the scaled model input instead of the latents,
    so that it makes no images with this scheduler."""
    pipe.scheduler.set_timesteps(STEPS)
    x, y = torch.from_numpy(x) * pipe.scheduler.init_noise_sigma, torch.tensor([*LABELS, 1000, 1000])
    for t in pipe.scheduler.timesteps:
        seen = pipe.scheduler.scale_model_input(x, t)
        out = pipe.transformer(torch.cat([seen, seen]), timestep=t.expand(4), class_labels=y).sample[:, :4]
        c, u = out.chunk(2)
        x = pipe.scheduler.step(u + scale * (c - u), t, x).prev_sample
    return x.numpy()


def close(got: np.ndarray, want: np.ndarray, share: float = 1e-4) -> bool:
    return np.abs(got - want).max() <= share * np.abs(want).max()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_uncached_loop_is_that_of_diffusers(worlds, name):
    world = worlds[name]
    ours = l2c_export.load(world.compiled())(LABELS, SCALE, latents=noise()).latents
    want = euler_latents(world.pipe, SCALE, noise()) if name == "euler" else their_latents(world.pipe, SCALE)
    assert close(ours, want, 1e-5)


@pytest.mark.parametrize("options", [{"backend": "openvino"}, {"link": "static"}], ids=str)
def test_a_history_works_on_every_backend_and_link(worlds, options):
    world = worlds["dpm3"]
    pipe = l2c_export.load(world.compiled("every:2"), **options)
    want = l2c_export.load(world.compiled("every:2"))(LABELS, SCALE, latents=noise()).latents
    for _ in range(2):  # a second generation starts without a history again
        assert close(pipe(LABELS, SCALE, latents=noise()).latents, want)
        assert close(pipe(LABELS[:1], SCALE, latents=noise()[:1]).latents, want[:1])


def test_a_failed_generation_leaves_no_history(worlds):
    pipe = l2c_export.load(worlds["dpm3"].compiled("every:2"))
    want = pipe(LABELS, SCALE, latents=noise()).latents
    with np.errstate(invalid="ignore"):
        assert np.isnan(pipe(LABELS, SCALE, latents=np.full_like(noise(), np.inf)).latents).all()
    assert np.array_equal(pipe(LABELS, SCALE, latents=noise()).latents, want)


def test_openvino_keeps_updates_in_float32():
    from l2c_export.backends.openvino.backend import ALWAYS_FP32

    assert set(UPDATES) <= set(ALWAYS_FP32)


class Driven:
    """diffusers' own model, whose attention and feed-forward modules follow a schedule through hooks."""

    def __init__(self, pipe: diffusers.DiTPipeline, calls) -> None:
        self.calls, self.cache, self.count = calls, {}, -1
        blocks = pipe.transformer.transformer_blocks
        modules = [module for block in blocks for module in (block.attn1, block.ff)]
        self.hooks = [pipe.transformer.register_forward_pre_hook(self._next)]
        self.hooks += [m.register_forward_hook(self._reuse(column)) for column, m in enumerate(modules)]

    def _next(self, *_):
        self.count += 1

    def _reuse(self, column):
        def hook(module, inputs, output):
            if column not in self.calls[self.count].reused:
                self.cache[column] = output
            return self.cache[column]

        return hook

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()


@pytest.mark.parametrize("name", ["ddim", "dpm2", "dpm3"])
def test_the_cached_loop_is_that_of_diffusers_with_its_layers_driven_by_hooks(worlds, name):
    world, rng = worlds[name], np.random.default_rng(1)
    scheduler = pipeline_folder.read(world.folder).sampler()
    computed = [range(6) if n in (0, 4) else np.flatnonzero(rng.random(6) < 0.4).tolist() for n in range(STEPS)]
    chosen = schedule.make("dit", scheduler.kind, STEPS, 6, computed, scheduler=scheduler)
    path = world.root / f"{name}.json"
    path.write_bytes(chosen.to_json())
    ours = l2c_export.load(world.compiled(str(path), steps=None))(LABELS, SCALE, latents=noise()).latents
    with Driven(world.pipe, chosen.calls):
        want = their_latents(world.pipe, SCALE)
    assert not close(want, their_latents(world.pipe, SCALE), 1e-2), "the schedule must make a difference"
    assert close(ours, want, 1e-5)


def test_a_router_follows_the_folders_scheduler(world, tmp_path):
    rows = [torch.full((6,), 5.0), torch.zeros(6), torch.tensor([5.0, -5, -5, 5, -5, 5]), torch.zeros(6)]
    torch.save({"routers": {f"{i}.prob": row for i, row in enumerate(rows)}}, tmp_path / "router.pt")
    folder = compile_artefact(Options(schedule=str(tmp_path / "router.pt"), model=str(world.folder), out=tmp_path / "e"))
    assert folder.sampler == DDIM
    assert [call.timestep for call in folder.calls] == [750, 500, 250, 0]
    assert [call.computed for call in folder.calls] == [tuple(range(6)), (0, 3, 5), tuple(range(6)), tuple(range(6))]


@pytest.mark.parametrize("name", ["dpm3", "euler"])
def test_verify_knows_histories_and_scales(worlds, name):
    folder = worlds[name].compiled("every:2")
    pipe = l2c_export.load(folder)
    found = compare.verify(pipe, Reference(folder, pipe.manifest, noise(), LABELS, SCALE))
    assert found.passed
    assert max(call.free.relative for call in found.calls) < 1e-5


def test_guidance_below_1_is_none_as_in_diffusers(world):
    ours = l2c_export.L2CPipeline.from_pretrained(world.compiled())
    latents = ours(LABELS, 0.5, torch.manual_seed(0), output_type="latent").images
    assert close(latents, their_latents(world.pipe, 0.5), 1e-5)
    assert not close(latents, their_latents(world.pipe, 4.0), 1e-2)


# weights and configurations


def eager(folder: pipeline_folder.Folder, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    family = families.build("dit", folder.arch)
    weights = {name: torch.from_numpy(value.copy()) for name, value in folder.checkpoint.tensors(family.tensors())}
    with torch.no_grad():
        return family.call(Eager(family, weights, frozenset(), {}, {}), x, torch.arange(2, dtype=torch.int32), t, y)


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
    assert ("t_embedder.mlp.0.weight" in folder.checkpoint.shapes) is shared
    x, t, y = torch.from_numpy(noise()), torch.tensor([333.0, 999.0]), torch.tensor([7, 1000], dtype=torch.int32)
    with torch.no_grad():
        want = model(x, timestep=t.long(), class_labels=y.long()).sample
    assert close(eager(folder, x, t, y).numpy(), want.numpy(), 2e-6)


def test_weights_in_several_files_or_pickled_are_the_same(world, tmp_path):
    want = pipeline_folder.read(world.folder).checkpoint
    for name in ("sharded", "pickled"):
        shutil.copytree(world.folder, tmp_path / name)
    world.pipe.transformer.save_pretrained(tmp_path / "sharded/transformer", max_shard_size="200KB")
    state = load_file(tmp_path / "pickled/transformer/diffusion_pytorch_model.safetensors")
    (tmp_path / "pickled/transformer/diffusion_pytorch_model.safetensors").unlink()
    torch.save(state, tmp_path / "pickled/transformer/diffusion_pytorch_model.bin")
    (tmp_path / "sharded/transformer/diffusion_pytorch_model.safetensors").unlink(missing_ok=True)
    assert len(list((tmp_path / "sharded/transformer").glob("*.safetensors"))) > 1
    for name in ("sharded", "pickled"):
        got = pipeline_folder.read(tmp_path / name).checkpoint
        assert got.shapes == want.shapes
        assert all(np.array_equal(got.read(n), want.read(n)) for n in want.shapes)


def test_linking_a_pipeline_folder_swaps_the_weights(world, tmp_path):
    shutil.copytree(world.compiled(), tmp_path / "e")
    other = small_pipeline(tmp_path / "other", "ddim", seed=1)
    assert CliRunner().invoke(l2c, ["link", str(tmp_path / "e"), "--weights", str(tmp_path / "other")]).exit_code == 0
    ours = l2c_export.load(tmp_path / "e")(LABELS, SCALE, latents=noise()).latents
    assert close(ours, their_latents(other, SCALE), 1e-5)


def fine_tuned(folder: Path, how: str) -> Path:
    """The transformer's weights as teams have them."""
    transformer = diffusers.DiTTransformer2DModel.from_pretrained(folder / "transformer")
    if how == "file":
        return folder / "transformer" / "diffusion_pytorch_model.safetensors"
    if how == "shards":
        transformer.save_pretrained(folder / "shards", max_shard_size="40KB")
        return folder / "shards" / "diffusion_pytorch_model.safetensors.index.json"
    if how == "shards of a training":
        places = {f"module.{name}": f"{name[0]}.safetensors" for name in transformer.state_dict()}
        for place in set(places.values()):
            mine = {f"module.{n}": t for n, t in transformer.state_dict().items() if places[f"module.{n}"] == place}
            save_file(mine, folder / place)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
        return folder / "model.safetensors.index.json"
    state = transformer.state_dict()
    torch.save({"state_dict": {f"module._orig_mod.{n}": t for n, t in state.items()}, "epoch": 3}, folder / "trained.pt")
    return folder / "trained.pt"


@pytest.mark.parametrize("how", ["file", "shards", "training", "shards of a training"])
def test_a_fine_tune_has_the_names_of_diffusers_too(world, tmp_path, how):
    """A merged LoRA, for example; linked, exported and verified by the weights alone."""
    small_pipeline(tmp_path / "other", "ddim", seed=1)
    tuned = str(fine_tuned(tmp_path / "other", how))
    shutil.copytree(world.compiled(), tmp_path / "e")
    bind(tmp_path / "e", tuned)
    shutil.copytree(world.compiled(), tmp_path / "folder")
    bind(tmp_path / "folder", str(tmp_path / "other"))
    want = (tmp_path / "folder" / "weights.safetensors").read_bytes()
    assert (tmp_path / "e" / "weights.safetensors").read_bytes() == want
    again = world.compiled(weights=tuned)
    assert (again / "weights.safetensors").read_bytes() == want
    for source, code in ((tuned, 0), (str(tmp_path / "other"), 0), (str(world.folder), 1)):
        assert CliRunner().invoke(l2c, ["verify", str(again), "--weights", source]).exit_code == code


def test_a_fine_tune_of_another_model_is_refused(world, tmp_path):
    shutil.copytree(world.folder, tmp_path / "p")
    path = tmp_path / "p" / "transformer" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    for name in state:  # as in the released ones, all blocks embed timestep and label with the same weights
        if ".norm1.emb." in name:
            state[name] = state[re.sub(r"\.\d\.", ".0.", name, count=1)].clone()
    save_file(state, path)
    compile_artefact(Options(schedule="every:2", steps=4, model=str(tmp_path / "p"), out=tmp_path / "e"))
    bind(tmp_path / "e", str(path))
    embedder = "transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight"
    for name, changed, says in (
        ("own", {embedder: state[embedder] + 1}, "its blocks differ in how they embed the timestep"),
        ("more", {"transformer_blocks.3.ff.net.2.bias": state["proj_out_2.bias"].clone()}, "it has 4 blocks, not 3"),
        ("odd", {"extra": state["proj_out_2.bias"].clone()}, "extra is not part of a DiT"),
    ):
        save_file({**state, **changed}, tmp_path / f"{name}.safetensors")
        with pytest.raises(WeightsError, match=says):
            bind(tmp_path / "e", str(tmp_path / f"{name}.safetensors"))


def test_an_index_that_lies_is_refused(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "one.safetensors")
    index = tmp_path / "x.safetensors.index.json"
    for content, says in (
        ("{", "weight_map is damaged"), ('{"weight_map": {"a": 1}}', "weight_map is damaged"),
        ('{"weight_map": {"a": "one.safetensors", "b": "one.safetensors"}}', "b is not in one.safetensors"),
        ('{"weight_map": {"a": "two.safetensors"}}', "two.safetensors: no such file"),
        ('{"weight_map": {"a": "x.safetensors.index.json"}}', "x.safetensors.index.json is not a checkpoint"),  # itself
        ('{"weight_map": {"a": "../one.safetensors"}}', ""),  # what lies elsewhere is not read
    ):  # fmt: skip
        index.write_text(content)
        if says:
            with pytest.raises(WeightsError, match=says):
                open_checkpoint(index)
        else:
            assert open_checkpoint(index).read("a").tolist() == [0, 0]


@pytest.mark.parametrize(("spoilt", "sampler"), [
    ({"prediction_type": "v_prediction"}, "ddim"), ({"beta_schedule": "scaled_linear"}, "ddim"),
    ({"rescale_betas_zero_snr": True}, "ddim"), ({}, "dpm-solver++"),
])  # fmt: skip
def test_a_sampler_for_other_noise_than_the_model_was_trained_with_is_refused(world, tmp_path, spoilt, sampler):
    """Its pictures would be noise, and no check of ours against PyTorch would notice."""
    shutil.copytree(world.folder, tmp_path / "p")
    edited(tmp_path / "p" / "scheduler" / "scheduler_config.json", **spoilt)
    options = Options(schedule="every:2", steps=4, model=str(tmp_path / "p"), sampler=sampler, out=tmp_path / "e")
    with pytest.raises(UsageError, match=f"--sampler {re.escape(sampler)}: the model of .* was trained with ") as error:
        compile_artefact(options)
    assert next(iter(spoilt), "beta_schedule") in str(error.value)


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


# the hub's cache


@pytest.fixture
def hub(world, tmp_path, monkeypatch):
    """A cache that holds the pipeline as someone/small."""
    home = tmp_path / "hub/models--someone--small"
    shutil.copytree(world.folder, home / "snapshots/0123abc")
    (home / "refs").mkdir()
    (home / "refs/main").write_text("0123abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def test_a_hub_id_is_found_in_the_local_cache(hub):
    options = Options(schedule="every:2", steps=4, model="someone/small", out=hub / "e", backend="onnxruntime")
    made = compile_artefact(options)
    assert made.model.name == "small"
    assert made.weights.source == "diffusion_pytorch_model.safetensors"


def test_a_hub_id_that_is_not_there_says_what_to_download_and_where(hub):
    done = CliRunner().invoke(l2c, f"export --schedule every:2 --steps 4 --model someone/else --out {hub}/e".split())
    assert done.exit_code == 1
    (line,) = done.stderr.splitlines()
    assert "'someone/else'" in line
    assert f"hf download someone/else (it goes to {hub}/hub)" in line


# images


def test_images_are_those_of_diffusers(world):
    ours = l2c_export.L2CPipeline.from_pretrained(world.pictures())
    want = world.pipe(LABELS, SCALE, torch.manual_seed(3), STEPS, "np").images
    got = ours(LABELS, SCALE, torch.manual_seed(3), STEPS, "np").images
    assert got.shape == (2, 16, 16, 3)
    assert np.abs(got - want).max() < 1e-4
    pictures = ours(LABELS, SCALE, torch.manual_seed(3)).images
    theirs = world.pipe(LABELS, SCALE, torch.manual_seed(3), STEPS).images
    for mine, other in zip(pictures, theirs, strict=True):
        assert np.abs(np.asarray(mine, int) - np.asarray(other, int)).max() <= 1


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("size", [(8, 8), (20, 13), (9, 30), (4, 30)])
def test_tiles_are_joined_as_in_diffusers(world, backend, size):
    folder, vae = world.pictures(), world.pipe.vae
    described = store.read(folder).decoder
    assert (described.scale, described.tile) == (2, 16)
    z = np.random.default_rng(0).standard_normal((2, 4, *size)).astype(np.float32)
    vae.enable_tiling()
    with torch.no_grad():
        want = vae.decode(torch.from_numpy(z) / vae.config.scaling_factor).sample.numpy()
    vae.disable_tiling()
    opened = open_backend(backend).backend
    assert np.abs(Decoder(folder, described, opened, tile=16)(z) - want).max() < 1e-5
    whole = Decoder(folder, described, opened, tile=None)(z)
    assert whole.shape == want.shape
    if max(size) > 8:
        assert np.abs(whole - want).max() > 1e-3, "tiles normalise by themselves"


@pytest.mark.parametrize("tile", [2, 3, 5, 9, 10, 16, 25, 32])
@pytest.mark.parametrize("high", [64, 61])
def test_tiles_of_any_size_make_a_picture_of_its_size(tile, high):
    """With a decoder that only repeats, tiles change nothing."""
    z = np.random.default_rng(0).standard_normal((1, 3, high, 64)).astype(np.float32)

    def repeat(part):
        return part.repeat(8, axis=2).repeat(8, axis=3)

    assert np.abs(decode_tiles(repeat, z, tile, 8) - repeat(z)).max() < 1e-5


@pytest.mark.parametrize("tile", [0, 2, 15, -16])
def test_tiles_that_cannot_be(world, tile):
    with pytest.raises(UsageError, match=f"tile {tile}: must be a multiple of 2 pixels"):
        l2c_export.load(world.pictures(), tile=tile)  # before anything is generated


def test_without_a_decoder_there_are_no_tiles(world):
    with pytest.raises(UsageError, match="tile 16: this artefact has no decoder: compile with --with-vae"):
        l2c_export.load(world.compiled(), tile=16)


def test_from_a_folder_to_a_picture_with_two_commands(worlds, tmp_path):
    engines = str(tmp_path / "engines")
    words = ["--steps", "6", "--model", str(worlds["dpm2"].folder), "--with-vae", "--batch", "2", "--out", engines]
    assert CliRunner().invoke(l2c, ["export", "--schedule", "every:2", *words]).exit_code == 0
    words = ["--class-label", "golden retriever", "--class-label", "360", "--seed", "1", "--tile", "8", "--out", "x.png"]
    subprocess.run([sys.executable, "-m", "l2c_export", "run", engines, *words], cwd=tmp_path, check=True)
    assert np.asarray(Image.open(tmp_path / "x.png")).std() > 1
    assert Image.open(tmp_path / "x.png").size == (32, 16)


def test_the_decoder_is_written_for_the_oldest_parser(world):
    """TensorRT 8.6 reads opset 17, and the shape of all axes where that of some is asked for."""
    made = onnx.load(world.pictures() / store.read(world.pictures()).decoder.file)
    assert [o.version for o in made.opset_import] == [17]
    assert any(n.op_type == "Shape" for n in made.graph.node)
    assert not any(n.attribute for n in made.graph.node if n.op_type == "Shape")


@pytest.mark.parametrize("link", ["shared", "static"])
def test_a_build_for_gpus_has_an_engine_of_the_decoder(world, tmp_path, link):
    shutil.copytree(world.pictures(), tmp_path / "e")
    manifest = msgspec.structs.replace(store.read(tmp_path / "e"), link=link)
    units = building.units(manifest, Range(1, 2, 2))
    assert len(units) == building.count(manifest)
    unit = units[decoder.NAME]
    assert [port.at({axis: sizes.most for axis, sizes in unit.ranges.items()}) for port in unit.ports] == [(1, 4, 8, 8)]
    assert {sizes.least for sizes in unit.ranges.values()} == {1}, "what tiles leave over at an edge"
    builder = Builder("tensorrt-rtx", BuildSettings(targets=("sm86",)))
    assert len(builder.build(tmp_path / "e" / unit.file, unit.ports, unit.ranges)) > 10_000


def test_names_of_classes(world):
    pipe = l2c_export.load(world.compiled())
    assert pipe.labels(["chicken", 207]) == [8, 207]
    assert pipe.labels("otter") == [360]
    with pytest.raises(UsageError, match="class label 'golden retriver': no such name: did you mean golden retriever"):
        pipe.labels("golden retriver")
    with pytest.raises(UsageError, match="class label 'qqq': no such name: use a number"):
        pipe.labels("qqq")


# the call of DiTPipeline


@pytest.fixture(scope="module")
def ours(world):
    return l2c_export.L2CPipeline.from_pretrained(world.pictures())


def test_generators(ours):
    def latents(generator) -> np.ndarray:
        return ours(LABELS, generator=generator, output_type="latent").images

    pair = [torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)]
    assert np.array_equal(latents(np.random.default_rng(1)), latents(np.random.default_rng(1)))
    assert np.array_equal(latents(5), ours.pipe(LABELS, seed=5).latents)
    drawn = latents(torch.manual_seed(3))
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert np.array_equal(latents(torch.manual_seed(3)), drawn)
    finally:
        torch.set_default_dtype(torch.float32)
    assert np.array_equal(latents([5, 9]), ours.pipe(LABELS, seed=[5, 9]).latents)
    assert not np.array_equal(latents(None), latents(None))
    swapped = latents([pair[1], pair[0]])
    pair = [torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)]
    assert not np.array_equal(latents(pair), swapped)
    with pytest.raises(UsageError, match="a list of 1 for 2 images"):
        latents(pair[:1])
    with pytest.raises(UsageError, match="generator 'x': use one of numpy's or torch's, or a seed"):
        latents("x")


def test_the_number_of_steps_is_what_was_compiled(ours):
    assert ours(LABELS, num_inference_steps=STEPS, output_type="latent", return_dict=False)[0].shape == (2, 4, 8, 8)
    with pytest.raises(UsageError, match=r"num_inference_steps 50: this artefact was compiled for 6: use that, .*--steps 50"):
        ours(LABELS, num_inference_steps=50)


def test_labels_and_callbacks_as_in_diffusers(ours):
    assert ours.labels == {"chicken": 8, "golden retriever": 207, "hen": 8, "otter": 360}
    assert ours.get_label_ids(["golden retriever", "hen"]) == [207, 8]
    seen = []
    ours(LABELS, output_type="latent", callback_on_step_end=lambda pipe, i, t, values: seen.append((pipe, i, t)) or {})
    assert seen == [(ours, i, t) for i, t in enumerate([830, 664, 498, 332, 166, 0])]


def test_save_and_load(ours, tmp_path):
    ours.save_pretrained(tmp_path / "copy")
    copy = l2c_export.L2CPipeline.from_pretrained(tmp_path / "copy")
    assert np.array_equal(
        copy(LABELS, generator=1, output_type="np").images, ours(LABELS, generator=1, output_type="np").images
    )


# compiled calls in a live pipeline


def test_an_artefact_that_was_changed_is_not_saved(world, tmp_path):
    """Its files and its manifest would be of two artefacts."""
    shutil.copytree(world.compiled(), tmp_path / "e")
    pipe = l2c_export.L2CPipeline.from_pretrained(tmp_path / "e")
    shutil.rmtree(tmp_path / "e")
    shutil.copytree(world.compiled("every:2"), tmp_path / "e")
    with pytest.raises(ArtefactError, match="replaced since it was loaded"):
        pipe.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_an_artefact_that_changes_while_it_is_copied_is_not_saved(world, tmp_path, monkeypatch):
    folder, copyfile = shutil.copytree(world.compiled(), tmp_path / "e"), shutil.copyfile
    pipe = l2c_export.L2CPipeline.from_pretrained(folder)

    def meanwhile(*given):
        monkeypatch.undo()
        bind(folder, "random:9")
        return copyfile(*given)

    monkeypatch.setattr(shutil, "copyfile", meanwhile)
    with pytest.raises(ArtefactError, match="replaced since it was loaded"):
        pipe.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_closed_pipeline_has_no_decoder(world):
    pipe = l2c_export.load(world.pictures())
    pipe(LABELS, output_type="np")
    alive = weakref.ref(pipe._decoder)
    pipe.close()
    gc.collect()
    assert alive() is None


def test_a_loaded_decoder_is_found_from_anywhere_or_says_that_it_was_replaced(world, tmp_path, monkeypatch):
    shutil.copytree(world.pictures(), tmp_path / "e")
    monkeypatch.chdir(tmp_path)
    pipes = [l2c_export.load("e", link=link) for link in ("shared", "static", None)]
    monkeypatch.chdir("/")
    pictures = [pipe(LABELS, output_type="np").images for pipe in pipes[:2]]
    assert np.allclose(*pictures, atol=1e-4)
    (tmp_path / "e" / "manifest.json").unlink()
    with pytest.raises(ArtefactError, match="holds no complete artefact"):
        pipes[2](LABELS, output_type="np")
    shutil.rmtree(tmp_path / "e")
    shutil.copytree(world.compiled(), tmp_path / "e")
    with pytest.raises(ArtefactError, match=r"decoder.onnx was replaced since the artefact was loaded: load it again"):
        pipes[2](LABELS, output_type="np")
    assert np.array_equal(pipes[0](LABELS, output_type="np").images, pictures[0])


@pytest.fixture
def live(world):
    pipe = diffusers.DiTPipeline.from_pretrained(world.folder, low_cpu_mem_usage=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_live_pipeline_runs_compiled_calls(world, live):
    want = live(LABELS, SCALE, torch.manual_seed(3), STEPS, "np").images
    loops = []
    live.transformer.register_forward_pre_hook(lambda *_: loops.append(1))
    assert l2c_export.enable_l2c(live, world.compiled()) is live
    done = live(LABELS, SCALE, torch.manual_seed(3), STEPS, "np")
    assert isinstance(done, diffusers.ImagePipelineOutput)
    assert np.abs(done.images - want).max() < 1e-4
    assert not loops
    assert isinstance(live, diffusers.DiTPipeline)
    assert live(LABELS, generator=torch.manual_seed(3)).images[0].size == (16, 16)
    live.disable_l2c()
    assert type(live) is diffusers.DiTPipeline
    assert np.array_equal(live(LABELS, SCALE, torch.manual_seed(3), STEPS, "np").images, want)
    assert loops


def test_a_live_pipeline_draws_its_noise_in_its_own_type(world, live):
    l2c_export.enable_l2c(live.to(torch.float16), world.compiled())
    drawn = torch.randn((2, 4, 8, 8), generator=torch.manual_seed(3), dtype=torch.float16)
    got = live(LABELS, SCALE, torch.manual_seed(3), output_type="latent").images
    assert np.array_equal(got, live.l2c.compiled(LABELS, SCALE, latents=drawn.numpy()).latents)


def test_a_live_pipeline_lets_offloaded_models_go(world, live, monkeypatch):
    freed = []
    monkeypatch.setattr(diffusers.DiTPipeline, "maybe_free_model_hooks", lambda self: freed.append(self))
    l2c_export.enable_l2c(live, world.compiled())(LABELS)
    assert freed == [live]


@pytest.mark.parametrize("change", [lambda w: w.mul_(1.005), lambda w: w[-1].add_(0.01)])
def test_a_fine_tune_of_any_layer_has_other_weights(world, live, change):
    """As a LoRA of the attention in the middle, merged."""
    l2c_export.enable_l2c(live.to(torch.float16).to(torch.float32), world.compiled(precision="fp16"))
    live.disable_l2c()
    with torch.no_grad():
        change(live.transformer.transformer_blocks[1].attn1.to_v.weight)
    with pytest.raises(UsageError, match=r"other weights than .* \(blocks.1.attn.qkv.weight\): run l2c link"):
        l2c_export.enable_l2c(live, world.compiled(precision="fp16"))


def test_a_u_vit_is_in_no_dit_pipeline(live, tmp_path):
    options = Options(
        model="U-ViT-S/2", weights="random:0", schedule="every:2", steps=4, sampler="DDIMScheduler", guidance="all"
    )
    compile_artefact(dataclasses.replace(options, out=tmp_path / "e"))
    with pytest.raises(UsageError, match="was compiled from a uvit, which no DiTPipeline has"):
        l2c_export.enable_l2c(live, tmp_path / "e")


def test_enabling_again_replaces_the_artefact(world, live):
    l2c_export.enable_l2c(live, world.compiled())
    l2c_export.enable_l2c(live, world.compiled("every:2"))
    assert any(call.reused for call in live.l2c.compiled.manifest.calls)
    live.disable_l2c()
    assert type(live) is diffusers.DiTPipeline


def test_what_was_not_compiled_is_refused(world, worlds, live, tmp_path):
    with pytest.raises(UsageError, match="a Namespace is not supported: give a DiTPipeline"):
        l2c_export.enable_l2c(argparse.Namespace(), world.compiled())
    with pytest.raises(UsageError, match=r"pipe.scheduler is not what was compiled \(kind DDIMScheduler instead of DPMSolver"):
        l2c_export.enable_l2c(live, worlds["dpm2"].compiled())
    with pytest.raises(UsageError, match="compiled with --sampler ddim, which no DiTPipeline has"):
        l2c_export.enable_l2c(live, world.compiled(sampler="ddim"))
    with pytest.raises(UsageError, match="compiled with --guidance first3, which no DiTPipeline has"):
        l2c_export.enable_l2c(live, world.compiled(guidance="first3"))
    other = small_pipeline(tmp_path / "other", "ddim", seed=5)
    with pytest.raises(UsageError, match=r"other weights than .* run l2c link"):
        l2c_export.enable_l2c(other, world.compiled())
    l2c_export.enable_l2c(live, world.compiled())
    with pytest.raises(UsageError, match="num_inference_steps 50"):
        live(LABELS, num_inference_steps=50)
    live.scheduler = diffusers.DDIMScheduler(clip_sample=False, beta_end=0.03)
    with pytest.raises(UsageError, match=r"beta_end 0.03 instead of 0.02"):
        live(LABELS)


# light at run time


def python(code: str, *args: object) -> str:
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", code, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": root})
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_pictures_need_neither_torch_nor_diffusers(world):
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnxscript', 'diffusers', 'transformers', 'huggingface_hub'):\n"
        "    sys.modules[name] = None\n"
        "import l2c_export\n"
        "pipe = l2c_export.L2CPipeline.from_pretrained(sys.argv[1])\n"
        "print(pipe(['otter'], generator=1).images[0].size)"
    )
    assert python(code, world.pictures()) == "(16, 16)"


def test_loading_takes_half_a_second(world):
    code = (
        "import time, sys; started = time.process_time()\n"  # of the processor: other processes do not change it
        "import l2c_export; l2c_export.load(sys.argv[1], backend='onnxruntime'); seconds = time.process_time() - started\n"
        "heavy = {'torch', 'onnx', 'diffusers', 'transformers', 'huggingface_hub', 'matplotlib', 'PIL', 'rich', 'click'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "print(seconds)"
    )
    assert any(float(python(code, world.pictures())) < 0.5 for _ in range(10))  # one undisturbed by others' use of the caches


# other tools


@pytest.mark.parametrize("words", [
    "inspect model GRAPH --show layers",
    "run GRAPH --onnxrt --val-range rows:[0,0] conditional:[0,0] unconditional:[0,0]",  # rows of a batch of one
    "run GRAPH --onnxrt --input-shapes x:[2,4,8,8] base:[2,4,8,8] rows:[4] conditional:[2] unconditional:[2]",
])  # fmt: skip
def test_polygraphy_takes_our_graphs(world, words):
    graph = world.compiled("every:2") / "step-000.onnx"
    tool = shutil.which("polygraphy", path=str(Path(sys.executable).parent))
    done = subprocess.run([tool, *words.replace("GRAPH", str(graph)).split()], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "l2c_attn" in done.stdout if "inspect" in words else "x.next" in done.stdout


@pytest.mark.parametrize("mask", ["mask:1,0,0,1,0,1", "mask:100101", "list.json", "cache-dit.json"])
def test_a_steps_mask_is_a_schedule(world, tmp_path, mask):
    (tmp_path / "list.json").write_text("[1, 0, 0, 1, 0, 1]")
    (tmp_path / "cache-dit.json").write_text('{"steps_computation_mask": [1, 0, 0, 1, 0, 1], "Fn_compute_blocks": 1}')
    text = str(tmp_path / mask) if mask.endswith(".json") else mask
    manifest = store.read(world.compiled(text))
    assert [bool(call.computed) for call in manifest.calls] == [True, False, False, True, False, True]


@pytest.mark.parametrize("mask", ["mask:1,0", "mask:0,1,1,1,1,1", "mask:1,2,1,1,1,1", "mask:", "mask:1,x,1,1,1,1"])
def test_a_wrong_mask(world, tmp_path, mask):
    with pytest.raises(UsageError, match=r"mask:1,\.\. with a 0 or 1 for each of the 6 calls, 1 first"):
        compile_artefact(Options(schedule=mask, steps=6, model=str(world.folder), out=tmp_path / "e"))


@pytest.mark.parametrize(("mask", "says"), [
    ([1, 0, 0, 10, 1], "a steps mask with 10: use 1 for a full call"), ([1, 0.5, 1], r"a steps mask with 0\.5"),
    (["1", "0"], "a steps mask with '1'"),
    ([], "an empty steps mask: give a 0 or 1 for each call"), ({"steps_computation_mask": [None]}, "a steps mask with None"),
])  # fmt: skip
def test_a_mask_of_other_numbers_is_refused(world, tmp_path, mask, says):
    (tmp_path / "m.json").write_text(json.dumps(mask))
    with pytest.raises(ScheduleError, match=says):
        compile_artefact(Options(schedule=str(tmp_path / "m.json"), steps=6, model=str(world.folder), out=tmp_path / "e"))


def test_a_steps_mask_is_not_yet_a_schedule_to_look_at(tmp_path):
    (tmp_path / "m.json").write_text("[1, 0]")
    with pytest.raises(UsageError, match=r"m.json: is a steps mask, .*l2c-export --schedule"):
        view.inspect(tmp_path / "m.json")


def test_calls_are_merged_under_any_scheduler(world, tmp_path):
    options = {"schedule": "every:3", "steps": 8, "model": str(world.folder), "sampler": "DPMSolverMultistepScheduler"}
    made = compile_artefact(Options(**options, out=tmp_path / "e", max_graphs=2))
    assert len({call.graph for call in made.calls}) <= 2
    assert made.sampler == "DPMSolverMultistepScheduler"
