"""What the index of a pipeline folder says, and folders of other models."""

from __future__ import annotations

import json

import diffusers
import msgspec
import pytest
from small_pipelines import INDEX, SCHEDULER, TRANSFORMER, edited, source, written

from l2c_export.errors import L2CError, ModelError, ScheduleError
from l2c_export.models.diffusers import pipeline_folder
from l2c_export.samplers.scheduler_config import DDIM, DPM, KINDS, Scheduler

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("named", KINDS)
@pytest.mark.parametrize("config", [
    {}, {"clip_sample": False}, {"_class_name": DDIM, "clip_sample": False, "timestep_spacing": "trailing", "steps_offset": 1},
    {"_class_name": DPM, "solver_order": 3, "solver_type": "heun", "clip_sample": False, "set_alpha_to_one": False},
    {"_class_name": "PNDMScheduler", "clip_sample": False, "beta_schedule": "scaled_linear"}, {"_class_name": "MyScheduler"},
    {"_class_name": "FlowMatchEulerDiscreteScheduler", "clip_sample": False},
])  # fmt: skip
def test_the_index_says_the_schedulers_class_whatever_its_configuration_says(own_folder, named, config):
    edited(own_folder / INDEX, scheduler=["diffusers", named])
    written(own_folder / SCHEDULER, config)
    theirs = diffusers.DiTPipeline.from_pretrained(own_folder).scheduler
    assert type(theirs).__name__ == named
    if theirs.config.get("clip_sample"):
        with pytest.raises(ScheduleError, match="clip_sample = True, the default, is not supported"):
            source(own_folder)
        return
    schedule = source(own_folder).schedule
    assert schedule.scheduler == Scheduler.from_config(dict(theirs.config), "theirs", named)
    theirs.set_timesteps(5)
    assert [call.timestep for call in schedule.calls] == pytest.approx(theirs.timesteps.tolist(), abs=1e-4)


@pytest.mark.parametrize(("index", "config", "says"), [
    (["diffusers", "FlowMatchEulerDiscreteScheduler"], {"_class_name": DDIM}, "FlowMatch.* its models predict a flow"),
    (["diffusers", "PNDMScheduler"], {"_class_name": DDIM, "clip_sample": False}, "PNDMScheduler is not supported: use"),
    (["mine", "MyScheduler"], {"_class_name": DDIM}, "its scheduler is MyScheduler of mine, which is not part of diffusers"),
    ([None, None], {"_class_name": DDIM}, "names no scheduler"),
])  # fmt: skip
def test_a_scheduler_that_the_index_names_and_nobody_knows_is_refused(own_folder, index, config, says):
    edited(own_folder / INDEX, scheduler=index)
    written(own_folder / SCHEDULER, config)
    with pytest.raises(L2CError, match=says):
        source(own_folder)


def test_no_sampler_of_ours_stands_in_for_a_flow(own_folder):
    """Its configuration has no betas, so that nothing in it contradicts DDIM."""
    edited(own_folder / INDEX, scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"])
    written(own_folder / SCHEDULER, {"shift": 1.0})
    for sampler in ("ddim", *KINDS):
        with pytest.raises(ScheduleError, match="FlowMatchEulerDiscreteScheduler is not supported"):
            source(own_folder, sampler=sampler)


@pytest.mark.parametrize(("index", "config"), [
    ("DiTTransformer2DModel", {"_class_name": None}), ("DiTTransformer2DModel", {"_class_name": "PixArtTransformer2DModel"}),
    ("Transformer2DModel", {"_class_name": "Transformer2DModel"}), ("Transformer2DModel", {"_class_name": None}),
    ("DiTTransformer2DModel", {"cross_attention_dim": 8, "num_vector_embeds": 4, "double_self_attention": True, "note": "x"}),
    ("DiTTransformer2DModel", {"norm_eps": 0, "dropout": 0.1, "upcast_attention": True}),
])  # fmt: skip
def test_the_index_says_the_transformers_class(own_folder, index, config):
    edited(own_folder / INDEX, transformer=["diffusers", index])
    kept = {**json.loads((own_folder / TRANSFORMER).read_text()), **config}
    written(own_folder / TRANSFORMER, {k: v for k, v in kept.items() if v is not None})
    theirs = diffusers.DiTPipeline.from_pretrained(own_folder).transformer
    arch = source(own_folder).folder.arch
    assert type(theirs).__name__ == "DiTTransformer2DModel"
    for ours, name in (("num_heads", "num_attention_heads"), ("mlp_eps", "norm_eps"), ("depth", "num_layers")):
        assert arch[ours] == theirs.config[name]


def test_what_a_configuration_leaves_out_are_the_defaults_of_diffusers(tmp_path):
    written(tmp_path / "config.json", {})
    theirs = diffusers.DiTTransformer2DModel.load_config  # no weights of this size are needed
    assert theirs
    shape = pipeline_folder.read_config(tmp_path / "config.json")
    own = dict(diffusers.DiTTransformer2DModel(num_layers=1, num_attention_heads=1, attention_head_dim=4).config)
    fields = {"num_layers", "num_attention_heads", "attention_head_dim"}
    assert {k: v for k, v in msgspec.structs.asdict(shape).items() if k not in fields} == {
        k: own[k] for k in shape.__struct_fields__ if k not in fields
    }
    assert (shape.num_layers, shape.num_attention_heads, shape.attention_head_dim) == (28, 16, 72)


@pytest.mark.parametrize(("config", "says"), [
    ({"sample_size": [8, 8]}, "Expected `int`, got `array` - at `\\$.sample_size`"),
    ({"num_embeds_ada_norm": None}, "Expected `int`, got `null` - at `\\$.num_embeds_ada_norm`"),
])  # fmt: skip
def test_what_diffusers_refuses_of_a_transformer_is_refused(own_folder, config, says):
    edited(own_folder / TRANSFORMER, **config)
    with pytest.raises((TypeError, ValueError)):
        diffusers.DiTPipeline.from_pretrained(own_folder)
    with pytest.raises(ModelError, match=says):
        source(own_folder)


def test_the_older_class_is_a_dit_only_where_its_norm_says_so(own_folder):
    edited(own_folder / INDEX, transformer=["diffusers", "Transformer2DModel"])
    kept = json.loads((own_folder / TRANSFORMER).read_text())
    del kept["norm_type"]
    written(own_folder / TRANSFORMER, kept)
    with pytest.raises(Exception):  # noqa: B017, PT011  (a KeyError in one release)
        diffusers.DiTPipeline.from_pretrained(own_folder)
    with pytest.raises(ModelError, match="norm_type = 'layer_norm' is not supported: a DiT has 'ada_norm_zero'"):
        source(own_folder)


@pytest.mark.parametrize("kind", ["DiTPipelineOld", ["pipeline", "MyDiT"]])
def test_a_pipeline_of_another_class_with_the_parts_of_dit_is_said(own_folder, kind):
    edited(own_folder / INDEX, _class_name=kind)
    assert diffusers.DiTPipeline.from_pretrained(own_folder)
    name = kind if isinstance(kind, str) else kind[-1]
    assert source(own_folder).notes == (f"{own_folder} is a {name}: taken for a DiTPipeline",)


def test_nothing_is_said_of_a_usual_pipeline(own_folder):
    assert source(own_folder).notes == ()


@pytest.mark.parametrize(("kind", "parts"), [
    ("StableDiffusionPipeline", {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}),
    ("LuminaPipeline", {"transformer": "LuminaNextDiT2DModel"}), ("DDPMPipeline", {"unet": "UNet2DModel"}),
])  # fmt: skip
def test_a_folder_of_another_model_is_named(tmp_path, kind, parts):
    written(tmp_path / INDEX, {"_class_name": kind, **{name: ["diffusers", part] for name, part in parts.items()}})
    with pytest.raises(ModelError, match=f"is a {kind} with .*: l2c-export knows DiT and U-ViT") as error:
        source(tmp_path)
    assert parts.get("transformer", "no transformer") in str(error.value)


def test_an_older_pixart_is_named(own_folder):
    edited(own_folder / INDEX, _class_name="PixArtAlphaPipeline", transformer=["diffusers", "Transformer2DModel"])
    edited(own_folder / TRANSFORMER, norm_type="ada_norm_single")
    with pytest.raises(ModelError, match=r"\(of a PixArtAlphaPipeline\): norm_type = 'ada_norm_single' is not supported"):
        source(own_folder)


@pytest.mark.parametrize("kind", ["UNet2DConditionModel", "AutoencoderKL", "LuminaNextDiT2DModel"])
def test_a_part_of_another_model_is_named(tmp_path, kind):
    written(tmp_path / "config.json", {"_class_name": kind})
    for options in ({"model": str(tmp_path)}, {"weights": str(tmp_path)}):
        with pytest.raises(ModelError, match=f"is a {kind}: l2c-export knows DiT and U-ViT"):
            source(**options)
