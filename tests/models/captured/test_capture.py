"""Capturing: what is found in a module, from its configuration alone, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import diffusers
import msgspec
import prompted
import pytest
import torch
from prompted import PIPELINES, STEPS, TOKENS

from l2c_export.compiler.request import Options
from l2c_export.compiler.source import resolve
from l2c_export.errors import L2CError, ModelError, WeightsError
from l2c_export.ir.graph import Primitive
from l2c_export.models import families
from l2c_export.models.captured import adapters, family, joined, selfcheck
from l2c_export.models.captured.pieces import PieceCall

pytestmark = pytest.mark.usefixtures("one_thread")


def arch(folder, **sizes):
    config = json.loads((folder / "transformer" / "config.json").read_text())
    shape = {name: value for name, value in config.items() if not name.startswith("_")}
    return {"model": config["_class_name"], "config": json.dumps(shape), "height": 8, "width": 8, "tokens": TOKENS, **sizes}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("folders")
    return {name: PIPELINES[name].folder(root / name) for name in PIPELINES}


@pytest.mark.parametrize(("name", "kind"), [
    ("pixart", "pixart"), ("sd3", "sd3"), ("sd35", "sd3"), ("flux", "flux"), ("auraflow", "auraflow"), ("sana", "sana"),
    ("qwenimage", "qwenimage"),
])  # fmt: skip
def test_every_sublayer_is_a_module_of_diffusers(folders, name, kind):
    model = families.build(kind, arch(folders[name]))
    modules = dict(
        getattr(diffusers, arch(folders[name])["model"]).from_pretrained(folders[name] / "transformer").named_modules()
    )
    assert set(model.sublayers) <= modules.keys()
    assert len(model.sublayers) == adapters.ADAPTERS[kind].sublayers(json.loads(arch(folders[name])["config"]))


def test_joined_streams_are_one_sublayer_of_two_values(folders):
    steps = [s for s in families.build("flux", arch(folders["flux"])).pieces.steps if isinstance(s, PieceCall)]
    assert [len(s.outputs) for s in steps if s.name.endswith(".attn")] == [2, 2]


def test_equal_blocks_are_one_kind(folders):
    steps = [s for s in families.build("pixart", arch(folders["pixart"])).pieces.steps if isinstance(s, PieceCall) and s.cached]
    assert {s.op for s in steps} == {"attn1", "attn2", "ff"}


def test_weights_are_those_of_the_checkpoint(folders):
    """And what no checkpoint holds follows from the configuration."""
    model = families.build("pixart", arch(folders["pixart"]))
    module = diffusers.PixArtTransformer2DModel.from_pretrained(folders["pixart"] / "transformer")
    stored = {n: shape for n, shape in model.pieces.stored.items() if not n.startswith("derived.")}
    assert stored == {n: tuple(values.shape) for n, values in module.state_dict().items() if n in stored}
    (derived,) = (value for value in model.pieces.derived.values())
    assert torch.equal(torch.from_numpy(derived), dict(module.named_buffers())["pos_embed.pos_embed"])


def test_an_unexpected_number_of_sublayers_is_refused(folders, monkeypatch):
    adapter = replace(adapters.PIXART, sublayers=lambda config: 7)
    monkeypatch.setitem(adapters.ADAPTERS, "pixart", adapter)
    with pytest.raises(ModelError, match="9 sublayers were found where there are 7"):
        families.build("pixart", arch(folders["pixart"], tokens=3))


def test_what_is_not_the_modules_own_value_is_refused(folders):
    shape = arch(folders["pixart"])
    config = json.loads(shape["config"])
    model = families.build("pixart", shape)
    body = model.pieces.bodies["ff"]
    other = tuple(msgspec.structs.replace(p, op="gelu") if p.op == "gelu_tanh" else p for p in body.primitives)
    wrong = {**model.pieces.bodies, "ff": replace(body, primitives=other)}
    module = family.build(shape["model"], config)
    with pytest.raises(ModelError, match=r"blocks.0.ff as it was captured differs from the module's, by \d\.\de-0\d of its"):
        selfcheck.check(module, adapters.pixart, replace(model.pieces, bodies=wrong), model.latent, model.inputs)


def test_an_operation_without_a_primitive_is_refused_by_name(folders, monkeypatch):
    def call(*positional, **named):
        return torch.cumsum(adapters.pixart(*positional, **named), 1)

    monkeypatch.setitem(adapters.ADAPTERS, "pixart", replace(adapters.PIXART, call=call))
    with pytest.raises(ModelError, match=r"aten\.cumsum\.default in .*: no primitive does this: it cannot be captured"):
        families.build("pixart", arch(folders["pixart"], tokens=2))


def test_a_configuration_that_makes_no_model_is_refused(folders):
    shape = arch(folders["pixart"])
    config = json.dumps({**json.loads(shape["config"]), "norm_type": "none"})
    with pytest.raises(ModelError, match="PixArtTransformer2DModel: its configuration makes no model"):
        families.build("pixart", {**shape, "config": config})


def options(folder, **others):
    return Options(
        **{"schedule": "every:2", "steps": STEPS, "model": str(folder), "tokens": TOKENS, "size": (64, 64), **others}
    )


@pytest.mark.parametrize(("others", "problem"), [
    ({"size": (60, 64)}, r"size=\(60, 64\): height and width are pixels, and multiples of 8"),
    ({"tokens": 0}, "tokens=0: must be at least 1"),
    ({"sampler": "DDIMScheduler"}, "DDIMScheduler is not supported: use one of FlowMatchEulerDiscreteScheduler"),
])  # fmt: skip
def test_what_cannot_be_compiled_is_refused(folders, others, problem):
    with pytest.raises(L2CError, match=problem):
        resolve(options(folders["sd3"], **others))


def test_weights_of_another_depth_are_refused(folders, tmp_path):
    for layers, problem in [(2, "transformer_blocks.2.attn1.to_k.bias is missing"), (4, "is not part of the model")]:
        other = prompted.pixart(tmp_path / str(layers), layers)
        with pytest.raises(WeightsError, match=problem):
            resolve(options(folders["pixart"], weights=str(other / "transformer")))


def test_products_of_one_input_are_one(folders):
    """With the weights of all, in the order of what they make."""
    model = families.build("pixart", arch(folders["pixart"]))
    attn1 = [p for p in model.pieces.bodies["attn1"].primitives if p.op == "linear"]
    assert [dict(p.attributes)["parts"] for p in attn1] == [3, 1]
    name = "transformer_blocks.1.attn1.to_q+to_k+to_v.weight"
    assert model.pieces.joined[name] == tuple(f"transformer_blocks.1.attn1.{part}.weight" for part in ("to_q", "to_k", "to_v"))
    checkpoint = resolve(options(folders["pixart"])).checkpoint
    module = diffusers.PixArtTransformer2DModel.from_pretrained(folders["pixart"] / "transformer")
    attn = module.transformer_blocks[1].attn1
    rows = torch.cat([attn.to_q.weight, attn.to_k.weight, attn.to_v.weight])
    assert torch.equal(torch.from_numpy(checkpoint.read(name).copy()), rows)


def test_a_weight_that_is_read_twice_stays_alone():
    x, weight = Primitive("linear", (("parts", 1),), ("i0", "i1"), ("a",)), {"i1": ("w",)}
    twice = [x, Primitive("linear", (("parts", 1),), ("i0", "i1"), ("b",))]
    assert joined.joined(twice, weight, {"w": (4, 4)}) == (tuple(twice), weight)
    other = [x, Primitive("linear", (("parts", 1),), ("i0", "i2"), ("b",))]
    weights = {"i1": ("w",), "i2": ("v",)}
    assert joined.joined(other, weights, {"w": (4, 4), "v": (8, 4)}) == (tuple(other), weights)
    (one,), left = joined.joined(other, weights, {"w": (4, 4), "v": (4, 4)})
    assert (one.outputs, left) == (("a", "b"), {"i1": ("w", "v")})


@pytest.mark.parametrize(("version", "remedy"), [
    ("2.11.0+cu130", "check size and tokens, or use PyTorch 2.13 instead of 2.11.0+cu130"),
    ("2.13.0+cpu", "check size and tokens"), ("2.14.0a0+git1", "check size and tokens"),
])  # fmt: skip
def test_an_older_pytorch_is_named_where_it_cannot_capture(folders, monkeypatch, version, remedy):
    def fails(*_, **__):
        raise ValueError("Constraints violated (R)! For more information ..")

    monkeypatch.setattr(torch.export, "export", fails)
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(ModelError, match=r"cannot be captured: ValueError: Constraints violated \(R\)") as refused:
        families.build("pixart", arch(folders["pixart"], tokens=9))
    assert str(refused.value).endswith(remedy)
