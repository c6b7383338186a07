"""Folders of diffusers, whole and in parts, as diffusers itself reads them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import diffusers
import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from fake_hub import serving
from safetensors.torch import save_file
from small_pipelines import edited, small_pipeline

import l2c_export
from l2c_export.artefact import autoencoder, integrity, store
from l2c_export.artefact.manifest import Build
from l2c_export.cli.main import l2c
from l2c_export.compiler import link
from l2c_export.compiler.compile import compile_artefact
from l2c_export.compiler.link import bind
from l2c_export.compiler.onnx import decoder as vae
from l2c_export.compiler.request import Options
from l2c_export.compiler.source import Source, resolve
from l2c_export.errors import ArtefactError, L2CError, MissingExtra, ModelError, ScheduleError, WeightsError
from l2c_export.models.diffusers import pipeline_folder
from l2c_export.samplers.scheduler_config import DDIM, DPM, EULER, KINDS, Scheduler
from l2c_export.weights import finder

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("folders") / "pipe"
    small_pipeline(folder, "ddim")
    return folder


@pytest.fixture
def pipe(saved, tmp_path) -> Path:
    """A pipeline folder of one's own."""
    return shutil.copytree(saved, tmp_path / "pipe")


def read(model: Path | None = None, **options) -> Source:
    given = {"model": str(model)} if model else {}
    return resolve(Options(**{"schedule": "every:2", "steps": 5, **given, **options}))


def written(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))


INDEX, SCHEDULER, TRANSFORMER, VAE = (
    "model_index.json", "scheduler/scheduler_config.json", "transformer/config.json", "vae/config.json",
)  # fmt: skip


# what the index says


@pytest.mark.parametrize("named", KINDS)
@pytest.mark.parametrize("config", [
    {}, {"clip_sample": False}, {"_class_name": DDIM, "clip_sample": False, "timestep_spacing": "trailing", "steps_offset": 1},
    {"_class_name": DPM, "solver_order": 3, "solver_type": "heun", "clip_sample": False, "set_alpha_to_one": False},
    {"_class_name": "PNDMScheduler", "clip_sample": False, "beta_schedule": "scaled_linear"}, {"_class_name": "MyScheduler"},
    {"_class_name": "FlowMatchEulerDiscreteScheduler", "clip_sample": False},
])  # fmt: skip
def test_the_index_says_the_schedulers_class_whatever_its_configuration_says(pipe, named, config):
    edited(pipe / INDEX, scheduler=["diffusers", named])
    written(pipe / SCHEDULER, config)
    theirs = diffusers.DiTPipeline.from_pretrained(pipe).scheduler
    assert type(theirs).__name__ == named
    if theirs.config.get("clip_sample"):
        with pytest.raises(ScheduleError, match="clip_sample = True, the default, is not supported"):
            read(pipe)
        return
    schedule = read(pipe).schedule
    assert schedule.scheduler == Scheduler.from_config(dict(theirs.config), "theirs", named)
    theirs.set_timesteps(5)
    assert [call.timestep for call in schedule.calls] == pytest.approx(theirs.timesteps.tolist(), abs=1e-4)


@pytest.mark.parametrize(("index", "config", "says"), [
    (["diffusers", "FlowMatchEulerDiscreteScheduler"], {"_class_name": DDIM}, "FlowMatch.* its models predict a flow"),
    (["diffusers", "PNDMScheduler"], {"_class_name": DDIM, "clip_sample": False}, "PNDMScheduler is not supported: use"),
    (["mine", "MyScheduler"], {"_class_name": DDIM}, "its scheduler is MyScheduler of mine, which is not part of diffusers"),
    ([None, None], {"_class_name": DDIM}, "names no scheduler"),
])  # fmt: skip
def test_a_scheduler_that_the_index_names_and_nobody_knows_is_refused(pipe, index, config, says):
    edited(pipe / INDEX, scheduler=index)
    written(pipe / SCHEDULER, config)
    with pytest.raises(L2CError, match=says):
        read(pipe)


def test_no_sampler_of_ours_stands_in_for_a_flow(pipe):
    """Its configuration has no betas, so that nothing in it contradicts DDIM."""
    edited(pipe / INDEX, scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"])
    written(pipe / SCHEDULER, {"shift": 1.0})
    for sampler in ("ddim", *KINDS):
        with pytest.raises(ScheduleError, match="FlowMatchEulerDiscreteScheduler is not supported"):
            read(pipe, sampler=sampler)


@pytest.mark.parametrize(("index", "config"), [
    ("DiTTransformer2DModel", {"_class_name": None}), ("DiTTransformer2DModel", {"_class_name": "PixArtTransformer2DModel"}),
    ("Transformer2DModel", {"_class_name": "Transformer2DModel"}), ("Transformer2DModel", {"_class_name": None}),
    ("DiTTransformer2DModel", {"cross_attention_dim": 8, "num_vector_embeds": 4, "double_self_attention": True, "note": "x"}),
    ("DiTTransformer2DModel", {"norm_eps": 0, "dropout": 0.1, "upcast_attention": True}),
])  # fmt: skip
def test_the_index_says_the_transformers_class(pipe, index, config):
    edited(pipe / INDEX, transformer=["diffusers", index])
    kept = {**json.loads((pipe / TRANSFORMER).read_text()), **config}
    written(pipe / TRANSFORMER, {k: v for k, v in kept.items() if v is not None})
    theirs = diffusers.DiTPipeline.from_pretrained(pipe).transformer
    arch = read(pipe).folder.arch
    assert type(theirs).__name__ == "DiTTransformer2DModel"
    for ours, name in (("num_heads", "num_attention_heads"), ("mlp_eps", "norm_eps"), ("depth", "num_layers")):
        assert arch[ours] == theirs.config[name]


def test_what_a_configuration_leaves_out_are_the_defaults_of_diffusers(tmp_path):
    written(tmp_path / "config.json", {})
    theirs = diffusers.DiTTransformer2DModel.load_config  # no weights of this size are needed
    assert theirs
    shape = pipeline_folder.read_config(tmp_path / "config.json")
    own = dict(diffusers.DiTTransformer2DModel(num_layers=1, num_attention_heads=1, attention_head_dim=4).config)
    given = {"num_layers", "num_attention_heads", "attention_head_dim"}
    assert {k: v for k, v in msgspec.structs.asdict(shape).items() if k not in given} == {
        k: own[k] for k in shape.__struct_fields__ if k not in given
    }
    assert (shape.num_layers, shape.num_attention_heads, shape.attention_head_dim) == (28, 16, 72)


@pytest.mark.parametrize(("config", "says"), [
    ({"sample_size": [8, 8]}, "Expected `int`, got `array` - at `\\$.sample_size`"),
    ({"num_embeds_ada_norm": None}, "Expected `int`, got `null` - at `\\$.num_embeds_ada_norm`"),
])  # fmt: skip
def test_what_diffusers_refuses_of_a_transformer_is_refused(pipe, config, says):
    edited(pipe / TRANSFORMER, **config)
    with pytest.raises((TypeError, ValueError)):
        diffusers.DiTPipeline.from_pretrained(pipe)
    with pytest.raises(ModelError, match=says):
        read(pipe)


def test_the_older_class_is_a_dit_only_where_its_norm_says_so(pipe):
    edited(pipe / INDEX, transformer=["diffusers", "Transformer2DModel"])
    kept = json.loads((pipe / TRANSFORMER).read_text())
    del kept["norm_type"]
    written(pipe / TRANSFORMER, kept)
    with pytest.raises(Exception):  # noqa: B017, PT011  (a KeyError in one release)
        diffusers.DiTPipeline.from_pretrained(pipe)
    with pytest.raises(ModelError, match="norm_type = 'layer_norm' is not supported: a DiT has 'ada_norm_zero'"):
        read(pipe)


@pytest.mark.parametrize("kind", ["DiTPipelineOld", ["pipeline", "MyDiT"]])
def test_a_pipeline_of_another_class_with_the_parts_of_dit_is_said(pipe, kind):
    edited(pipe / INDEX, _class_name=kind)
    assert diffusers.DiTPipeline.from_pretrained(pipe)
    name = kind if isinstance(kind, str) else kind[-1]
    assert read(pipe).notes == (f"{pipe} is a {name}: taken for a DiTPipeline",)


def test_nothing_is_said_of_a_usual_pipeline(pipe):
    assert read(pipe).notes == ()


# folders of other models


@pytest.mark.parametrize(("kind", "parts"), [
    ("StableDiffusionPipeline", {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}),
    ("StableDiffusion3Pipeline", {"transformer": "SD3Transformer2DModel"}),
    ("PixArtAlphaPipeline", {"transformer": "PixArtTransformer2DModel"}), ("DDPMPipeline", {"unet": "UNet2DModel"}),
])  # fmt: skip
def test_a_folder_of_another_model_is_named(tmp_path, kind, parts):
    written(tmp_path / INDEX, {"_class_name": kind, **{name: ["diffusers", part] for name, part in parts.items()}})
    with pytest.raises(ModelError, match=f"is a {kind} with .*: l2c-export knows DiT and U-ViT") as error:
        read(tmp_path)
    assert parts.get("transformer", "no transformer") in str(error.value)


def test_an_older_pixart_is_named(pipe):
    edited(pipe / INDEX, _class_name="PixArtAlphaPipeline", transformer=["diffusers", "Transformer2DModel"])
    edited(pipe / TRANSFORMER, norm_type="ada_norm_single")
    with pytest.raises(ModelError, match=r"\(of a PixArtAlphaPipeline\): norm_type = 'ada_norm_single' is not supported"):
        read(pipe)


@pytest.mark.parametrize("kind", ["UNet2DConditionModel", "AutoencoderKL", "SD3Transformer2DModel"])
def test_a_part_of_another_model_is_named(tmp_path, kind):
    written(tmp_path / "config.json", {"_class_name": kind})
    for options in ({"model": str(tmp_path)}, {"weights": str(tmp_path)}):
        with pytest.raises(ModelError, match=f"is a {kind}: l2c-export knows DiT and U-ViT"):
            read(**options)


# which file holds the weights


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
    found = finder.find(tmp_path)
    assert len(finder.files(tmp_path, found)) > 2 or "shards" not in form
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


PLAIN = "diffusion_pytorch_model.safetensors"


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
    found = finder.choose(names)
    assert (found and found.name) == want


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


# a transformer alone


@pytest.fixture(scope="module")
def compiled(saved, own_cache) -> Path:
    out = saved.parent / "engines"
    compile_artefact(Options(schedule="every:2", steps=5, model=str(saved), backend="onnxruntime", with_vae=True, out=out))
    return out


@pytest.fixture
def engines(compiled, tmp_path) -> Path:
    return shutil.copytree(compiled, tmp_path / "engines")


def fine_tune(folder: Path, **changes) -> diffusers.DiTPipeline:
    """Another pipeline with the same architecture: its folder, and in `alone` its transformer."""
    made = small_pipeline(folder, "ddim", seed=1)
    made.transformer.save_pretrained(folder / "alone")
    return made


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


def test_a_transformers_folder_is_a_model_and_its_weights(saved, tmp_path):
    fine_tune(tmp_path / "other")
    want = read(tmp_path / "other")
    for options in (
        {"model": str(tmp_path / "other/alone")}, {"model": str(tmp_path / "other/transformer")},
        {"weights": str(tmp_path / "other/alone")}, {"weights": str(tmp_path / "other")},
        {"weights": str(tmp_path / "other/alone" / PLAIN)}, {"model": str(saved), "weights": str(tmp_path / "other/alone")},
        {"model": str(tmp_path / "other" / INDEX)},
    ):  # fmt: skip
        got = read(**options)
        assert msgspec.structs.asdict(got.family.arch) == msgspec.structs.asdict(want.family.arch), options
        assert got.schedule.scheduler == want.schedule.scheduler
        assert got.guidance == "all"
        assert all(np.array_equal(got.checkpoint.read(n), want.checkpoint.read(n)) for n in want.checkpoint.shapes)


def test_the_scheduler_of_a_transformer_alone_is_said_to_be_assumed(tmp_path):
    fine_tune(tmp_path / "other")
    (note,) = read(tmp_path / "other/alone").notes
    assert f"has no scheduler: {DDIM} as in the released DiT pipelines is ASSUMED" in note
    assert read(tmp_path / "other/alone", sampler=EULER).notes == ()
    assert read(tmp_path / "other/transformer").notes == (), "its pipeline says it"


def test_heads_that_no_shape_shows_are_compared(engines, saved, tmp_path):
    shutil.copytree(saved, tmp_path / "other")
    edited(tmp_path / "other" / TRANSFORMER, num_attention_heads=4, attention_head_dim=8)
    before = weights_of(engines)
    for what in ("other", "other/transformer", "other/transformer/diffusion_pytorch_model.safetensors"):
        with pytest.raises(WeightsError, match="its num_heads is 4, the model's 2"):
            bind(engines, str(tmp_path / what))
        with pytest.raises(WeightsError, match="its num_heads is 4, the model's 2"):
            read(saved, weights=str(tmp_path / what))
    edited(tmp_path / "other" / TRANSFORMER, num_attention_heads=2, attention_head_dim=16, norm_eps=1e-2)
    with pytest.raises(WeightsError, match=r"its mlp_eps is 0\.01, the model's 1e-05"):
        bind(engines, str(tmp_path / "other"))
    assert weights_of(engines) == before


# linking a whole pipeline


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
    made = l2c_export.load(engines)(["cat"], 4.0, output_type="np")
    want = their_pixels(other.vae, made.latents)
    assert np.abs(made.images - want).max() < 1e-5
    assert (
        np.abs(their_pixels(diffusers.AutoencoderKL.from_pretrained(tmp_path / "other/vae"), made.latents) - want).max() < 1e-6
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
    (engines / "rtx/decoder.plan").write_bytes(b"plan")
    build = Build(
        backend="tensorrt-rtx", version="1.2", targets=("sm86",), images=(1, 1, 1), level=None, version_compatible=False,
        hardware_compatible=False, engines={"decoder": "rtx/decoder.plan"},
    )  # fmt: skip
    made = store.read(engines)
    files = made.files | {"rtx/decoder.plan": integrity.info(engines / "rtx/decoder.plan")}
    store.write_json(engines / "manifest.json", msgspec.structs.replace(made, builds={"rtx": build}, files=files))
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

    monkeypatch.setattr(link, "needs", missing)
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


# autoencoders


@pytest.mark.parametrize("gone", [
    "sample_size", "latent_channels", "out_channels", "scaling_factor", "_class_name", "shift_factor", "use_quant_conv",
])  # fmt: skip
def test_what_an_autoencoder_leaves_out_is_the_default_of_diffusers(pipe, gone):
    kept = json.loads((pipe / VAE).read_text())
    del kept[gone]
    written(pipe / VAE, kept)
    theirs = diffusers.AutoencoderKL.from_pretrained(pipe / "vae").config
    for option, where in (("with_vae", True), ("vae", pipe / "vae"), ("vae", pipe)):
        made = autoencoder.describe(read(pipe, **{option: where}).vae, 4, of_pipeline=True)
        assert (made.channels, made.scaling_factor, made.tile) == (
            theirs.out_channels,
            theirs.scaling_factor,
            theirs.sample_size,
        )


def test_all_defaults_of_an_autoencoder_are_those_of_diffusers():
    theirs = diffusers.AutoencoderKL().config
    ours = msgspec.structs.asdict(autoencoder.Config())
    assert ours == {name: tuple(v) if isinstance(v := theirs[name], list) else v for name in ours}


def test_a_side_may_be_two_and_no_side_is_refused(pipe):
    edited(pipe / VAE, sample_size=[24, 32])
    theirs = diffusers.AutoencoderKL.from_pretrained(pipe / "vae")
    made = autoencoder.describe(pipe / "vae", 4, of_pipeline=True)
    assert made.tile // made.scale == theirs.tile_latent_min_size
    edited(pipe / VAE, sample_size=None)
    with pytest.raises(TypeError):
        diffusers.AutoencoderKL.from_pretrained(pipe / "vae")
    with pytest.raises(ModelError, match=r"does not describe an AutoencoderKL: .*sample_size"):
        autoencoder.describe(pipe / "vae", 4, of_pipeline=True)


MOMENTS = {"latents_mean": [0.5, -1.0, 0.25, 2.0], "latents_std": [0.5, 2.0, 1.5, 3.0]}


def decoded(folder: Path, z: torch.Tensor, of_pipeline: bool) -> torch.Tensor:
    kept = diffusers.AutoencoderKL.from_pretrained(folder).eval()
    with torch.no_grad():
        return vae.Decoding(kept, autoencoder.describe(folder, 4, of_pipeline))(z)


@pytest.mark.parametrize("config", [
    {}, {"shift_factor": 0.0609}, {"shift_factor": 0.0}, MOMENTS, {**MOMENTS, "shift_factor": None},
    {"use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": -0.3},
], ids=str)  # fmt: skip
def test_latents_are_moved_as_diffusers_pipelines_do_it(tmp_path, config):
    """DiTPipeline divides by the factor alone; FLUX and SD3 add the shift, SDXL scales and adds per channel."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    kept = diffusers.AutoencoderKL(
        block_out_channels=(8, 16), norm_num_groups=4, sample_size=16, scaling_factor=1.5, **blocks, **config
    ).eval()
    kept.save_pretrained(tmp_path)
    z = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        plain = kept.decode(z / 1.5).sample
        mean, std = (
            torch.tensor(config.get(n) or d).reshape(1, -1, 1, 1) for n, d in (("latents_mean", [0.0]), ("latents_std", [1.0]))
        )
        moved = kept.decode(z * std / 1.5 + mean + (config.get("shift_factor") or 0)).sample
    assert torch.allclose(decoded(tmp_path, z, True), plain, atol=1e-5)
    assert torch.allclose(decoded(tmp_path, z, False), moved, atol=1e-5)
    assert torch.allclose(plain, moved, atol=1e-5) == (not config or config == {"shift_factor": 0.0}), "else nothing is tested"


def test_what_is_done_to_latents_is_said_and_kept(pipe):
    edited(pipe / VAE, shift_factor=0.0609)
    own, chosen = read(pipe, with_vae=True), read(pipe, vae=pipe)
    assert (own.vae, chosen.vae) == (pipe / "vae",) * 2
    ignored, applied = (autoencoder.describe(s.vae, 4, s.own_vae) for s in (own, chosen))
    assert (ignored.shift_factor, applied.shift_factor) == (msgspec.UNSET, 0.0609)
    assert autoencoder.said(pipe / "vae", ignored).endswith(
        "vae: latents / 0.18215; shift_factor ignored as a DiTPipeline does (vae=.. applies it)"
    )
    assert autoencoder.said(pipe / "vae", applied).endswith("vae: latents / 0.18215 + 0.0609 (shift_factor)")


@pytest.mark.parametrize(("config", "says"), [
    ({"latents_mean": [0.0] * 4}, "latents_mean alone do not say"), ({"shift_factor": "x"}, "shift_factor"),
    ({**MOMENTS, "shift_factor": 1.0}, "shift_factor and latents_mean"),
    ({**MOMENTS, "latents_std": [1.0] * 3}, "latents_std has 3 numbers for 4 channels"),
    ({"scaling_factor": 0}, "scaling_factor is 0"), ({"scaling_factor": None}, "scaling_factor"),
])  # fmt: skip
def test_latents_of_which_nobody_says_how_they_are_moved_are_refused(pipe, config, says):
    edited(pipe / VAE, **config)
    with pytest.raises(ModelError, match=says):
        autoencoder.describe(pipe / "vae", 4, of_pipeline=False)


@pytest.mark.parametrize(("index", "config", "says"), [
    (["diffusers", "AutoencoderKL"], {"_class_name": "VQModel"}, None),
    (["diffusers", "VQModel"], {"_class_name": "AutoencoderKL"}, "vae: VQModel is not supported: only AutoencoderKL is"),
    ([None, None], {}, "names no vae"), (["mine", "MyVAE"], {}, "its vae is MyVAE of mine"),
])  # fmt: skip
def test_the_index_says_the_autoencoders_class(pipe, index, config, says):
    edited(pipe / INDEX, vae=index)
    edited(pipe / VAE, **config)
    assert read(pipe).vae is None, "the model alone does not need it"
    for options in ({"with_vae": True}, {"vae": pipe}, {"vae": pipe / "vae"}):
        if says is None:
            assert read(pipe, **options).vae == pipe / "vae"
        else:
            with pytest.raises(ModelError, match=says):
                read(pipe, **options)


@pytest.mark.parametrize("kind", ["AutoencoderDC", "AutoencoderTiny", "VQModel"])
def test_another_decoder_is_named_before_anything_is_done(pipe, tmp_path, kind):
    (tmp_path / "v").mkdir()
    written(tmp_path / "v/config.json", {"_class_name": kind, "latent_channels": 4})
    with pytest.raises(ModelError, match=f"vae=.*: {kind} is not supported: only AutoencoderKL is"):
        read(pipe, vae=tmp_path / "v")


# the hub


def asked_of_hub(
    root: Path, home: Path, *models: str, decoder: bool = False, **environment: str
) -> tuple[list[str], list[str]]:
    """What `--model` finds, in a process of its own; and the files that it asked for."""
    code = (
        "import sys; from l2c_export import hub\n"
        "for name in sys.argv[2:]:\n"
        "    try: print(hub.folder(name, sys.argv[1] == 'True'))\n"
        "    except Exception as error: print(type(error).__name__, error)"
    )
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    with serving(root) as hub:
        env = {**kept, "HF_HOME": str(home), "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", **environment}
        done = subprocess.run(
            [sys.executable, "-c", code, str(decoder), *models], env=env, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines(), sorted(hub.asked)


@pytest.fixture
def hub(saved, tmp_path) -> Path:
    root = tmp_path / "hub"
    shutil.copytree(saved, root / "me/dit")
    (root / "me/dit/transformer/diffusion_pytorch_model.fp16.safetensors").write_bytes(b"never asked for")
    small_pipeline(root / "me/bin", "ddim").transformer.save_pretrained(
        root / "me/bin/transformer", safe_serialization=False, max_shard_size="40KB"
    )
    (root / "me/bin/transformer/diffusion_pytorch_model.safetensors").unlink(missing_ok=True)
    for name, kind, parts in (
        ("sd", "StableDiffusionPipeline", {"unet": ["diffusers", "UNet2DConditionModel"]}),
        ("pixart", "PixArtAlphaPipeline", {"transformer": ["diffusers", "Transformer2DModel"]}),
    ):
        (root / "me" / name / "transformer").mkdir(parents=True)
        written(root / "me" / name / INDEX, {"_class_name": kind, **parts})
        written(root / "me" / name / TRANSFORMER, {"norm_type": "ada_norm_single"})
        (root / "me" / name / "transformer/diffusion_pytorch_model.safetensors").write_bytes(b"gigabytes")
    (root / "me/weights").mkdir()
    (root / "me/weights/model.safetensors").write_bytes(b"gigabytes")
    return root


def test_a_model_is_downloaded_as_far_as_it_is_needed(hub, tmp_path):
    parts = [f"me/dit/{name}" for name in (INDEX, SCHEDULER, TRANSFORMER, "transformer/diffusion_pytorch_model.safetensors")]
    found, asked = asked_of_hub(hub, tmp_path / "home", "me/dit", "me/dit")
    assert asked == sorted(parts), "once, and no variants, no autoencoder"
    assert found[0] == found[1]
    assert read(Path(found[0])).name == "dit"
    found, asked = asked_of_hub(hub, tmp_path / "home", "me/dit", decoder=True)
    assert asked == [f"me/dit/{VAE}", "me/dit/vae/diffusion_pytorch_model.safetensors"]
    assert autoencoder.describe(read(Path(found[0]), with_vae=True).vae, 4, True).scaling_factor == 0.18215
    assert asked_of_hub(hub, tmp_path / "home", "me/dit", decoder=True, HF_HUB_OFFLINE="1") == (found, [])


def test_shards_are_downloaded_with_their_index(hub, tmp_path):
    (found,), asked = asked_of_hub(hub, tmp_path / "home", "me/bin")
    assert {Path(name).suffix for name in asked} == {".json", ".bin"}
    theirs = diffusers.DiTTransformer2DModel.from_pretrained(hub / "me/bin/transformer", use_safetensors=False).state_dict()
    stored = pipeline_folder.read(Path(found)).stored
    assert all(np.array_equal(stored.read(name), value.numpy()) for name, value in theirs.items())


def test_what_is_of_no_use_is_not_downloaded(hub, tmp_path):
    names = ["me/sd", "me/pixart", "me/weights", "me/absent", "DiT-XXL/2", "dit-xl/2@256", "-a/--b"]
    said, asked = asked_of_hub(hub, tmp_path / "home", *names)
    assert asked == sorted([f"me/sd/{INDEX}", f"me/pixart/{INDEX}", f"me/pixart/{TRANSFORMER}"])
    for name, line, says in zip(names, said, [
        "me/sd is a StableDiffusionPipeline with no transformer: l2c-export knows DiT and U-ViT",
        "(of a PixArtAlphaPipeline): norm_type = 'ada_norm_single' is not supported",
        "'me/weights' is no pipeline of diffusers (it has no model_index.json): l2c-export knows DiT and U-ViT",
        "unknown model 'me/absent': no such folder, and the hub shows none",
        "unknown model 'DiT-XXL/2': names of models are for example DiT-XL/2",
        "unknown model 'dit-xl/2@256': names of models are for example DiT-XL/2",
        "unknown model '-a/--b': no folder, and no id of the hub",
    ], strict=True):  # fmt: skip
        assert line.startswith("ModelError "), name
        assert says in line


@pytest.mark.parametrize(("environment", "says"), [
    ({"HF_HUB_OFFLINE": "1"}, "not whole in the hub's cache, with HF_HUB_OFFLINE set"),
    ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "the hub cannot be reached"),
])  # fmt: skip
def test_without_a_network_it_is_said_at_once(hub, tmp_path, environment, says):
    (line,), _ = asked_of_hub(hub, tmp_path / "home", "me/dit", **environment)
    assert says in line
    assert f"hf download me/dit (it goes to {tmp_path}/home/hub)" in line


def test_a_file_is_no_model(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError):
        read(tmp_path / "w.safetensors")
