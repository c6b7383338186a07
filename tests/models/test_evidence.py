"""What tensors do not show of a model is said, noted by its training or published, or asked for; never guessed in silence."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers import case
from safetensors.numpy import load_file, save_file

from l2c_export.artefact import store, user_weights
from l2c_export.cli import main
from l2c_export.errors import ModelError
from l2c_export.ir.inputs import class_labels, guided
from l2c_export.models import dit, layers, lookup, uvit
from l2c_export.models.dit import DiT
from l2c_export.models.uvit import UViT
from l2c_export.weights.checkpoint import Checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = {"input_size": 8, "hidden_size": 64, "depth": 2, "num_heads": 4, "num_classes": 10}
TINY_U = {"img_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 4}


def checkpoint(arch, name="w.pt", drop=(), add=(), **args):
    """What a checkpoint of this architecture shows, and what its training noted; it has no numbers."""
    shapes = (DiT if isinstance(arch, dit.DiTArch) else UViT)(arch).tensors()
    shapes = {n: s for n, s in shapes.items() if n not in drop} | dict.fromkeys(add, (4, 4))
    return Checkpoint(Path(name), shapes, np.zeros, args)


def arch_of(weights, model=None):
    return lookup.resolve(model, None, None, weights).family.arch


def refused(weights, model=None):
    with pytest.raises(ModelError) as caught:
        lookup.resolve(model, None, None, weights)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def described(tmp_path):
    """A file for `--model`."""

    def write(family, **arch):
        (tmp_path / "m.json").write_text(json.dumps({"family": family, "arch": arch}))
        return str(tmp_path / "m.json")

    return write


# evidence


@pytest.mark.parametrize("heads", [1, 4, 16])
def test_what_the_training_noted_is_taken(heads):
    true = dit.DiTArch(**{**TINY, "num_heads": heads})
    weights = checkpoint(true, model="DiT-T/2", num_heads=heads, num_classes=10, image_size=64)
    assert arch_of(weights) == true
    assert lookup.resolve(None, None, None, weights).assumed == ()


@pytest.mark.parametrize(("said", "labels", "null"), [({"num_classes": 10}, 10, 10), ({"num_classes": 11}, 11, None),
                                                      ({"class_dropout_prob": 0}, 11, None),
                                                      ({"class_dropout_prob": 0.2}, 10, 10)])  # fmt: skip
@pytest.mark.parametrize("noted", [True, False], ids=["noted", "said"])
def test_a_table_of_eleven_rows_is_what_somebody_says(said, labels, null, noted, described):
    weights = checkpoint(dit.DiTArch(**TINY), **({"num_heads": 4, **said} if noted else {}))
    model = None if noted else described("dit", num_heads=4, **said)
    family = lookup.resolve(model, None, None, weights).family
    assert family.inputs == (class_labels(labels, null),)
    assert family.tensors() == weights.shapes


def test_a_table_that_nobody_can_have_is_refused(described):
    for said in ({"num_classes": 9}, {"num_classes": 12}, {"num_classes": 10, "class_dropout_prob": 0}):
        weights = checkpoint(dit.DiTArch(**TINY))
        assert "contradict the weights, whose class table has 11 rows" in refused(
            weights, described("dit", num_heads=4, **said)
        )
        assert "whose class table has 11 rows" in refused(checkpoint(dit.DiTArch(**TINY), num_heads=4, **said))


@pytest.mark.parametrize(("true", "asked"), [
    (dit.DiTArch(**TINY), {"NUM_HEADS": 4, "NUM_CLASSES": 10}),
    (dit.DiTArch(**{**TINY, "class_dropout_prob": 0.0}), {"NUM_HEADS": 4, "NUM_CLASSES": 10}),
    (dit.DiTArch(**{**TINY, "num_classes": 1000}), {"NUM_HEADS": 4}),
    (dit.DiTArch(hidden_size=384, depth=2, num_heads=6, mlp_ratio=2.0), {"NUM_HEADS": 6}),
    (dit.DiTArch(hidden_size=1152, depth=28, num_classes=5), {"NUM_CLASSES": 5}),
    (dit.DiTArch(hidden_size=1152, depth=28, class_dropout_prob=0.0), {"NUM_CLASSES": 1000}),
    (uvit.UViTArch(**TINY_U), {"NUM_HEADS": 4}),
    (uvit.UViTArch(**TINY_U, num_classes=1000, null_class=False), {"NUM_HEADS": 4, "NULL_CLASS": "false"}),
    (uvit.UViTArch(**TINY_U, num_classes=11), {"NUM_HEADS": 4, "NULL_CLASS": "true"}),
    (uvit.UViTArch(**TINY_U, in_chans=3, conv=True), {"NUM_HEADS": 4, "NOISE_SCHEDULE": '"stable-diffusion"'}),
], ids=range(10))  # fmt: skip
def test_what_is_missing_is_asked_for_with_the_line_that_says_it(true, asked, tmp_path):
    said = refused(checkpoint(true))
    line = re.search(r'\{"family".*\}\}', said)[0]
    assert set(re.findall(r"\b[A-Z]+_[A-Z]+\b", line)) == set(asked)
    for name, value in asked.items():
        line = line.replace(name, str(value))
    (tmp_path / "m.json").write_text(line)
    answered = lookup.resolve(str(tmp_path / "m.json"), None, None, checkpoint(true))
    assert answered == (answered.family, None, ())
    assert answered.family.arch == true


@pytest.mark.parametrize("name", ["DiT-S/2", "DiT-B/4", "DiT-L/8", "DiT-XL/2", "DiT-XL/2@512", "U-ViT-S/2", "U-ViT-H/2",
                                  "U-ViT-L/4@512"])  # fmt: skip
def test_a_published_checkpoint_needs_no_words(name):
    true = lookup.resolve(name, None, None, None).family.arch
    resolution = lookup.resolve(None, None, None, checkpoint(true))
    assert resolution.family.arch == true
    assert [("SiT" in assumption) for assumption in resolution.assumed] == ([True] if name.startswith("DiT") else [])
    assert lookup.resolve(name, None, None, checkpoint(true))[1:] == (name, ())


def test_a_fine_tune_of_a_published_name_is_marked():
    weights = checkpoint(dit.DiTArch(num_classes=10))
    resolved = lookup.resolve("DiT-XL/2", None, None, weights)
    assert (resolved.family.inputs, resolved.name) == ((class_labels(10, 10),), None)
    assert [
        "num_classes 10, as is usual" in assumption and "last of its 11 class embeddings" in assumption
        for assumption in resolved.assumed
    ] == [True]
    assert not guided(lookup.resolve("DiT-XL/2", None, None, weights._replace(args={"num_classes": 11})).family.inputs)


def test_what_a_router_alone_says_is_marked():
    resolved = lookup.resolve(None, "dit", 56, None)
    assert resolved.name == "DiT-XL/2"
    assert resolved.assumed == ("the model DiT-XL/2, which has the router's 56 columns",)


def test_the_user_is_believed_before_the_training(described):
    weights = checkpoint(dit.DiTArch(**TINY), model="DiT-S/2", num_heads=8, num_classes=11)
    assert arch_of(weights, described("dit", num_heads=4, num_classes=10)) == dit.DiTArch(**TINY)


# contradictions


@pytest.mark.parametrize(("args", "says"), [
    ({"model": "DiT-S/2"}, r"noted \(depth 12, hidden_size 384\) contradicts the tensors of it \(depth 2, hidden_size 64\)"),
    ({"hidden_size": 128}, r"hidden_size 128.*hidden_size 64"), ({"learn_sigma": False}, "learn_sigma False.*learn_sigma True"),
    ({"image_size": 128}, "image_size 128, its latents are 8 x 8"), ({"model": "MDTv2_S_2"}, "neither DiT nor U-ViT"),
    ({"mlp_ratio": 2.0}, "mlp_ratio 2.0.*mlp_ratio 4.0"), ({"model": {"patch_size": 4}}, "patch_size 4.*patch_size 2"),
])  # fmt: skip
def test_a_training_that_contradicts_its_tensors_is_refused(args, says):
    assert re.search(says, refused(checkpoint(dit.DiTArch(**TINY), **{"num_heads": 4, "num_classes": 10, **args})))


@pytest.mark.parametrize(("name", "other", "says"), [
    ("DiT-XL/2", dit.DiTArch(**TINY),
     r"'DiT-XL/2' \(depth 28, hidden_size 1152\) contradicts the w.pt \(depth 2, hidden_size 64\)"),
    ("DiT-XL/2", dit.DiTArch(patch_size=4), "patch_size 2.*patch_size 4"),
    ("DiT-XL/2@512", dit.DiTArch(), "input_size 64.*input_size 32"),
    ("U-ViT-H/2", uvit.UViTArch(depth=20), "depth 28.*depth 20"),
    ("DiT-XL/2", uvit.UViTArch(), "there is no 'x_embedder.proj.weight'"),
])  # fmt: skip
def test_weights_that_are_not_of_the_named_model_are_refused(name, other, says):
    assert re.search(says, refused(checkpoint(other), name))


def test_a_name_leaves_pictures_channels_and_classes_open():
    true = dit.DiTArch(input_size=8, in_channels=16, learn_sigma=False)
    assert arch_of(checkpoint(true), "DiT-XL/2") == true


# predictions


SIT = {"model": "SiT-XL/2", "path_type": "Linear", "prediction": "velocity", "num_classes": 1000}
COSINE, SCORE = {**SIT, "path_type": "GVP"}, {**SIT, "prediction": "score"}
REPA = {"model": "REPA-SiT-B/2", "path_type": "linear", "prediction": "v"}  # whose velocity is the other way around


@pytest.mark.parametrize("args", [SIT, {"path_type": "Linear"}, {"prediction": "velocity"}, {"model": "SiT-XL/2"}, COSINE,
                                  SCORE, REPA], ids=str)  # fmt: skip
def test_flow_matching_of_a_dit_is_refused_by_name_whatever_else_is_said(args, described):
    for model in ("DiT-XL/2", described("dit"), *((None,) if args != SIT else ())):
        said = refused(checkpoint(dit.DiTArch(), **args), model)
        assert "flow matching is not supported yet" in said
        assert all(repr(value) in said for key, value in args.items() if key in ("model", "path_type", "prediction"))


def test_a_sit_is_known_by_all_that_its_training_noted():
    resolution = lookup.resolve(None, None, None, checkpoint(dit.DiTArch(), **SIT))
    assert (resolution.family.name, resolution.family.arch, resolution.assumed) == ("sit", dit.DiTArch(), ())


@pytest.mark.parametrize("args", [COSINE, SCORE, {"path_type": "Cosine"}, {"model": "DiT-XL/2"}], ids=str)
def test_what_contradicts_a_sit_is_refused(args, described):
    for model in ("SiT-XL/2", described("sit")):
        said = refused(checkpoint(dit.DiTArch(), **args), model)
        assert all(repr(value) in said for key, value in args.items() if SIT.get(key) != value)


def test_a_name_says_that_it_is_a_sit():
    for args in ({}, {"model": "SiT-XL/2"}, {"num_classes": 1000}, SIT):
        resolution = lookup.resolve("SiT-XL/2", None, None, checkpoint(dit.DiTArch(), "SiT-XL-2-256x256.pt", **args))
        assert (resolution.family.name, resolution.name, resolution.assumed) == ("sit", "SiT-XL/2", ())


def test_a_sit_is_known_by_its_files_name():
    assert "a SiT by its name" in refused(checkpoint(dit.DiTArch(), "SiT-XL-2-256x256.pt"))
    for name in ("site-a.pt", "transit.pt", "visit-2.pt"):
        assert arch_of(checkpoint(dit.DiTArch(), name)) == dit.DiTArch()
    assert arch_of(checkpoint(dit.DiTArch(), "sit.pt", model="DiT-XL/2", num_classes=1000)) == dit.DiTArch()


@pytest.mark.parametrize("option", [{"prediction": "x0"}, {"predict_xstart": True}, {"noise_schedule": "cosine"},
                                    {"diffusion_steps": 4000}, {"qk_norm": True}], ids=str)  # fmt: skip
def test_other_trainings_are_refused_by_their_option(option):
    ((key, value),) = option.items()
    assert f"(its training noted {key} {value!r})" in refused(checkpoint(dit.DiTArch(), **option))


@pytest.mark.parametrize("option", [{"prediction": "noise"}, {"predict_xstart": False}, {"noise_schedule": "linear"},
                                    {"path_type": None}, {"diffusion_steps": 1000}, {"model": 3}, {"num_classes": "ten"}],
                         ids=str)  # fmt: skip
def test_options_that_are_as_usual_or_nonsense_are_not(option):
    assert arch_of(checkpoint(dit.DiTArch(), **option)) == dit.DiTArch()


# U-ViTs and other models


UVITS = {
    "CIFAR-10": (checkpoint(uvit.UViTArch(32, 2, 3, 512, 12, 8, conv=True), drop=["label_emb.weight"]),
                 "(unconditional, as of"),
    "MS-COCO": (checkpoint(uvit.UViTArch(32, 2, 4, 512, 12, 8), drop=["label_emb.weight"], add=["context_embed.weight"]),
                "(text to image) is not supported"),
    "ImageNet 64": (checkpoint(uvit.UViTArch(64, 4, 3, 768, 16, 12, num_classes=1000, conv=True)),
                    "continuous VP schedule that"),
}  # fmt: skip


@pytest.mark.parametrize("kind", UVITS)
@pytest.mark.parametrize("model", [None, "U-ViT-M/4", "json"])
def test_a_kind_of_uvit_is_refused_with_its_cause(kind, model, described):
    weights, says = UVITS[kind]
    if model == "U-ViT-M/4" and kind == "CIFAR-10":
        model = "U-ViT-S/2"
    assert says in refused(weights, described("uvit") if model == "json" else model)


def test_without_weights_the_noise_schedule_of_pixels_is_marked(described):
    pixels = lookup.resolve(described("uvit", **TINY_U, in_chans=3), None, None, None)
    assert pixels.family.latent == (3, 8, 8)
    assert ["noise_schedule stable-diffusion: nothing says" in assumption for assumption in pixels.assumed] == [True]


def test_a_uvit_without_a_null_class_has_all_its_rows():
    family = UViT(uvit.UViTArch(num_classes=1000, null_class=False))
    assert family.inputs == (class_labels(1000, None),)
    assert family.tensors()["label_emb.weight"] == (1000, 1152)


@pytest.mark.parametrize(("names", "says"), [
    (["transformer_blocks.0.attn1.to_q.weight", "pos_embed.proj.weight"], "give that of the pipeline with model='FOLDER'"),
    (["double_blocks.0.img_attn.qkv.weight"], "looks like FLUX"),
    (["down_blocks.0.resnets.0.conv1.weight"], "looks like a U-Net"),
    (["unet.lora_A.weight"], "this is a LoRA"), (["w"], "this begins with w"), ([], "holds no tensors"),
])  # fmt: skip
def test_a_file_of_another_model_is_told_what_it_seems(names, says):
    said = refused(Checkpoint(Path("w.pt"), dict.fromkeys(names, (4,)), np.zeros))
    assert "w.pt: l2c-export knows DiT and U-ViT" in said
    assert says in said


def test_a_relative_of_dit_is_told_by_what_it_has_more():
    said = refused(checkpoint(dit.DiTArch(), add=["blocks.0.cross_attn.q.weight"]))
    assert "w.pt holds no dit model: blocks.0.cross_attn.q.weight is no part of one" in said


# integers


def test_every_hidden_size_of_every_width_is_kept():
    lost = 0
    for width in range(1, 2049):
        hidden = np.arange(1, 8 * width + 1) if width < 200 else np.unique(np.r_[np.arange(1, 6 * width, 61), 4 * width])
        for h in hidden.tolist():
            lost += int(width * (h / width)) != h
            assert layers.mlp_width(width, layers.mlp_ratio(width, h)) == h
    assert lost > 1000, "the quotient alone is not enough"


def test_a_hidden_size_that_a_quotient_loses_is_compiled(described):
    width, hidden = next((w, h) for w in range(32, 400, 4) for h in range(w, 8 * w) if int(w * (h / w)) != h)
    true = dit.DiTArch(**{**TINY, "hidden_size": width, "mlp_ratio": layers.mlp_ratio(width, hidden)})
    for said in ({}, {"mlp_ratio": hidden / width}, {"mlp_ratio": round(hidden / width, 3)}):
        family = lookup.resolve(described("dit", num_heads=4, num_classes=10, **said), None, None, checkpoint(true)).family
        assert family.tensors()["blocks.0.mlp.fc1.weight"] == (hidden, width)


def test_a_ratio_of_a_description_is_that_of_the_training_script():
    assert DiT(dit.DiTArch(hidden_size=110, num_heads=1, mlp_ratio=2.3)).tensors()["blocks.0.mlp.fc1.weight"] == (
        int(110 * 2.3),
        110,
    )


# what is printed and kept


def invoke(*words):
    done = CliRunner().invoke(main.l2c, [*map(str, words)])
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    return done


@pytest.fixture(scope="module")
def noted(tmp_path_factory):
    """The weights of a recorded case as its training would have saved them."""
    chosen, folder = case("dit_tiny_odd_resetN"), tmp_path_factory.mktemp("noted")
    state = {name: torch.from_numpy(value) for name, value in load_file(chosen.path / "model.safetensors").items()}
    args = argparse.Namespace(model="DiT-T/2", num_classes=10, num_heads=2, image_size=64)
    torch.save({"ema": state, "args": args}, folder / "0050000.pt")
    torch.save({"ema": state, "args": argparse.Namespace(num_classes=10, num_heads=2)}, folder / "unnamed.pt")
    torch.save({"ema": state, "args": argparse.Namespace(num_classes=10, num_heads=4)}, folder / "other.pt")
    torch.save({"ema": state, "args": argparse.Namespace(**SIT)}, folder / "flow.pt")
    return folder, chosen


def test_a_noted_checkpoint_compiles_to_what_was_recorded(noted, tmp_path):
    """The reference's own trajectory decides."""
    folder, chosen = noted
    words = ["--schedule", chosen.path / "router.pt", "--weights", folder / "0050000.pt", "--out", tmp_path / "e", "--batch", 2]
    done = invoke("export", *words, "--backend", "onnxruntime")
    assert "dit, 3 x 32, 2 heads, 10 classes + null, pictures of 64 x 64, latents 4 x 8 x 8\n" in done.stderr
    assert "assumed" not in done.stderr
    assert store.read(tmp_path / "e").denoiser.assumed is msgspec.UNSET
    checked = invoke("verify", tmp_path / "e", "--golden", chosen.path)
    assert checked.exit_code == 0, checked.stderr
    assert "assumed" not in checked.stderr


def test_an_assumption_is_printed_kept_and_repeated(noted, tmp_path):
    folder, chosen = noted
    words = ["--schedule", chosen.path / "router.pt", "--weights", folder / "unnamed.pt", "--out", tmp_path / "e"]
    marked = "assumed: that it predicts noise, as a DiT does"
    assert marked in invoke("export", *words, "--dry-run").stderr
    assert marked in invoke("export", *words, "--backend", "onnxruntime").stderr
    assert len(store.read(tmp_path / "e").denoiser.assumed) == 1
    checked = invoke("verify", tmp_path / "e")
    assert marked in checked.stderr
    assert "if that is wrong, so are both" in checked.stderr
    assert len(json.loads(invoke("verify", tmp_path / "e", "--json").stdout)["setting"]["assumed"]) == 1
    assert (
        "assumed when it was compiled: that it predicts"
        in invoke("link", tmp_path / "e", "--weights", folder / "0050000.pt").stderr
    )


def test_weights_of_a_training_that_contradicts_the_artefact_are_not_bound(noted, tiny, tmp_path):
    folder, _ = noted
    manifest = store.read(tiny[0])
    assert dict(user_weights.tensors(folder / "0050000.pt", manifest)).keys() == dict(manifest.denoiser.tensors).keys()
    with pytest.raises(ModelError, match="noted num_heads 4, the artefact has 2"):
        user_weights.tensors(folder / "other.pt", manifest)
    with pytest.raises(ModelError, match="flow matching is not supported yet"):
        user_weights.tensors(folder / "flow.pt", manifest)


def test_weights_that_do_not_fit_are_refused_before_anything_is_compiled(noted, tmp_path):
    _, chosen = noted
    tensors = load_file(chosen.path / "model.safetensors")
    save_file({**tensors, "pos_embed": tensors["pos_embed"][:, :4]}, tmp_path / "w.safetensors")
    words = [
        "--schedule",
        chosen.path / "router.pt",
        "--model",
        chosen.path / "config.json",
        "--weights",
        tmp_path / "w.safetensors",
    ]
    done = invoke("export", *words, "--dry-run")
    assert done.exit_code == 1
    assert done.stderr.endswith("pos_embed has shape [1, 4, 32], the model needs [1, 16, 32]: give the weights of this model\n")
