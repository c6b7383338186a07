"""Weights of pipelines, transformers and fine-tunes are bound to a compiled model."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import diffusers
import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from small_pipelines import (
    INDEX,
    LABELS,
    SCALE,
    SCHEDULER,
    TRANSFORMER,
    VAE,
    close,
    edited,
    fine_tune,
    noise,
    small_pipeline,
    source,
    their_latents,
)

import l2c_export
from l2c_export.artefact import integrity, store
from l2c_export.artefact.records import FILE, Build
from l2c_export.cli.main import l2c
from l2c_export.compiler.compile import compile_artefact
from l2c_export.compiler.link import bind
from l2c_export.compiler.onnx import decoder as vae
from l2c_export.compiler.request import Options
from l2c_export.errors import ArtefactError, MissingExtra, WeightsError
from l2c_export.support import extras
from l2c_export.weights.recipe import Recipe, TensorSource

pytestmark = pytest.mark.usefixtures("one_thread")


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
    for weights, code in ((tuned, 0), (str(tmp_path / "other"), 0), (str(world.folder), 1)):
        assert CliRunner().invoke(l2c, ["verify", str(again), "--weights", weights]).exit_code == code


def test_what_was_stored_says_what_it_is_made_of(world, tmp_path):
    """From a folder of diffusers; weights under the reference's own names need no word, and bind as well."""
    tensors = store.read(world.compiled()).denoiser.tensors
    heads = [source.tensor for source in tensors["blocks.0.attn.qkv.weight"].recipe.sources]
    assert heads == [f"transformer_blocks.0.attn1.to_{head}.weight" for head in "qkv"]
    assert tensors["pos_embed"].recipe == Recipe.of("pos_embed.pos_embed")
    assert all(tensor.recipe for tensor in tensors.values()), "no name is the same there"
    shutil.copytree(world.compiled(), tmp_path / "e")
    shutil.copy(tmp_path / "e/weights.safetensors", tmp_path / "own.safetensors")
    want = weights_of(tmp_path / "e")
    bind(tmp_path / "e", "random:5")
    assert store.read(tmp_path / "e").denoiser.tensors == tensors
    bind(tmp_path / "e", str(tmp_path / "own.safetensors"))
    assert weights_of(tmp_path / "e") == want


def test_weights_under_the_names_of_a_recipe_are_bound_by_it(copy, tmp_path):
    """As of a model that has no code of ours for its names."""
    want, manifest = weights_of(copy), store.read(copy)
    own = load_file(copy / "weights.safetensors")
    tensors, name = dict(manifest.denoiser.tensors), "blocks.0.mlp.fc1.weight"
    parts = TensorSource(f"{name}.low"), TensorSource("all", 1, 2), TensorSource(f"{name}.high")
    tensors[name] = msgspec.structs.replace(tensors[name], recipe=Recipe(parts))
    denoiser = msgspec.structs.replace(manifest.denoiser, tensors=tensors)
    store.write_json(copy / FILE, msgspec.structs.replace(manifest, denoiser=denoiser))
    whole = own.pop(name)
    own[f"{name}.low"], own[f"{name}.high"] = whole[:3].clone(), whole[4:].clone()
    own["all"] = torch.stack([whole[0], whole[3]])
    save_file(own, tmp_path / "w.safetensors")
    bind(copy, "random:9")
    assert weights_of(copy) != want
    bind(copy, str(tmp_path / "w.safetensors"))
    assert weights_of(copy) == want
    for changed, says in (
        ({"more": torch.zeros(1)}, "blocks.0.mlp.fc1.weight is missing; all is not part of the model"),
        (
            {"all": torch.zeros(1, 8)},
            "does not fit its model, for blocks.0.mlp.fc1.weight: all has shape [1, 8]: there is no 1 to 2",
        ),
    ):
        save_file({**own, **changed}, tmp_path / "other.safetensors")
        with pytest.raises(WeightsError) as error:
            bind(copy, str(tmp_path / "other.safetensors"))
        assert says in str(error.value)
        assert "\n" not in str(error.value)
    assert weights_of(copy) == want


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


@pytest.fixture
def engines(world, tmp_path) -> Path:
    """An artefact with a decoder of one's own."""
    return shutil.copytree(world.pictures(), tmp_path / "engines")


def weights_of(folder: Path) -> bytes:
    return (folder / "weights.safetensors").read_bytes()


@pytest.mark.parametrize("what", ["alone", "transformer", "alone/diffusion_pytorch_model.safetensors"])
def test_a_transformers_folder_is_weights_to_link_and_to_verify(engines, tmp_path, what):
    fine_tune(tmp_path / "other")
    before = store.read(engines).decoder
    words = ["verify", str(engines), "--weights", str(tmp_path / "other" / what)]
    assert CliRunner().invoke(l2c, words).exit_code == 1
    bind(engines, words[-1])
    assert CliRunner().invoke(l2c, words).exit_code == 0
    assert store.read(engines).decoder == before, "it was not asked to change"


def test_heads_that_no_shape_shows_are_compared(engines, saved, tmp_path):
    shutil.copytree(saved, tmp_path / "other")
    edited(tmp_path / "other" / TRANSFORMER, num_attention_heads=4, attention_head_dim=8)
    before = weights_of(engines)
    for what in ("other", "other/transformer", "other/transformer/diffusion_pytorch_model.safetensors"):
        with pytest.raises(WeightsError, match="its num_heads is 4, the model's 2"):
            bind(engines, str(tmp_path / what))
        with pytest.raises(WeightsError, match="its num_heads is 4, the model's 2"):
            source(saved, weights=str(tmp_path / what))
    edited(tmp_path / "other" / TRANSFORMER, num_attention_heads=2, attention_head_dim=16, norm_eps=1e-2)
    with pytest.raises(WeightsError, match=r"its mlp_eps is 0\.01, the model's 1e-05"):
        bind(engines, str(tmp_path / "other"))
    assert weights_of(engines) == before


def their_pixels(autoencoder_kl: diffusers.AutoencoderKL, latents: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        z = torch.from_numpy(latents) / autoencoder_kl.config.scaling_factor
        return (autoencoder_kl.decode(z).sample / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()


def test_linking_a_pipeline_swaps_its_decoder_and_names_too(engines, tmp_path):
    other = fine_tune(tmp_path / "other")
    edited(tmp_path / "other" / INDEX, id2label={"7": "cat"})
    edited(tmp_path / "other" / VAE, scaling_factor=0.5)
    other.vae.register_to_config(scaling_factor=0.5)
    done = CliRunner().invoke(l2c, ["link", str(engines), "--weights", str(tmp_path / "other")])
    assert done.exit_code == 0, done.output
    assert f"decoder from {tmp_path}/other/vae: latents / 0.5" in done.output
    output = l2c_export.load(engines)(["cat"], 4.0, output_type="np")
    want = their_pixels(other.vae, output.latents)
    assert np.abs(output.images - want).max() < 1e-5
    assert (
        np.abs(their_pixels(diffusers.AutoencoderKL.from_pretrained(tmp_path / "other/vae"), output.latents) - want).max()
        < 1e-6
    )


def test_the_same_decoder_stays_and_needs_nothing_to_stay(engines, saved, tmp_path, monkeypatch):
    shutil.copytree(saved, tmp_path / "tuned")
    fine_tune(tmp_path / "other")
    shutil.copy(tmp_path / "other/alone/diffusion_pytorch_model.safetensors", tmp_path / "tuned/transformer")
    edited(tmp_path / "tuned" / VAE, _name_or_path="elsewhere")  # no property of the decoder
    monkeypatch.setattr(vae, "write", None)
    before, weights = (engines / "vae/decoder.onnx").read_bytes(), weights_of(engines)
    bind(engines, str(tmp_path / "tuned"))
    assert (engines / "vae/decoder.onnx").read_bytes() == before
    assert weights_of(engines) != weights
    store.read(engines)


def test_engines_of_another_decoder_go_with_it(engines, tmp_path, monkeypatch):
    """All of a build: which of its engines are stale is not its to say when it is loaded."""
    fine_tune(tmp_path / "other")
    (engines / "rtx").mkdir()
    manifest = store.read(engines)
    plans = {part: f"rtx/{part}.plan" for part in (*manifest.denoiser.segments, "decoder")}
    for plan in plans.values():
        (engines / plan).write_bytes(b"plan")
    build = Build(
        backend="tensorrt-rtx", version="1.2", targets=("sm86",), images=(1, 1, 1), level=None, version_compatible=False,
        hardware_compatible=False, engines=plans,
    )  # fmt: skip
    files = manifest.files | {plan: integrity.info(engines / plan) for plan in plans.values()}
    store.write_json(engines / "manifest.json", msgspec.structs.replace(manifest, builds={"rtx": build}, files=files))
    bind(engines, str(tmp_path / "other/transformer"))
    assert store.read(engines).builds, "the decoder stayed"

    def write(folder: Path, described: object, channels: int, target: Path) -> None:
        target.parent.mkdir()
        target.write_bytes(b"decoder")

    monkeypatch.setattr(vae, "write", write)
    said: list[str] = []
    assert not bind(engines, str(tmp_path / "other"), said.append).builds
    assert not (engines / "rtx").exists()
    assert (engines / "vae/decoder.onnx").read_bytes() == b"decoder"
    assert f"run l2c_export.build({str(engines)!r}, backend='tensorrt-rtx') again" in said[-1]


def test_without_torch_another_decoder_is_refused_and_nothing_changes(engines, tmp_path, monkeypatch):
    fine_tune(tmp_path / "other")

    def missing(package: str, extra: str) -> None:
        raise MissingExtra(package, extra)

    monkeypatch.setattr(extras, "needs", missing)
    before = {path: path.read_bytes() for path in engines.rglob("*") if path.is_file()}
    with pytest.raises(
        ArtefactError, match=r"its decoder is not that of .*other, .*torch is not installed.*other/transformer, which"
    ):
        bind(engines, str(tmp_path / "other"))
    assert {path: path.read_bytes() for path in engines.rglob("*") if path.is_file()} == before
    bind(engines, str(tmp_path / "other/transformer"))


@pytest.mark.parametrize("trained", [{"prediction_type": "v_prediction"}, {"beta_schedule": "scaled_linear"}])
def test_a_pipeline_that_was_trained_otherwise_is_not_linked(engines, saved, tmp_path, trained):
    shutil.copytree(saved, tmp_path / "other")
    edited(tmp_path / "other" / SCHEDULER, timestep_spacing="trailing")  # how it is sampled is the artefact's
    bind(engines, str(tmp_path / "other"))
    edited(tmp_path / "other" / SCHEDULER, **trained)
    with pytest.raises(WeightsError, match=f"was trained with {next(iter(trained))} = "):
        bind(engines, str(tmp_path / "other"))
