"""What a folder says of its autoencoder, as diffusers itself reads it."""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import msgspec
import pytest
import torch
from small_pipelines import INDEX, VAE, edited, source, written

from l2c_export.artefact import autoencoder
from l2c_export.compiler.onnx import decoder as vae
from l2c_export.errors import ModelError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("gone", [
    "sample_size", "latent_channels", "out_channels", "scaling_factor", "_class_name", "shift_factor", "use_quant_conv",
])  # fmt: skip
def test_what_an_autoencoder_leaves_out_is_the_default_of_diffusers(own_folder, gone):
    kept = json.loads((own_folder / VAE).read_text())
    del kept[gone]
    written(own_folder / VAE, kept)
    theirs = diffusers.AutoencoderKL.from_pretrained(own_folder / "vae").config
    for option, where in (("with_vae", True), ("vae", own_folder / "vae"), ("vae", own_folder)):
        description = autoencoder.describe(source(own_folder, **{option: where}).vae, 4, of_pipeline=True)
        assert (description.channels, description.scaling_factor, description.tile) == (
            theirs.out_channels,
            theirs.scaling_factor,
            theirs.sample_size,
        )


def test_all_defaults_of_an_autoencoder_are_those_of_diffusers():
    theirs = diffusers.AutoencoderKL().config
    ours = msgspec.structs.asdict(autoencoder.Config())
    assert ours == {name: tuple(v) if isinstance(v := theirs[name], list) else v for name in ours}


def test_all_defaults_of_a_tiny_autoencoder_are_those_of_diffusers():
    theirs = diffusers.AutoencoderTiny().config
    ours = msgspec.structs.asdict(autoencoder.TinyConfig())
    assert ours == {name: tuple(v) if isinstance(v := theirs[name], list) else v for name in ours}


def test_all_defaults_of_a_deep_autoencoder_are_those_of_diffusers():
    with torch.device("meta"):
        theirs = diffusers.AutoencoderDC()
    ours = autoencoder.DeepConfig()
    assert {name: theirs.config[name] for name in msgspec.structs.asdict(ours)} == msgspec.structs.asdict(ours)
    assert (2 ** (len(ours.alike.block_out_channels) - 1), ours.alike.side) == (
        theirs.spatial_compression_ratio,
        theirs.tile_sample_min_height,
    )


def test_a_side_may_be_two_and_no_side_is_refused(own_folder):
    edited(own_folder / VAE, sample_size=[24, 32])
    theirs = diffusers.AutoencoderKL.from_pretrained(own_folder / "vae")
    description = autoencoder.describe(own_folder / "vae", 4, of_pipeline=True)
    assert description.tile // description.scale == theirs.tile_latent_min_size
    edited(own_folder / VAE, sample_size=None)
    with pytest.raises(TypeError):
        diffusers.AutoencoderKL.from_pretrained(own_folder / "vae")
    with pytest.raises(ModelError, match=r"does not describe an AutoencoderKL: .*sample_size"):
        autoencoder.describe(own_folder / "vae", 4, of_pipeline=True)


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


def test_what_is_done_to_latents_is_said_and_kept(own_folder):
    edited(own_folder / VAE, shift_factor=0.0609)
    own, chosen = source(own_folder, with_vae=True), source(own_folder, vae=own_folder)
    assert (own.vae, chosen.vae) == (own_folder / "vae",) * 2
    ignored, applied = (autoencoder.describe(s.vae, 4, s.own_vae) for s in (own, chosen))
    assert (ignored.shift_factor, applied.shift_factor) == (msgspec.UNSET, 0.0609)
    assert autoencoder.said(own_folder / "vae", ignored).endswith(
        "vae: latents / 0.18215; shift_factor ignored as a DiTPipeline does (vae=.. applies it)"
    )
    assert autoencoder.said(own_folder / "vae", applied).endswith("vae: latents / 0.18215 + 0.0609 (shift_factor)")


@pytest.mark.parametrize(("config", "says"), [
    ({"latents_mean": [0.0] * 4}, "latents_mean alone do not say"), ({"shift_factor": "x"}, "shift_factor"),
    ({**MOMENTS, "shift_factor": 1.0}, "shift_factor and latents_mean"),
    ({**MOMENTS, "latents_std": [1.0] * 3}, "latents_std has 3 numbers for 4 channels"),
    ({"scaling_factor": 0}, "scaling_factor is 0"), ({"scaling_factor": None}, "scaling_factor"),
])  # fmt: skip
def test_latents_of_which_nobody_says_how_they_are_moved_are_refused(own_folder, config, says):
    edited(own_folder / VAE, **config)
    with pytest.raises(ModelError, match=says):
        autoencoder.describe(own_folder / "vae", 4, of_pipeline=False)


@pytest.mark.parametrize(("index", "config", "says"), [
    (["diffusers", "AutoencoderKL"], {"_class_name": "VQModel"}, None),
    (["diffusers", "VQModel"], {"_class_name": "AutoencoderKL"}, "vae: VQModel is not supported: only AutoencoderKL, "),
    (["diffusers", "AutoencoderTiny"], {}, "vae is an AutoencoderKL by its config.json, and an AutoencoderTiny by the"),
    ([None, None], {}, "names no vae"), (["mine", "MyVAE"], {}, "its vae is MyVAE of mine"),
])  # fmt: skip
def test_the_index_says_the_autoencoders_class(own_folder, index, config, says):
    edited(own_folder / INDEX, vae=index)
    edited(own_folder / VAE, **config)
    assert source(own_folder).vae is None, "the model alone does not need it"
    for options in ({"with_vae": True}, {"vae": own_folder}, {"vae": own_folder / "vae"}):
        if says is None:
            assert source(own_folder, **options).vae == own_folder / "vae"
        else:
            with pytest.raises(ModelError, match=says):
                source(own_folder, **options)


@pytest.mark.parametrize("kind", ["AutoencoderKLWan", "VQModel"])
def test_another_decoder_is_named_before_anything_is_done(own_folder, tmp_path, kind):
    (tmp_path / "v").mkdir()
    written(tmp_path / "v/config.json", {"_class_name": kind, "latent_channels": 4})
    with pytest.raises(ModelError, match=f"{kind} is not supported: only AutoencoderKL, AutoencoderTiny and AutoencoderDC are"):
        source(own_folder, vae=tmp_path / "v")
