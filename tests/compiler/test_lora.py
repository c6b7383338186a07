"""LoRAs that are merged into stored weights, against diffusers' own models that peft has fused, and against the definition."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path

import diffusers
import loras
import msgspec
import numpy as np
import pytest
import texts
import torch
from click.testing import CliRunner
from folders import GOLDEN, tree
from prompted import error
from safetensors.torch import load_file, save_file

import l2c_export
from l2c_export.artefact import store
from l2c_export.artefact.merged_lora import fit, merged
from l2c_export.artefact.records import WeightsRecord
from l2c_export.cli.main import l2c
from l2c_export.compiler.link import bind
from l2c_export.errors import ArtefactError, UsageError, WeightsError
from l2c_export.weights.layout import WEIGHTS, Layout, mapped, write
from l2c_export.weights.lora import open_lora
from l2c_export.weights.recipe import TensorRecord

pytestmark = pytest.mark.usefixtures("one_thread")
PLAIN = "diffusion_pytorch_model.safetensors"


def linear(transformer: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """The weights of all modules that a LoRA can be for."""
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    return {name: tuple(module.weight.shape) for name, module in transformer.named_modules() if isinstance(module, kinds)}


def trained(transformer: torch.nn.Module, folder: Path) -> torch.nn.Module:
    """The transformer with two LoRAs of peft, saved in `folder`/one and /two as they are trained, fused at 0.7 and -0.4."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    scales = {"one": 0.7, "two": -0.4}
    configs = [peft.LoraConfig(r=4, lora_alpha=8, target_modules=list(linear(transformer)), init_lora_weights=False),
               peft.LoraConfig(r=3, lora_alpha=2, target_modules=r".*\.(to_q|proj|linear_1|to_out\.0)", use_rslora=True,
                               alpha_pattern={"to_q": 5}, rank_pattern={"to_q": 2}, init_lora_weights=False)]  # fmt: skip
    if hasattr(transformer, "load_lora_adapter"):  # which PixArt's has not
        for name, config in zip(scales, configs, strict=True):
            transformer.add_adapter(config, adapter_name=name)
            transformer.save_lora_adapter(folder / name, adapter_name=name)
        transformer.set_adapters(list(scales), list(scales.values()))
        transformer.fuse_lora(adapter_names=list(scales))
        transformer.unload_lora()
        return transformer
    model = peft.get_peft_model(transformer, configs[0], adapter_name="one")
    model.add_adapter("two", configs[1])
    model.save_pretrained(folder)
    for module in (module for module in model.modules() if hasattr(module, "set_scale")):
        for name, scale in scales.items():
            module.set_scale(name, scale)
    return model.merge_and_unload(adapter_names=list(scales))


@pytest.mark.parametrize("family", ["pixart", "sd3", "flux"])
def test_two_loras_of_peft_are_the_fused_pipeline(prompted_by, tmp_path, family):
    folder, out, _ = prompted_by(family)
    theirs, asked = texts.live(folder), texts.asked(family, output_type="latent")
    plain = theirs(**asked).images.numpy()
    theirs.transformer = trained(theirs.transformer, tmp_path)
    want = theirs(**texts.asked(family, output_type="latent")).images.numpy()
    engines = shutil.copytree(out, tmp_path / "out")
    with pytest.raises(UsageError, match="other weights than"):
        l2c_export.enable_l2c(theirs, engines)
    l2c_export.link(engines, lora=[f"{tmp_path / 'one'}:0.7", f"{tmp_path / 'two'}:-0.4"])
    ours = l2c_export.enable_l2c(theirs, engines)
    got = ours(**texts.asked(family, output_type="latent")).images.numpy()
    assert error(got, want) < 1e-5
    assert error(got, plain) > 1e-2
    assert not store.read(engines).fingerprint, "that was of other weights"


def test_a_lora_that_a_live_pipeline_has_loaded_and_fused(prompted_by, tmp_path):
    pytest.importorskip("peft")
    folder, out, _ = prompted_by("sd3")
    pipe = texts.live(folder)
    file = loras.saved(tmp_path / "a.safetensors", loras.factors(linear(pipe.transformer)))
    engines = shutil.copytree(out, tmp_path / "out")
    pipe.load_lora_weights(file)
    with pytest.raises(UsageError, match=r"carries an adapter such as a LoRA .* run l2c_export.link\('.*', lora='..'\)"):
        l2c_export.enable_l2c(pipe, engines)
    pipe.fuse_lora(lora_scale=0.5)
    want = pipe(**texts.asked("sd3", output_type="latent")).images.numpy()
    l2c_export.link(engines, lora=f"{file}:0.5")
    got = l2c_export.enable_l2c(pipe, engines)(**texts.asked("sd3", output_type="latent")).images.numpy()
    assert error(got, want) < 1e-5


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS)


def close(got: Path, want: Path) -> bool:
    a, b = weights_of(got), weights_of(want)
    return a.keys() == b.keys() and all(torch.allclose(a[name].float(), b[name].float(), rtol=1e-6, atol=1e-6) for name in a)


@pytest.fixture(scope="module")
def flux(prompted_by, tmp_path_factory):
    """Folder and artefact of a FLUX, and the same fused with a LoRA by definition: its file's content and its artefact."""
    folder, out, _ = prompted_by("flux")
    transformer = diffusers.FluxTransformer2DModel.from_pretrained(folder / "transformer")
    lora = loras.factors(linear(transformer), alpha=1.5)
    root = tmp_path_factory.mktemp("fused")
    transformer.load_state_dict(loras.merged(transformer.state_dict(), (lora, 0.5)))
    transformer.save_pretrained(root / "transformer")
    fused = shutil.copytree(out, root / "out")
    bind(fused, str(root / "transformer"))
    return out, lora, fused


NAMES = {
    "diffusers": loras.diffusers_name,
    "older": loras.older_name,
    "bare": lambda module, part: loras.diffusers_name(module, part).removeprefix("transformer."),
    "kohya": loras.kohya_name,
    "onetrainer": lambda module, part: loras.kohya_name(module, part, "lora_transformer_"),
    "comfy": lambda module, part: loras.diffusers_name(module, part).replace("transformer.", "diffusion_model.", 1),
}


@pytest.mark.parametrize("file", ["a.safetensors", "a.bin"])
@pytest.mark.parametrize("name", NAMES)
def test_names_of_all_trainings_and_pickles(flux, tmp_path, name, file):
    if file == "a.bin" and name not in ("older", "kohya"):
        pytest.skip("one of each is enough")
    out, lora, fused = flux
    engines = shutil.copytree(out, tmp_path / "out")
    bind(engines, None, loras=[f"{loras.saved(tmp_path / file, lora, NAMES[name])}:0.5"])
    assert close(engines, fused)
    assert store.read(engines).denoiser.weights.described == f"{PLAIN} + {file}:0.5"


def of_flux_itself(width: int) -> tuple[dict[str, loras.Factors], dict[str, loras.Factors]]:
    """A LoRA under the names of FLUX's own code, and what it is under diffusers': the rows of joined layers apart."""
    shapes = {
        "double_blocks.1.img_attn.qkv": (3 * width, width), "double_blocks.0.txt_attn.qkv": (3 * width, width),
        "double_blocks.1.img_attn.proj": (width, width), "double_blocks.0.txt_mlp.0": (4 * width, width),
        "double_blocks.0.img_mod.lin": (6 * width, width), "single_blocks.2.linear1": (7 * width, width),
        "single_blocks.0.linear2": (width, 5 * width), "single_blocks.1.modulation.lin": (3 * width, width),
        "img_in": (width, 16), "time_in.in_layer": (width, 256), "final_layer.linear": (16, width),
        "final_layer.adaLN_modulation.1": (2 * width, width),
    }  # fmt: skip
    theirs = loras.factors(shapes, seed=4, alpha=2.0)
    (qkv, context, proj, mlp, mod, one, two, three, x, time, last, shift_scale) = theirs.values()

    def rows(factors: loras.Factors, *parts: int) -> list[loras.Factors]:
        return [factors._replace(up=up) for up in torch.split(factors.up, list(parts))]

    names = {
        **dict(zip((f"transformer_blocks.1.attn.to_{n}" for n in "qkv"), rows(qkv, *[width] * 3), strict=True)),
        **dict(zip((f"transformer_blocks.0.attn.add_{n}_proj" for n in "qkv"), rows(context, *[width] * 3), strict=True)),
        **dict(zip((f"single_transformer_blocks.2.{n}" for n in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")),
                   rows(one, width, width, width, 4 * width), strict=True)),
        "transformer_blocks.1.attn.to_out.0": proj, "transformer_blocks.0.ff_context.net.0.proj": mlp,
        "transformer_blocks.0.norm1.linear": mod, "single_transformer_blocks.0.proj_out": two,
        "single_transformer_blocks.1.norm.linear": three, "x_embedder": x,
        "time_text_embed.timestep_embedder.linear_1": time, "proj_out": last,
        "norm_out.linear": shift_scale._replace(up=torch.cat(shift_scale.up.split(width)[::-1])),
    }  # fmt: skip
    return theirs, names


@pytest.mark.parametrize("name", ["kohya", "comfy"])
def test_names_of_flux_itself(prompted_by, tmp_path, name):
    out, (theirs, ours) = prompted_by("flux").out, of_flux_itself(32)
    engines = {kind: shutil.copytree(out, tmp_path / kind) for kind in ("theirs", "ours")}
    bind(engines["ours"], None, loras=[str(loras.saved(tmp_path / "ours.safetensors", ours))])
    file = loras.saved(tmp_path / "theirs.safetensors", theirs, NAMES[name])
    bind(engines["theirs"], None, loras=[str(file)])
    assert close(engines["theirs"], engines["ours"])
    # what diffusers makes of these names, of the layers whose width it does not take for granted
    known = {n: factors for n, factors in theirs.items() if n.startswith(("double", "img_in"))}
    state = diffusers.FluxPipeline.lora_state_dict(loras.saved(tmp_path / "known.safetensors", known, NAMES["kohya"]))
    for key in (key for key in state if key.endswith("lora_A.weight")):
        product = state[key.replace("lora_A", "lora_B")] @ state[key]
        module = key.removeprefix("transformer.").removesuffix(".lora_A.weight")
        assert torch.allclose(product, ours[module].product.float(), atol=1e-6)


@pytest.fixture
def file(tmp_path):
    """A LoRA of the small DiT under the reference's names, as a file, and what it adds."""
    factors = loras.factors(
        {"blocks.0.attn.qkv": (24, 8), "blocks.1.mlp.fc2": (8, 32), "x_embedder.proj": (8, 4, 2, 2)}, alpha=3.0
    )
    return loras.saved(tmp_path / "style.safetensors", factors), factors


def test_a_dit_by_the_names_of_its_reference_and_of_diffusers(copy, tmp_path, file):
    path, lora = file
    before = weights_of(copy)
    bind(copy, None, loras=[str(path)])
    want = loras.merged(before, (lora, 1.0))
    assert all(torch.allclose(tensor, want[name], atol=1e-6) for name, tensor in weights_of(copy).items())
    heads = loras.factors({f"transformer_blocks.0.attn1.to_{head}": (8, 8) for head in "qv"}, seed=2)
    bind(copy, None, loras=[str(loras.saved(tmp_path / "b.safetensors", heads))])
    q, k, v = (weights_of(copy)["blocks.0.attn.qkv.weight"] - want["blocks.0.attn.qkv.weight"]).split(8)
    assert torch.allclose(q, heads["transformer_blocks.0.attn1.to_q"].product.float(), atol=1e-6)
    assert torch.allclose(v, heads["transformer_blocks.0.attn1.to_v"].product.float(), atol=1e-6)
    assert torch.allclose(k, torch.zeros(8, 8), atol=1e-6)


def test_an_artefact_of_a_dit_pipeline_linked_and_compiled(world, tmp_path):
    transformer = diffusers.DiTTransformer2DModel.from_pretrained(world.folder / "transformer")
    lora = loras.factors({name: shape for name, shape in linear(transformer).items() if ".emb." not in name})
    path = loras.saved(tmp_path / "a.safetensors", lora)
    transformer.load_state_dict(loras.merged(transformer.state_dict(), (lora, -2.0)))
    transformer.save_pretrained(tmp_path / "fused")
    got, want = (shutil.copytree(world.compiled(), tmp_path / name) for name in ("got", "want"))
    bind(want, str(tmp_path / "fused"))
    bind(got, str(world.folder), loras=[f"{path}:-2"])
    assert close(got, want)
    bind(got, None, loras=[f"{path}:0"])
    assert store.read(got).inputs == store.read(world.compiled()).inputs, "the names of the classes stay"
    again = world.compiled(weights=str(world.folder / "transformer"), lora=(f"{path}:-2",))
    assert (again / WEIGHTS).read_bytes() == (got / WEIGHTS).read_bytes()
    assert store.read(again).denoiser.weights.described == f"{PLAIN} + a.safetensors:-2"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_sum_is_rounded_once_to_the_type_that_is_stored(tmp_path, dtype):
    tensors, kind = {"a.weight": TensorRecord((6, 4), dtype)}, getattr(torch, dtype)
    layout, base = Layout(tensors), torch.linspace(-1, 1, 24).reshape(6, 4)
    write(tmp_path / WEIGHTS, layout, [("a.weight", base.numpy())])
    denoiser = msgspec.structs.replace(store.read(GOLDEN).denoiser, tensors=tensors)
    factors = [loras.factors({"a": (6, 4)}, seed) for seed in range(2)]
    fitted = [fit(open_lora(loras.saved(tmp_path / f"{n}.safetensors", factor)), denoiser) for n, factor in enumerate(factors)]
    stored = mapped(tmp_path / WEIGHTS, tensors)("a.weight")
    write(tmp_path / "merged.safetensors", layout, merged([("a.weight", stored)], fitted))
    want = (base.to(kind).double() + sum(factor["a"].product for factor in factors)).to(kind)
    assert torch.equal(load_file(tmp_path / "merged.safetensors")["a.weight"], want)


def test_u_vit_and_loras_one_behind_the_other(pixels, tmp_path):
    lora = loras.factors({"in_blocks.0.attn.qkv": (48, 16), "out_blocks.0.skip_linear": (16, 32)})
    path, engines = loras.saved(tmp_path / "a.safetensors", lora), shutil.copytree(pixels, tmp_path / "e")
    before = weights_of(engines)
    l2c_export.link(engines, lora=f"{path}:0.25")
    l2c_export.link(engines, lora=path)
    want = loras.merged(before, (lora, 1.25))
    assert all(torch.allclose(tensor, want[name], atol=1e-6) for name, tensor in weights_of(engines).items())
    bound = store.read(engines).denoiser.weights
    assert (bound.source, bound.loras, bound.random) == ("random", ("a.safetensors:0.25", "a.safetensors"), 1)
    linked = l2c_export.link(engines, "random:1")
    assert linked.manifest.denoiser.weights == WeightsRecord(source="random", random=1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights_of(engines).items()), "begins anew"


def test_what_it_has_for_text_encoders_or_for_nothing_is_said(prompted_by, copy, file, tmp_path):
    said: list[str] = []
    texts_too = {
        f"{name}.lora_down.weight": torch.zeros(1, 2) for name in ("lora_te1_text_model_x", "text_encoder_2.a", "lora_te2_b")
    }
    held = load_file(file[0]) | texts_too
    save_file(held, tmp_path / "both.safetensors")
    bind(copy, None, said.append, loras=[f"{tmp_path / 'both.safetensors'}:0.5"])
    assert said[0] == "merging both.safetensors:0.5: 3 products into 3 tensors"
    assert said[1].startswith(
        "both.safetensors:0.5: what it has for text encoders is left out (1 tensor of lora_te1, 1 tensor of"
    )


REFUSED = [
    ({"blocks.5.attn.qkv.lora_A.weight": (2, 8), "blocks.5.attn.qkv.lora_B.weight": (24, 2)},
     "is of another model: blocks.5.attn.qkv.lora_A.weight is for no layer of this dit"),
    ({"transformer.single_transformer_blocks.0.proj_mlp.lora_A.weight": (2, 8),
      "transformer.single_transformer_blocks.0.proj_mlp.lora_B.weight": (32, 2)},
     "transformer.single_transformer_blocks.0.proj_mlp.lora_A.weight is for no layer of this dit"),
    ({"lora_unet_down_blocks_1_attentions_0_proj_in.lora_down.weight": (2, 8),
      "lora_unet_down_blocks_1_attentions_0_proj_in.lora_up.weight": (8, 2)},
     "lora_unet_down_blocks_1_attentions_0_proj_in.lora_down.weight is for no layer of this dit"),
    ({"blocks.0.attn.qkv.lora_A.weight": (2, 9), "blocks.0.attn.qkv.lora_B.weight": (24, 2)},
     r"blocks.0.attn.qkv.lora_A.weight and its twin add \[24, 9\] to blocks.0.attn.qkv.weight, which has \[24, 8\]"),
    ({"transformer_blocks.0.attn1.to_q.lora_A.weight": (2, 8), "transformer_blocks.0.attn1.to_q.lora_B.weight": (12, 2)},
     r"add \[12, 8\] to transformer_blocks.0.attn1.to_q.weight, which has \[8, 8\]"),
    ({"transformer_blocks.0.norm1.emb.timestep_embedder.linear_1.lora_A.weight": (2, 256),
      "transformer_blocks.0.norm1.emb.timestep_embedder.linear_1.lora_B.weight": (8, 2)}, "is for no layer of this dit"),
]  # fmt: skip


@pytest.mark.parametrize(("shapes", "says"), REFUSED)
def test_a_lora_of_another_model_is_refused_and_nothing_changes(copy, tmp_path, shapes, says):
    save_file({name: torch.ones(shape) for name, shape in shapes.items()}, tmp_path / "a.safetensors")
    before = tree(copy)
    with pytest.raises(WeightsError, match=says) as raised:
        l2c_export.link(copy, lora=tmp_path / "a.safetensors")
    assert "\n" not in str(raised.value)
    assert tree(copy) == before


def test_a_lora_of_another_captured_model(prompted_by, tmp_path):
    """Of a deeper one, of one of another width, of another class; what only other blocks use is not a reason."""
    engines = prompted_by("pixart").out
    for module, shape, says in (
        ("transformer_blocks.3.attn1.to_q", (48, 48), "is for no layer of this pixart"),
        ("transformer_blocks.0.attn1.to_q", (48, 64), r"add \[48, 64\] to transformer_blocks.0.attn1.to_q.weight"),
        ("transformer_blocks.0.attn.add_q_proj", (48, 48), "is for no layer of this pixart"),
    ):
        path = loras.saved(tmp_path / "a.safetensors", loras.factors({module: shape}))
        with pytest.raises(WeightsError, match=says):
            fit(open_lora(path), store.read(engines).denoiser)


def test_without_weights_there_is_nothing_to_merge_into(copy, file, tmp_path):
    with pytest.raises(UsageError, match=r"weights=.. is missing: give weights to bind, or lora=.. to merge"):
        l2c_export.link(copy)
    manifest = store.read(copy)
    (copy / WEIGHTS).write_bytes((copy / WEIGHTS).read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(ArtefactError, match=r"weights\.safetensors"):
        l2c_export.link(copy, lora=file[0])
    files = {name: info for name, info in manifest.files.items() if name not in (WEIGHTS, "fingerprint.safetensors")}
    for name in manifest.files.keys() - files.keys():
        (copy / name).unlink()
    denoiser = msgspec.structs.replace(manifest.denoiser, weights=None)
    store.write_json(
        copy / "manifest.json", msgspec.structs.replace(manifest, denoiser=denoiser, files=files, fingerprint=msgspec.UNSET)
    )
    with pytest.raises(ArtefactError, match="has no weights yet, so nothing to merge a LoRA into: give them, too"):
        l2c_export.link(copy, lora=file[0])
    l2c_export.link(copy, "random:1", lora=file[0])
    assert store.read(copy).denoiser.weights.described == "random + style.safetensors"


def test_the_command(copy, file):
    done = CliRunner().invoke(l2c, ["link", str(copy), "--lora", f"{file[0]}:0.5", "--lora", str(file[0]), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["lora"] == [f"{file[0]}:0.5", str(file[0])]
    assert store.read(copy).denoiser.weights.described == "random + style.safetensors:0.5 + style.safetensors"
    for words, says in (([], "--weights is missing"), (["--lora", f"{file[0]}:inf"], "the scale must be a finite number")):
        done = CliRunner().invoke(l2c, ["link", str(copy), *words])
        assert (done.exit_code, says in done.stderr) == (2, True), done.stderr


def test_one_tensor_at_a_time_is_in_memory(tmp_path):
    """24 tensors of 1 MB: what is allocated is a few of them."""
    tensors = {f"blocks.{n}.proj.weight": TensorRecord((512, 512), "float32") for n in range(24)}
    layout = Layout(tensors)
    write(tmp_path / WEIGHTS, layout, ((name, np.zeros((512, 512), np.float32)) for name in sorted(tensors)))
    manifest = store.read(GOLDEN)
    denoiser = msgspec.structs.replace(manifest.denoiser, tensors=tensors)
    lora = loras.factors({f"blocks.{n}.proj": (512, 512) for n in range(24)})
    fitted = [fit(open_lora(loras.saved(tmp_path / name, lora)), denoiser) for name in ("a.safetensors", "b.bin")]
    view = mapped(tmp_path / WEIGHTS, tensors)
    tracemalloc.start()
    write(tmp_path / "merged.safetensors", layout, merged(((name, view(name)) for name in sorted(tensors)), fitted))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6 * 2**20
    want = 2 * lora["blocks.7.proj"].product.float()
    assert torch.allclose(load_file(tmp_path / "merged.safetensors")["blocks.7.proj.weight"], want, atol=1e-6)
