"""Live pipelines that take prompts run compiled calls; diffusers' own loop is the oracle, cached by hooks where that is."""

from __future__ import annotations

import inspect
import shutil
import sys

import diffusers
import loras
import numpy as np
import pytest
import texts
import torch
from prompted import Cached, error, numbers
from safetensors.torch import save_file

import l2c_export
from l2c_export.errors import UsageError
from l2c_export.schedules.schedule import Schedule

pytestmark = pytest.mark.usefixtures("one_thread")
CLOSE = 1e-5
FAMILIES = ("pixart", "sd3", "flux")
every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def pipes(prompted_by):
    """By family: the pipeline alone, and one with compiled calls."""
    by_family = {}

    def both(family):
        if family not in by_family:
            folder, out, _ = prompted_by(family)
            by_family[family] = texts.live(folder), l2c_export.enable_l2c(texts.live(folder), out)
        return by_family[family]

    return both


def images(pipe, family: str, **asked) -> np.ndarray:
    return np.asarray(pipe(**texts.asked(family, **asked)).images)


@every_family
def test_the_same_pictures_as_without(pipes, family):
    theirs, ours = pipes(family)
    loops = []
    hook = ours.transformer.register_forward_pre_hook(lambda *_: loops.append(1))
    one = {"prompt": "a cat", "num_images_per_prompt": 2} | ({} if family == "flux" else {"negative_prompt": "blurry"})
    for asked in ({"output_type": "np"}, {"output_type": "latent", "guidance_scale": 1.0}, {"output_type": "pt", **one}):
        assert error(images(ours, family, **asked), images(theirs, family, **asked)) < CLOSE
    hook.remove()
    assert not loops, "the transformer of the live pipeline does not run"
    output = ours(**texts.asked(family))
    assert type(output) is type(theirs(**texts.asked(family)))
    assert output.images[1].size == (64, 64)
    assert isinstance(ours, type(theirs))


def encoded(pipe, family: str) -> dict[str, torch.Tensor]:
    """What the pipeline's encoders make of its prompts, by the names of its call."""
    names = {"pixart": ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask"),
             "sd3": ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"),
             "flux": ("prompt_embeds", "pooled_prompt_embeds")}[family]  # fmt: skip
    told = texts.asked(family, prompt_2=None, prompt_3=None)
    takes = inspect.signature(pipe.encode_prompt).parameters
    with torch.no_grad():
        encodings = pipe.encode_prompt(**{name: value for name, value in told.items() if name in takes})
    return dict(zip(names, encodings, strict=False))


@every_family
def test_embeddings_and_latents(pipes, family):
    """What is not said is what was compiled: the first number of steps, the tokens, the size."""
    theirs, ours = pipes(family)
    latents = numbers(5, *((2, 16, 16) if family == "flux" else (2, 4, 8, 8)))
    told = {**encoded(theirs, family), "latents": latents, "output_type": "latent", "return_dict": False, "guidance_scale": 4.0}
    told |= {"negative_prompt": None, "use_resolution_binning": False} if family == "pixart" else {}
    (want,) = theirs(**told, num_inference_steps=3, height=64, width=64)
    (got,) = ours(**told, num_inference_steps=3)
    assert got.dtype == want.dtype
    assert error(got.numpy(), want.numpy()) < CLOSE
    assert not torch.equal(got, ours(**told)[0]), "2 steps are the artefact's own"


@every_family
def test_cached_calls_are_diffusers_cached_by_hooks(prompted_by, pipes, family):
    folder, out, _ = prompted_by(family)
    theirs = texts.live(folder)
    Cached(theirs.transformer, Schedule.read(out / "schedule-2.json"))
    asked = {"num_inference_steps": 2, "output_type": "latent"}
    got = images(pipes(family)[1], family, **asked)
    assert error(got, images(theirs, family, **asked)) < CLOSE
    assert error(got, images(pipes(family)[0], family, **asked)) > 5 * CLOSE


def test_pixart_crops_what_it_made_in_the_next_size_of_its_list(pipes, monkeypatch):
    theirs, ours = pipes("pixart")
    home = sys.modules[diffusers.PixArtSigmaPipeline.__module__]
    asked = {"height": 80, "width": 96, "output_type": "np", "use_resolution_binning": True}
    with pytest.raises(UsageError, match="use_resolution_binning=True: there is no list of sizes for sample_size 8"):
        ours(**texts.asked("pixart", **asked))
    monkeypatch.setattr(home, "ASPECT_RATIO_256_BIN", {"1.0": [64, 64]})
    for pipe in (theirs, ours):
        pipe.transformer.register_to_config(sample_size=32)
    try:
        got = images(ours, "pixart", **asked)
        assert got.shape == (2, 80, 96, 3)
        assert error(got, images(theirs, "pixart", **asked)) < CLOSE
    finally:
        for pipe in (theirs, ours):
            pipe.transformer.register_to_config(sample_size=8)


@pytest.mark.parametrize(("family", "asked", "says"), [
    ("flux", {"strength": 0.5}, "FluxPipeline: got an unexpected keyword argument 'strength'"),
    ("pixart", {"strength": 0.5}, "strength=..: compiled calls of a PixArtSigmaPipeline have no place for it: leave it out"),
    ("flux", {"negative_prompt": "blurry", "true_cfg_scale": 3.0}, "compiled calls of a FluxPipeline have no place for it"),
    ("sd3", {"skip_guidance_layers": [1]}, "skip_guidance_layers=..: compiled calls of a StableDiffusion3Pipeline"),
    ("sd3", {"joint_attention_kwargs": {"scale": 0.5}}, "joint_attention_kwargs=..: "),
    ("sd3", {"callback_on_step_end": print}, "callback_on_step_end=..: "),
    ("pixart", {"timesteps": [1, 2, 3]}, "timesteps=..: "),
    ("pixart", {"eta": 0.5}, "eta=..: "),
    ("flux", {"sigmas": [1.0, 0.5]}, "sigmas=..: "),
    ("flux", {"num_inference_steps": 50}, "num_inference_steps 50: this artefact was compiled for 2 or 3"),
    ("sd3", {"height": 128}, "height=128, width=64: this artefact was compiled for pictures of 64 x 64"),
    ("sd3", {"max_sequence_length": 99}, "max_sequence_length=99: this artefact was compiled for 14"),
    ("pixart", {"output_type": "jpg"}, "output_type 'jpg': use pil, np, pt or latent"),
    ("pixart", {"guidance_scale": float("nan")}, "guidance_scale=nan: must be a finite number"),
    ("flux", {"latents": torch.zeros(2, 4, 8, 8)}, r"latents of shape \(2, 4, 8, 8\): this call needs \(2, 16, 16\), packed"),
    ("sd3", {"latents": torch.zeros(2, 4, 8, 9)}, r"latents of shape \(2, 4, 8, 9\): this model and 2 images need"),
])  # fmt: skip
def test_what_compiled_calls_cannot_do_is_refused_in_one_line(pipes, family, asked, says):
    with pytest.raises(UsageError, match=says) as raised:
        pipes(family)[1](**texts.asked(family, **asked))
    assert "\n" not in str(raised.value)


def test_usual_values_of_what_is_not_taken_are(pipes):
    theirs, ours = pipes("sd3")
    usual = {"callback_on_step_end": None, "skip_layer_guidance_scale": 2.8, "output_type": "latent", "clip_skip": 1}
    assert error(images(ours, "sd3", **usual), images(theirs, "sd3", **usual)) < CLOSE


def test_what_was_not_compiled_is_refused(prompted_by, world, tmp_path):
    sd3, flux = (prompted_by(family) for family in ("sd3", "flux"))
    pipe = texts.live(flux.folder)
    with pytest.raises(UsageError, match="was compiled from a sd3, which no FluxPipeline has"):
        l2c_export.enable_l2c(pipe, sd3.out)
    with pytest.raises(UsageError, match="was compiled from a dit, which no FluxPipeline has"):
        l2c_export.enable_l2c(pipe, world.compiled())
    with torch.no_grad():
        pipe.transformer.single_transformer_blocks[1].attn.to_k.weight.add_(0.01)
    with pytest.raises(UsageError, match=r"other weights than .*to_q\+to_k\+to_v.* run l2c_export.link"):
        l2c_export.enable_l2c(pipe, flux.out)
    pipe = texts.live(flux.folder)
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0, use_dynamic_shifting=True)
    with pytest.raises(UsageError, match=r"pipe.scheduler is not what was compiled \(shift 2.0 instead of 3.0"):
        l2c_export.enable_l2c(pipe, flux.out)
    with pytest.raises(UsageError, match="a FluxImg2ImgPipeline is not supported: give a DiTPipeline, PixArtAlphaPipeline"):
        l2c_export.enable_l2c(diffusers.FluxImg2ImgPipeline.from_pipe(pipe), flux.out)
    shutil.copytree(flux.folder / "transformer", tmp_path / "other")
    other = diffusers.FluxTransformer2DModel.from_pretrained(tmp_path / "other", guidance_embeds=True, axes_dims_rope=(6, 4, 6))
    pipe = texts.live(flux.folder)
    pipe.transformer = other
    with pytest.raises(UsageError, match=r"has axes_dims_rope \[6, 4, 6\], .* was compiled for \[4, 6, 6\]"):
        l2c_export.enable_l2c(pipe, flux.out)


@every_family
def test_fused_projections_are_looked_through_and_it_can_be_undone(prompted_by, family):
    folder, out, _ = prompted_by(family)
    pipe = texts.live(folder)
    pipe.transformer.fuse_qkv_projections()
    kind = type(pipe)
    l2c_export.enable_l2c(pipe, out)
    assert type(pipe) is not kind
    assert type(pipe.disable_l2c()) is kind
    fused = {"pixart": "attn2.to_kv", "sd3": "attn.to_added_qkv", "flux": "attn.to_qkv"}[family]
    with torch.no_grad():
        pipe.transformer.get_submodule(f"transformer_blocks.1.{fused}").weight.add_(0.01)
    with pytest.raises(UsageError, match="other weights than"):
        l2c_export.enable_l2c(pipe, out)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_fused_lora_in_half_precision_is_the_one_that_was_linked(prompted_by, tmp_path, dtype):
    """The artefact merges it in float32, the pipeline in its own type."""
    folder, out, _ = prompted_by("flux")
    weights = texts.live(folder).transformer.state_dict()
    modules = [f"transformer_blocks.{n}.attn.{part}" for n in (0,) for part in ("to_q", "to_v")]
    factored = loras.factors({module: tuple(weights[f"{module}.weight"].shape) for module in modules})
    state = {}
    for module, factor in factored.items():
        state |= {loras.diffusers_name(module, part): getattr(factor, part) for part in ("down", "up")}
    file = tmp_path / "pytorch_lora_weights.safetensors"
    save_file(state, file)
    linked = shutil.copytree(out, tmp_path / "linked")
    l2c_export.link(linked, lora=file)
    theirs, ours, weaker = (texts.live(folder).to(dtype) for _ in range(3))
    for pipe, scale in ((theirs, 1.0), (ours, 1.0), (weaker, 0.9)):
        pipe.transformer.load_lora_adapter(state, prefix="transformer")
        pipe.transformer.fuse_lora(lora_scale=scale)
    with pytest.raises(UsageError, match=r"other weights than .* \(transformer_blocks.0.attn.to_q\+to_k\+to_v.weight\)"):
        l2c_export.enable_l2c(weaker, linked)
    with pytest.raises(UsageError, match="has other weights than"):
        images(l2c_export.enable_l2c(texts.live(folder).to(dtype), linked), "flux")
    wanted = images(theirs, "flux", output_type="np")
    assert error(images(l2c_export.enable_l2c(ours, linked), "flux", output_type="np"), wanted) < 5e-2
